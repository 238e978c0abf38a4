"""Select the traces of a report, and read their numbers and texts.

A report lists a limited number of traces, always with all traces of a question. It takes the questions with the
smallest ids. Ids are hashes of the content, so this is an unbiased sample. It is the same for runs with the same
questions, and stable while a run grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import polars as pl

from rlt_data.formats.views import read_completion
from rlt_data.signals.matching import Matching
from rlt_data.statistics import OF_RANKS, TERMS
from rlt_data.steps.provenance import recorded_format
from rlt_data.storage.data_set import DataSet, read_data_set
from rlt_data.storage.rows import OWN, columns_of, read_rows
from rlt_data.storage.run import RunFolder

_TRACE_COLUMNS = ("finish_reason", "completion_tokens")
_OF_ITS_ROW = ("origin", "trace_answer", "meta", "trace_solution")
_TOKEN_COLUMNS = (
    "empty", "solution_logprobs", "solution_offsets", "thought_logprobs", "thought_offsets", "thought_kl", "kl_offsets",
)  # fmt: skip
#: Keys of the per-token values of a trace.
TOKENS = ("thought_tokens", "kl_tokens", "solution_tokens")
#: Characters of a question and of an explanation that the list shows.
_SNIPPET = 160


@dataclass(frozen=True)
class SelectedQuestion:
    """A question in the report.

    Attributes:
        question_id: its key.
        traces: number of its traces in all runs.
        parts: for each run, the part that has the question.
    """

    question_id: str
    traces: int
    parts: tuple[int, ...]


class ListedTraces:
    """The traces that a report lists, from one run or several.

    Args:
        runs: the runs by name. Of several runs, only questions that all of them have are listed.
        limit: maximum number of traces; at least one question is listed.
        only: the only question to list, by its id.
        matching: the traces to list, by the name of their run; all traces of the other runs.
        data_sets: the data sets of the runs, as far as they are already loaded.

    Attributes:
        selected: the questions that are listed, in the order of the first run.
        questions: number of questions that could be listed.
        traces: number of their traces.
    """

    def __init__(
        self,
        runs: Mapping[str, RunFolder],
        limit: int,
        only: str | None = None,
        matching: Mapping[str, Matching] = MappingProxyType({}),
        data_sets: Mapping[str, DataSet | None] = MappingProxyType({}),
    ) -> None:
        self.runs = dict(runs)
        self._tables = [columns_of(run) for run in runs.values()]
        self._matching = [matching.get(name) for name in runs]
        self.formats = [recorded_format(run, "score") or recorded_format(run, "generate") for run in runs.values()]
        self.questions = self.traces = 0
        self.selected = self._select(limit, only)
        self._selected_ids = {question.question_id for question in self.selected}
        found = [data_sets.get(name) or read_data_set(run) for name, run in runs.items()]
        listed = pl.col("question_id").is_in(self._selected_ids)
        self._in_data_sets = [set(one.keys.filter(listed)["trace_id"]) if one else None for one in found]
        # With one cached part per run, each part is read once if the runs have the same questions in the same order.
        self._numbers = lru_cache(len(self.runs))(self._read_numbers)
        self._texts = lru_cache(len(self.runs))(self._read_texts)
        self._questions = lru_cache(1)(self._read_questions)

    def _select(self, limit: int, only: str | None) -> list[SelectedQuestion]:
        by_run: list[dict[str, tuple[int, int]]] = []  # (traces, part) by question
        for run, matching in zip(self.runs.values(), self._matching, strict=True):
            counts: dict[str, tuple[int, int]] = {}
            for part in run.parts("traces"):
                ids = pl.DataFrame(run.read("traces", part, ["trace_id", "question_id"]))
                ids = matching.of(ids, part) if matching else ids
                groups = ids.group_by("question_id", maintain_order=True).len()
                counts |= {key: (number, part) for key, number in groups.iter_rows()}
            by_run.append(counts)
        shared = [key for key in by_run[0] if only in (None, key) and all(key in counts for counts in by_run)]
        traces = {key: sum(counts[key][0] for counts in by_run) for key in shared}
        self.questions, self.traces = len(shared), sum(traces.values())
        selected: set[str] = set()
        remaining = limit
        for key in sorted(shared):
            remaining -= traces[key]
            if remaining < 0 and selected:
                break
            selected.add(key)
        return [
            SelectedQuestion(key, traces[key], tuple(counts[key][1] for counts in by_run))
            for key in shared
            if key in selected
        ]

    def blocks(self, traces: int) -> Iterator[list[SelectedQuestion]]:
        """Yield the questions in blocks of at most so many traces, but at least one question."""
        block: list[SelectedQuestion] = []
        for question in self.selected:
            if block and sum(other.traces for other in block) + question.traces > traces:
                yield block
                block = []
            block.append(question)
        if block:
            yield block

    def index(self) -> dict[str, Any]:
        """Return the questions, and the numbers of all traces as columns.

        Returns:
            ``questions`` has id, source id and snippet of each question. ``columns`` has one list per column:
            ``question`` (index in ``questions``), ``source`` (index of the run), ``trace_id``, ``sample_index``,
            ``start`` (of the explanation), ``in_data_set``, and columns of traces, scores and ranks. Columns without
            values are left out. ``paddings`` has what the format of each run puts before an explanation.
        """
        questions = []
        frames = []
        for number, selected in enumerate(self.selected):
            question = self._questions(selected.parts[0])[selected.question_id]
            questions.append([selected.question_id, question["source_id"], _snippet(question["question"])])
            for source, part in enumerate(selected.parts):
                frame = self._numbers(source, part).get(selected.question_id)
                if frame is not None:
                    frames.append(frame.with_columns(pl.lit(number).alias("question"), pl.lit(source).alias("source")))
        if not frames:
            return {"questions": [], "columns": {}, "paddings": []}
        traces = pl.concat(frames, how="diagonal_relaxed")
        columns: dict[str, list[Any]] = {}
        for name in traces.columns:
            if name == "question_id":
                continue  # the column "question" has its index
            values = traces[name].to_list()
            if any(value is not None for value in values):
                columns[name] = [_rounded(value) if isinstance(value, float) else value for value in values]
        paddings = [format.padding if format else "" for format in self.formats]
        return {"questions": questions, "columns": columns, "paddings": paddings}

    def texts(self, selected: SelectedQuestion) -> dict[str, Any]:
        """Return a question and its traces as JSON for the page.

        ``contents`` has the solution as the student of each run reads it. The ``thought`` of a trace is the explanation
        as the student reads it, with the format's padding. ``completion`` is present if it differs from the
        explanation, ``origin``, ``answer``, ``meta`` and ``solution`` (with its ``content``) if the trace has its own.
        Runs scored with ``--per-token`` add ``thought_tokens`` and ``kl_tokens``, which refer to the thought, and
        ``solution_tokens``, which refer to ``content``, or else to ``contents``. Their first token starts at character
        ``begin``, each token has ``lengths`` characters, and ``values`` are in hundredths. ``kl_tokens`` omit ``begin``
        and ``lengths`` if these are the same as for ``thought_tokens``.
        """
        question = self._questions(selected.parts[0])[selected.question_id]
        contents = [format and format.solution_content(question["solution"]) for format in self.formats]
        traces = []
        for source, part in enumerate(selected.parts):
            frame = self._texts(source, part).get(selected.question_id)
            if frame is not None:
                traces += [self._trace(source, row, contents[source] or "") for row in frame.iter_rows(named=True)]
        shown = {key: question[key] for key in ("question_id", "source_id", "question", "solution", "answer", "meta")}
        return {**shown, "contents": contents, "traces": traces}

    def _trace(self, source: int, row: dict[str, Any], content: str) -> dict[str, Any]:
        completion, format = row["completion"], self.formats[source]
        shown: dict[str, Any] = {"source": source, "trace_id": row["trace_id"], "completion": completion}
        shown |= {OWN.get(name, name): row[name] for name in _OF_ITS_ROW if row[name] is not None}
        if format is None:
            return shown
        if "solution" in shown:
            content = shown["content"] = format.solution_content(shown["solution"])
        explanation = read_completion(format, completion)
        thought = shown["thought"] = "" if row.get("empty") else format.padding + explanation.text
        if completion == explanation.text + format.explanation_tags[1]:
            del shown["completion"]
        for name, offsets, values, text in zip(
            TOKENS,
            ("thought_offsets", "kl_offsets", "solution_offsets"),
            ("thought_logprobs", "thought_kl", "solution_logprobs"),
            (thought, thought, content),
            strict=True,
        ):
            if row.get(offsets) and row.get(values):
                starts = [*row[offsets], len(text)]
                lengths = [end - start for start, end in pairwise(starts)]
                spans = {"begin": starts[0], "lengths": lengths}
                thought_tokens = shown.get("thought_tokens")
                if name == "kl_tokens" and thought_tokens and thought_tokens["lengths"] == lengths:
                    spans = {}
                shown[name] = {**spans, "values": [_hundredths(value) for value in row[values]]}
        return shown

    def _read_questions(self, part: int) -> dict[str, dict[str, Any]]:
        [run, *_] = self.runs.values()
        return {row["question_id"]: row for row in run.read("questions", part).to_pylist()}

    def _read_numbers(self, source: int, part: int) -> dict[str, pl.DataFrame]:
        frames = self._read(source, part, (*_TRACE_COLUMNS, "completion", *TERMS, "well_formed", *OF_RANKS))
        return {key: self._for_list(source, frame) for key, frame in frames.items()}

    def _for_list(self, source: int, frame: pl.DataFrame) -> pl.DataFrame:
        """Replace completions by the start of their explanations, and mark the traces in the data set."""
        format, in_data_set = self.formats[source], self._in_data_sets[source]
        texts = (read_completion(format, text).text if format else text for text in frame["completion"])
        starts = [_snippet(text) for text in texts]
        marks = [None if in_data_set is None else key in in_data_set for key in frame["trace_id"]]
        return frame.drop("completion").with_columns(
            pl.Series("start", starts, pl.String), pl.Series("in_data_set", marks, pl.Boolean)
        )

    def _read_texts(self, source: int, part: int) -> dict[str, pl.DataFrame]:
        return self._read(source, part, ("completion", *_OF_ITS_ROW, *_TOKEN_COLUMNS))

    def _read(self, source: int, part: int, columns: Sequence[str]) -> dict[str, pl.DataFrame]:
        """Read the traces of the selected questions of a part, by question, with those of the columns that exist."""
        run, tables = list(self.runs.values())[source], self._tables[source]
        known = [name for name in ("sample_index", *columns) if name in tables]
        rows = read_rows(run, part, known, tables).filter(pl.col("question_id").is_in(self._selected_ids))
        if matching := self._matching[source]:
            rows = matching.of(rows, part)
        return {str(key): frame for (key,), frame in rows.partition_by("question_id", as_dict=True).items()}


def source_name(run: RunFolder) -> str:
    """Return the default name of a run: that of its folder."""
    return run.path.resolve().name


def _snippet(text: str) -> str:
    """Return the start of a text in one line."""
    words = " ".join(text[: 2 * _SNIPPET].split())
    return words if len(words) <= _SNIPPET and len(text) <= 2 * _SNIPPET else words[:_SNIPPET].rstrip() + "…"


def _rounded(value: float) -> float | None:
    """Round to five digits; None for NaN and infinity, which JSON cannot represent."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _hundredths(value: float | None) -> int | None:
    return round(100 * value) if value is not None and math.isfinite(value) else None
