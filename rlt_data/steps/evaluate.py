"""Measure a model's accuracy on a benchmark: questions in, answers and grades out.

Answers are sampled like traces (:mod:`rlt_data.steps.sampling`), but the model sees only the question. Grades are in a
separate table, so grading differently needs no new samples.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import comb, nan
from typing import Any

import numpy as np
import polars as pl

from rlt_data.engines import Model, Sample, choose_engine, open_model
from rlt_data.errors import InputError, SettingsError
from rlt_data.formats import Format, Views, choose_format
from rlt_data.formats.views import SolutionIn
from rlt_data.inputs import ingest
from rlt_data.progress import SILENT, Progress, task
from rlt_data.settings import EvaluateSettings, InputSettings
from rlt_data.steps.budget_forcing import BudgetForcing
from rlt_data.steps.compare import mean_interval
from rlt_data.steps.dry_run import StepPlan, opened
from rlt_data.steps.provenance import recorded_engine, step_entry
from rlt_data.steps.sampling import PendingSample, SamplingTask, plan_samples, sample_questions
from rlt_data.storage.layout import default_run_path, run_log
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash
from rlt_data.storage.writer import TableWriter
from rlt_data.tasks.benchmarks import BENCHMARKS, Benchmark, BenchmarkReader
from rlt_data.tasks.grading import Grade, Grader, final_answer
from rlt_data.tasks.prompts import Prompts, load_prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        run: run folder.
        benchmark: name of the benchmark.
        model: name of the model.
        questions: questions with at least one answer.
        answers: graded answers.
        failed: answers that failed, excluded from all other figures; errors.jsonl has the reasons.
        accuracy: pass@1, the mean over questions of the share of correct answers.
        low: lower end of the 95 % interval of the accuracy, from a bootstrap over questions (:func:`mean_interval`).
        high: its upper end.
        pass_at: unbiased pass@k estimates by k (Chen et al. 2021, arXiv 2107.03374), for powers of two up to n, and n.
        majority: share of questions whose most frequent final answer is correct; the earlier sample wins a tie.
        formatted: share of answers in the student's format.
        truncated: share of answers that hit the token limit.
        ungraded: answers on which the grader crashed or timed out; they count as wrong.
        mean_tokens: mean tokens per answer.
        prompts: the texts that the model saw with each question.
        extended: with budget forcing, share of the thoughts that were extended.
        cut: with budget forcing, share of the thoughts that were closed at the maximum.
        failure: the most frequent reason in errors.jsonl; None if nothing failed.
        failure_rows: rows that failed for this reason.
        plan: what a dry run found; the figures above are then NaN.
    """

    run: StoragePath
    benchmark: str
    model: str
    questions: int
    answers: int
    failed: int
    accuracy: float
    low: float
    high: float
    pass_at: dict[int, float]
    majority: float
    formatted: float
    truncated: float
    ungraded: int
    mean_tokens: float
    prompts: Prompts | None = None
    extended: float | None = None
    cut: float | None = None
    failure: str | None = None
    failure_rows: int = 0
    plan: StepPlan | None = None


