"""Stages that several recipes share: questions, teachers, ranked traces, students and their accuracy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from rlt_data.formats import load_format
from rlt_data.formats.views import read_completion
from rlt_data.inputs.check import good_rows
from rlt_data.recipes.experiment import Estimate, Experiment, estimate, table
from rlt_data.recipes.nano.rivals import rival_rows
from rlt_data.settings import CompareSettings, InputSettings, parse_settings
from rlt_data.steps.compare import compare
from rlt_data.steps.provenance import recorded_format
from rlt_data.storage.run import RunFolder
from rlt_data.training.rewards import copied_fraction, repeated_fraction


def slug(name: str) -> str:
    """Return the name of an arm as part of a file name: ``RL, λ = 3`` becomes ``RL-lambda-3``."""
    return re.sub(r"[^\w.]+", "-", name.replace("λ", "lambda").replace("α", "alpha")).strip("-")


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


def source_traces(experiment: Experiment, source: dict[str, Any], name: str, seed: int, *, data: str = "train") -> str:
    """Return the run folder with the ranked traces of a source.

    Args:
        experiment: running recipe.
        source: ``{teacher, n}``: traces of a teacher for the training questions; ``{rule}``: a rule of
            :mod:`rlt_data.recipes.nano.rivals` for the same questions; ``{run}``: a run with ranks that exists;
            otherwise input settings of rows with traces, such as ``in`` and ``preset``.
        name: name of the run folder, without the seed.
        seed: seed of samples and questions.
        data: config section of the training questions.
    """
    if "run" in source:
        return str(source["run"])
    if "teacher" in source:
        return make_ranked_traces(experiment, source["teacher"], f"{name}-{seed}", seed, data=data, n=source["n"])
    return import_ranked_traces(experiment, source_rows(experiment, source, seed, data), f"{name}-{seed}")


def source_rows(experiment: Experiment, source: dict[str, Any], seed: int, data: str = "train") -> list[dict[str, Any]]:
    """Return the rows of another pipeline, with question, solution and explanation; none in a dry run.

    As a column, the solution is a reference. So a question has the same key as with a teacher's traces, and ``distill
    --limit`` draws the same questions from both.

    Args:
        experiment: running recipe.
        source: ``{rule}`` or input settings, as in :func:`source_traces`.
        seed: seed of questions and rules.
        data: config section of the training questions.
    """
    if "rule" in source:
        file = questions(experiment, data, seed)["in"]
        return [] if experiment.dry_run else rival_rows(file, source["rule"], seed)
    settings = parse_settings(InputSettings, source, where=f"{experiment.recipe}, traces of another pipeline")
    rows = [] if experiment.dry_run else good_rows(settings, load_format("rlt"))
    columns = ("question", "solution", "explanation", "system")
    return [{name: value for name in columns if (value := getattr(row, name)) is not None} for row in rows]


def train_student(
    experiment: Experiment,
    run: str,
    name: str,
    seed: int,
    *,
    select: str = "best",
    limit: int | None = None,
    **student: Any,
) -> tuple[str, int]:
    """Distill traces and train a student on them.

    Args:
        experiment: running recipe.
        run: run folder with ranks.
        name: name of the student.
        seed: seed of selection and training.
        select: ``--select`` of distill.
        limit: maximum number of questions.
        student: settings that override the config section of the student.

    Returns:
        The student's folder and the number of its training rows.
    """
    data, out = experiment.path("data", f"{name}-{seed}"), experiment.path("students", f"{name}-{seed}")
    experiment.step("distill", in_=run, out=data, select=select, limit=limit, seed=seed)
    result = experiment.step("student", in_=data, out=out, seed=seed, **student)
    return out, result["plan"]["rows"] if result else 0


def train_and_eval_on_traces(
    experiment: Experiment, run: str, name: str, seed: int, *, evaluation: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Train a student on a run's traces, and evaluate it; further arguments as in :func:`train_student`.

    Args:
        experiment: running recipe.
        run: run folder with ranks.
        name: name of the student.
        seed: seed of all steps.
        evaluation: settings that override those of every benchmark.
        options: see :func:`train_student`.

    Returns:
        The result of :func:`evaluate`, the number of training ``rows``, and the student's folder ``out``.
    """
    out, rows = train_student(experiment, run, name, seed, **options)
    return {"rows": rows, "out": out, **evaluate(experiment, out, f"{name}-{seed}", seed, **evaluation or {})}


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
    if not experiment.dry_run:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def import_ranked_traces(
    experiment: Experiment, rows: list[dict[str, Any]], name: str, *, teacher: str = "none", **score: Any
) -> str:
    """Import explanations as traces, score and rank them; return their run folder.

    Args:
        experiment: running recipe.
        rows: rows with ``question``, ``solution`` and ``explanation``.
        name: name of the run folder.
        teacher: model of the KL. none: rank by the reward without a teacher.
        score: settings that override the config section of scoring.
    """
    folder = experiment.path("traces", name)
    experiment.step("score", in_=write_rows(experiment, rows, name), out=folder, teacher=teacher, **score)
    experiment.step("rank", in_=folder, by="reward_without_entropy" if teacher == "none" else "reward")
    return folder


