"""What a signal is: named columns about traces or questions, and the function that computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from rlt_data.progress import Progress
from rlt_data.settings import CurateSettings


@dataclass(frozen=True)
class Column:
    """A column of a signal.

    Attributes:
        type: its type: Boolean, Int64, Float64 or String.
        meaning: what it says, in one line for report and card.
    """

    type: type[pl.Boolean | pl.Int64 | pl.Float64 | pl.String]
    meaning: str


#: Computes a signal. Takes frames with the key and the columns that the signal reads, one frame per part of 256
#: questions (or part of it), and yields frames with the key and the signal's columns. A signal that is not ``whole``
#: yields one frame per frame, with the same keys; a whole one reads all frames first, and may yield its rows in any
#: frames and order. The progress receives ``advance`` for the rows of each finished frame.
Compute = Callable[[Iterable[pl.DataFrame], CurateSettings, Progress], Iterator[pl.DataFrame]]


@dataclass(frozen=True)
class Signal:
    """A signal.

    Attributes:
        name: name in ``--signals``; its table is ``signal_<name>``.
        level: what a row describes. The key is ``trace_id`` or ``question_id``.
        columns: the columns, by name.
        reads: input columns. Of questions: ``question``, ``solution``, ``system``, ``question_answer`` and
            ``question_meta``. Of traces: ``explanation``, ``closed`` (whether the explanation has its closing tag) and
            all columns of the run (:func:`rlt_data.storage.rows.columns_of`).
        compute: computes the columns.
        depends_on: names of the settings whose values change the result.
        whole: whether a row depends on the other rows or on other tables, so that all are computed together.
        tables: further tables that a whole signal reads; a change of one makes the signal out of date.
        content: returns a JSON value that identifies what settings name, such as hashes of files.
        package: a package of the extra ``eval`` that some rows need.
        version: increased when the same input gives another result.
    """

    name: str
    level: Literal["trace", "question"]
    columns: Mapping[str, Column]
    reads: tuple[str, ...]
    compute: Compute
    depends_on: tuple[str, ...] = ()
    whole: bool = False
    tables: tuple[str, ...] = ()
    content: Callable[[CurateSettings], Any] | None = None
    package: str | None = None
    version: int = 1

    @property
    def key(self) -> str:
        """The key column."""
        return f"{self.level}_id"

    @property
    def sources(self) -> tuple[str, ...]:
        """The tables that a whole signal is computed from."""
        return tuple(dict.fromkeys(["questions", *(["traces"] * (self.level == "trace")), *self.tables]))
