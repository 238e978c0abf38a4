"""Read and write run folders on a disk or in an object store. No other package depends on their layout.

``run`` locks and writes a run, ``writer`` appends rows to its tables, ``errorlog`` records failed rows, and ``outputs``
writes files and folders outside a run. ``tables`` reads the tables of a run, and ``rows`` joins them. They use
``listing`` (the files of a table, with ``manifest``, their index), ``schemas``, ``parquet``, and
``folder``, the protocol of the two backends ``local`` and ``objects`` (with ``locks``).
"""
