"""Score traces with the RLT reward: traces in, one row with every reward term out.

    for each block of a part's traces: tokenise them for student and teacher, align, request log-probs from the engines
    for each trace with all its log-probs: score_trace makes its row, which the loop of resumable.py writes

Reading order of one score: this module, ``resumable``, :mod:`rlt_data.scoring` (tokens, rows, reward).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlt_data.engines import (
    Failure,
    Model,
    SequenceBlock,
    SequenceLogprobs,
    SequenceRequest,
    open_model,
)
from rlt_data.engines.results import problem_with_logprobs
from rlt_data.errors import SettingsError
from rlt_data.formats import Format, Views, choose_format, load_format
from rlt_data.inputs import ingest
from rlt_data.plugins import REWARDS
from rlt_data.progress import SILENT, Progress
from rlt_data.scoring import (
    Alignment,
    RewardError,
    RewardWeights,
    StudentTokens,
    TeacherTokens,
    compute_reward,
    score_trace,
    tokenize_for_student,
)
from rlt_data.scoring.reward import Floats
from rlt_data.settings import InputSettings, RewardSettings, ScoreSettings
from rlt_data.settings.base import is_url
from rlt_data.steps.provenance import StepSummary, outcome, recorded_format, step_entry
from rlt_data.steps.resumable import FinishedRow, ResumableTable
from rlt_data.steps.teacher_source import TeacherSource
from rlt_data.storage.layout import default_run, run_log
from rlt_data.storage.run import RunFolder, content_hash

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
    source = RunFolder.existing(settings.input) if is_url(settings.input) or RunFolder.is_at(settings.input) else None
    if source and (unread := settings.not_default(*(InputSettings.model_fields.keys() - {"input"}))):
        flags = ", ".join("--" + name.replace("_", "-") for name in sorted(unread))
        raise SettingsError(f"{flags}: no effect with a run, all of whose traces are scored; for files of traces only")
    run = RunFolder(settings.out or (source.path if source else default_run(settings.input, settings.student)))
    REWARDS.load(settings.reward)
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
        teacher_source = TeacherSource(settings, student, teacher, made_in or format, run)
        depends_on = _dependencies(settings, student, format, teacher_source)
        run.refuse_other_settings("score", depends_on)
        models = {"student": student} | ({"teacher": teacher} if teacher else {})
        for model in models.values():
            model.load(run.logs, memory_share=0.5 if teacher and teacher is not student else 1.0)
        run.record("score", {"depends_on": depends_on, **step_entry(settings, format, models)})
        with run_log(run):
            views, scored_by = Views(format, student.template), content_hash(depends_on)
            summary = _Scoring(run, settings, student, views, teacher_source, scored_by).run_to_end(progress)
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
        return choose_format(settings.format, student.template, student.checkpoint.name, student.checkpoint.folder)
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


def _adopt(run: RunFolder, source: RunFolder) -> None:
    """Take questions and traces over from another run, with what is known of how they were made."""
    for table in ("questions", "traces"):
        run.adopt(table, source)
    for step in ("input", "generate"):
        if entry := source.step(step):
            run.record(step, entry)


def _dependencies(settings: ScoreSettings, student: Model, format: Format, teacher: TeacherSource) -> dict[str, Any]:
    """Return everything that a score depends on beside its trace."""
    read_by = student.identity
    return settings.depends_on(
        student=read_by.fingerprint,
        chat_template=read_by.chat_template,
        dtype=read_by.dtype,
        format=format.hash,
        teacher=teacher.fingerprint,
        **reward_identity(settings),
    )


def reward_identity(settings: RewardSettings) -> dict[str, str]:
    """Return what the rows depend on through their reward function; nothing for the built-in one, as in old runs."""
    identity = REWARDS.identity(settings.reward)
    return {"reward": identity} if identity else {}


@dataclass
class PendingScore:
    """A trace while it is being scored.

    Attributes:
        part: the part of the table that its score belongs to.
        trace: its row of the traces table.
        problem: its question and solution.
        emit: whether its score is missing; if not, it only completes the batch of others.
        student: the student's tokens.
        teacher: the teacher's tokens; None without a teacher.
        alignment: how the two align; None without a teacher.
        student_logprobs: the student's log-probs of ``student.scored``, once they have arrived.
        teacher_logprobs: the teacher's log-probs of ``teacher.thought_ids``, once they have arrived.
        full_kl: with ``--kl full``, the KL at ``alignment.single_tokens``, once it has arrived.
    """

    part: int
    trace: dict[str, Any]
    problem: tuple[str, str]
    emit: bool
    student: StudentTokens
    teacher: TeacherTokens | None
    alignment: Alignment | None
    student_logprobs: Floats | None = None
    teacher_logprobs: Floats | None = None
    full_kl: Floats | None = None

    @property
    def key(self) -> str:
        """The trace's id."""
        return str(self.trace["trace_id"])

    @property
    def source_id(self) -> str | None:
        """The id that the user's data gives the question."""
        return self.trace["source_id"]  # type: ignore[no-any-return]

    @property
    def complete(self) -> bool:
        """Whether all log-probs have arrived."""
        without_teacher = self.teacher is None or self.student.empty
        has_kl = without_teacher or self.teacher_logprobs is not None or self.full_kl is not None
        return has_kl and self.student_logprobs is not None


