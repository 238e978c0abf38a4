"""Score traces with the RLT reward: traces in, one row with all reward terms out.

    for each block of traces: tokenise them for student and teacher, align, request log-probs from the engines
    for each trace whose log-probs are complete: score_trace computes its row, which the loop of resumable.py writes

Reading order: this module, ``preparation``, ``pending_scores``, ``teacher_source``, ``further_passes``, ``resumable``,
:mod:`rlt_data.scoring` (tokens, rows, reward, measures).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from itertools import chain
from typing import Any

from rlt_data.engines import Engine, Failure, Model, SequenceLogprobs, choose_engine, memory_shares, open_model
from rlt_data.errors import SettingsError
from rlt_data.formats import Format, Problem, Views, choose_format, load_format
from rlt_data.inputs import ingest
from rlt_data.plugins import REWARDS
from rlt_data.progress import SILENT, Progress, task
from rlt_data.scoring import (
    RewardError,
    RewardWeights,
    compute_reward,
    score_trace,
)
from rlt_data.settings import RewardSettings, ScoreSettings
from rlt_data.signals.frames import trace_format
from rlt_data.steps.blocks import duplicate, split_into_blocks, to_rows
from rlt_data.steps.dry_run import StepPlan, opened, plan_step
from rlt_data.steps.further_passes import further_measures
from rlt_data.steps.imports import refuse_input_flags, source_run
from rlt_data.steps.makers import (
    OF_EXPLANATIONS,
    differing_explanations,
    recorded_makers,
    refuse_import,
)
from rlt_data.steps.own_teachers import differ_only_in_teachers, has_other_teachers, teachers_by_scored_by
from rlt_data.steps.pending_scores import (
    Groups,
    PendingScore,
    full_kl_requests,
    store_results,
    store_student_results,
    student_requests,
    teacher_requests,
)
from rlt_data.steps.preparation import Block, Preparation, PreparedBlock
from rlt_data.steps.processes import compute
from rlt_data.steps.provenance import (
    StepSummary,
    example_prompt,
    recorded_engine,
    recorded_format,
    step_entry,
)
from rlt_data.steps.resumable import FinishedRow, ResumableTable
from rlt_data.steps.teacher_source import NameSetting, TeacherSource, flag, refuse_conflicting_options
from rlt_data.storage.layout import default_run_path, run_log
from rlt_data.storage.run import RunFolder

logger = logging.getLogger(__name__)

#: Columns that a score has from its trace.
_OF_TRACE = ("trace_id", "question_id", "source_id", "sample_index", "finish_reason", "origin", "meta")


def score(settings: ScoreSettings, progress: Progress = SILENT) -> StepSummary:
    """Score the traces of a run or a file; implements ``rlt-data score``.

    Continues an earlier call with the same settings. Rows that fail go to errors.jsonl. With ``dry_run``, computes and
    writes nothing and returns a plan.

    Raises:
        RltDataError: a subclass from :mod:`rlt_data.errors`; existing rows are never lost.
    """
    refuse_conflicting_options(settings)
    REWARDS.load(settings.reward)
    source = source_run(settings.input)
    if source:
        refuse_input_flags(settings)
    run = RunFolder(
        settings.out or (source.path if source else default_run_path(settings.input, settings.student, settings.share))
    )
    if source is None:
        refuse_import(run)
    settings = choose_engine(settings, recorded_engine(run.step("score")))
    student = open_model(settings.student, settings, scoring=True, served_temperature=settings.served_temperature)
    teacher = _open_teacher(settings, student)
    format = _choose_format(settings, source or run, student)
    views = Views(format, student.template, student.control)
    views.check()
    with (
        opened(run, dry_run=settings.dry_run, source=source, tables=("questions", "traces")) as inputs,
        closing(student),
        closing(teacher) if teacher else nullcontext(),
    ):
        if source is None:
            controls = [model.control for model in (student, teacher) if model]
            ingest(inputs, settings, format, controls, traces=True, check_system=views.check_own_system)
        elif inputs.path.resolve() != source.path.resolve():
            _copy_traces(inputs, source)
        of_traces = recorded_format(inputs, "generate") or format
        teacher_source = TeacherSource(settings, student, teacher, of_traces, inputs)
        depends_on = _dependencies(settings, student, format, teacher_source)
        models = {"student": student} | ({"teacher": teacher} if teacher else {})
        entry = step_entry(settings, depends_on, format, models) | {"messages": views.rendering}
        _refuse_other_scores(run, entry, teacher_source)
        distinct = [student, teacher] if teacher and teacher is not student else [student]
        if settings.dry_run:
            prepare = Preparation(settings, student, views, teacher_source)
            plan = _plan(inputs, run, settings, distinct, prepare, progress)
            return StepSummary(run.path, plan.done, 0, 0, 0, 0.0, plan=plan)
        for model, share in zip(distinct, memory_shares(distinct), strict=True):
            model.load(run.logs, memory_share=share)
        run.record("score", entry | example_prompt(run, lambda row: views.served_prompt(Problem.of(row))))
        with run_log(run):
            if settings.engine == "vllm" and settings.measure_temperature != settings.temperature:
                logger.warning(
                    "score: vLLM reads each text twice: for the reward at --temperature %g, and for the measures at "
                    "--measure-temperature %g (equal temperatures need one pass)",
                    settings.temperature, settings.measure_temperature,
                )  # fmt: skip
            scoring = _Scoring(run, settings, student, views, teacher_source, depends_on)
            summary = scoring.run_to_end(progress)
            logger.info("score: %d new scores, %d in all, %d failed", summary.new, summary.rows, summary.failed)
        run.record("score", {"rows": summary.rows, "failed": summary.failed})
    return summary


def _plan(
    inputs: RunFolder,
    run: RunFolder,
    settings: ScoreSettings,
    models: list[Model],
    prepare: Preparation,
    progress: Progress,
) -> StepPlan:
    """Return what the step would compute: prepare all pending traces, and count their tokens."""
    table: ResumableTable[PendingScore] = _open_table(run, settings, [])

    def blocks() -> Iterator[Block]:
        for part in inputs.parts("traces"):
            yield from _pending_blocks(inputs, part, run.keys("scores", part), table)

    rows, done = inputs.count("traces"), run.count("scores")
    new = read = scored = longest = 0
    with task(progress, "count tokens", rows, done), closing(compute(prepare, blocks())) as prepared:
        for block in prepared:
            groups = [*student_requests(block.groups, settings.measure_temperature)]
            if settings.kl == "full":
                groups += chain.from_iterable(map(full_kl_requests, block.groups))
            else:
                groups += teacher_requests(block.groups)
            texts = [request for group in groups for request in group if request.emit]
            scores = [score for group in block.groups for score in group if score.emit]
            new += len(scores)
            read += sum(len(text.ids) for text in texts)
            scored += sum(len(score.student.scored) for score in scores)
            longest = max([longest, *(len(text.ids) for text in texts)])
            progress.advance(len(scores))
    return plan_step(
        run,
        "score",
        settings,
        models,
        questions=inputs.count("questions"),
        rows=rows,
        done=done,
        new=new,
        left_out=rows - done - new,
        tokens_read=read,
        tokens=scored,
        tokens_expected=float(scored),
        longest=longest,
    )


def _open_teacher(settings: ScoreSettings, student: Model) -> Model | None:
    if settings.teacher in (None, "none"):
        return None
    teacher = open_model(str(settings.teacher), settings, scoring=True)
    same = teacher.identity.fingerprint == student.identity.fingerprint
    return student if same and teacher.template.identity == student.template.identity else teacher


def _choose_format(settings: ScoreSettings, run: RunFolder, student: Model) -> Format:
    """Return the format of the scores, which can read explanations in the format of the run's traces."""
    template, stored = student.template, trace_format(run)
    if stored is None or (settings.format == "auto" and not recorded_makers(run)):
        name, folder = student.checkpoint.name, student.checkpoint.folder
        format = choose_format(settings.format, template, name, folder, template)
        return format if stored is None else _for_imports(format, stored)
    if settings.format == "auto":
        by_default = run.step("generate").get("settings", {}).get("format") == "auto"
        if by_default and template.reasoning and stored.name == "rlt":
            return load_format("native")  # has the same explanation tags
        return stored
    format = load_format(settings.format)
    refuse_other_explanations(format, stored)
    return format


