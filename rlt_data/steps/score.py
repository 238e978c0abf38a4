"""Score traces with the RLT reward: traces in, one row with all reward terms out.

    for each block of traces: tokenise them for student and teacher, align, request log-probs from the engines
    for each trace whose log-probs are complete: score_trace computes its row, which the loop of resumable.py writes

Reading order: this module, ``teacher_source``, ``resumable``, :mod:`rlt_data.scoring` (tokens, rows, reward).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import closing, nullcontext
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
from rlt_data.engines.results import invalid_logprobs
from rlt_data.errors import SettingsError
from rlt_data.formats import Format, Problem, Views, choose_format, load_format
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
from rlt_data.scoring.reward import NO_SOLUTION_TOKEN, Floats
from rlt_data.settings import InputSettings, RewardSettings, ScoreSettings
from rlt_data.settings.base import is_url
from rlt_data.steps.makers import refuse_import
from rlt_data.steps.own_teachers import differ_only_in_teachers, has_other_teachers, teachers_by_scored_by
from rlt_data.steps.provenance import StepSummary, example_prompt, outcome, recorded_format, step_entry
from rlt_data.steps.resumable import FinishedRow, ResumableTable
from rlt_data.steps.teacher_source import NameSetting, TeacherSource, flag, refuse_conflicting_options
from rlt_data.storage.layout import default_run_path, run_log
from rlt_data.storage.run import RunFolder

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Approximate size of a block of traces that is tokenised at once: whichever limit is reached first.
_BLOCK_TRACES, _BLOCK_CHARACTERS = 1024, 2_000_000

#: Columns that a score has from its trace.
_OF_TRACE = ("trace_id", "question_id", "source_id", "sample_index", "finish_reason", "origin", "meta")


def score(settings: ScoreSettings, progress: Progress = SILENT) -> StepSummary:
    """Score the traces of a run or a file; implements ``rlt-data score``.

    Continues an earlier call with the same settings. Rows that fail go to errors.jsonl.

    Raises:
        RltDataError: a subclass from :mod:`rlt_data.errors`; existing rows are never lost.
    """
    refuse_conflicting_options(settings)
    REWARDS.load(settings.reward)
    source = _source_run(settings.input)
    if source and (unread := settings.not_default(*(InputSettings.model_fields.keys() - {"input"}))):
        flags = ", ".join(map(flag, sorted(unread)))
        raise SettingsError(f"{flags}: no effect with a run, whose traces are all scored")
    run = RunFolder(settings.out or (source.path if source else default_run_path(settings.input, settings.student)))
    if source is None:
        refuse_import(run)
    student = open_model(settings.student, settings, scoring=True, served_temperature=settings.served_temperature)
    teacher = _open_teacher(settings, student)
    trace_format = recorded_format(source, "generate") if source else None
    format = _choose_format(settings, source, trace_format, student)
    views = Views(format, student.template, student.control)
    views.check()
    with run.locked(), closing(student), closing(teacher) if teacher else nullcontext():
        if source is None:
            ingest(run, settings, format, [model.control for model in (student, teacher) if model], traces=True)
        elif source.path.resolve() != run.path.resolve():
            _copy_traces(run, source)
        teacher_source = TeacherSource(settings, student, teacher, trace_format or format, run)
        depends_on = _dependencies(settings, student, format, teacher_source)
        models = {"student": student} | ({"teacher": teacher} if teacher else {})
        entry = step_entry(settings, depends_on, format, models) | {"messages": views.rendering}
        _refuse_other_scores(run, entry, teacher_source)
        share = 0.5 if teacher and teacher is not student else 1.0  # two models share the GPU's memory
        for model in models.values():
            model.load(run.logs, memory_share=share)
        run.record("score", entry | example_prompt(run, lambda row: views.served_prompt(Problem.of(row))))
        with run_log(run):
            scoring = _Scoring(run, settings, student, views, teacher_source, depends_on)
            summary = scoring.run_to_end(progress)
            logger.info("score: %d new scores, %d in all, %d failed", summary.new, summary.rows, summary.failed)
        run.record("score", outcome(run, "score", summary))
    return summary


def _source_run(input: str | tuple[str, ...]) -> RunFolder | None:
    """Return the run that an input names, or None if it names files."""
    names = [input] if isinstance(input, str) else input
    runs = [name for name in names if is_url(name) or RunFolder.exists_at(name)]
    if runs and len(names) > 1:
        raise SettingsError(f"--in: {runs[0]} is a run, which is scored alone; combine runs with rlt-data merge")
    return RunFolder.existing(runs[0]) if runs else None


def _open_teacher(settings: ScoreSettings, student: Model) -> Model | None:
    if settings.teacher in (None, "none"):
        return None
    teacher = open_model(str(settings.teacher), settings, scoring=True)
    same = teacher.identity.fingerprint == student.identity.fingerprint
    return student if same and teacher.template.identity == student.template.identity else teacher


def _choose_format(
    settings: ScoreSettings, source: RunFolder | None, trace_format: Format | None, student: Model
) -> Format:
    template = student.template
    if source is None or trace_format is None:
        return choose_format(settings.format, template, student.checkpoint.name, student.checkpoint.folder, template)
    if settings.format == "auto":
        by_default = source.step("generate").get("settings", {}).get("format") == "auto"
        if by_default and template.reasoning and trace_format.name == "rlt":
            return load_format("native")  # has the same explanation tags
        return trace_format
    format = load_format(settings.format)
    refuse_other_explanations(format, trace_format)
    return format


def refuse_other_explanations(format: Format, trace_format: Format, key: NameSetting = flag) -> None:
    """Raise SettingsError if a format for scoring delimits explanations differently from the traces' format.

    Args:
        format: format for scoring.
        trace_format: format that the traces are generated in.
        key: writes a setting in the message.
    """
    for name in ("explanation_tags", "padding"):
        scored, generated = getattr(format, name), getattr(trace_format, name)
        if scored != generated:
            raise SettingsError(
                f"{key('format')}: {format.name!r} has {name} {scored!r}, but the traces have {generated!r} (format "
                f"{trace_format.name!r}); omit {key('format')} (free), or choose a format with the same {name}"
            )


def _copy_traces(run: RunFolder, source: RunFolder) -> None:
    """Copy questions and traces from another run, together with their run.json entries."""
    for table in ("questions", "traces"):
        run.adopt(table, source)
    for step in ("input", "generate"):
        if entry := source.step(step):
            run.record(step, entry)


def _dependencies(settings: ScoreSettings, student: Model, format: Format, teacher: TeacherSource) -> dict[str, Any]:
    """Return everything that a score depends on, except its trace."""
    identity = student.identity
    return settings.depends_on(
        student=identity.fingerprint,
        chat_template=identity.chat_template,
        dtype=identity.dtype,
        format=format.hash,
        teacher=teacher.fingerprint,
        **reward_identity(settings),
    )


def _refuse_other_scores(run: RunFolder, entry: dict[str, Any], teacher: TeacherSource) -> None:
    """Refuse to continue scores of other settings, or whose KL is relative to other teachers than new ones would be."""
    before = run.step("score").get("depends_on")
    if before is None or differ_only_in_teachers(before, entry["depends_on"]):
        run.refuse_earlier_prompts("score", entry)
        if before is None or not has_other_teachers(run, before, teacher.teacher_of):
            return
    run.refuse_other_settings("score", entry)


def reward_identity(settings: RewardSettings) -> dict[str, str]:
    """Return the ``depends_on`` entry of the reward function; empty for the built-in one, so that old runs continue."""
    identity = REWARDS.identity(settings.reward)
    return {"reward": identity} if identity else {}


@dataclass
class PendingScore:
    """A trace that is being scored.

    Attributes:
        part: part of the table that gets its score.
        trace: row of the traces table.
        problem: the problem.
        emit: whether its score is missing; other traces only keep batches the same after a resume.
        student: the student's tokens.
        teacher: the teacher's tokens; None without KL.
        alignment: alignment of the two; None without KL.
        student_logprobs: the student's log-probs of ``student.scored``; None until they arrive.
        teacher_logprobs: the teacher's log-probs of ``teacher.thought_ids``; None until they arrive.
        full_kl: with ``--kl full``, the KL at ``alignment.single_tokens``; None until it arrives.
    """

    part: int
    trace: dict[str, Any]
    problem: Problem
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
        """The question's id in the user's data."""
        return self.trace["source_id"]  # type: ignore[no-any-return]

    @property
    def complete(self) -> bool:
        """Whether all log-probs have arrived."""
        needs_no_kl = self.teacher is None or self.student.empty
        has_kl = needs_no_kl or self.teacher_logprobs is not None or self.full_kl is not None
        return has_kl and self.student_logprobs is not None


Groups = list[list[PendingScore]]


class _Scoring:
    """Scores the pending traces of a run.

    Args:
        run: a run that this process has locked.
        settings: settings of the step.
        student: the student.
        views: the student's views.
        teacher: the source of the teacher's log-probs.
        depends_on: everything that a score depends on, except its trace.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: ScoreSettings,
        student: Model,
        views: Views,
        teacher: TeacherSource,
        depends_on: dict[str, Any],
    ) -> None:
        self._settings = settings
        self._student = student
        self._views = views
        self._teacher = teacher
        self._weights = reward_weights(settings)
        self._reward = REWARDS.load(settings.reward)
        self._scored_by = {teacher: key for key, teacher in teachers_by_scored_by(depends_on).items()}
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
        """Yield the row of each pending trace as soon as its log-probs are complete."""
        pending = self._table.pending
        for result in self._results(self._blocks()):
            score = pending.get(result.key)
            if score is None:
                continue  # the other model has already failed on this trace
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
        terms["reward"] = compute_reward(
            self._reward,
            terms,
            question=score.problem.question,
            solution=score.problem.solution,
            explanation=score.student.explanation.text,
        )
        return {
            **{name: trace[name] for name in _OF_TRACE},
            **terms,
            "teacher_logprobs": "none" if teacher is None else "trace" if teacher.ids is None else "computed",
            "scored_by": self._scored_by[self._teacher.teacher_of(trace)],
        }

    def _blocks(self) -> Iterator[Groups]:
        """Yield each block that contains a pending trace, tokenised."""
        run, table = self._table.run, self._table
        for part, stored in table.parts("traces"):
            questions = {row["question_id"]: row for row in run.read("questions", part).to_pylist()}
            for block in _split_into_blocks(run.read("traces", part)):
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
        """Tokenise traces and group them by question, longest group first; log traces that cannot be scored."""
        traces, problems = [], []
        for trace in rows:
            question = questions[trace["question_id"]]
            problem = Problem.of(question)
            if reason := self._views.format.problem_with(problem.question, problem.solution):
                self._fail(trace, reason, pending)
            else:
                traces.append(trace)
                problems.append(problem)
        completions = [trace["completion"] for trace in traces]
        students = tokenize_for_student(self._student.tokenizer, self._views, problems, completions)
        teachers = self._teacher.tokens(traces, problems)
        scores = []
        for trace, problem, student, teacher in zip(traces, problems, students, teachers, strict=True):
            if reason := self._refuse(trace, student, teacher):
                self._fail(trace, reason, pending)
            else:
                alignment = self._teacher.align(trace, student, teacher) if teacher else None
                emit = trace["trace_id"] in pending
                score = PendingScore(part, trace, problem, emit, student, teacher, alignment)
                self._add_stored_logprobs(score)
                scores.append(score)
        groups = [list(group) for _, group in groupby(scores, key=lambda score: score.trace["question_id"])]
        return sorted(groups, key=lambda group: -max(len(score.student.encoding) for score in group))

    def _add_stored_logprobs(self, score: PendingScore) -> None:
        """Set the teacher's values that need no forward pass."""
        if score.teacher is None or score.alignment is None or score.student.empty:
            return
        if score.teacher.ids is None:
            score.teacher_logprobs = _stored_logprobs(score.trace)
        elif self._settings.kl == "full" and not len(score.alignment.single_tokens):
            score.full_kl = np.zeros(0, np.float32)

    def _refuse(self, trace: dict[str, Any], student: StudentTokens, teacher: TeacherTokens | None) -> str | None:
        """Return why a trace cannot be scored, or None."""
        if not len(student.solution):
            return NO_SOLUTION_TOKEN
        if teacher and teacher.ids is None:  # earlier versions stored whatever a server had sent
            if reason := invalid_logprobs(_stored_logprobs(trace), len(teacher.thought_ids)):
                return f"the trace was stored with {reason}; --teacher-logprobs compute does not use stored log-probs"
        texts = [("student's", len(student.encoding), self._student.engine)]
        if teacher and teacher.ids is not None and self._teacher.model:
            texts.append(("teacher's", len(teacher.ids), self._teacher.model.engine))
        for reader, length, engine in texts:
            if length > engine.context_length:
                return f"the {reader} text has {length} tokens, the context is {engine.context_length}"
        return None

    def _fail(self, trace: dict[str, Any], reason: str, pending: set[str]) -> None:
        if trace["trace_id"] in pending:
            self._table.errors.add(trace["trace_id"], reason, trace["source_id"])

    def _results(self, blocks: Iterator[Groups]) -> Iterator[SequenceLogprobs | Failure]:
        """Run the models in turn, so that a trace's log-probs from both arrive at about the same time."""
        temperature, pending = self._settings.temperature, self._table.pending
        teacher = self._teacher.model if self._teacher.used else None
        for_student, for_teacher = _duplicate(blocks) if teacher else (blocks, iter(()))
        student = self._student.logprobs(map(_student_requests, for_student), temperature)
        streams = [_store_results(student, pending, "student_logprobs")]
        if teacher:
            if self._settings.kl == "full":
                streams.append(_store_results(self._full_kl(for_teacher, teacher), pending, "full_kl"))
            else:
                computed = teacher.logprobs(map(_teacher_requests, for_teacher), temperature)
                streams.append(_store_results(computed, pending, "teacher_logprobs"))
        while streams:
            for stream in list(streams):
                result = next(stream, None)
                if result is None:
                    streams.remove(stream)
                else:
                    yield result

    def _full_kl(self, blocks: Iterator[Groups], teacher: Model) -> Iterator[SequenceLogprobs | Failure]:
        for group in chain.from_iterable(blocks):
            teacher_requests, student_requests = _full_kl_requests(group)
            yield from teacher.full_kl(teacher_requests, self._student, student_requests, self._settings.temperature)


