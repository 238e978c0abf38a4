"""Read and write run folders on a disk or in an object store. No other package depends on their layout.

``run`` reads and writes the tables of a run, ``writer`` appends rows to them, ``errorlog`` records failed rows, and
``outputs`` writes files and folders outside a run. They use ``manifest`` (the index of a table's parts), ``schemas``,
``parquet``, and ``folder``, the protocol of the two backends ``local`` and ``objects`` (with ``locks``).
"""
