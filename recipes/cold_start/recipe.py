"""RL on a student's own answers, from the base model and from students trained on traces (a cold start)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl

from rlt_data.errors import InputError
from rlt_data.formats import load_format
from rlt_data.formats.views import tagged_solution
from rlt_data.inputs.check import good_rows
from rlt_data.plots import bars
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.stages import (
    by_benchmark,
    compare_arms,
    evaluate,
    evaluate_base,
    import_ranked_traces,
    problems,
    questions,
    slug,
    source_traces,
    train_and_eval_on_traces,
    write_rows,
)
from rlt_data.settings import InputSettings, parse_settings
from rlt_data.steps.provenance import recorded_format
from rlt_data.storage.run import RunFolder
from rlt_data.tasks.grading import stated_answer

BASE, RAW, REFINED = "base", "student of an RL solver, raw", "student of an RL solver, refined"


def run(experiment: Experiment) -> None:
    """Train solvers from up to five starting models; evaluate each before and after RL."""
    seeds = experiment.seeds
    base = experiment.run_all(evaluate_base, [(seed,) for seed in seeds])
    solvers = experiment.run_all(_solver, [(BASE, experiment.config["student"]["model"], seed) for seed in seeds])
    before: dict[str, list[dict[str, Any]]] = {BASE: base}
    for source in experiment.config["sources"]:
        before[source] = experiment.run_all(_train_on_source, [(source, seed) for seed in seeds])
    answers = experiment.run_all(_answers, [(solver["out"], seed) for solver, seed in zip(solvers, seeds, strict=True)])
    before[RAW] = experiment.run_all(_train_on_solver, list(zip(answers, seeds, strict=True)))
    if refined := experiment.config.get("refined"):
        calls = [(run, seed, refined) for run, seed in zip(answers, seeds, strict=True)]
        before[REFINED] = experiment.run_all(_train_on_solver, calls)
    else:
        print(
            f"cold_start: the arm '{REFINED}' is left out, because no step of rlt-data refines traces. Refine the "
            f"explanations of {experiment.path('rows', 'raw-0.jsonl')} with an LLM and set refined: FILE"
        )
    starts = [
        (arm, before[arm][index]["out"], seed) for arm in before if arm != BASE for index, seed in enumerate(seeds)
    ]
    results = experiment.run_all(_solver, starts)
    if experiment.dry_run:
        return
    after = {BASE: solvers}
    for (arm, _, _), result in zip(starts, results, strict=True):
        after.setdefault(arm, []).append(result)
    figures: dict[str, Any] = {
        arm: {
            "rows": estimate([float(result.get("rows", 0)) for result in before[arm]]),
            "before": estimate([result["accuracy"] for result in before[arm]]),
            "after": estimate([result["accuracy"] for result in after[arm]]),
            "tokens": estimate([result["tokens"] for result in after[arm]]),
            "benchmarks": by_benchmark(after[arm]),
        }
        for arm in before
    }
    benchmarks = list(experiment.config["benchmarks"])
    listed = benchmarks if len(benchmarks) > 1 else []
    columns = [
        "start",
        "traces learned from",
        "accuracy before RL",
        "accuracy after RL",
        *(f"{name} after RL" for name in listed),
        "tokens of an answer",
    ]
    rows = [
        (
            arm,
            f"{values['rows'].mean:.0f}",
            values["before"],
            values["after"],
            *(values["benchmarks"][name] for name in listed),
            f"{values['tokens'].mean:.1f}",
        )
        for arm, values in figures.items()
    ]

    def draw(axes: Any) -> None:
        bars(
            axes,
            list(figures),
            {f"{when} RL": [values[when] for values in figures.values()] for when in ("before", "after")},
        )

    # The first source is the RLT, whose student the paper compares with the other starts.
    rlt = next(iter(experiment.config["sources"]))
    pairs, compared = compare_arms([(arm, rlt) for arm in before if arm != rlt], after, "Pairs of models after RL")
    publish(experiment, {"arms": figures, "pairs": pairs}, f"{table(columns, rows)}\n{compared}", draw)


def _solver(experiment: Experiment, arm: str, model: str, seed: int) -> dict[str, Any]:
    """Train a model on the correctness of its answers, and evaluate it."""
    name = f"{slug(arm)}-{seed}"
    out = experiment.path("solvers", name)
    data = "rl" if "rl" in experiment.config else "train"
    experiment.step("solver", model=model, out=out, seed=seed, **problems(experiment, data, seed))
    return {"out": out, **evaluate(experiment, out, f"solver-{name}", seed)}


def _train_on_source(experiment: Experiment, source: str, seed: int) -> dict[str, Any]:
    name = slug(source)
    traces = source_traces(experiment, experiment.config["sources"][source], name, seed)
    return train_and_eval_on_traces(experiment, traces, name, seed)


def _answers(experiment: Experiment, solver: str, seed: int) -> str:
    """Return the run folder with a solver's answers to the training questions."""
    out = experiment.path("answers", seed)
    inputs = problems(experiment, "train", seed)
    if experiment.config.get("answers_in_solutions"):
        rows = [] if experiment.dry_run else stated_answers(questions(experiment, "train", seed))
        inputs = {"in": write_rows(experiment, rows, f"questions-{seed}")}
        inputs |= {"question_column": "question", "answer_column": "answer"}
    experiment.step("evaluate", "answers", model=solver, out=out, seed=seed, **inputs)
    return out