def _for_imports(format: Format, trace_format: Format) -> Format:
    """Return a student's format that reads explanations in the tags and padding in which they were imported."""
    if not differing_explanations(format, trace_format):
        return format
    logger.warning("explanations have the padding of the format %s, in which they were imported", trace_format.name)
    return format.model_copy(update={name: getattr(trace_format, name) for name in OF_EXPLANATIONS})


def refuse_other_explanations(format: Format, trace_format: Format, key: NameSetting = flag) -> None:
    """Raise SettingsError if a format for scoring delimits explanations differently from the traces' format.

    Args:
        format: format for scoring.
        trace_format: format that the traces are generated in.
        key: writes a setting in the message.
    """
    if name := differing_explanations(format, trace_format):
        scored, generated = getattr(format, name), getattr(trace_format, name)
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
        self._teacher = teacher
        self._weights = reward_weights(settings)
        self._reward = REWARDS.load(settings.reward)
        self._scored_by = {teacher: key for key, teacher in teachers_by_scored_by(depends_on).items()}
        self._prepare = Preparation(settings, student, views, teacher)
        self._reported_missing = False
        models = [student] + ([teacher.model] if teacher.model and teacher.used else [])
        engines = list({id(model): model.engine for model in models}.values())
        self._table: ResumableTable[PendingScore] = _open_table(run, settings, engines)

    def run_to_end(self, progress: Progress) -> StepSummary:
        with closing(compute(self._prepare, self._blocks())) as blocks:
            rows = self._rows(self._groups(blocks))
            return self._table.fill(rows, progress, total=self._table.run.count("traces"))

    def _rows(self, groups: Iterator[Groups]) -> Iterator[FinishedRow | Failure]:
        """Yield the row of each pending trace as soon as its log-probs are complete."""
        pending = self._table.pending
        for result in self._results(groups):
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
        trace, teacher, student = score.trace, score.teacher, score.student_logprobs
        assert student is not None
        self._report_missing(score, student)
        terms = score_trace(
            score.student,
            student.logprobs,
            score.alignment,
            score.teacher_logprobs,
            self._weights,
            truncated=trace["finish_reason"] == "length",
            full_kl=score.full_kl,
            measured_logprobs=student.measured_logprobs,
            ranks=student.ranks,
            per_token=self._settings.per_token,
        )
        if self._settings.measures:
            further = [(text, score.further_logprobs[key]) for key, text in score.further.items()]
            terms |= further_measures(self._settings, score.student, student.measured_logprobs, terms["r_ss"], further)
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

    def _report_missing(self, score: PendingScore, result: SequenceLogprobs) -> None:
        """Report once which measures are null because the engine lacks their values."""
        temperature = self._settings.measure_temperature
        missing = {
            f"log-probs at --measure-temperature {temperature:g}": result.measured_logprobs is None,
            "token ranks": result.ranks is None,
        }
        if self._reported_missing or not len(score.student.thought) or not any(missing.values()):
            return
        self._reported_missing = True
        names = " and no ".join(name for name, absent in missing.items() if absent)
        logger.warning("score: the engine returns no %s; the measures that need them are null", names)

    def _blocks(self) -> Iterator[Block]:
        """Yield each block that contains a pending trace."""
        for part, stored in self._table.parts("traces"):
            for block in _pending_blocks(self._table.run, part, stored, self._table):
                self._table.hold(part)
                yield block

    def _groups(self, blocks: Iterator[PreparedBlock]) -> Iterator[Groups]:
        """Register the pending traces of each block, and log those that cannot be scored."""
        for block in blocks:
            for key, reason, source_id in block.refused:
                self._table.errors.add(key, reason, source_id)
            for score in chain.from_iterable(block.groups):
                if score.emit:
                    self._table.add(score.key, score)
            self._table.release(block.part)
            yield block.groups

    def _results(self, blocks: Iterator[Groups]) -> Iterator[SequenceLogprobs | Failure]:
        """Run the models in turn, so that a trace's log-probs from both arrive at about the same time."""
        settings, temperature, pending = self._settings, self._settings.temperature, self._table.pending
        teacher = self._teacher.model if self._teacher.used else None
        for_student, *others = duplicate(blocks, 2 if teacher else 1)
        requests = map(partial(student_requests, temperature=settings.measure_temperature), for_student)
        streams = [store_student_results(self._student.logprobs(requests, temperature), pending)]
        if teacher:
            [for_teacher] = others
            if settings.kl == "full":
                streams.append(store_results(self._full_kl(for_teacher, teacher), pending, "full_kl"))
            else:
                computed = teacher.logprobs(map(teacher_requests, for_teacher), temperature)
                streams.append(store_results(computed, pending, "teacher_logprobs"))
        while streams:
            for stream in list(streams):
                result = next(stream, None)
                if result is None:
                    streams.remove(stream)
                else:
                    yield result

    def _full_kl(self, blocks: Iterator[Groups], teacher: Model) -> Iterator[SequenceLogprobs | Failure]:
        for group in chain.from_iterable(blocks):
            of_teacher, of_student = full_kl_requests(group)
            yield from teacher.full_kl(of_teacher, self._student, of_student, self._settings.temperature)


