"""Score traces with the RLT reward: traces in, one row with every reward term out.

blocks of a part's traces, as student (and teacher) see them, grouped by question, go to the engines one after the other
the student's log-probs of explanation and solution, the teacher's of the explanation (stored, or a second pass)
for each trace that has both: the reward of reward.py, appended to the scores; a part that has all is merged
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlt_data.engines import Engine, Failure, Model, SequenceLogprobs, open_model
from rlt_data.engines.watchdog import check_nothing_owed, describe_owed, watched
from rlt_data.errors import SettingsError
from rlt_data.formats import Format, Views, load_format
from rlt_data.inputs import ingest
from rlt_data.progress import SILENT, Progress
from rlt_data.scoring.rows import Item, full_kl_requests, score_row, student_requests, teacher_requests
from rlt_data.scoring.teacher import TeacherLogprobs
from rlt_data.scoring.tokens import StudentReading, TeacherReading, pair, read_as_student
from rlt_data.settings import ScoreSettings
from rlt_data.steps.provenance import (
    StepSummary,
    choose_format,
    default_run,
    outcome,
    recorded_format,
    run_log,
    step_entry,
)
from rlt_data.storage.errorlog import ErrorLog
from rlt_data.storage.paths import is_url
from rlt_data.storage.run import Run, TableWriter, content_hash

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Traces that are tokenised and planned together: about so many, or with so many characters if that comes first.
_BLOCK_TRACES, _BLOCK_CHARACTERS = 1024, 2_000_000


def score(settings: ScoreSettings, progress: Progress = SILENT) -> StepSummary:
    """Score the traces of a run, or of a file; the library side of ``rlt-data score``.

    Continues where an earlier call with the same settings ended. Rows that cannot be scored go to errors.jsonl.

    Raises:
        RltDataError: of one of the kinds in :mod:`rlt_data.errors`; nothing that was there is lost.
    """
    source = Run.existing(settings.input) if is_url(settings.input) or Run.is_at(settings.input) else None
    run = Run(settings.out or (source.path if source else default_run(settings.input, settings.student)))
    served = settings.served_temperature
    student = open_model(settings.student, settings, scoring=True, served_temperature=served)
    teacher = _open_teacher(settings, student)
    made_in = recorded_format(source, "generate") if source else None
    format = _choose_format(settings, made_in, student)
    Views(format, student.template).check()
    with run.locked(), closing(student), closing(teacher or student):
        if source is None:
            ingest(run, settings, format, traces=True)
        elif source.path.resolve() != run.path.resolve():
            _adopt(run, source)
        traces_from = TeacherLogprobs(settings, student, teacher, made_in or format, run)
        depends_on = _dependencies(settings, student, format, traces_from)
        run.refuse_other_settings("score", depends_on)
        models = {"student": student} | ({"teacher": teacher} if teacher else {})
        for model in models.values():
            model.load(run.logs, memory_share=0.5 if teacher and teacher is not student else 1.0)
        run.record("score", {"depends_on": depends_on, **step_entry(settings, format, models)})
        with run_log(run):
            work = _Work(run, settings, student, Views(format, student.template), traces_from, content_hash(depends_on))
            summary = work.run_to_end(progress)
            logger.info("score: %d new scores, %d in all, %d failed", summary.new, summary.rows, summary.failed)
        run.record("score", outcome(run, "score", summary))
    return summary


def _open_teacher(settings: ScoreSettings, student: Model) -> Model | None:
    if settings.teacher in (None, "none"):
        return None
    teacher = open_model(str(settings.teacher), settings, scoring=True)
    same = teacher.identity.fingerprint == student.identity.fingerprint
    return student if same and teacher.template.text == student.template.text else teacher


def _choose_format(settings: ScoreSettings, made_in: Format | None, student: Model) -> Format:
    if made_in is None:
        return choose_format(settings.format, student.checkpoint, student.template)
    if settings.format == "auto":
        return made_in
    format = load_format(settings.format)
    for part in ("explanation_tags", "padding"):
        if getattr(format, part) != getattr(made_in, part):
            raise SettingsError(
                f"--format: the traces were generated with {part} {getattr(made_in, part)!r}, "
                f"{format.name} has {getattr(format, part)!r}; take a format with the same, or leave it out"
            )
    return format


def _adopt(run: Run, source: Run) -> None:
    """Take questions and traces over from another run, with what is known of how they were made."""
    for table in ("questions", "traces"):
        run.adopt(table, source)
    for step in ("input", "generate"):
        if entry := source.step(step):
            run.record(step, entry)


def _dependencies(settings: ScoreSettings, student: Model, format: Format, teacher: TeacherLogprobs) -> dict[str, Any]:
    """Return everything that a score depends on beside its trace."""
    return {
        "student": student.identity.fingerprint,
        "chat_template": student.identity.chat_template,
        "dtype": student.identity.dtype,
        "format": format.hash,
        "teacher": teacher.fingerprint,
        "temperature": settings.temperature,
        "lambda": settings.lambda_,
        "alpha": settings.alpha,
        "kl": settings.kl,
        "missing_tag_penalty": settings.missing_tag_penalty,
        "per_token": settings.per_token,
    }


@dataclass
class _Work:
    run: Run
    settings: ScoreSettings
    student: Model
    views: Views
    teacher: TeacherLogprobs
    scored_by: str
    items: dict[str, Item] = field(default_factory=dict)  # in the engines' hands
    owed: Counter[int] = field(default_factory=Counter)  # rows still to come, by part; one more while it is being read

    def run_to_end(self, progress: Progress) -> StepSummary:
        errors = ErrorLog(self.run, "score", retry=self.settings.retry_errors)
        before = self.run.count("scores")
        new = tokens = 0
        began = time.monotonic()
        progress.start("score", self.run.count("traces"), before)
        try:
            with TableWriter(self.run, "scores") as writer, self._watched():
                for item in self._scored(errors, writer):
                    writer.append(item.part, self._row(item))
                    errors.resolve(item.key)
                    new, tokens = new + 1, tokens + len(item.student.wanted)
                    progress.advance(1, len(item.student.wanted))
                    self._settle(item.part, writer)
                check_nothing_owed(self.items, self._log_tail())
        finally:
            errors.close()
            progress.finish()
        self.run.compact_all("scores")
        return StepSummary(self.run.path, before + new, new, len(errors), tokens, time.monotonic() - began)

    @property
    def _engines(self) -> list[Engine]:
        models = [self.student] + ([self.teacher.model] if self.teacher.model and self.teacher.wanted else [])
        return list({id(model): model.engine for model in models}.values())

    def _watched(self) -> AbstractContextManager[None]:
        def report() -> str:
            return describe_owed(self.items, self._log_tail())

        return watched([engine.pulse for engine in self._engines], self.settings.stall_timeout, report)

    def _log_tail(self) -> str:
        return "\n".join(filter(None, (engine.log_tail() for engine in self._engines)))

    def _row(self, item: Item) -> dict[str, Any]:
        return score_row(item, self.settings, self.scored_by, per_token=self.settings.per_token)

    def _settle(self, part: int, writer: TableWriter) -> None:
        """Count a row of a part as done; the part's last one merges its journal."""
        self.owed[part] -= 1
        if not self.owed[part]:
            writer.compact(part)

    def _scored(self, errors: ErrorLog, writer: TableWriter) -> Iterator[Item]:
        """Yield the owed traces as they get their log-probs."""
        for result in self._results(self._blocks(errors, writer)):
            item = self.items.get(result.key)
            if item is None:
                continue  # the other model failed on it
            if isinstance(result, Failure):
                del self.items[result.key]
                errors.add(result.key, result.reason, item.trace["source_id"])
                self._settle(item.part, writer)
            elif item.complete:
                del self.items[result.key]
                yield item

    def _blocks(self, errors: ErrorLog, writer: TableWriter) -> Iterator[list[list[Item]]]:
        """Read the blocks that hold anything owed."""
        for part in self.run.parts("traces"):
            self.student.engine.pulse.beat()  # passing over what is done is no standing still
            made = self.run.keys("scores", part)
            questions = {row["question_id"]: row for row in self.run.read("questions", part).to_pylist()}
            self.owed[part] += 1
            for block in _cut(self.run.read("traces", part)):
                if any(self._is_owed(key, made, errors) for key in block["trace_id"].to_pylist()):
                    groups = self._groups(part, block.to_pylist(), questions, made, errors)
                    self.items |= {item.key: item for group in groups for item in group if item.owed}
                    self.owed[part] += sum(item.owed for group in groups for item in group)
                    yield groups
            self._settle(part, writer)

    def _groups(
        self,
        part: int,
        rows: list[dict[str, Any]],
        questions: dict[str, dict[str, Any]],
        made: set[str],
        errors: ErrorLog,
    ) -> list[list[Item]]:
        """Read traces, grouped by question, longest first."""
        traces, problems = [], []
        for trace in rows:
            question = questions[trace["question_id"]]
            problem = question["question"], question["solution"]
            if reason := self.views.format.problem_with(*problem):
                self._fail(trace, reason, made, errors)
            else:
                traces.append(trace)
                problems.append(problem)
        readings = read_as_student(
            self.student.tokenizer, self.views, problems, [trace["completion"] for trace in traces]
        )
        taught: Sequence[TeacherReading | None] = [None] * len(traces)
        if self.teacher.wanted:
            taught = self.teacher.read(traces, problems)
        items = []
        for trace, reading, teacher in zip(traces, readings, taught, strict=True):
            if reason := self._problem(reading, teacher):
                self._fail(trace, reason, made, errors)
            else:
                owed = self._is_owed(trace["trace_id"], made, errors)
                items.append(self._item(Item(part, trace, owed, reading, teacher)))
        groups = [list(group) for _, group in groupby(items, key=lambda item: item.trace["question_id"])]
        return sorted(groups, key=lambda group: -max(len(item.student.encoding) for item in group))

    def _item(self, item: Item) -> Item:
        """Pair the tokens of both sides, and take over what came with the trace."""
        teacher = item.teacher
        if teacher and not item.student.empty:
            same = self.teacher.same_tokenizer
            item.pairs = pair(item.student, teacher, self.teacher.tokenizer, self.teacher.format, same_tokenizer=same)
            if teacher.ids is None:
                stored = [*item.trace["prefill_logprobs"], *item.trace["logprobs"]]
                item.teacher_logprobs = np.asarray(stored, np.float32)
            elif self.settings.kl == "full" and not len(item.compared):
                item.full_kl = np.zeros(0, np.float32)
        return item

    def _problem(self, reading: StudentReading, teacher: TeacherReading | None) -> str | None:
        if not len(reading.solution):
            return "the solution has no token of its own between its tags"
        texts = [("student's", len(reading.encoding), self.student.engine)]
        if teacher and teacher.problem:
            return teacher.problem
        if teacher and teacher.ids is not None and self.teacher.model:
            texts.append(("teacher's", len(teacher.ids), self.teacher.model.engine))
        for whose, length, engine in texts:
            if length > engine.context_length:
                return f"the {whose} text has {length} tokens, the context is {engine.context_length}"
        return None

    def _fail(self, trace: dict[str, Any], reason: str, made: set[str], errors: ErrorLog) -> None:
        if self._is_owed(trace["trace_id"], made, errors):
            errors.add(trace["trace_id"], reason, trace["source_id"])

    def _is_owed(self, trace_id: str, made: set[str], errors: ErrorLog) -> bool:
        if self.settings.retry_errors:
            return trace_id not in made and errors.retries(trace_id)
        return trace_id not in made and not errors.settled(trace_id)

    def _results(self, blocks: Iterator[list[list[Item]]]) -> Iterator[SequenceLogprobs | Failure]:
        """Run the models side by side, so that a trace is finished soon after it is begun."""
        temperature = self.settings.temperature
        teacher = self.teacher.model if self.teacher.wanted else None
        mine, theirs = _twice(blocks) if teacher else (blocks, iter(()))
        student = self.student.logprobs(map(student_requests, mine), temperature)
        streams = [_noting(student, self.items, "student_logprobs")]
        if teacher:
            if self.settings.kl == "full":
                streams.append(_noting(self._full_kl(theirs, teacher), self.items, "full_kl"))
            else:
                computed = teacher.logprobs(map(teacher_requests, theirs), temperature)
                streams.append(_noting(computed, self.items, "teacher_logprobs"))
        while streams:
            for stream in list(streams):
                result = next(stream, None)
                if result is None:
                    streams.remove(stream)
                else:
                    yield result

    def _full_kl(self, blocks: Iterator[list[list[Item]]], teacher: Model) -> Iterator[SequenceLogprobs | Failure]:
        for group in chain.from_iterable(blocks):
            theirs, ours = full_kl_requests(group)
            yield from teacher.full_kl(theirs, self.student, ours, self.settings.temperature)