Groups = list[list[PendingScore]]


class _Scoring:
    """Scores the pending traces of a run."""

    def __init__(
        self,
        run: RunFolder,
        settings: ScoreSettings,
        student: Model,
        views: Views,
        teacher: TeacherSource,
        scored_by: str,
    ) -> None:
        self._settings = settings
        self._student = student
        self._views = views
        self._teacher = teacher
        self._weights = reward_weights(settings)
        self._reward = REWARDS.load(settings.reward)
        self._scored_by = scored_by
        models = [student] + ([teacher.model] if teacher.model and teacher.used else [])
        self._table: ResumableTable[PendingScore] = ResumableTable(
            run,
            "score",
            "scores",
            list({id(model): model.engine for model in models}.values()),
            retry_errors=settings.retry_errors,
            stall_timeout=settings.stall_timeout,
        )

    def run_to_end(self, progress: Progress) -> StepSummary:
        return self._table.fill(self._rows(), progress, total=self._table.run.count("traces"))

    def _rows(self) -> Iterator[FinishedRow | Failure]:
        """Score the pending traces, and yield each as soon as it has all its log-probs."""
        pending = self._table.pending
        for result in self._results(self._blocks()):
            score = pending.get(result.key)
            if score is None:
                continue  # the other model failed on it
            if isinstance(result, Failure):
                yield result
            elif score.complete:
                yield self._finished(score)

    def _finished(self, score: PendingScore) -> FinishedRow | Failure:
        try:
            return FinishedRow(score.key, self._row(score), len(score.student.scored))
        except RewardError as error:
            return Failure(score.key, f"{error} ({self._settings.reward})")

    def _row(self, score: PendingScore) -> dict[str, Any]:
        trace, teacher = score.trace, score.teacher
        assert score.student_logprobs is not None
        terms = score_trace(
            score.student,
            score.student_logprobs,
            score.alignment,
            score.teacher_logprobs,
            self._weights,
            truncated=trace["finish_reason"] == "length",
            full_kl=score.full_kl,
            per_token=self._settings.per_token,
        )
        question, solution = score.problem
        terms["reward"] = compute_reward(
            self._reward, terms, question=question, solution=solution, explanation=score.student.explanation.text
        )
        return {
            **{name: trace[name] for name in ("trace_id", "question_id", "source_id", "sample_index", "finish_reason")},
            **terms,
            "teacher_logprobs": "none" if teacher is None else "trace" if teacher.ids is None else "computed",
            "scored_by": self._scored_by,
        }

    def _blocks(self) -> Iterator[Groups]:
        """Tokenise the blocks that have a pending trace."""
        run, table = self._table.run, self._table
        for part, stored in table.parts("traces"):
            questions = {row["question_id"]: row for row in run.read("questions", part).to_pylist()}
            for block in _cut(run.read("traces", part)):
                pending = {key for key in block["trace_id"].to_pylist() if table.is_pending(key, stored)}
                if pending:
                    groups = self._groups(part, block.to_pylist(), questions, pending)
                    for score in chain.from_iterable(groups):
                        if score.emit:
                            table.add(score.key, score)
                    yield groups

    def _groups(
        self, part: int, rows: list[dict[str, Any]], questions: dict[str, dict[str, Any]], pending: set[str]
    ) -> Groups:
        """Tokenise traces and group them by question, longest first; traces that cannot be scored fail."""
        traces, problems = [], []
        for trace in rows:
            question = questions[trace["question_id"]]
            problem = question["question"], question["solution"]
            if reason := self._views.format.problem_with(*problem):
                self._fail(trace, reason, pending)
            else:
                traces.append(trace)
                problems.append(problem)
        completions = [trace["completion"] for trace in traces]
        students = tokenize_for_student(self._student.tokenizer, self._views, problems, completions)
        teachers = self._teacher.tokens(traces, problems)
        scores = []
        for trace, problem, student, teacher in zip(traces, problems, students, teachers, strict=True):
            if reason := self._reason_to_fail(trace, student, teacher):
                self._fail(trace, reason, pending)
            else:
                alignment = self._teacher.align(student, teacher) if teacher else None
                score = PendingScore(part, trace, problem, trace["trace_id"] in pending, student, teacher, alignment)
                self._add_known(score)
                scores.append(score)
        groups = [list(group) for _, group in groupby(scores, key=lambda score: score.trace["question_id"])]
        return sorted(groups, key=lambda group: -max(len(score.student.encoding) for score in group))

    def _add_known(self, score: PendingScore) -> None:
        """Add the teacher's values that no forward pass is needed for."""
        if score.teacher is None or score.alignment is None or score.student.empty:
            return
        if score.teacher.ids is None:
            score.teacher_logprobs = _stored_logprobs(score.trace)
        elif self._settings.kl == "full" and not len(score.alignment.single_tokens):
            score.full_kl = np.zeros(0, np.float32)

    def _reason_to_fail(
        self, trace: dict[str, Any], student: StudentTokens, teacher: TeacherTokens | None
    ) -> str | None:
        if not len(student.solution):
            return "the solution has no token of its own between its tags"
        if teacher and teacher.ids is None:  # earlier versions stored whatever a server had sent
            if problem := problem_with_logprobs(_stored_logprobs(trace), len(teacher.thought_ids)):
                return f"the trace was stored with {problem}; --teacher-logprobs compute does not use stored ones"
        texts = [("student's", len(student.encoding), self._student.engine)]
        if teacher and teacher.ids is not None and self._teacher.model:
            texts.append(("teacher's", len(teacher.ids), self._teacher.model.engine))
        for whose, length, engine in texts:
            if length > engine.context_length:
                return f"the {whose} text has {length} tokens, the context is {engine.context_length}"
        return None

    def _fail(self, trace: dict[str, Any], reason: str, pending: set[str]) -> None:
        if trace["trace_id"] in pending:
            self._table.errors.add(trace["trace_id"], reason, trace["source_id"])

    def _results(self, blocks: Iterator[Groups]) -> Iterator[SequenceLogprobs | Failure]:
        """Run the models in turn, so that a trace's log-probs from both arrive close together."""
        temperature, pending = self._settings.temperature, self._table.pending
        teacher = self._teacher.model if self._teacher.used else None
        for_student, for_teacher = _twice(blocks) if teacher else (blocks, iter(()))
        student = self._student.logprobs(map(_student_requests, for_student), temperature)
        streams = [_noting(student, pending, "student_logprobs")]
        if teacher:
            if self._settings.kl == "full":
                streams.append(_noting(self._full_kl(for_teacher, teacher), pending, "full_kl"))
            else:
                computed = teacher.logprobs(map(_teacher_requests, for_teacher), temperature)
                streams.append(_noting(computed, pending, "teacher_logprobs"))
        while streams:
            for stream in list(streams):
                result = next(stream, None)
                if result is None:
                    streams.remove(stream)
                else:
                    yield result

    def _full_kl(self, blocks: Iterator[Groups], teacher: Model) -> Iterator[SequenceLogprobs | Failure]:
        for group in chain.from_iterable(blocks):
            of_teacher, of_student = _full_kl_requests(group)
            yield from teacher.full_kl(of_teacher, self._student, of_student, self._settings.temperature)