def _stored_logprobs(trace: dict[str, Any]) -> Floats:
    """Return the teacher's log-probs of the prefill's padding and of the completion, shape (tokens,)."""
    return np.asarray([*(trace["prefill_logprobs"] or ()), *(trace["logprobs"] or ())], np.float32)


def reward_weights(settings: RewardSettings) -> RewardWeights:
    """Convert settings to the weights of :func:`rlt_data.scoring.score_trace`."""
    return RewardWeights(settings.lambda_, settings.alpha, settings.kl, settings.missing_tag_penalty)


def _student_requests(groups: Groups) -> SequenceBlock:
    return [
        [SequenceRequest(score.key, score.student.encoding.ids, score.student.scored, score.emit) for score in group]
        for group in groups
    ]


def _teacher_requests(groups: Groups) -> SequenceBlock:
    """Request the teacher's log-probs that are not stored with the traces; omit empty groups."""
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
    """Request the distributions of teacher and student at the aligned single tokens."""
    teacher_requests, student_requests = [], []
    for score in group:
        teacher, alignment = score.teacher, score.alignment
        if score.emit and not score.student.empty and teacher and teacher.ids is not None and alignment is not None:
            pairs, student = alignment.single_tokens, score.student
            teacher_requests.append(SequenceRequest(score.key, teacher.ids, teacher.thought[pairs[:, 0]]))
            student_requests.append(SequenceRequest(score.key, student.encoding.ids, student.thought[pairs[:, 1]]))
    return teacher_requests, student_requests


