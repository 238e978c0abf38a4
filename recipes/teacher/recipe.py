"""Does RL on the dense reward make a better teacher? Students before and after, and without the KL term."""

from __future__ import annotations

from typing import Any

from rlt_data.plots import bars
from rlt_data.recipes.lab import Lab, estimate, publish, table
from rlt_data.recipes.pieces import base_accuracy, taught_by, trained_teacher

_FIGURES = ("reward", "r_ss", "r_kl", "thought_tokens", "well_formed", "truncated", "copied")


def run(lab: Lab) -> None:
    """Warm a teacher up, train it with and without the KL term; train students on one trace per question of each."""
    warm = _warm(lab)
    lambdas = [float(each) for each in lab.config["lambdas"]]
    trained = lab.each(_teacher, [(warm, seed, weight) for weight in lambdas for seed in lab.seeds])
    arms: dict[str, list[str]] = {"before RL": [warm] * len(lab.seeds)}
    for number, weight in enumerate(lambdas):
        first = number * len(lab.seeds)
        arms[f"after RL, λ = {weight:g}"] = trained[first : first + len(lab.seeds)]
    calls = [(arm, model, seed) for arm, models in arms.items() for seed, model in zip(lab.seeds, models, strict=True)]
    results = lab.each(_student, calls)
    base = lab.each(base_accuracy, [(seed,) for seed in lab.seeds])
    if lab.dry_run:
        return
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for (arm, _, _), result in zip(calls, results, strict=True):
        found[arm].append(result)
    figures: dict[str, Any] = {
        arm: {name: estimate([each[name] for each in each_seed]) for name in ("accuracy", "formatted", *_FIGURES)}
        for arm, each_seed in found.items()
    }
    figures["base"] = {"accuracy": estimate([each["accuracy"] for each in base])}
    after = figures[f"after RL, λ = {lambdas[0]:g}"]["accuracy"].values
    gains = [now - before for now, before in zip(after, figures["before RL"]["accuracy"].values, strict=True)]
    columns = ["teacher", "accuracy of its students", "reward", "r_ss", "r_kl", "tokens", "truncated", "copied"]
    shown = ("reward", "r_ss", "r_kl", "thought_tokens", "truncated", "copied")
    rows = [(arm, figures[arm]["accuracy"], *(f"{figures[arm][name].mean:.3f}" for name in shown)) for arm in arms]
    text = table(columns, [*rows, ("none (base)", figures["base"]["accuracy"], *[""] * len(shown))])
    text += f"\nGain of the students by RL of their teacher, λ = {lambdas[0]:g}: {estimate(gains)}\n"
    text += f"\nRewards of the table are at λ = {lambdas[0]:g} for all.\n"

    def draw(axes: Any) -> None:
        bars(axes, list(figures), {"": [each["accuracy"] for each in figures.values()]}, "accuracy of the students")

    publish(lab, {"arms": figures, "gain": estimate(gains)}, text, draw)


def _warm(lab: Lab) -> str:
    """Return the warmed-up teacher: the configured one, or one that is warmed up here."""
    if "warmup" not in lab.config:
        return str(lab.config["teacher"]["model"])
    out = lab.path("teachers", "warm")
    lab.step("warmup", out=out)
    return out


def _teacher(lab: Lab, warm: str, seed: int, weight: float) -> str:
    return trained_teacher(lab, f"lambda-{weight:g}-{seed}", seed, model=warm, lambda_=weight)


def _student(lab: Lab, arm: str, model: str, seed: int) -> dict[str, float]:
    return taught_by(lab, model, arm.replace(", λ = ", "-lambda-").replace(" ", "-"), seed)
