"""Reading and checking input of every kind.

``read`` turns files, folders and Hub data sets into records with their line numbers, ``presets`` turns records of the
usual shapes into rows, ``check`` reports on a whole input without a model, and ``ingest`` writes the tables.
"""

from rlt_data.inputs.check import CheckReport, check
from rlt_data.inputs.ingest import ingest
from rlt_data.inputs.presets import Row

__all__ = ["CheckReport", "Row", "check", "ingest"]
