"""Pieces that several recipes are made of: questions, teachers, ranked traces, students of traces, accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rlt_data.recipes.experiment import Experiment
from rlt_data.training.rewards import copied


def questions(experiment: Experiment, name: str, seed: int = 0) -> dict[str, Any]:
    """Return the input keys of a set of questions: those of its section, or Countdown problems made by it.

    Args:
        experiment: the recipe.
        name: section: ``{countdown: settings}`` to make them, else ``in``, ``preset``, ``limit``, ...
        seed: of the draw of problems.
    """
    section = dict(experiment.config[name])
    if "countdown" not in section:
        return section
    file = experiment.path("questions", f"{name}-{seed}.jsonl")
    experiment.step("countdown", f"{name}.countdown", out=file, seed=seed)
    return {"in": file}


def problems(experiment: Experiment, name: str, seed: int = 0) -> dict[str, Any]:
    """Return those of the keys of :func:`questions` that say where problems without solutions are."""
    read = ("in", "subset", "split", "limit", "question_column", "answer_column")
    return {key: value for key, value in questions(experiment, name, seed).items() if key in read}


def trained_teacher(experiment: Experiment, name: str, seed: int, *, asked: str = "train", **keys: Any) -> str:
    """Train a teacher by RL, on the same questions with every seed.

    Args:
        experiment: the recipe.
        name: of the teacher.
        seed: of the training.
        asked: section of the questions.
        keys: settings that differ from those of the section.

    Returns:
        The folder of its best checkpoint on held-out questions; without such questions, of its last.
    """
    out = experiment.path("teachers", name)
    found = experiment.step("teacher", out=out, seed=seed, **questions(experiment, asked, 0), **keys)
    return str(found.get("best") or out)


def ranked_traces(
    experiment: Experiment,
    teacher: str,
    run: str,
    seed: int,
    section: str = "generate",
    *,
    asked: str = "train",
    n: int | None = None,
    **score: Any,
) -> str:
    """Generate, score and rank a teacher's traces; return their run folder.

    Args:
        experiment: the recipe.
        teacher: name or folder of the teacher.
        run: name of the run folder.
        seed: of the samples and of the questions.
        section: how traces are generated.
        asked: section of the questions.
        n: traces of each question; default: as the section says.
        score: settings of the scoring that differ.
    """
    folder = experiment.path("traces", run)
    made = questions(experiment, asked, seed) | ({} if n is None else {"n": n})
    experiment.step("generate", section, teacher=teacher, out=folder, seed=seed, **made)
    experiment.step("score", in_=folder, **score)
    experiment.step("rank", in_=folder)
    return folder


def trained_student(
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
        experiment: the recipe.
        run: run folder with ranks.
        name: of the student.
        seed: of the choice and of the training.
        select: which traces.
        limit: of how many questions.
        model: where the student begins; default: as its section says.

    Returns:
        Its folder, and the rows it was trained on.
    """
    data, out = experiment.path("data", f"{name}-{seed}"), experiment.path("students", f"{name}-{seed}")
    experiment.step("distill", in_=run, out=data, select=select, limit=limit, seed=seed)
    begin = {} if model is None else {"model": model}
    trained = experiment.step("student", in_=data, out=out, seed=seed, **begin)
    return out, trained["plan"]["rows"] if trained else 0


def student_of(experiment: Experiment, run: str, name: str, seed: int, **options: Any) -> dict[str, Any]:
    """Train a student on traces, and measure it; for the arguments see :func:`trained_student`.

    Returns:
        What :func:`accuracy` returns, ``rows`` it was trained on, and its folder ``out``.
    """
    out, rows = trained_student(experiment, run, name, seed, **options)
    return {"rows": rows, "out": out, **accuracy(experiment, out, f"{name}-{seed}", seed)}


def train_and_eval_student(experiment: Experiment, teacher: str, name: str, seed: int) -> dict[str, float]:
    """Train a student on a teacher's best traces, and measure both.

    Args:
        experiment: the recipe.
        teacher: name or folder of the teacher.
        name: of the run folder and of the student; both get the seed too.
        seed: of everything.

    Returns:
        ``accuracy`` and ``formatted`` of the student's answers, and what :func:`trace_figures` says of the traces.
    """
    traces = ranked_traces(experiment, teacher, f"{name}-{seed}", seed)
    student = student_of(experiment, traces, name, seed)
    figures = {} if experiment.dry_run else trace_figures(traces)
    return {"accuracy": student["accuracy"], "formatted": student["formatted"], **figures}


