"""Read and check input.

``files`` finds the files that an input names, ``read`` and ``dataset`` read their records, ``presets`` finds the fields
of a record, ``reader`` makes rows of them, ``check`` validates a complete input without a model, and ``ingest`` writes
the tables.
"""

from rlt_data.inputs.check import CheckReport, check
from rlt_data.inputs.ingest import ingest, recorded_inputs
from rlt_data.inputs.rows import Row

__all__ = ["CheckReport", "Row", "check", "ingest", "recorded_inputs"]
