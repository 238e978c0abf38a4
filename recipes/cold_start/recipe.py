"""RL on a student's own answers: from the base, and from students that were given a start by teachers' traces."""

from __future__ import annotations

import re
from typing import Any

import polars as pl

from rlt_data.plots import bars
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.stages import accuracy, base_accuracy, imported_traces, problems, ranked_traces, student_of
from rlt_data.steps.evaluate import solution_in
from rlt_data.steps.provenance import recorded_format
from rlt_data.storage.run import RunFolder

BASE, RLT, RAW, EDITED = "base", "student of an RLT", "student of an RL solver, raw", "student of an RL solver, edited"


def run(experiment: Experiment) -> None:
    """Train solvers from four starts and measure each before and after."""
    solvers = experiment.each(
        _solver, [(BASE, experiment.config["student"]["model"], seed) for seed in experiment.seeds]
    )
    taught = experiment.each(_taught_by_rlt, [(seed,) for seed in experiment.seeds])
    answers = experiment.each(
        _answers, [(solver["out"], seed) for solver, seed in zip(solvers, experiment.seeds, strict=True)]
    )
    calls = [
        (run, seed, edited) for run, seed in zip(answers, experiment.seeds, strict=True) for edited in (False, True)
    ]
    own = experiment.each(_taught_by_solver, calls)
    base = experiment.each(base_accuracy, [(seed,) for seed in experiment.seeds])
    before: dict[str, list[dict[str, Any]]] = {BASE: base, RLT: taught, RAW: own[::2], EDITED: own[1::2]}
    taught_arms = (RLT, RAW, EDITED)
    starts = [
        (arm, before[arm][place]["out"], seed) for arm in taught_arms for place, seed in enumerate(experiment.seeds)
    ]
    trained = experiment.each(_solver, starts)
    if experiment.dry_run:
        return
    after = {BASE: solvers}
    for (arm, _, _), result in zip(starts, trained, strict=True):
        after.setdefault(arm, []).append(result)
    figures = {
        arm: {
            "rows": estimate([float(each.get("rows", 0)) for each in before[arm]]),
            "before": estimate([each["accuracy"] for each in before[arm]]),
            "after": estimate([each["accuracy"] for each in after[arm]]),
            "tokens": estimate([each["tokens"] for each in after[arm]]),
        }
        for arm in before
    }
    columns = ["start", "traces learned from", "accuracy before RL", "accuracy after RL", "tokens of an answer"]
    rows = [
        (arm, f"{each['rows'].mean:.0f}", each["before"], each["after"], f"{each['tokens'].mean:.1f}")
        for arm, each in figures.items()
    ]

    def draw(axes: Any) -> None:
        bars(
            axes,
            list(figures),
            {f"{when} RL": [each[when] for each in figures.values()] for when in ("before", "after")},
        )

    publish(experiment, {"arms": figures}, table(columns, rows), draw)


def _solver(experiment: Experiment, arm: str, model: str, seed: int) -> dict[str, Any]:
    """Train a model on the correctness of its answers, and measure it."""
    name = f"{arm}-{seed}".replace(", ", "-").replace(" ", "-")
    out = experiment.path("solvers", name)
    experiment.step("solver", model=model, out=out, seed=seed, **problems(experiment, "train", seed))
    return {"out": out, **accuracy(experiment, out, f"solver-{name}", seed)}


def _taught_by_rlt(experiment: Experiment, seed: int) -> dict[str, Any]:
    return student_of(
        experiment,
        ranked_traces(experiment, experiment.config["generate"]["teacher"], f"rlt-{seed}", seed),
        "rlt",
        seed,
    )


def _answers(experiment: Experiment, solver: str, seed: int) -> str:
    """Return the run with a solver's own answers to the training questions."""
    out = experiment.path("answers", seed)
    experiment.step("evaluate", "answers", model=solver, out=out, seed=seed, **problems(experiment, "train", seed))
    return out


def _taught_by_solver(experiment: Experiment, run: str, seed: int, edited: bool) -> dict[str, Any]:
    """Train a student on the right answers of a solver, as they are or edited."""
    name = "edited" if edited else "raw"
    if experiment.dry_run:
        return student_of(experiment, "", name, seed)
    rows = right_answers(RunFolder.existing(run))
    if edited:
        rows = [row | {"explanation": edit(row["explanation"])} for row in rows]
    return student_of(experiment, imported_traces(experiment, rows, f"{name}-{seed}"), name, seed)


def right_answers(run: RunFolder) -> list[dict[str, Any]]:
    """Return the first right answer to each question of an evaluation, as question, solution and explanation."""
    format = recorded_format(run, "evaluate")
    assert format is not None
    grades = pl.read_parquet(f"{run.path}/grades/*.parquet").filter(pl.col("correct") & pl.col("formatted"))
    answers = pl.read_parquet(f"{run.path}/answers/*.parquet").select("answer_id", "completion")
    asked = pl.read_parquet(f"{run.path}/questions/*.parquet").select("question_id", "question")
    found = grades.sort("sample_index").unique("question_id", keep="first", maintain_order=True)
    joined = found.join(answers, on="answer_id").join(asked, on="question_id").sort("question_id")
    opening, closing = format.thought_tags
    return [
        {
            "id": row["question_id"],
            "question": row["question"],
            "solution": solution_in(format, row["completion"])[0],
            "explanation": row["completion"].partition(opening)[2].partition(closing)[0].strip(),
        }
        for row in joined.to_dicts()
    ]


def edit(explanation: str, kept: int = 2) -> str:
    """Shorten a search of the miniature's kind: the last attempt, after no more than a few of those before it.

    Args:
        explanation: attempts, each ended by ``yes`` or ``no``.
        kept: attempts before the last one that stay.
    """
    pieces = [piece.strip() for piece in re.findall(r".*?\b(?:yes|no)\b|.+$", explanation, re.S)]
    return " ".join(pieces[-kept - 1 :])
