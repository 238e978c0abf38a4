"""Accuracy of a model on a benchmark: questions in, answers and their grades out.

Answers are sampled as traces are (:mod:`rlt_data.steps.sampling`), but the model sees the question alone. Grades are a
table of their own, made from the answers, so that other grading never samples again.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import numpy as np
import polars as pl

from rlt_data.engines import Model, Sample, open_model
from rlt_data.errors import SettingsError
from rlt_data.formats import Format, Views, choose_format
from rlt_data.inputs import ingest
from rlt_data.progress import SILENT, Progress, task
from rlt_data.settings import EvaluateSettings, InputSettings
from rlt_data.steps.provenance import step_entry
from rlt_data.steps.sampling import PendingSample, SamplingTask, sample_questions
from rlt_data.storage.layout import default_run, run_log
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.run import RunFolder, content_hash
from rlt_data.storage.writer import TableWriter
from rlt_data.tasks.benchmarks import BENCHMARKS, Benchmark, BenchmarkReader
from rlt_data.tasks.grading import Grade, Grader, final_answer

logger = logging.getLogger(__name__)

#: Draws of questions, with replacement, that the interval is taken from.
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Evaluation:
    """How a model did.

    Attributes:
        run: the run folder.
        benchmark: the benchmark's name.
        model: the model's name.
        questions: questions with at least one answer.
        answers: graded answers.
        failed: rows in errors.jsonl, which count nowhere else.
        accuracy: pass@1: the mean over questions of the share of right answers.
        low: lower end of the 95 % interval of accuracy, from a bootstrap over questions.
        high: its upper end.
        pass_at: pass@k by k, the unbiased estimate of Chen et al. 2021 (arXiv 2107.03374), for powers of two up to n.
        majority: share of questions whose most frequent final answer is right; the earlier sample wins a tie.
        formatted: share of answers in the student's format.
        truncated: share of answers that hit the token limit.
        ungraded: answers that the grader could not stand; they count as wrong.
        mean_tokens: mean length of the answers.
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


def evaluate(settings: EvaluateSettings, progress: Progress = SILENT) -> Evaluation:
    """Sample and grade answers to a benchmark; the library side of ``rlt-data evaluate``.

    Continues where an earlier call with the same settings ended. The figures are also written to
    RUN/evaluation.json.

    Raises:
        RltDataError: of one of the kinds in :mod:`rlt_data.errors`; nothing that was there is lost.
    """
    benchmark = BENCHMARKS[settings.benchmark]
    source = _source(settings, benchmark)
    run = RunFolder(settings.out or default_run(settings.benchmark, settings.model))
    model = open_model(settings.model, settings)
    format = choose_format(settings.format, model.template, model.checkpoint.name, model.checkpoint.folder)
    depends_on = _dependencies(settings, model, format)
    with run.locked(), Grader() as grader, closing(model):
        run.refuse_other_settings("evaluate", depends_on)
        ingest(run, source, format, traces=False, reader=lambda first: BenchmarkReader(benchmark, settings, first))
        model.load(run.logs)
        run.record("evaluate", {"depends_on": depends_on, **step_entry(settings, format, {"model": model})})
        with run_log(run):
            work = _sampling_task(settings, model, format, content_hash(depends_on))
            sampled = sample_questions(run, model, work, progress)
            _grade(run, benchmark, format, grader, progress)
            found = _figures(run, settings, sampled.failed)
            logger.info("evaluate: accuracy %.4f of %d answers", found.accuracy, found.answers)
        figures = {name: value for name, value in asdict(found).items() if name != "run"}
        run.write_json("evaluation.json", figures)
    return found


def _dependencies(settings: EvaluateSettings, model: Model, format: Format) -> dict[str, Any]:
    """Return everything that an answer depends on beside its question and its number."""
    made_with = model.identity
    return settings.depends_on(
        model=made_with.fingerprint,
        dtype=made_with.dtype,
        chat_template=made_with.chat_template,
        format=format.hash,
    )


def _source(settings: EvaluateSettings, benchmark: Benchmark) -> InputSettings:
    if settings.input is not None:
        asked = settings.model_dump(include={"input", "subset", "split", "limit"})
        return InputSettings.model_validate(asked)
    if benchmark.hub is None:
        raise SettingsError(f"--in: is needed with --benchmark {settings.benchmark}, which is no data set of its own")
    return InputSettings(input=benchmark.hub, subset=benchmark.subset, split=benchmark.split, limit=settings.limit)


