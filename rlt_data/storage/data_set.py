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
        is_current: whether it was made from the current ranks and signals of the run.
        funnel: what each condition dropped, with the keys of FunnelStep; empty for data sets of earlier versions.
    """

    keys: pl.DataFrame
    settings: dict[str, Any]
    is_current: bool
    funnel: list[dict[str, Any]]


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
        made_from = dict(content.get("made_from", {}))
        settings = dict(content["settings"])
        funnel = list(content.get("funnel", []))
    except (FileNotFoundError, ValueError, KeyError, AttributeError, TypeError):
        raise RunFolderError(f"{folder.path}: is incomplete or damaged; run rlt-data distill again") from None
    keys = pl.DataFrame(pa.concat_tables([_KEYS.empty_table(), *tables]))
    return DataSet(keys, settings, run.is_current("ranks") and not run.changed(made_from), funnel)


def data_set_state(run: RunFolder) -> str | None:
    """Return a text that changes whenever the data set does; None if there is none."""
    try:
        return open_folder(run.path / "dataset").read(_FILE).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
