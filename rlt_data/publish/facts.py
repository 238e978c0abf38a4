"""The facts on the card of a data set, read from the files of the push and the tables of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from rlt_data.inputs import recorded_inputs
from rlt_data.publish.card import Licence
from rlt_data.publish.redact import redact_paths
from rlt_data.publish.tables import Config
from rlt_data.statistics import Stats
from rlt_data.steps.makers import makers_of
from rlt_data.storage.rows import read_rows
from rlt_data.storage.run import RunFolder

#: Names of input columns that say whether a trace is correct.
_CORRECT = ("correct", "is_correct", "correctness", "correctness_math_verify")


@dataclass(frozen=True)
class DatasetFacts:
    """The facts on a data set's card.

    Attributes:
        name: the repository, ``ORG/NAME``.
        title: the title of the data set.
        configs: its configurations.
        distilled: the content of distill.json.
        stats: the statistics of the run; None without the run.
        licence: the licence that the publisher declares.
        language: the languages that the publisher declares.
        samples: the best and the worst trace, each with question, solution, completion, reward and length.
        images: paths of the plots in the repository.
    """

    name: str
    title: str
    configs: Sequence[Config]
    distilled: Mapping[str, Any]
    stats: Stats | None = None
    licence: Licence = None
    language: Sequence[str] = ()
    samples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    images: Sequence[str] = ()

    @property
    def steps(self) -> dict[str, Any]:
        """The recorded entries of the steps, without local paths."""
        return dict(redact_paths(self.stats.steps if self.stats else self.distilled["steps"]))

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The models of the steps by their roles."""
        models: dict[str, dict[str, Any]] = {}
        for step in self.steps.values():
            models |= step.get("models") or {} if isinstance(step, dict) else {}
        return models | {f"teacher {number}": teacher for number, teacher in enumerate(self.teachers[1:], 2)}

    @property
    def teachers(self) -> list[dict[str, Any]]:
        """The different models that wrote traces."""
        teachers = [maker["models"]["teacher"] for maker in self.makers if "teacher" in (maker.get("models") or {})]
        return [teacher for place, teacher in enumerate(teachers) if teacher not in teachers[:place]]

    @property
    def makers(self) -> list[dict[str, Any]]:
        """The entries of ``generate`` in run.json, one for each teacher with its sampling settings."""
        return list(makers_of(self.steps.get("generate", {})).values())

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The inputs of the run; see :func:`~rlt_data.inputs.recorded_inputs`."""
        return recorded_inputs(self.steps.get("input", {}))

    @property
    def is_imported(self) -> bool:
        """Whether all traces come from the input."""
        return self.has_imports and not self.makers

    @property
    def has_imports(self) -> bool:
        """Whether some traces come from the input."""
        return bool(self.steps.get("input", {}).get("traces"))

    @property
    def reward(self) -> str:
        """The name of the reward function; ``rlt`` is the reward of the paper."""
        return str(self.steps.get("score", {}).get("settings", {}).get("reward", "rlt"))


def best_and_worst(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the well-formed traces with the largest and the smallest value, with their texts; empty if none exist."""
    ends: list[pl.DataFrame] = []
    for part in run.parts("ranks"):
        ranks = pl.DataFrame(run.read("ranks", part)).filter(pl.col("flaw").is_null(), pl.col("value").is_not_null())
        ranks = ranks.sort("value", "trace_id").with_columns(pl.lit(part).alias("part"))
        ends.append(pl.concat([ranks.head(1), ranks.tail(1)]))
    if not sum(map(len, ends)):
        return {}
    all_ends = pl.concat(ends).sort("value", "trace_id")
    return {name: _sample_texts(run, all_ends.row(row, named=True)) for name, row in (("Best", -1), ("Worst", 0))}


def _sample_texts(run: RunFolder, rank: dict[str, Any]) -> dict[str, Any]:
    texts = ("completion", "question", "solution")
    [trace] = read_rows(run, rank["part"], texts).filter(trace_id=rank["trace_id"]).select(texts).to_dicts()
    return {"value": rank["value"], "thought_tokens": rank["thought_tokens"], **trace}


def first_row(config: Config) -> dict[str, Any]:
    """Return the first row of a configuration."""
    with pq.ParquetFile(config.folder / next(iter(config.rows))) as file:
        row: dict[str, Any] = next(file.iter_batches(batch_size=1)).to_pylist()[0]
    return row


def correct_counts(config: Config) -> dict[str, tuple[int, int]]:
    """Count the correct traces of a configuration, according to columns of the input that were kept with ``--keep``.

    Returns:
        By the name of the column, the number of rows with a true value and of those with any value. Empty without a
        column of a known name, or if it has other values than true and false.
    """
    values: dict[str, list[bool | None]] = {}
    for meta in _metas(config):
        for name, value in meta.items():
            if name.rpartition(".")[2].lower() in _CORRECT and value is not None:
                values.setdefault(name, []).append(_truth(value))
    return {name: (sum(map(bool, known)), len(known)) for name, known in values.items() if None not in known}


def _metas(config: Config) -> Iterator[dict[str, Any]]:
    """Yield the kept columns of each row that has some."""
    for name in config.rows:
        with pq.ParquetFile(config.folder / name) as file:
            for batch in file.iter_batches(columns=["meta"]) if "meta" in config.schema.names else ():
                for text in batch.column(0).to_pylist():
                    content = json.loads(text) if text else None
                    if isinstance(content, dict):
                        yield content


def _truth(value: Any) -> bool | None:
    """Return a value as true or false; None if it is neither."""
    text = str(value).lower()
    return True if text in ("true", "1", "1.0") else False if text in ("false", "0", "0.0") else None