def evaluate(settings: EvaluateSettings, progress: Progress = SILENT) -> Evaluation:
    """Sample and grade answers to a benchmark; implements ``rlt-data evaluate``.

    Continues an earlier call with the same settings. Also writes the figures to RUN/evaluation.json. With ``dry_run``,
    computes and writes nothing and returns a plan.

    Raises:
        RltDataError: a subclass from :mod:`rlt_data.errors`; existing rows are never lost.
    """
    benchmark = BENCHMARKS[settings.benchmark]
    source = _source(settings, benchmark)
    prompts = load_prompts(settings.prompts, settings.benchmark)
    run = RunFolder(settings.out or default_run_path(settings.benchmark, settings.model, settings.share))
    settings = choose_engine(settings, recorded_engine(run.step("evaluate")))
    model = open_model(settings.model, settings)
    template = model.template
    format = choose_format(settings.format, template, model.checkpoint.name, model.checkpoint.folder, template)
    format = prompts.applied_to(format, settings.benchmark)
    prompts = prompts.completed(format)
    views = Views(format, template, model.control)
    views.check()
    depends_on = _dependencies(settings, model, format)
    made_by = content_hash(depends_on)
    forcing = BudgetForcing(settings, model, views, made_by) if settings.forces_budget else None
    with opened(run, dry_run=settings.dry_run) as inputs, Grader(benchmark.kind) as grader, closing(model):
        entry = step_entry(settings, depends_on, format, {"model": model}) | {"prompts": asdict(prompts)}
        run.refuse_other_settings("evaluate", entry)
        reader_of = partial(BenchmarkReader, benchmark, settings)
        ingest(inputs, source, format, [model.control], traces=False, reader_of=reader_of)
        sampling_task = _sampling_task(settings, views, made_by)
        if settings.dry_run:
            if forcing:
                sampling_task = replace(sampling_task, starts=partial(forcing.starts, inputs, run))
            return _planned(run, settings, plan_samples(inputs, run, model, sampling_task))
        model.load(run.logs)
        run.record("evaluate", entry)
        with run_log(run):
            if forcing:
                sampled = forcing.sample(run, sampling_task, progress)
            else:
                sampled = sample_questions(run, model, sampling_task, progress)
            grade_answers(run, benchmark, views.solution_in, grader, progress)
            if not run.parts("grades"):
                raise InputError(f"{run.path}: no question has an answer: {sampled.failure} (all: errors.jsonl)")
            evaluation = replace(evaluation_of(run, settings), prompts=prompts)
            if forcing:
                extended, cut = forcing.shares(run)
                evaluation = replace(evaluation, extended=extended, cut=cut)
            logger.info("evaluate: accuracy %.4f of %d answers", evaluation.accuracy, evaluation.answers)
        excluded = ("run", "failure", "failure_rows", "plan")
        run.write_json("evaluation.json", {k: value for k, value in asdict(evaluation).items() if k not in excluded})
    return replace(evaluation, failure=sampled.failure, failure_rows=sampled.failure_rows)


def _planned(run: RunFolder, settings: EvaluateSettings, plan: StepPlan) -> Evaluation:
    """Return the plan of a dry run in an evaluation without figures."""
    return Evaluation(
        run=run.path,
        benchmark=settings.benchmark,
        model=settings.model,
        questions=plan.questions,
        answers=plan.done,
        failed=0,
        accuracy=nan,
        low=nan,
        high=nan,
        pass_at={},
        majority=nan,
        formatted=nan,
        truncated=nan,
        ungraded=0,
        mean_tokens=nan,
        plan=plan,
    )


def _dependencies(settings: EvaluateSettings, model: Model, format: Format) -> dict[str, Any]:
    """Return everything that an answer depends on, except its question and its sample index."""
    identity = model.identity
    return settings.depends_on(
        model=identity.fingerprint,
        dtype=identity.dtype,
        chat_template=identity.chat_template,
        format=format.hash,
    )


def _source(settings: EvaluateSettings, benchmark: Benchmark) -> InputSettings:
    source = settings.model_dump(include={"input", "subset", "split", "limit", "share", "skip_bad_rows"})
    if settings.input is None:
        if benchmark.hub is None:
            raise SettingsError(
                f"--in: is required with --benchmark {settings.benchmark}, which has no default data set"
            )
        source |= {"input": benchmark.hub, "subset": benchmark.subset, "split": benchmark.split}
    return InputSettings.model_validate(source)


