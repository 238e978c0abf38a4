"""Read and check input.

``read`` turns files, folders and Hub data sets into records with line numbers, ``presets`` turns records of the common
layouts into rows, ``check`` validates a complete input without a model, and ``ingest`` writes the tables.
"""

from rlt_data.inputs.check import CheckReport, check
from rlt_data.inputs.ingest import ingest, recorded_inputs
from rlt_data.inputs.rows import Row

__all__ = ["CheckReport", "Row", "check", "ingest", "recorded_inputs"]
