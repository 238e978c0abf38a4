"""Run folders, on a disk or in an object store: this package alone knows what is in them and how it is written.

``run`` holds the tables of a run, ``writer`` appends rows to them, ``errorlog`` keeps the rows that failed, and
``outputs`` writes files and folders outside a run. Below them: ``manifest`` (which parts a table has), ``schemas``,
``parquet``, and ``folder``, the protocol of the two backends ``local`` and ``objects`` (with ``locks``).
"""
