"""Worked outcomes: one folder each, with its configuration and its figures."""
