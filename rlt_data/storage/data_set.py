"""Which traces of a run are in the data set that ``distill`` wrote to its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from rlt_data.errors import RunFolderError
from rlt_data.storage.backends import open_folder
from rlt_data.storage.run import RunFolder

_FILE = "distill.json"
_KEYS = pa.schema([("question_id", pa.string()), ("trace_id", pa.string())])


@dataclass(frozen=True)
class DataSet:
    """The data set in RUN/dataset.

    Attributes:
        keys: ``question_id`` and ``trace_id`` of each row.
        settings: the settings of ``distill``.
        is_current: whether it was made from the current ranks of the run.
    """

    keys: pl.DataFrame
    settings: dict[str, Any]
    is_current: bool


def read_data_set(run: RunFolder) -> DataSet | None:
    """Return the data set in the folder of a run; None if there is none.

    Raises:
        RunFolderError: the data set is damaged.
    """
    folder = open_folder(run.path / "dataset")
    try:
        if not folder.exists(_FILE):
            return None
        content = json.loads(folder.read(_FILE))
        files = [f"data/{name}" for name in folder.list_files("data") if name.endswith(".parquet")]
        tables = folder.read_tables(files, _KEYS, {}, all_columns=False)
        ranks = content.get("made_from", {}).get("ranks")
        settings = dict(content["settings"])
    except (FileNotFoundError, ValueError, KeyError, AttributeError, TypeError):
        raise RunFolderError(f"{folder.path}: is incomplete or damaged; run rlt-data distill again") from None
    keys = pl.DataFrame(pa.concat_tables([_KEYS.empty_table(), *tables]))
    is_current = run.is_current("ranks") and ranks in (None, run.digest("ranks"))
    return DataSet(keys, settings, is_current)


def data_set_state(run: RunFolder) -> str | None:
    """Return a text that changes whenever the data set does; None if there is none."""
    try:
        return open_folder(run.path / "dataset").read(_FILE).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
