"""Does the reward of a trace foretell what a student learns from it? Rank data sets, students, correlations."""

from __future__ import annotations

from typing import Any

from rlt_data.recipes.experiment import Estimate, Experiment, estimate, pearson, publish, spearman, table
from rlt_data.recipes.stages import base_accuracy, ranked_traces, scores_by_rank, student_of


def run(experiment: Experiment) -> None:
    """Sample traces of the teacher, sort them into one data set for each rank, train a student on each, correlate."""
    ranks = {float(weight): list(each) for weight, each in experiment.config["lambdas"].items()}
    lambdas = list(ranks)
    runs = experiment.each(_traces, [(seed, lambdas) for seed in experiment.seeds])
    calls = [
        (runs[place][number], seed, lambdas[number], rank)
        for number in range(len(lambdas))
        for place, seed in enumerate(experiment.seeds)
        for rank in ranks[lambdas[number]]
    ]
    results = experiment.each(_student, calls)
    base = experiment.each(base_accuracy, [(seed,) for seed in experiment.seeds])
    if experiment.dry_run:
        return
    found = dict(zip([(weight, seed, rank) for _, seed, weight, rank in calls], results, strict=True))
    rewards = {
        (weight, seed): scores_by_rank(runs[place][number])
        for number, weight in enumerate(lambdas)
        for place, seed in enumerate(experiment.seeds)
    }
    figures: dict[str, Any] = {"base": estimate([each["accuracy"] for each in base]), "lambdas": {}}
    text = ""
    for weight, chosen in ranks.items():
        by_rank = {
            rank: estimate([found[weight, seed, rank]["accuracy"] for seed in experiment.seeds]) for rank in chosen
        }
        reward = {rank: estimate([rewards[weight, seed][rank - 1] for seed in experiment.seeds]) for rank in chosen}
        correlations = _correlations(experiment, chosen, weight, found, rewards)
        figures["lambdas"][weight] = {"accuracy": by_rank, "reward": reward, "correlations": correlations}
        rows = [(rank, f"{reward[rank].mean:.2f}", by_rank[rank]) for rank in chosen]
        text += f"λ = {weight:g}\n\n" + table(["rank", "mean reward", "accuracy of its student"], rows) + "\n"
        text += table(["correlation", "value"], correlations.items()) + "\n"
    text += f"Accuracy of the base: {figures['base']}\n"
    first = figures["lambdas"][lambdas[0]]
    publish(experiment, figures, text, lambda axes: _draw(axes, first, figures["base"]))


def _traces(experiment: Experiment, seed: int, lambdas: list[float]) -> list[str]:
    """Return the run folders of one pool of traces, scored with each weight."""
    first = ranked_traces(experiment, experiment.config["generate"]["teacher"], f"{seed}", seed, lambda_=lambdas[0])
    others = []
    for weight in lambdas[1:]:
        folder = experiment.path("traces", f"{seed}-lambda-{weight:g}")
        experiment.step("score", in_=first, out=folder, lambda_=weight)
        experiment.step("rank", in_=folder)
        others.append(folder)
    return [first, *others]


def _student(experiment: Experiment, traces: str, seed: int, weight: float, rank: int) -> dict[str, Any]:
    return student_of(experiment, traces, f"rank-{rank}-lambda-{weight:g}", seed, select=f"rank:{rank}")


def _correlations(
    experiment: Experiment, ranks: list[int], weight: float, found: dict[Any, Any], rewards: dict[Any, list[float]]
) -> dict[str, Estimate]:
    """Correlate for each seed by itself."""
    of: dict[str, list[float]] = {}
    for seed in experiment.seeds:
        right = [found[weight, seed, rank]["accuracy"] for rank in ranks]
        reward = [rewards[weight, seed][rank - 1] for rank in ranks]
        better = [-float(rank) for rank in ranks]
        of.setdefault("Pearson, rank (best is largest) and accuracy", []).append(pearson(better, right))
        of.setdefault("Spearman, rank and accuracy", []).append(spearman(better, right))
        of.setdefault("Pearson, mean reward and accuracy", []).append(pearson(reward, right))
    return {name: estimate(values) for name, values in of.items()}


def _draw(axes: Any, figures: dict[str, Any], base: Estimate) -> None:
    ranks = list(figures["accuracy"])
    means = [figures["accuracy"][rank] for rank in ranks]
    axes.errorbar(ranks, [each.mean for each in means], [each.half for each in means], marker="o", capsize=3)
    axes.axhline(base.mean, color="gray", linestyle="--", linewidth=1, label="base")
    axes.set(xlabel="rank of the traces (1: highest reward)", ylabel="accuracy of the student")
    axes.legend()
