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

#: The texts of a row; :func:`texts_of` explains them.
Texts = dict[str, str]

_TEXTS = (
    "system",
    "user",
    "question",
    "solution",
    "explanation",
    "message",
    "content",
    "thought",
    "thought_key",
    "prompt",
    "completion",
    "rejected",
)

#: Shapes whose rows are texts in the student's chat template.
RENDERED = ("prompt-completion", "preference")


def messages(row: Texts) -> dict[str, Any]:
    """Return one list of chat messages; the thought is a field of its own where the student's template reads one."""
    assistant = _message("assistant", row["content"])
    if row["thought_key"]:
        assistant[row["thought_key"]] = row["thought"]
    system = [_message("system", row["system"])] if row["system"] else []
    return {"messages": [*system, _message("user", row["user"]), assistant]}


def prompt_completion(row: Texts) -> dict[str, Any]:
    """Return the text that is served to the student, and the text that it learns; and the messages of the prompt."""
    return {
        "prompt": row["prompt"],
        "completion": row["completion"],
        "system_text": row["system"],
        "user_text": row["user"],
    }


def sharegpt(row: Texts) -> dict[str, Any]:
    """Return a ShareGPT conversation that begins with the system text, if there is one."""
    system = [("system", row["system"])] if row["system"] else []
    turns = [*system, ("human", row["user"]), ("gpt", row["message"])]
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def bespoke(row: Texts) -> dict[str, Any]:
    """Return the columns of Bespoke-Stratos: the system text, and a conversation."""
    turns = (("user", row["user"]), ("assistant", row["message"]))
    return {"system": row["system"], "conversations": [{"from": role, "value": text} for role, text in turns]}


def preference(row: Texts) -> dict[str, Any]:
    """Return the served prompt with a chosen and a rejected answer, and its messages for trainers that render them."""
    return {
        "prompt": row["prompt"],
        "chosen": row["message"],
        "rejected": row["rejected"],
        "system_text": row["system"],
        "user_text": row["user"],
    }


def privileged(row: Texts) -> dict[str, Any]:
    """Return the messages of the prompt, and the solution, which only the teacher of a self-distillation reads."""
    system = [_message("system", row["system"])] if row["system"] else []
    return {"prompt": [*system, _message("user", row["user"])], "privileged_context": row["solution"]}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


#: Columns that say where a row came from.
PROVENANCE = [
    pa.field("question_id", pa.string()),
    pa.field("trace_id", pa.string()),
    pa.field("source_id", pa.string()),
    pa.field("final_answer", pa.string()),  # trainers read a column `answer` as the response
    pa.field("origin", pa.string()),
    pa.field("meta", pa.string()),
    pa.field("question_meta", pa.string()),
    pa.field("rank", pa.int64()),  # as JSON loaders infer it
    pa.field("reward", pa.float64()),
    pa.field("thought_tokens", pa.int64()),
]

#: What the columns of the built-in layouts mean, in one line; :mod:`rlt_data.storage.columns` has the other columns.
MEANINGS = {
    "messages": "conversation to train on: system prompt, question, and the assistant's turn, which has the "
    "explanation as its thought and then the solution",
    "prompt": "what is served to the student: system prompt and question as messages, or as text in its chat template "
    "with the generation prompt",
    "privileged_context": "the solution, which a model that teaches itself reads as the teacher and not as the student",
    "completion": "text that the student learns: the explanation as its thought, the solution, and the end of the turn",
    "chosen": "the better answer: the explanation as its thought, then the solution",
    "rejected": "a worse answer to the same question",
    "system_text": "system prompt, for trainers that render the conversation themselves",
    "user_text": "the user's message, for trainers that render the conversation themselves",
    "final_answer": "short final answer, if the input has one",
    "conversations": "conversation to train on: question, and the assistant's turn, which has the explanation as its "
    "thought and then the solution",
    "system": "system prompt",
}


class ExportShape:
    """A column layout.

    Args:
        name: a built-in shape, an entry point, or ``module:function``.
        thought_key: key of the thought in messages, if the student's template reads one.

    Attributes:
        schema: the layout's columns, then :data:`PROVENANCE`.

    Raises:
        SettingsError: there is no such layout, or it does not return columns.
    """

    def __init__(self, name: str, thought_key: str = "") -> None:
        self._name = name
        self._function: Callable[[Texts], Any] = SHAPES.load(name)
        columns = self._call({text: text for text in _TEXTS} | {"thought_key": thought_key})
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


def dataset_card(settings: DistillSettings, rows: int, held_out: int, digest: str) -> str:
    """Return the README.md that makes ``datasets`` read the files whose names have the hash of the rows."""
    test = f"\n  - split: test\n    path: data/test-*-{digest}.parquet" if held_out else ""
    counted = f"{rows} rows ({held_out} of them in the split test)" if held_out else f"{rows} rows"
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*-{digest}.parquet{test}
---

{counted}, made by `rlt-data distill --select {settings.select} --shape {settings.shape}`; `distill.json` says how.
"""