def stated_answers(source: dict[str, Any]) -> list[dict[str, str]]:
    """Return the questions of an input whose solution states a final answer, with that answer.

    Args:
        source: input settings.
    """
    rows = good_rows(parse_settings(InputSettings, source), load_format("rlt"))
    answers = {row.question: stated_answer(row.solution) for row in rows}
    found = [{"question": question, "answer": answer} for question, answer in answers.items() if answer]
    print(f"cold_start: {len(answers) - len(found):,} of {len(answers):,} questions state no final answer (code)")
    return found


def _train_on_solver(experiment: Experiment, run: str, seed: int, refined: str | None = None) -> dict[str, Any]:
    """Train a student on a solver's right answers.

    Args:
        experiment: running recipe.
        run: run folder of the solver's answers.
        seed: seed of all steps.
        refined: None: raw answers. ``rule``: the miniature's answers, shortened. Otherwise the file of refined answers.
    """
    name = "refined" if refined else "raw"
    if refined and refined != "rule":
        rows = refined_rows(refined)
    elif experiment.dry_run:
        rows = []
    else:
        rows = right_answers(RunFolder.existing(run))
        if refined:
            rows = [row | {"explanation": shorten(row["explanation"])} for row in rows]
    return train_and_eval_on_traces(experiment, import_ranked_traces(experiment, rows, f"{name}-{seed}"), name, seed)


def refined_rows(file: str) -> list[dict[str, Any]]:
    """Read refined answers.

    Args:
        file: JSON Lines with ``question``, ``solution`` and ``explanation``, as in the file of raw answers.

    Raises:
        InputError: the file cannot be read, or a row lacks a column.
    """
    try:
        rows = [dict(json.loads(line)) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"refined: {file}: cannot be read as JSON Lines: {error}") from None
    for number, row in enumerate(rows, 1):
        if missing := {"question", "solution", "explanation"} - row.keys():
            raise InputError(f"refined: {file}, line {number}: has no column {min(missing)!r}")
    return rows


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


def shorten(explanation: str, kept: int = 2) -> str:
    """Shorten a miniature model's search to its last attempts.

    Args:
        explanation: attempts that each end with ``yes`` or ``no``.
        kept: number of attempts to keep before the last one.
    """
    attempts = [attempt.strip() for attempt in re.findall(r".*?\b(?:yes|no)\b|.+$", explanation, re.S)]
    return " ".join(attempts[-kept - 1 :])