def _stored_logprobs(trace: dict[str, Any]) -> Floats:
    """Return the teacher's log-probs of the prefill's padding and of the completion, shape (tokens,)."""
    return np.asarray([*(trace["prefill_logprobs"] or ()), *(trace["logprobs"] or ())], np.float32)


def reward_weights(settings: RewardSettings) -> RewardWeights:
    """Return the settings of the reward as the scoring function takes them."""
    return RewardWeights(settings.lambda_, settings.alpha, settings.kl, settings.missing_tag_penalty)


def _student_requests(groups: Groups) -> SequenceBlock:
    return [
        [SequenceRequest(score.key, score.student.encoding.ids, score.student.scored, score.emit) for score in group]
        for group in groups
    ]


def _teacher_requests(groups: Groups) -> SequenceBlock:
    """Request the log-probs that did not come with the traces; groups that need none are left out."""
    block = [
        [
            SequenceRequest(score.key, score.teacher.ids, score.teacher.thought, score.emit)
            for score in group
            if score.teacher is not None and score.teacher.ids is not None and not score.student.empty
        ]
        for group in groups
    ]
    return [group for group in block if group]


def _full_kl_requests(group: list[PendingScore]) -> tuple[list[SequenceRequest], list[SequenceRequest]]:
    """Request the distributions of teacher and student at the tokens that can be compared."""
    of_teacher, of_student = [], []
    for score in group:
        teacher, alignment = score.teacher, score.alignment
        if score.emit and not score.student.empty and teacher and teacher.ids is not None and alignment is not None:
            at = alignment.single_tokens
            of_teacher.append(SequenceRequest(score.key, teacher.ids, teacher.thought[at[:, 0]]))
            of_student.append(SequenceRequest(score.key, score.student.encoding.ids, score.student.thought[at[:, 1]]))
    return of_teacher, of_student


def _twice(blocks: Iterator[T]) -> tuple[Iterator[T], Iterator[T]]:
    """Split a stream of blocks in two; ``itertools.tee`` would hold up to 57 of them after both have taken them."""
    waiting: tuple[deque[T], deque[T]] = deque(), deque()

    def taker(queue: deque[T]) -> Iterator[T]:
        while True:
            if not queue:
                block = next(blocks, None)
                if block is None:
                    return
                for other in waiting:
                    other.append(block)
            yield queue.popleft()

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
    results: Iterator[SequenceLogprobs | Failure], pending: dict[str, PendingScore], name: str
) -> Iterator[SequenceLogprobs | Failure]:
    """Pass results on, and set the named attribute of the scores that they belong to."""
    for result in results:
        if isinstance(result, SequenceLogprobs) and result.key in pending:
            setattr(pending[result.key], name, result.logprobs)
        yield result
