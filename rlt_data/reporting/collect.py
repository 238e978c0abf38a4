"""What the page's browser shows: the figures of each trace, and the texts of a question with all its traces.

A page holds at most so many traces, of whole questions. Which ones follows from their ids, hashes of their content:
those with the smallest. So it is a fair draw, the same for runs with the same questions, and stays as a run grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import polars as pl

from rlt_data.formats.views import read_completion
from rlt_data.statistics import OF_RANKS, TERMS
from rlt_data.steps.provenance import recorded_format
from rlt_data.storage.run import RunFolder

_OF_TRACES = ("finish_reason", "completion_tokens")
_TEXTS_OF_SCORES = (
    "empty", "solution_logprobs", "solution_offsets", "thought_logprobs", "thought_offsets", "thought_kl", "kl_offsets",
)  # fmt: skip
#: Keys of a trace's tokens.
TOKENS = ("thought_tokens", "kl_tokens", "solution_tokens")
#: Characters of a question that its line in the list shows.
_SNIPPET = 160


@dataclass(frozen=True)
class SelectedQuestion:
    """A question to show: its id, its number of traces, and the part it is in, by the number of the run."""

    question_id: str
    traces: int
    parts: tuple[int, ...]


class TraceSelection:
    """Questions of one run or several, with their traces.

    Args:
        runs: by the names of their sources; with several of them only questions that all have are shown.
        limit: traces at most, but never less than one question's.
        only: the question to show, and no other.

    Attributes:
        chosen: the questions, in the order of the first run.
        questions: questions that could be shown.
        traces: their traces.
    """

    def __init__(self, runs: Mapping[str, RunFolder], limit: int, only: str | None = None) -> None:
        self.runs = dict(runs)
        self.formats = [recorded_format(run, "score") or recorded_format(run, "generate") for run in runs.values()]
        self.questions = self.traces = 0
        self.chosen = self._choose(limit, only)
        self._wanted = {each.question_id for each in self.chosen}
        # Where two runs have the same questions in the same order, each part is read once.
        self._figures = lru_cache(len(self.runs))(self._read_figures)
        self._texts = lru_cache(len(self.runs))(self._read_texts)
        self._questions = lru_cache(1)(self._read_questions)

    def _choose(self, limit: int, only: str | None) -> list[SelectedQuestion]:
        found: list[dict[str, tuple[int, int]]] = []
        for run in self.runs.values():
            counts: dict[str, tuple[int, int]] = {}
            for part in run.parts("traces"):
                ids = pl.DataFrame(run.read("traces", part, ["question_id"]))
                groups = ids.group_by("question_id", maintain_order=True).len()
                counts |= {key: (number, part) for key, number in groups.iter_rows()}
            found.append(counts)
        everywhere = [key for key in found[0] if only in (None, key) and all(key in counts for counts in found)]
        self.questions = len(everywhere)
        self.traces = sum(counts[key][0] for counts in found for key in everywhere)
        kept: set[str] = set()
        room = limit
        for key in sorted(everywhere):
            room -= sum(counts[key][0] for counts in found)
            if room < 0 and kept:
                break
            kept.add(key)
        return [
            SelectedQuestion(key, sum(counts[key][0] for counts in found), tuple(counts[key][1] for counts in found))
            for key in everywhere
            if key in kept
        ]

    def chunks(self, traces: int) -> Iterator[list[SelectedQuestion]]:
        """Return the questions in groups of about so many traces."""
        group: list[SelectedQuestion] = []
        for each in self.chosen:
            if group and sum(other.traces for other in group) + each.traces > traces:
                yield group
                group = []
            group.append(each)
        if group:
            yield group

    def index(self) -> dict[str, Any]:
        """Return the figures of all traces, column by column, and their questions.

        Returns:
            ``questions``: id, source id and snippet of each; ``columns``: lists with a value for each trace:
            ``question`` (its number), ``source`` (its number), ``trace_id``, ``sample_index``, and figures of traces,
            scores and ranks. Columns without values are left out.
        """
        questions = []
        frames = []
        for number, chosen in enumerate(self.chosen):
            question = self._questions(chosen.parts[0])[chosen.question_id]
            questions.append([chosen.question_id, question["source_id"], question["question"][:_SNIPPET]])
            for source, part in enumerate(chosen.parts):
                frame = self._figures(source, part).get(chosen.question_id)
                if frame is not None:
                    frames.append(frame.with_columns(pl.lit(number).alias("question"), pl.lit(source).alias("source")))
        if not frames:
            return {"questions": [], "columns": {}}
        every = pl.concat(frames, how="diagonal_relaxed")
        columns: dict[str, list[Any]] = {}
        for name in every.columns:
            if name == "question_id":
                continue  # its number is enough
            values = every[name].to_list()
            if any(value is not None for value in values):
                columns[name] = [_short(value) if isinstance(value, float) else value for value in values]
        return {"questions": questions, "columns": columns}

    def texts(self, chosen: SelectedQuestion) -> dict[str, Any]:
        """Return a question and its traces as the page shows them, JSON-ready.

        ``contents`` are the solution as each source's student reads it. A trace's ``thought`` is what the student read:
        the explanation with the format's padding; ``completion`` is there where it holds something else, ``meta`` where
        the trace has its own. With scores that were made with ``--per-token`` there are ``thought_tokens``,
        ``kl_tokens`` (of the thought) and ``solution_tokens`` (of the contents): the first token begins at the
        character ``begin``, each spans ``lengths`` characters, ``values`` are hundredths; ``kl_tokens`` lack the former
        two where they are those of the thought.
        """
        question = self._questions(chosen.parts[0])[chosen.question_id]
        contents = [format and format.solution_content(question["solution"]) for format in self.formats]
        traces = []
        for source, part in enumerate(chosen.parts):
            frame = self._texts(source, part).get(chosen.question_id)
            if frame is not None:
                traces += [self._trace(source, row, contents[source] or "") for row in frame.iter_rows(named=True)]
        shown = {key: question[key] for key in ("question_id", "source_id", "question", "solution", "answer", "meta")}
        return {**shown, "contents": contents, "traces": traces}

    def _trace(self, source: int, row: dict[str, Any], content: str) -> dict[str, Any]:
        completion, format = row["completion"], self.formats[source]
        shown: dict[str, Any] = {"source": source, "trace_id": row["trace_id"], "completion": completion}
        if row["meta"] is not None:
            shown["meta"] = row["meta"]
        if format is None:
            return shown
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
                begins = [*row[offsets], len(text)]
                lengths = [after - before for before, after in pairwise(begins)]
                places = {"begin": begins[0], "lengths": lengths}
                of_thought = shown.get("thought_tokens")
                if name == "kl_tokens" and of_thought and of_thought["lengths"] == lengths:
                    places = {}
                shown[name] = {**places, "values": [_hundredths(value) for value in row[values]]}
        return shown

    def _read_questions(self, part: int) -> dict[str, dict[str, Any]]:
        [run, *_] = self.runs.values()
        return {row["question_id"]: row for row in run.read("questions", part).to_pylist()}

    def _read_figures(self, source: int, part: int) -> dict[str, pl.DataFrame]:
        return self._read(source, part, _OF_TRACES, {"scores": (*TERMS, "well_formed"), "ranks": OF_RANKS})

    def _read_texts(self, source: int, part: int) -> dict[str, pl.DataFrame]:
        return self._read(source, part, ("completion", "meta"), {"scores": _TEXTS_OF_SCORES})

    def _read(
        self, source: int, part: int, columns: Sequence[str], others: Mapping[str, Sequence[str]]
    ) -> dict[str, pl.DataFrame]:
        """Read columns of the traces of the chosen questions of a part, and of other tables, by question."""
        run = list(self.runs.values())[source]
        rows = pl.DataFrame(run.read("traces", part, ["trace_id", "question_id", "sample_index", *columns]))
        rows = rows.filter(pl.col("question_id").is_in(self._wanted))
        for table, more in others.items():
            rows = run.join(rows, table, part, more)
        return {str(key): frame for (key,), frame in rows.partition_by("question_id", as_dict=True).items()}


def source_name(run: RunFolder) -> str:
    """Return what a run is called where nothing else is said: the name of its folder."""
    return run.path.resolve().name


def _short(value: float) -> float | None:
    """Round to five digits; what is no number is left out, since JSON has no word for it."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _hundredths(value: float | None) -> int | None:
    return round(100 * value) if value is not None and math.isfinite(value) else None
