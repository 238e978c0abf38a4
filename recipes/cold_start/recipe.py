"""RL on a student's own answers, from the base model and from students trained on traces (a cold start)."""

from __future__ import annotations

import re
from typing import Any

import polars as pl

from rlt_data.formats.views import tagged_solution
from rlt_data.plots import bars
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.stages import (
    evaluate,
    evaluate_base,
    import_ranked_traces,
    make_ranked_traces,
    problems,
    train_and_eval_on_traces,
)
from rlt_data.steps.provenance import recorded_format
from rlt_data.storage.run import RunFolder

BASE, RLT, RAW, EDITED = "base", "student of an RLT", "student of an RL solver, raw", "student of an RL solver, edited"


def run(experiment: Experiment) -> None:
    """Train solvers from four starting models; evaluate each before and after RL."""
    solvers = experiment.run_all(
        _solver, [(BASE, experiment.config["student"]["model"], seed) for seed in experiment.seeds]
    )
    rlt_students = experiment.run_all(_train_on_teacher, [(seed,) for seed in experiment.seeds])
    answers = experiment.run_all(
        _answers, [(solver["out"], seed) for solver, seed in zip(solvers, experiment.seeds, strict=True)]
    )
    calls = [
        (run, seed, edited) for run, seed in zip(answers, experiment.seeds, strict=True) for edited in (False, True)
    ]
    solver_students = experiment.run_all(_train_on_solver, calls)
    base = experiment.run_all(evaluate_base, [(seed,) for seed in experiment.seeds])
    before: dict[str, list[dict[str, Any]]] = {
        BASE: base,
        RLT: rlt_students,
        RAW: solver_students[::2],
        EDITED: solver_students[1::2],
    }
    starts = [
        (arm, before[arm][index]["out"], seed)
        for arm in (RLT, RAW, EDITED)
        for index, seed in enumerate(experiment.seeds)
    ]
    results = experiment.run_all(_solver, starts)
    if experiment.dry_run:
        return
    after = {BASE: solvers}
    for (arm, _, _), result in zip(starts, results, strict=True):
        after.setdefault(arm, []).append(result)
    figures = {
        arm: {
            "rows": estimate([float(result.get("rows", 0)) for result in before[arm]]),
            "before": estimate([result["accuracy"] for result in before[arm]]),
            "after": estimate([result["accuracy"] for result in after[arm]]),
            "tokens": estimate([result["tokens"] for result in after[arm]]),
        }
        for arm in before
    }
    columns = ["start", "traces learned from", "accuracy before RL", "accuracy after RL", "tokens of an answer"]
    rows = [
        (arm, f"{values['rows'].mean:.0f}", values["before"], values["after"], f"{values['tokens'].mean:.1f}")
        for arm, values in figures.items()
    ]

    def draw(axes: Any) -> None:
        bars(
            axes,
            list(figures),
            {f"{when} RL": [values[when] for values in figures.values()] for when in ("before", "after")},
        )

    publish(experiment, {"arms": figures}, table(columns, rows), draw)


def _solver(experiment: Experiment, arm: str, model: str, seed: int) -> dict[str, Any]:
    """Train a model on the correctness of its answers, and evaluate it."""
    name = f"{arm}-{seed}".replace(", ", "-").replace(" ", "-")
    out = experiment.path("solvers", name)
    experiment.step("solver", model=model, out=out, seed=seed, **problems(experiment, "train", seed))
    return {"out": out, **evaluate(experiment, out, f"solver-{name}", seed)}


def _train_on_teacher(experiment: Experiment, seed: int) -> dict[str, Any]:
    return train_and_eval_on_traces(
        experiment,
        make_ranked_traces(experiment, experiment.config["generate"]["teacher"], f"rlt-{seed}", seed),
        "rlt",
        seed,
    )


def _answers(experiment: Experiment, solver: str, seed: int) -> str:
    """Return the run folder with a solver's answers to the training questions."""
    out = experiment.path("answers", seed)
    experiment.step("evaluate", "answers", model=solver, out=out, seed=seed, **problems(experiment, "train", seed))
    return out


def _train_on_solver(experiment: Experiment, run: str, seed: int, edited: bool) -> dict[str, Any]:
    """Train a student on a solver's right answers, raw or edited."""
    name = "edited" if edited else "raw"
    if experiment.dry_run:
        return train_and_eval_on_traces(experiment, "", name, seed)
    rows = right_answers(RunFolder.existing(run))
    if edited:
        rows = [row | {"explanation": edit(row["explanation"])} for row in rows]
    return train_and_eval_on_traces(experiment, import_ranked_traces(experiment, rows, f"{name}-{seed}"), name, seed)


def right_answers(run: RunFolder) -> list[dict[str, Any]]:
    """Return the first right answer to each question of an evaluation, with question, solution and explanation."""
    format = recorded_format(run, "evaluate")
    assert format is not None
    grades = pl.read_parquet(f"{run.path}/grades/*.parquet").filter(pl.col("correct") & pl.col("formatted"))
    answers = pl.read_parquet(f"{run.path}/answers/*.parquet").select("answer_id", "completion")
    questions = pl.read_parquet(f"{run.path}/questions/*.parquet").select("question_id", "question")
    first = grades.sort("sample_index").unique("question_id", keep="first", maintain_order=True)
    joined = first.join(answers, on="answer_id").join(questions, on="question_id").sort("question_id")
    opening, closing = format.thought_tags
    return [
        {
            "id": row["question_id"],
            "question": row["question"],
            "solution": tagged_solution(format, row["completion"])[0],
            "explanation": row["completion"].partition(opening)[2].partition(closing)[0].strip(),
        }
        for row in joined.to_dicts()
    ]


def edit(explanation: str, kept: int = 2) -> str:
    """Shorten a miniature model's search to its last attempts.

    Args:
        explanation: attempts that each end with ``yes`` or ``no``.
        kept: number of attempts to keep before the last one.
    """
    attempts = [attempt.strip() for attempt in re.findall(r".*?\b(?:yes|no)\b|.+$", explanation, re.S)]
    return " ".join(attempts[-kept - 1 :])
