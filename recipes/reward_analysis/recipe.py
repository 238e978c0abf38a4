"""Does a trace's reward predict what a student learns from it? Data sets by rank, students, correlations.

The traces of another pipeline are compared in two ways: by the accuracy of their student, and by their rewards next to
those of an RLT on the same questions.
"""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from rlt_data.recipes.experiment import Estimate, Experiment, estimate, pearson, publish, spearman, table
from rlt_data.recipes.stages import (
    evaluate_base,
    import_ranked_traces,
    make_ranked_traces,
    scores_by_rank,
    source_rows,
    train_and_eval_on_traces,
    write_rows,
)
from rlt_data.reporting.report import report
from rlt_data.settings import ReportSettings, parse_settings

#: Traces on the page that compares two pipelines.
_LISTED_TRACES = 400
_OF_RIVAL = {
    "accuracy": "accuracy of the student of its traces",
    "share_of_gain": "share of this student's gain that rank 1 reaches",
    "of_rival": "mean reward of its traces",
    "of_rlt": "mean reward of the RLT's traces",
    "rlt_is_higher": "share of questions on which the RLT's trace has the higher reward",
}


def run(experiment: Experiment) -> None:
    """Sample traces, make a data set of each rank, train a student on each, and correlate rank and accuracy."""
    ranks = {float(weight): list(selected) for weight, selected in experiment.config["lambdas"].items()}
    lambdas = list(ranks)
    runs = experiment.run_all(_traces, [(seed, lambdas) for seed in experiment.seeds])
    calls = [
        (runs[index][number], seed, weight, rank)
        for number, weight in enumerate(lambdas)
        for index, seed in enumerate(experiment.seeds)
        for rank in ranks[weight]
    ]
    results = experiment.run_all(_student, calls)
    base = experiment.run_all(evaluate_base, [(seed,) for seed in experiment.seeds])
    rivals = experiment.run_all(_rival, [(seed, lambdas[0]) for seed in experiment.seeds])
    if experiment.dry_run:
        return
    students = dict(zip([(weight, seed, rank) for _, seed, weight, rank in calls], results, strict=True))
    rewards = {
        (weight, seed): scores_by_rank(runs[index][number])
        for number, weight in enumerate(lambdas)
        for index, seed in enumerate(experiment.seeds)
    }
    figures: dict[str, Any] = {"base": estimate([result["accuracy"] for result in base]), "lambdas": {}}
    text = ""
    for weight, selected in ranks.items():
        accuracy = {
            rank: estimate([students[weight, seed, rank]["accuracy"] for seed in experiment.seeds]) for rank in selected
        }
        reward = {rank: estimate([rewards[weight, seed][rank - 1] for seed in experiment.seeds]) for rank in selected}
        correlations = _correlations(experiment, selected, weight, students, rewards)
        figures["lambdas"][weight] = {"accuracy": accuracy, "reward": reward, "correlations": correlations}
        rows = [(rank, f"{reward[rank].mean:.2f}", accuracy[rank]) for rank in selected]
        text += f"λ = {weight:g}\n\n" + table(["rank", "mean reward", "accuracy of its student"], rows) + "\n"
        text += table(["correlation", "value"], correlations.items()) + "\n"
    text += f"Accuracy of the base: {figures['base']}\n"
    figures["rival"] = {
        name: estimate([result[name] for result in rivals])
        for name in ("accuracy", "of_rlt", "of_rival", "rlt_is_higher")
    }
    best = [students[lambdas[0], seed, min(ranks[lambdas[0]])] for seed in experiment.seeds]
    gains = [
        [result["accuracy"] - without["accuracy"] for result, without in zip(x, base, strict=True)]
        for x in (best, rivals)
    ]
    shares = [ours / theirs if theirs else math.nan for ours, theirs in zip(*gains, strict=True)]
    figures["rival"]["share_of_gain"] = estimate(shares)
    text += "\nThe traces of another pipeline, with rewards at the first λ on the questions of both:\n\n" + table(
        ["figure", "value"], [(label, figures["rival"][name]) for name, label in _OF_RIVAL.items()]
    )
    page = experiment.path("results", "reward_analysis.html")
    compared = {"in": rivals[0]["rlt_run"], "against": rivals[0]["rival_run"]}
    report(parse_settings(ReportSettings, {**compared, "out": page, "limit": _LISTED_TRACES}))
    text += "\n`reward_analysis.html` shows both traces of each question token by token.\n"
    first = figures["lambdas"][lambdas[0]]
    publish(experiment, figures, text, lambda axes: _draw(axes, first, figures["base"]))