def _twice(blocks: Iterator[T]) -> tuple[Iterator[T], Iterator[T]]:
    """Hand out blocks to two takers; ``itertools.tee`` would keep up to 57 of them after both have taken them."""
    waiting: tuple[deque[T], deque[T]] = deque(), deque()

    def taker(mine: deque[T]) -> Iterator[T]:
        while True:
            if not mine:
                block = next(blocks, None)
                if block is None:
                    return
                for each in waiting:
                    each.append(block)
            yield mine.popleft()

    return taker(waiting[0]), taker(waiting[1])


def _cut(traces: pa.Table) -> Iterator[pa.Table]:
    """Cut the traces of a part between questions, so that a block's text fits in memory many times over."""
    start = size = 0
    questions = traces["question_id"].to_pylist()
    for row, length in enumerate(pc.utf8_length(traces["completion"]).to_pylist()):
        full = size > _BLOCK_CHARACTERS or row - start >= _BLOCK_TRACES
        if full and questions[row] != questions[row - 1]:
            yield traces.slice(start, row - start)
            start, size = row, 0
        size += length
    yield traces.slice(start)


def _noting(
    results: Iterator[SequenceLogprobs | Failure], items: dict[str, Item], name: str
) -> Iterator[SequenceLogprobs | Failure]:
    for result in results:
        if isinstance(result, SequenceLogprobs) and result.key in items:
            setattr(items[result.key], name, result.logprobs)
        yield result