def _sampling_task(settings: EvaluateSettings, views: Views, made_by: str) -> SamplingTask:
    def row(sample: Sample, pending: PendingSample) -> dict[str, Any]:
        return {
            "answer_id": sample.key,
            "question_id": pending.question["question_id"],
            "source_id": pending.question["source_id"],
            "sample_index": pending.sample_index,
            "completion": pending.start.text + sample.text,
            "finish_reason": sample.finish_reason,
            "prompt_tokens": pending.start.prompt_tokens or sample.prompt_tokens,
            "completion_tokens": pending.start.tokens + sample.completion_tokens,
            "seed": pending.seed,
            "made_by": made_by,
        }

    return SamplingTask(
        step="evaluate",
        table="answers",
        n=settings.n,
        settings=settings,
        stop=views.solver_stop,
        made_by=made_by,
        prompt=lambda question: views.solver_prompt(question["question"], question["system"]),
        refusal=lambda question: None,
        tail=0,
        row=row,
    )


def grade_answers(
    run: RunFolder, benchmark: Benchmark, solution_in: SolutionIn, grader: Grader, progress: Progress
) -> None:
    """Grade the answers that are not in the grades table."""
    parts = run.parts("answers")
    with task(progress, "grade", run.count("answers")), TableWriter(run, "grades") as writer:
        for part in parts:
            questions = {row["question_id"]: row for row in run.read("questions", part).to_pylist()}
            graded = run.keys("grades", part)
            for answer in run.read("answers", part).to_pylist():
                if answer["answer_id"] not in graded:
                    question = questions[answer["question_id"]]
                    solution, formatted = solution_in(answer["completion"])
                    problem = json.loads(question["meta"] or "{}")
                    grade = grader.grade(benchmark.kind, solution, question["answer"], **problem)
                    writer.append(part, _grade_row(answer, solution, formatted, grade))
                progress.advance()
            writer.compact(part)
    run.compact_all("grades")


def _grade_row(answer: dict[str, Any], solution: str, formatted: bool, grade: Grade) -> dict[str, Any]:
    return {
        **{name: answer[name] for name in ("answer_id", "question_id", "source_id", "sample_index")},
        "answer": final_answer(solution),
        "correct": grade.correct,
        "note": grade.note,
        "formatted": formatted,
        "truncated": answer["finish_reason"] == "length",
        "completion_tokens": answer["completion_tokens"],
    }


def evaluation_of(run: RunFolder, settings: EvaluateSettings) -> Evaluation:
    """Compute the figures of an evaluation from the grades of a run."""
    parts = run.parts("grades")
    grades = pl.concat([pl.DataFrame(run.read("grades", part)) for part in parts])
    grades = grades.filter(pl.col("sample_index") < settings.n)
    by_question = grades.group_by("question_id", maintain_order=True).agg("correct", "answer")
    counts = [(sum(correct), len(correct)) for correct in by_question["correct"]]
    accuracy = np.array([correct / samples for correct, samples in counts])
    low, high = mean_interval(accuracy, settings.seed)
    fewest = min(samples for _, samples in counts)
    ks = sorted({2**power for power in range(fewest.bit_length())} | {fewest})
    return Evaluation(
        run=run.path,
        benchmark=settings.benchmark,
        model=settings.model,
        questions=len(by_question),
        answers=len(grades),
        failed=run.count("questions") * settings.n - len(grades),
        accuracy=float(accuracy.mean()),
        low=low,
        high=high,
        pass_at={k: float(np.mean([_pass_at(k, *count) for count in counts])) for k in ks},
        majority=float(np.mean([_majority(*row) for row in by_question.select("correct", "answer").iter_rows()])),
        formatted=float(grades["formatted"].sum()) / len(grades),
        truncated=float(grades["truncated"].sum()) / len(grades),
        ungraded=int(grades["note"].fill_null("").str.starts_with("the grader").sum()),
        mean_tokens=float(grades["completion_tokens"].sum()) / len(grades),
    )


def _pass_at(k: int, correct: int, samples: int) -> float:
    """Estimate the probability that at least one of k samples is correct."""
    return 1 - comb(samples - correct, k) / comb(samples, k)


def _majority(correct: list[bool], answers: list[str]) -> bool:
    counts = Counter(answers)
    winner = max(range(len(answers)), key=lambda index: (counts[answers[index]], -index))
    return correct[winner]