def write_rows(experiment: Experiment, rows: Iterable[dict[str, Any]], name: str) -> str:
    """Write rows that a recipe made itself as JSON Lines; return the file."""
    file = Path(experiment.path("rows", f"{name}.jsonl"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def imported_traces(experiment: Experiment, rows: list[dict[str, Any]], name: str, **score: Any) -> str:
    """Score and rank explanations of any origin; return their run folder.

    Args:
        experiment: the recipe.
        rows: ``question``, ``solution``, ``explanation``.
        name: of the run folder.
        score: settings of the scoring that differ.
    """
    folder = experiment.path("traces", name)
    experiment.step("score", in_=write_rows(experiment, rows, name), out=folder, teacher="none", **score)
    experiment.step("rank", in_=folder, by="reward_without_entropy")
    return folder


def accuracy(
    experiment: Experiment, model: str, name: str, seed: int, *, test: str = "test", benchmarks: str = "benchmarks"
) -> dict[str, Any]:
    """Measure a model on every benchmark of the recipe.

    Args:
        experiment: the recipe.
        model: name or folder.
        name: of the evaluation.
        seed: of its samples.
        test: section of the questions, for benchmarks that are made.
        benchmarks: section of the benchmarks.

    Returns:
        Means over the benchmarks: ``accuracy``, ``formatted``, ``truncated``, ``tokens``; and ``benchmarks``, the
        accuracy on each.
    """
    found = {}
    for benchmark, settings in experiment.config[benchmarks].items():
        asked = questions(experiment, test) if "in" not in settings and test in experiment.config else {}
        out = experiment.path("evaluations", f"{name}-{benchmark}")
        found[benchmark] = experiment.step(
            "evaluate", f"{benchmarks}.{benchmark}", model=model, out=out, seed=seed, **asked
        )
    if experiment.dry_run:
        return dict.fromkeys(("accuracy", "formatted", "truncated", "tokens"), 0.0) | {"benchmarks": {}}
    names = {"accuracy": "accuracy", "formatted": "formatted", "truncated": "truncated", "tokens": "mean_tokens"}
    means = {name: float(np.mean([each[key] for each in found.values()])) for name, key in names.items()}
    return means | {"benchmarks": {name: each["accuracy"] for name, each in found.items()}}


def base_accuracy(experiment: Experiment, seed: int) -> dict[str, Any]:
    """Measure what students begin from; see :func:`accuracy`."""
    return accuracy(experiment, experiment.config["student"]["model"], f"base-{seed}", seed)


def scores_by_rank(run: str) -> list[float]:
    """Return the mean reward of each rank of a run, best first."""
    ranks = pl.read_parquet(f"{run}/ranks/*.parquet").select("trace_id", "rank")
    scores = pl.read_parquet(f"{run}/scores/*.parquet").select("trace_id", "reward")
    return list(ranks.join(scores, on="trace_id").group_by("rank").agg(pl.col("reward").mean()).sort("rank")["reward"])


def trace_figures(run: str) -> dict[str, float]:
    """Return means over the traces of a run: terms of the reward, tokens, shares; and how much copies the solution."""
    columns = ["reward", "r_ss", "r_kl", "thought_tokens", "well_formed", "truncated"]
    frame = pl.read_parquet(f"{run}/scores/*.parquet").select(pl.col(columns).cast(pl.Float64).mean())
    solutions = pl.read_parquet(f"{run}/questions/*.parquet").select("question_id", "solution")
    traces = pl.read_parquet(f"{run}/traces/*.parquet").select("question_id", "completion")
    pairs = traces.join(solutions, on="question_id").select("completion", "solution").iter_rows()
    shares = [copied(completion.rpartition("<")[0], solution) for completion, solution in pairs]
    return {name: float(value) for name, value in frame.row(0, named=True).items()} | {"copied": float(np.mean(shares))}
