"""Does a trace's reward predict what a student learns from it? Data sets by rank, students, correlations."""

from __future__ import annotations

from typing import Any

from rlt_data.recipes.experiment import Estimate, Experiment, estimate, pearson, publish, spearman, table
from rlt_data.recipes.stages import evaluate_base, make_ranked_traces, scores_by_rank, train_and_eval_on_traces


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
    first = figures["lambdas"][lambdas[0]]
    publish(experiment, figures, text, lambda axes: _draw(axes, first, figures["base"]))


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
