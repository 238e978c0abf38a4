"""Stages that several recipes share: questions, teachers, ranked traces, students and their accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rlt_data.recipes.experiment import Experiment
from rlt_data.training.rewards import copied_fraction


def questions(experiment: Experiment, name: str, seed: int = 0) -> dict[str, Any]:
    """Return the input settings of a question set; a section ``countdown`` makes new problems first.

    Args:
        experiment: running recipe.
        name: config section: ``{countdown: settings}``, or input settings such as ``in``, ``preset`` and ``limit``.
        seed: seed of new problems.
    """
    section = dict(experiment.config[name])
    if "countdown" not in section:
        return section
    file = experiment.path("questions", f"{name}-{seed}.jsonl")
    experiment.step("countdown", f"{name}.countdown", out=file, seed=seed)
    return {"in": file}


def problems(experiment: Experiment, name: str, seed: int = 0) -> dict[str, Any]:
    """Return the settings of :func:`questions` that apply to problems without solutions."""
    allowed = ("in", "subset", "split", "limit", "question_column", "answer_column")
    return {key: value for key, value in questions(experiment, name, seed).items() if key in allowed}


def train_teacher(experiment: Experiment, name: str, seed: int, *, data: str = "train", **overrides: Any) -> str:
    """Train a teacher by RL, on the same questions for every seed.

    Args:
        experiment: running recipe.
        name: name of the teacher.
        seed: seed of the training.
        data: config section of the questions.
        overrides: settings that override the config section.

    Returns:
        Folder of the best checkpoint on held-out questions, or of the last one without held-out questions.
    """
    out = experiment.path("teachers", name)
    result = experiment.step("teacher", out=out, seed=seed, **questions(experiment, data, 0), **overrides)
    return str(result.get("best") or out)


def make_ranked_traces(
    experiment: Experiment,
    teacher: str,
    run: str,
    seed: int,
    section: str = "generate",
    *,
    data: str = "train",
    n: int | None = None,
    **score: Any,
) -> str:
    """Generate, score and rank a teacher's traces; return their run folder.

    Args:
        experiment: running recipe.
        teacher: name or folder of the teacher.
        run: name of the run folder.
        seed: seed of samples and questions.
        section: config section of the generation.
        data: config section of the questions.
        n: traces per question; default: the config's.
        score: settings that override the config section of scoring.
    """
    folder = experiment.path("traces", run)
    inputs = questions(experiment, data, seed) | ({} if n is None else {"n": n})
    experiment.step("generate", section, teacher=teacher, out=folder, seed=seed, **inputs)
    experiment.step("score", in_=folder, **score)
    experiment.step("rank", in_=folder)
    return folder


def train_student(
    experiment: Experiment,
    run: str,
    name: str,
    seed: int,
    *,
    select: str = "best",
    limit: int | None = None,
    model: str | None = None,
) -> tuple[str, int]:
    """Distill traces and train a student on them.

    Args:
        experiment: running recipe.
        run: run folder with ranks.
        name: name of the student.
        seed: seed of selection and training.
        select: ``--select`` of distill.
        limit: maximum number of questions.
        model: base model of the student; default: the config's.

    Returns:
        The student's folder and the number of its training rows.
    """
    data, out = experiment.path("data", f"{name}-{seed}"), experiment.path("students", f"{name}-{seed}")
    experiment.step("distill", in_=run, out=data, select=select, limit=limit, seed=seed)
    base = {} if model is None else {"model": model}
    result = experiment.step("student", in_=data, out=out, seed=seed, **base)
    return out, result["plan"]["rows"] if result else 0


def train_and_eval_on_traces(experiment: Experiment, run: str, name: str, seed: int, **options: Any) -> dict[str, Any]:
    """Train a student on a run's traces, and evaluate it; arguments as in :func:`train_student`.

    Returns:
        The result of :func:`evaluate`, the number of training ``rows``, and the student's folder ``out``.
    """
    out, rows = train_student(experiment, run, name, seed, **options)
    return {"rows": rows, "out": out, **evaluate(experiment, out, f"{name}-{seed}", seed)}


def train_and_eval_student(experiment: Experiment, teacher: str, name: str, seed: int) -> dict[str, float]:
    """Train a student on a teacher's best traces, and evaluate both.

    Args:
        experiment: running recipe.
        teacher: name or folder of the teacher.
        name: name of run folder and student, without the seed.
        seed: seed of all steps.

    Returns:
        ``accuracy`` and ``formatted`` of the student's answers, and the result of :func:`trace_figures`.
    """
    traces = make_ranked_traces(experiment, teacher, f"{name}-{seed}", seed)
    student = train_and_eval_on_traces(experiment, traces, name, seed)
    figures = {} if experiment.dry_run else trace_figures(traces)
    return {"accuracy": student["accuracy"], "formatted": student["formatted"], **figures}


def write_rows(experiment: Experiment, rows: Iterable[dict[str, Any]], name: str) -> str:
    """Write rows as JSON Lines to the recipe's folder; return the file."""
    file = Path(experiment.path("rows", f"{name}.jsonl"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def import_ranked_traces(experiment: Experiment, rows: list[dict[str, Any]], name: str, **score: Any) -> str:
    """Import explanations as traces, score and rank them; return their run folder.

    Args:
        experiment: running recipe.
        rows: rows with ``question``, ``solution`` and ``explanation``.
        name: name of the run folder.
        score: settings that override the config section of scoring.
    """
    folder = experiment.path("traces", name)
    experiment.step("score", in_=write_rows(experiment, rows, name), out=folder, teacher="none", **score)
    experiment.step("rank", in_=folder, by="reward_without_entropy")
    return folder


def evaluate(
    experiment: Experiment, model: str, name: str, seed: int, *, test: str = "test", benchmarks: str = "benchmarks"
) -> dict[str, Any]:
    """Evaluate a model on every benchmark of the recipe.

    Args:
        experiment: running recipe.
        model: name or folder of the model.
        name: name of the evaluation.
        seed: seed of the samples.
        test: config section of the questions, for benchmarks whose questions the recipe makes.
        benchmarks: config section of the benchmarks.

    Returns:
        Means over the benchmarks: ``accuracy``, ``formatted``, ``truncated`` and ``tokens``; and ``benchmarks``, the
        accuracy on each.
    """
    results = {}
    for benchmark, settings in experiment.config[benchmarks].items():
        inputs = questions(experiment, test) if "in" not in settings and test in experiment.config else {}
        out = experiment.path("evaluations", f"{name}-{benchmark}")
        results[benchmark] = experiment.step(
            "evaluate", f"{benchmarks}.{benchmark}", model=model, out=out, seed=seed, **inputs
        )
    if experiment.dry_run:
        return dict.fromkeys(("accuracy", "formatted", "truncated", "tokens"), 0.0) | {"benchmarks": {}}
    names = {"accuracy": "accuracy", "formatted": "formatted", "truncated": "truncated", "tokens": "mean_tokens"}
    means = {name: float(np.mean([result[key] for result in results.values()])) for name, key in names.items()}
    return means | {"benchmarks": {name: result["accuracy"] for name, result in results.items()}}


def evaluate_base(experiment: Experiment, seed: int) -> dict[str, Any]:
    """Evaluate the students' base model."""
    return evaluate(experiment, experiment.config["student"]["model"], f"base-{seed}", seed)


def scores_by_rank(run: str) -> list[float]:
    """Return the mean reward of each rank of a run, best first."""
    ranks = pl.read_parquet(f"{run}/ranks/*.parquet").select("trace_id", "rank")
    scores = pl.read_parquet(f"{run}/scores/*.parquet").select("trace_id", "reward")
    return list(ranks.join(scores, on="trace_id").group_by("rank").agg(pl.col("reward").mean()).sort("rank")["reward"])


def trace_figures(run: str) -> dict[str, float]:
    """Return means over the traces of a run: reward terms, tokens, shares, and the fraction copied from solutions."""
    columns = ["reward", "r_ss", "r_kl", "thought_tokens", "well_formed", "truncated"]
    frame = pl.read_parquet(f"{run}/scores/*.parquet").select(pl.col(columns).cast(pl.Float64).mean())
    solutions = pl.read_parquet(f"{run}/questions/*.parquet").select("question_id", "solution")
    traces = pl.read_parquet(f"{run}/traces/*.parquet").select("question_id", "completion")
    pairs = traces.join(solutions, on="question_id").select("completion", "solution").iter_rows()
    shares = [copied_fraction(completion.rpartition("<")[0], solution) for completion, solution in pairs]
    return {name: float(value) for name, value in frame.row(0, named=True).items()} | {"copied": float(np.mean(shares))}