def _sampling_task(settings: EvaluateSettings, model: Model, format: Format, made_by: str) -> SamplingTask:
    views = Views(format, model.template)

    def row(sample: Sample, pending: PendingSample) -> dict[str, Any]:
        return {
            "answer_id": sample.key,
            "question_id": pending.question["question_id"],
            "source_id": pending.question["source_id"],
            "sample_index": pending.sample_index,
            "completion": sample.text,
            "finish_reason": sample.finish_reason,
            "prompt_tokens": sample.prompt_tokens,
            "completion_tokens": sample.completion_tokens,
            "seed": pending.seed,
            "made_by": made_by,
        }

    return SamplingTask(
        step="evaluate",
        table="answers",
        n=settings.n,
        settings=settings,
        stop=format.solution_tags[1],
        made_by=made_by,
        prompt=lambda question: views.solver_prompt(question["question"]),
        problem=lambda question: None,
        tail=0,
        row=row,
    )


def solution_in(format: Format, completion: str) -> tuple[str, bool]:
    """Take the solution out of a solver's completion.

    Returns:
        The text between the solution tags, or what there is after the thought where they are missing; and whether the
        completion is thought and solution in their tags, as the format says.
    """
    tags = [re.escape(tag) for tag in (*format.thought_tags, *format.solution_tags)]
    shape = r"\s*{}.*?{}\s*{}(.*?){}\s*".format(*tags)
    if found := re.fullmatch(shape, completion.removeprefix(format.thought_prefix), re.S):
        return found[1].strip(), True
    rest = completion.rpartition(format.thought_tags[1])[2].rpartition(format.solution_tags[0])[2]
    return rest.partition(format.solution_tags[1])[0].strip(), False


def _grade(run: RunFolder, benchmark: Benchmark, format: Format, grader: Grader, progress: Progress) -> None:
    """Grade the answers that have no grade yet."""
    parts = run.parts("answers")
    with task(progress, "grade", run.count("answers")), TableWriter(run, "grades") as writer:
        for part in parts:
            questions = {row["question_id"]: row for row in run.read("questions", part).to_pylist()}
            made = run.keys("grades", part)
            for answer in run.read("answers", part).to_pylist():
                if answer["answer_id"] not in made:
                    question = questions[answer["question_id"]]
                    solution, formatted = solution_in(format, answer["completion"])
                    problem = json.loads(question["meta"] or "{}")
                    grade = grader.grade(benchmark.kind, solution, question["answer"], **problem)
                    writer.append(part, _graded(answer, solution, formatted, grade))
                progress.advance()
            writer.compact(part)
    run.compact_all("grades")


def _graded(answer: dict[str, Any], solution: str, formatted: bool, grade: Grade) -> dict[str, Any]:
    return {
        **{name: answer[name] for name in ("answer_id", "question_id", "source_id", "sample_index")},
        "answer": final_answer(solution),
        "correct": grade.correct,
        "note": grade.note,
        "formatted": formatted,
        "truncated": answer["finish_reason"] == "length",
        "completion_tokens": answer["completion_tokens"],
    }


def _figures(run: RunFolder, settings: EvaluateSettings, failed: int) -> Evaluation:
    parts = run.parts("grades")
    if not parts:
        raise SettingsError(f"{run.path}: no question could be answered; the reasons are in errors.jsonl")
    grades = pl.concat([pl.DataFrame(run.read("grades", part)) for part in parts])
    grades = grades.filter(pl.col("sample_index") < settings.n)
    by_question = grades.group_by("question_id", maintain_order=True).agg("correct", "answer")
    right = [(sum(correct), len(correct)) for correct in by_question["correct"]]
    accuracy = np.array([hits / tries for hits, tries in right])
    draws = np.random.default_rng(settings.seed).integers(len(accuracy), size=(_RESAMPLES, len(accuracy)))
    low, high = np.quantile(accuracy[draws].mean(1), [0.025, 0.975])
    tries = min(count for _, count in right)
    ks = sorted({2**power for power in range(tries.bit_length())} | {tries})
    return Evaluation(
        run=run.path,
        benchmark=settings.benchmark,
        model=settings.model,
        questions=len(by_question),
        answers=len(grades),
        failed=failed,
        accuracy=float(accuracy.mean()),
        low=float(low),
        high=float(high),
        pass_at={k: float(np.mean([_pass_at(k, *each) for each in right])) for k in ks},
        majority=float(np.mean([_majority(*each) for each in by_question.select("correct", "answer").iter_rows()])),
        formatted=float(grades["formatted"].sum()) / len(grades),
        truncated=float(grades["truncated"].sum()) / len(grades),
        ungraded=int(grades["note"].fill_null("").str.starts_with("the grader").sum()),
        mean_tokens=float(grades["completion_tokens"].sum()) / len(grades),
    )


def _pass_at(k: int, right: int, tries: int) -> float:
    """Estimate the chance that one of k samples is right, from ``right`` of ``tries``."""
    return 1 - comb(tries - right, k) / comb(tries, k)


def _majority(correct: list[bool], answers: list[str]) -> bool:
    counts = Counter(answers)
    chosen = max(range(len(answers)), key=lambda index: (counts[answers[index]], -index))
    return correct[chosen]