def evaluate(
    experiment: Experiment,
    model: str,
    name: str,
    seed: int,
    *,
    test: str = "test",
    benchmarks: str = "benchmarks",
    **overrides: Any,
) -> dict[str, Any]:
    """Evaluate a model on every benchmark of the recipe.

    Args:
        experiment: running recipe.
        model: name or folder of the model.
        name: name of the evaluation.
        seed: seed of the samples.
        test: config section of the questions, for benchmarks whose questions the recipe makes.
        benchmarks: config section of the benchmarks.
        overrides: settings that override those of every benchmark.

    Returns:
        Means over the benchmarks: ``accuracy``, ``formatted``, ``truncated`` and ``tokens``; and by benchmark:
        ``benchmarks``, the accuracy, and ``runs``, the run folder.
    """
    results, runs = {}, {}
    for benchmark, settings in experiment.config[benchmarks].items():
        inputs = questions(experiment, test) if "in" not in settings and test in experiment.config else {}
        runs[benchmark] = experiment.path("evaluations", f"{name}-{benchmark}")
        results[benchmark] = experiment.step(
            "evaluate",
            f"{benchmarks}.{benchmark}",
            model=model,
            out=runs[benchmark],
            seed=seed,
            **inputs | overrides,
        )
    if experiment.dry_run:
        return dict.fromkeys(("accuracy", "formatted", "truncated", "tokens"), 0.0) | {"benchmarks": {}, "runs": {}}
    names = {"accuracy": "accuracy", "formatted": "formatted", "truncated": "truncated", "tokens": "mean_tokens"}
    means = {name: float(np.mean([result[key] for result in results.values()])) for name, key in names.items()}
    return means | {"benchmarks": {name: result["accuracy"] for name, result in results.items()}, "runs": runs}


def evaluate_base(experiment: Experiment, seed: int) -> dict[str, Any]:
    """Evaluate the students' base model."""
    return evaluate(experiment, experiment.config["student"]["model"], f"base-{seed}", seed)


def by_benchmark(results: list[dict[str, Any]]) -> dict[str, Estimate]:
    """Return the accuracy on each benchmark over seeds, from results of :func:`evaluate`."""
    return {name: estimate([result["benchmarks"][name] for result in results]) for name in results[0]["benchmarks"]}


def compare_evaluations(one: dict[str, str], other: dict[str, str]) -> dict[str, dict[str, float]]:
    """Compare two models on the same questions, by benchmark.

    Args:
        one: run folders of the evaluations of a model by benchmark.
        other: those of another model.

    Returns:
        For each benchmark, the ``difference`` of the accuracies (other minus one), the ``p_value`` of McNemar's test,
        and ``overlap``: the problems that both solve, as a share of those of the model that solves fewer. The paper's
        98.5 % cannot be a share of all problems that one of the models solves: its models solve 50.8 and 49.2 %.
    """
    figures = {}
    for benchmark, run in one.items():
        found = compare(parse_settings(CompareSettings, {"in": [run, other[benchmark]]}))
        overlap = found.both / max(1, min(found.first.solved, found.second.solved))
        figures[benchmark] = {"overlap": overlap, "difference": found.difference, "p_value": found.p_value}
    return figures


def compare_arms(
    pairs: Iterable[tuple[str, str]], results: Mapping[str, list[dict[str, Any]]], title: str
) -> tuple[dict[str, Any], str]:
    """Compare pairs of arms problem by problem, with each seed.

    Args:
        pairs: arms that are compared.
        results: results of :func:`evaluate` by arm, one for each seed.
        title: title of the table.

    Returns:
        Figures by pair and benchmark, and their table.
    """
    figures: dict[str, Any] = {}
    rows = []
    for one, other in pairs:
        models = zip(results[one], results[other], strict=True)
        by_seed = [compare_evaluations(first["runs"], second["runs"]) for first, second in models]
        for benchmark in by_seed[0]:
            values = {name: [seed[benchmark][name] for seed in by_seed] for name in by_seed[0][benchmark]}
            difference, overlap = estimate(values["difference"]), estimate(values["overlap"])
            figures[f"{one} and {other}, {benchmark}"] = {
                "models": [one, other],
                "difference": difference,
                "p_values": values["p_value"],
                "overlap": overlap,
            }
            p_values = ", ".join(f"{value:.2g}" for value in values["p_value"])
            rows.append((one, other, benchmark, difference, p_values, overlap))
    text = (
        f"{title}. Difference: accuracy of the second minus that of the first; p: McNemar's test, by seed; "
        "overlap: problems that both solve, as a share of those of the weaker one.\n\n"
    )
    columns = ["first model", "second model", "benchmark", "difference", "p", "overlap"]
    return figures, text + table(columns, rows)


def scores_by_rank(run: str) -> list[float]:
    """Return the mean reward of each rank of a run, best first."""
    ranks = pl.read_parquet(f"{run}/ranks/*.parquet").select("trace_id", "rank")
    scores = pl.read_parquet(f"{run}/scores/*.parquet").select("trace_id", "reward")
    return list(ranks.join(scores, on="trace_id").group_by("rank").agg(pl.col("reward").mean()).sort("rank")["reward"])


def trace_figures(run: str) -> dict[str, float]:
    """Return means over the traces of a run: reward terms, tokens, shares, and copied and repeated fractions."""
    columns = ["reward", "r_ss", "r_kl", "thought_tokens", "well_formed", "truncated"]
    frame = pl.read_parquet(f"{run}/scores/*.parquet").select(pl.col(columns).cast(pl.Float64).mean())
    solutions = pl.read_parquet(f"{run}/questions/*.parquet").select("question_id", "solution")
    traces = pl.read_parquet(f"{run}/traces/*.parquet").select("question_id", "completion")
    pairs = traces.join(solutions, on="question_id").select("completion", "solution").iter_rows()
    format = recorded_format(RunFolder.existing(run), "score")
    assert format is not None
    texts = [(read_completion(format, completion).text, solution) for completion, solution in pairs]
    return {name: float(value) for name, value in frame.row(0, named=True).items()} | {
        "copied": float(np.mean([copied_fraction(*pair) for pair in texts])),
        "repeated": float(np.mean([repeated_fraction(explanation) for explanation, _ in texts])),
    }