def _open_table(run: RunFolder, settings: ScoreSettings, engines: Sequence[Engine]) -> ResumableTable[PendingScore]:
    return ResumableTable(
        run,
        "score",
        "scores",
        engines,
        retry_errors=settings.retry_errors,
        stall_timeout=settings.stall_timeout,
    )


def _pending_blocks(
    inputs: RunFolder, part: int, stored: set[str], table: ResumableTable[PendingScore]
) -> Iterator[Block]:
    """Yield each block of a part that contains a pending trace.

    Args:
        inputs: a run with the questions and traces.
        part: the part.
        stored: ids of the traces of the part that have scores.
        table: the scores.
    """
    questions = {row["question_id"]: row for row in inputs.read("questions", part).to_pylist()}
    for block in split_into_blocks(inputs.read("traces", part)):
        traces = to_rows(block)
        if pending := {key for trace in traces if table.is_pending(key := trace["trace_id"], stored)}:
            own = {id: questions[id] for id in dict.fromkeys(trace["question_id"] for trace in traces)}
            yield Block(part, traces, own, pending)


def reward_weights(settings: RewardSettings) -> RewardWeights:
    """Convert settings to the weights of :func:`rlt_data.scoring.score_trace`."""
    return RewardWeights(
        settings.lambda_,
        settings.alpha,
        settings.kl,
        settings.missing_tag_penalty,
        settings.solution_weight,
        settings.alpha_kl,
    )
