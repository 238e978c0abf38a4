"""Does RL on the dense reward make a better teacher? Students before and after RL, with and without the KL term."""

from __future__ import annotations

from typing import Any

from rlt_data.plots import bars
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.stages import evaluate_base, train_and_eval_student, train_teacher

_FIGURES = ("reward", "r_ss", "r_kl", "thought_tokens", "well_formed", "truncated", "copied")


def run(experiment: Experiment) -> None:
    """Train a teacher with and without the KL term; train students on one trace per question of each teacher."""
    warm = _teacher_before_rl(experiment)
    lambdas = [float(weight) for weight in experiment.config["lambdas"]]
    trained = experiment.run_all(_teacher, [(warm, seed, weight) for weight in lambdas for seed in experiment.seeds])
    arms: dict[str, list[str]] = {"before RL": [warm] * len(experiment.seeds)}
    for number, weight in enumerate(lambdas):
        first = number * len(experiment.seeds)
        arms[f"after RL, λ = {weight:g}"] = trained[first : first + len(experiment.seeds)]
    calls = [
        (arm, model, seed) for arm, models in arms.items() for seed, model in zip(experiment.seeds, models, strict=True)
    ]
    results = experiment.run_all(_student, calls)
    base = experiment.run_all(evaluate_base, [(seed,) for seed in experiment.seeds])
    if experiment.dry_run:
        return
    results_by_arm: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for (arm, _, _), result in zip(calls, results, strict=True):
        results_by_arm[arm].append(result)
    figures: dict[str, Any] = {
        arm: {name: estimate([result[name] for result in seeds]) for name in ("accuracy", "formatted", *_FIGURES)}
        for arm, seeds in results_by_arm.items()
    }
    figures["base"] = {"accuracy": estimate([result["accuracy"] for result in base])}
    after = figures[f"after RL, λ = {lambdas[0]:g}"]["accuracy"].values
    gains = [now - before for now, before in zip(after, figures["before RL"]["accuracy"].values, strict=True)]
    columns = ["teacher", "accuracy of its students", "reward", "r_ss", "r_kl", "tokens", "truncated", "copied"]
    shown = ("reward", "r_ss", "r_kl", "thought_tokens", "truncated", "copied")
    rows = [(arm, figures[arm]["accuracy"], *(f"{figures[arm][name].mean:.3f}" for name in shown)) for arm in arms]
    text = table(columns, [*rows, ("none (base)", figures["base"]["accuracy"], *[""] * len(shown))])
    text += f"\nGain of the students by RL of their teacher, λ = {lambdas[0]:g}: {estimate(gains)}\n"
    text += f"\nRewards of the table are at λ = {lambdas[0]:g} for all.\n"

    def draw(axes: Any) -> None:
        bars(axes, list(figures), {"": [values["accuracy"] for values in figures.values()]}, "accuracy of the students")

    publish(experiment, {"arms": figures, "gain": estimate(gains)}, text, draw)


def _teacher_before_rl(experiment: Experiment) -> str:
    """Return the configured teacher, or warm one up."""
    if "warmup" not in experiment.config:
        return str(experiment.config["teacher"]["model"])
    out = experiment.path("teachers", "warm")
    experiment.step("warmup", out=out)
    return out


def _teacher(experiment: Experiment, warm: str, seed: int, weight: float) -> str:
    return train_teacher(experiment, f"lambda-{weight:g}-{seed}", seed, model=warm, lambda_=weight)


def _student(experiment: Experiment, arm: str, model: str, seed: int) -> dict[str, float]:
    return train_and_eval_student(experiment, model, arm.replace(", λ = ", "-lambda-").replace(" ", "-"), seed)