def _rival(experiment: Experiment, seed: int, weight: float) -> dict[str, Any]:
    """Train a student on the traces of another pipeline, and compare their rewards with those of an RLT's traces."""
    rlt = str(experiment.config["rlt"])
    rows = source_rows(experiment, experiment.config["rival"], seed)
    score: dict[str, Any] = {"lambda_": weight, "per_token": True}
    rival = import_ranked_traces(experiment, rows, f"rival-{seed}", teacher=rlt, **score)
    ours = experiment.path("traces", f"rlt-{seed}")
    same = write_rows(experiment, rows, f"rival-{seed}")  # the same questions and solutions
    experiment.step("generate", in_=same, teacher=rlt, out=ours, seed=seed, n=1)
    experiment.step("score", in_=ours, **score)
    result = {"rlt_run": ours, "rival_run": rival, **train_and_eval_on_traces(experiment, rival, "rival", seed)}
    return result if experiment.dry_run else result | rewards_on_the_same_questions(ours, rival)


def rewards_on_the_same_questions(ours: str, rival: str) -> dict[str, float]:
    """Return the mean rewards of two runs on their common questions, and the share on which the first is higher."""
    first, second = (
        pl.read_parquet(f"{run}/scores/*.parquet").select("question_id", "reward").drop_nulls() for run in (ours, rival)
    )
    pairs = first.join(second, on="question_id")
    means = {"of_rlt": pairs["reward"].mean(), "of_rival": pairs["reward_right"].mean()}
    higher = (pairs["reward"] > pairs["reward_right"]).mean()
    return {name: float(value) for name, value in (means | {"rlt_is_higher": higher}).items()}  # type: ignore[arg-type]


def _traces(experiment: Experiment, seed: int, lambdas: list[float]) -> list[str]:
    """Return the run folders of one set of traces, one for each reward weight."""
    first = make_ranked_traces(
        experiment, experiment.config["generate"]["teacher"], f"{seed}", seed, lambda_=lambdas[0]
    )
    others = []
    for weight in lambdas[1:]:
        folder = experiment.path("traces", f"{seed}-lambda-{weight:g}")
        experiment.step("score", in_=first, out=folder, lambda_=weight)
        experiment.step("rank", in_=folder)
        others.append(folder)
    return [first, *others]


def _student(experiment: Experiment, traces: str, seed: int, weight: float, rank: int) -> dict[str, Any]:
    return train_and_eval_on_traces(experiment, traces, f"rank-{rank}-lambda-{weight:g}", seed, select=f"rank:{rank}")


def _correlations(
    experiment: Experiment, ranks: list[int], weight: float, students: dict[Any, Any], rewards: dict[Any, list[float]]
) -> dict[str, Estimate]:
    """Correlate within each seed, and return means over seeds."""
    correlations: dict[str, list[float]] = {}
    for seed in experiment.seeds:
        accuracy = [students[weight, seed, rank]["accuracy"] for rank in ranks]
        reward = [rewards[weight, seed][rank - 1] for rank in ranks]
        order = [-float(rank) for rank in ranks]
        correlations.setdefault("Pearson, rank (best is largest) and accuracy", []).append(pearson(order, accuracy))
        correlations.setdefault("Spearman, rank and accuracy", []).append(spearman(order, accuracy))
        correlations.setdefault("Pearson, mean reward and accuracy", []).append(pearson(reward, accuracy))
    return {name: estimate(values) for name, values in correlations.items()}


def _draw(axes: Any, figures: dict[str, Any], base: Estimate) -> None:
    ranks = list(figures["accuracy"])
    means = [figures["accuracy"][rank] for rank in ranks]
    axes.errorbar(ranks, [point.mean for point in means], [point.half for point in means], marker="o", capsize=3)
    axes.axhline(base.mean, color="gray", linestyle="--", linewidth=1, label="base")
    axes.set(xlabel="rank of the traces (1: highest reward)", ylabel="accuracy of the student")
    axes.legend()
