"""The column layouts of distilled data sets, and the few lines that let ``datasets.load_dataset`` read the folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from rlt_data.settings import DistillSettings

_Shape = Callable[[str, str, str], dict[str, Any]]


def _messages(system: str, question: str, message: str) -> dict[str, Any]:
    return {"messages": [_turn("system", system), _turn("user", question), _turn("assistant", message)]}


def _prompt_completion(system: str, question: str, message: str) -> dict[str, Any]:
    return {
        "prompt": [_turn("system", system), _turn("user", question)],
        "completion": [_turn("assistant", message)],
    }


def _sharegpt(system: str, question: str, message: str) -> dict[str, Any]:
    turns = (("system", system), ("human", question), ("gpt", message))
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def _bespoke(system: str, question: str, message: str) -> dict[str, Any]:
    turns = (("user", question), ("assistant", message))
    return {"system": system, "conversations": [{"from": role, "value": text} for role, text in turns]}


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


#: Makes a row's columns of system text, question and the assistant's text.
SHAPES: dict[str, _Shape] = {
    "messages": _messages,
    "prompt-completion": _prompt_completion,
    "sharegpt": _sharegpt,
    "bespoke": _bespoke,
}

_CHAT = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_TURNS = pa.list_(pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())]))

_COLUMNS = {
    "messages": [pa.field("messages", _CHAT)],
    "prompt-completion": [pa.field("prompt", _CHAT), pa.field("completion", _CHAT)],
    "sharegpt": [pa.field("conversations", _TURNS)],
    "bespoke": [pa.field("system", pa.string()), pa.field("conversations", _TURNS)],
}

#: Columns that say where a row came from.
PROVENANCE = [
    pa.field("question_id", pa.string()),
    pa.field("trace_id", pa.string()),
    pa.field("source_id", pa.string()),
    pa.field("answer", pa.string()),
    pa.field("meta", pa.string()),
    pa.field("rank", pa.int32()),
    pa.field("reward", pa.float64()),
    pa.field("thought_tokens", pa.int32()),
]


def schema_of(shape: str) -> pa.Schema:
    """Return the Arrow schema of a shape: its own columns, then where the row came from."""
    return pa.schema([*_COLUMNS[shape], *PROVENANCE])


def dataset_card(settings: DistillSettings, rows: int, digest: str) -> str:
    """Return a README.md that tells ``datasets`` which files to read: those with the hash of the rows."""
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*-{digest}.parquet
---

{rows} rows, made by `rlt-data distill --select {settings.select} --shape {settings.shape}`; `distill.json` says how.
"""