def _duplicate(blocks: Iterator[T]) -> tuple[Iterator[T], Iterator[T]]:
    """Split an iterator of blocks in two; ``itertools.tee`` would keep up to 57 blocks that both have consumed."""
    queues: tuple[deque[T], deque[T]] = deque(), deque()

    def consume(queue: deque[T]) -> Iterator[T]:
        while True:
            if not queue:
                block = next(blocks, None)
                if block is None:
                    return
                for other in queues:
                    other.append(block)
            yield queue.popleft()

    return consume(queues[0]), consume(queues[1])


def _split_into_blocks(traces: pa.Table) -> Iterator[pa.Table]:
    """Cut the traces of a part into blocks, between questions, so that several copies of a block fit in memory."""
    start = characters = 0
    questions = traces["question_id"].to_pylist()
    for row, length in enumerate(pc.utf8_length(traces["completion"]).to_pylist()):
        full = characters > _BLOCK_CHARACTERS or row - start >= _BLOCK_TRACES
        if full and questions[row] != questions[row - 1]:
            yield traces.slice(start, row - start)
            start, characters = row, 0
        characters += length
    yield traces.slice(start)


def _store_results(
    results: Iterator[SequenceLogprobs | Failure], pending: dict[str, PendingScore], name: str
) -> Iterator[SequenceLogprobs | Failure]:
    """Yield results, and store each under ``name`` in its pending score."""
    for result in results:
        if isinstance(result, SequenceLogprobs) and result.key in pending:
            setattr(pending[result.key], name, result.logprobs)
        yield result
