"""Signals: what checks find about traces and questions, one module each. Rows in, columns out; no models, no storage."""
