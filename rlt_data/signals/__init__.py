"""Signals: what checks find about traces and questions, one module each, and expressions over all columns of a run.

``base`` says what a signal is, ``registry`` lists the built-in ones, ``choose`` finds those of a call, ``own`` makes
those of users, ``expressions`` evaluates conditions and values, ``funnel`` counts what conditions drop, and
``matching`` finds the traces of ``--where``.
"""
