"""Sample explanations from a teacher: questions in, traces out. :mod:`rlt_data.steps.sampling` has the loop."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import Any

from rlt_data.engines import Model, Sample, choose_engine, find_checkpoint, open_model, open_tokenizer
from rlt_data.formats import ChatTemplate, ControlTokens, Format, Problem, Tokenizer, Views, choose_format
from rlt_data.inputs import ingest
from rlt_data.progress import SILENT, Progress
from rlt_data.settings import GenerateSettings
from rlt_data.steps.dry_run import opened
from rlt_data.steps.makers import engine_of_maker, origin_of_maker, record_maker, recorded_makers, refuse_maker
from rlt_data.steps.provenance import StepSummary, example_prompt, step_entry
from rlt_data.steps.sampling import PendingSample, SamplingTask, plan_samples, sample_questions
from rlt_data.storage.layout import default_run_path, run_log
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash

logger = logging.getLogger(__name__)


def generate(settings: GenerateSettings, progress: Progress = SILENT) -> StepSummary:
    """Sample ``n`` traces for each question; implements ``rlt-data generate``.

    Continues an earlier call with the same settings; with ``add``, a run can have traces of several settings. Rows that
    fail go to errors.jsonl. With ``dry_run``, computes and writes nothing and returns a plan.

    Raises:
        RltDataError: a subclass from :mod:`rlt_data.errors`; existing rows are never lost.
    """
    run = RunFolder(settings.out or default_run_path(settings.input, settings.teacher, settings.share))
    settings = choose_engine(settings, engine_of_maker(run, settings))
    model = open_model(settings.teacher, settings)
    controls = [model.control]
    student = _open_student(settings)
    folder, student_template = model.checkpoint.folder, student[1] if student else None
    format = choose_format(settings.format, model.template, model.checkpoint.name, folder, student_template)
    if student:
        Views(format, student[1]).check()
        controls.append(ControlTokens(*student, str(settings.student), as_text=settings.control_tokens == "text"))
    views = Views(format, model.template, model.control)
    views.check_teacher()
    depends_on = _dependencies(settings, model, format)
    made_by = content_hash(depends_on)
    with opened(run, dry_run=settings.dry_run) as inputs, closing(model):
        entry = step_entry(settings, depends_on, format, {"teacher": model})
        refuse_maker(run, made_by, entry, format, add=settings.add)
        origin = origin_of_maker(run, made_by, settings.origin, model.checkpoint.public_name)
        if any(other.get("origin") == origin for key, other in recorded_makers(run).items() if key != made_by):
            logger.warning("the run has other traces of origin %r; --origin tells them apart", origin)
        ingest(inputs, settings.as_input(), format, controls, traces=False)
        task = _task(settings, model, views, made_by, origin)
        if settings.dry_run:
            plan = plan_samples(inputs, run, model, task, comparable=[*recorded_makers(run)] == [made_by])
            return StepSummary(run.path, plan.done, 0, 0, 0, 0.0, plan=plan)
        model.load(run.logs)
        record_maker(run, made_by, entry | {"origin": origin} | example_prompt(run, task.prompt))
        with run_log(run):
            summary = sample_questions(run, model, task, progress)
            logger.info("generate: %d new traces, %d in all, %d failed", summary.new, summary.rows, summary.failed)
        run.record("generate", {"rows": summary.rows, "failed": summary.failed})
    return summary


def _open_student(settings: GenerateSettings) -> tuple[Tokenizer, ChatTemplate] | None:
    """Return tokenizer and chat template of the student if ``--student`` names it."""
    if settings.student is None:
        logger.info("score checks the format against the student's chat template; --student checks it now")
        return None
    return open_tokenizer(find_checkpoint(settings.student, tokenizer_only=True), settings)


def _dependencies(settings: GenerateSettings, model: Model, format: Format) -> dict[str, Any]:
    """Return everything that a trace depends on, except its question and its sample index."""
    identity = model.identity
    return settings.depends_on(
        teacher=identity.fingerprint,
        dtype=identity.dtype,
        chat_template=identity.chat_template,
        format=format.hash,
    )


def _task(settings: GenerateSettings, model: Model, views: Views, made_by: str, origin: str) -> SamplingTask:
    format = views.format

    def row(sample: Sample, pending: PendingSample) -> dict[str, Any]:
        return {
            "trace_id": sample.key,
            "question_id": pending.question["question_id"],
            "source_id": pending.question["source_id"],
            "sample_index": pending.sample_index,
            "completion": sample.text,
            "finish_reason": sample.finish_reason,
            "token_ids": sample.token_ids,
            "logprobs": sample.logprobs,
            "prefill_token_ids": pending.prefill_ids,
            "prefill_logprobs": sample.tail_logprobs,
            "logprob_temperature": None if sample.logprobs is None else settings.temperature or 1.0,
            "prompt_tokens": sample.prompt_tokens,
            "completion_tokens": sample.completion_tokens,
            "seed": pending.seed,
            "teacher": model.identity.fingerprint,
            "made_by": made_by,
            "origin": origin,
        }

    return SamplingTask(
        step="generate",
        table="traces",
        n=settings.n,
        settings=settings,
        stop=format.explanation_tags[1],
        made_by=made_by,
        prompt=lambda question: views.teacher_prompt(Problem(question["question"], question["solution"])),
        refusal=lambda question: views.problem_with(Problem(question["question"], question["solution"])),
        tail=len(format.padding),
        row=row,
    )
