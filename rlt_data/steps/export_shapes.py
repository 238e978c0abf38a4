"""The column layouts of distilled data sets, and the README that lets ``datasets.load_dataset`` read the folder.

A layout is a function of a row's texts; the Arrow schema follows from what it returns (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from rlt_data.errors import SettingsError, one_line
from rlt_data.plugins import SHAPES
from rlt_data.settings import DistillSettings

#: The texts of a row: the student's system text, the question, the solution, the explanation, and the assistant message
#: that the student learns to write, with the explanation and the solution in their tags.
Texts = dict[str, str]

_TEXTS = ("system", "question", "solution", "explanation", "message")


def messages(row: Texts) -> dict[str, Any]:
    """Return one list of chat messages."""
    roles = (("system", row["system"]), ("user", row["question"]), ("assistant", row["message"]))
    return {"messages": [_message(role, text) for role, text in roles]}


def prompt_completion(row: Texts) -> dict[str, Any]:
    """Return prompt and completion, two lists of chat messages."""
    return {
        "prompt": [_message("system", row["system"]), _message("user", row["question"])],
        "completion": [_message("assistant", row["message"])],
    }


def sharegpt(row: Texts) -> dict[str, Any]:
    """Return a ShareGPT conversation that begins with the system text."""
    turns = (("system", row["system"]), ("human", row["question"]), ("gpt", row["message"]))
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def bespoke(row: Texts) -> dict[str, Any]:
    """Return the columns of Bespoke-Stratos: the system text, and a conversation."""
    turns = (("user", row["question"]), ("assistant", row["message"]))
    return {"system": row["system"], "conversations": [{"from": role, "value": text} for role, text in turns]}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


#: Columns that say where a row came from.
PROVENANCE = [
    pa.field("question_id", pa.string()),
    pa.field("trace_id", pa.string()),
    pa.field("source_id", pa.string()),
    pa.field("answer", pa.string()),
    pa.field("origin", pa.string()),
    pa.field("meta", pa.string()),
    pa.field("question_meta", pa.string()),
    pa.field("rank", pa.int32()),
    pa.field("reward", pa.float64()),
    pa.field("thought_tokens", pa.int32()),
]


class ExportShape:
    """A column layout.

    Args:
        name: a built-in shape, an entry point, or ``module:function``.

    Attributes:
        schema: the layout's columns, then :data:`PROVENANCE`.

    Raises:
        SettingsError: there is no such layout, or it does not return columns.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._function: Callable[[Texts], Any] = SHAPES.load(name)
        columns = self._call({text: text for text in _TEXTS})
        try:
            self._columns = pa.Table.from_pylist([columns]).schema
        except pa.ArrowException as error:
            raise SettingsError(f"shape: {name}: returns no columns for Arrow: {one_line(error)}") from None
        provenance = {field.name for field in PROVENANCE}
        if reserved := [column for column in self._columns.names if column in provenance]:
            raise SettingsError(f"shape: {name}: every data set has a column {reserved[0]!r}; choose another name")
        self.schema = pa.schema([*self._columns, *PROVENANCE])

    def columns(self, row: Texts, trace_id: str) -> dict[str, Any]:
        """Return a row's columns.

        Args:
            row: the row's texts.
            trace_id: the trace's id, for messages.

        Raises:
            SettingsError: the layout failed on the row, or returned other columns than on other rows.
        """
        columns = self._call(row, f"trace {trace_id}: ")
        if self._name not in SHAPES.built_in:
            try:
                same = pa.Table.from_pylist([columns], self._columns).to_pylist() == [columns]
            except (pa.ArrowException, TypeError):
                same = False
            if not same:
                names = ", ".join(f"{field.name}: {field.type}" for field in self._columns)
                raise SettingsError(f"shape: {self._name}: trace {trace_id}: not the columns of other rows ({names})")
        return columns

    def _call(self, row: Texts, where: str = "") -> dict[str, Any]:
        try:
            columns = self._function(row)
        except Exception as error:  # noqa: BLE001 - the user's code
            raise SettingsError(
                f"shape: {self._name}: {where}raised {type(error).__name__}: {one_line(error)}"
            ) from error
        if not isinstance(columns, dict) or not columns or not all(isinstance(name, str) for name in columns):
            raise SettingsError(f"shape: {self._name}: {where}returned {type(columns).__name__}, not a dict of columns")
        return columns


def dataset_card(settings: DistillSettings, rows: int, digest: str) -> str:
    """Return the README.md that makes ``datasets`` read the files whose names have the hash of the rows."""
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*-{digest}.parquet
---

{rows} rows, made by `rlt-data distill --select {settings.select} --shape {settings.shape}`; `distill.json` says how.
"""
