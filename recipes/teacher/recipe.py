"""Does RL on the dense reward make a better teacher, and what does each term of the reward contribute?"""

from __future__ import annotations

from typing import Any

from rlt_data.plots import bars
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.stages import evaluate_base, slug, train_and_eval_student, train_teacher

_FIGURES = ("reward", "r_ss", "r_kl", "thought_tokens", "well_formed", "truncated", "copied", "repeated")
_BEFORE = "before RL"


def run(experiment: Experiment) -> None:
    """Train a teacher with each reward; train students on one trace per question of each teacher."""
    warm = _teacher_before_rl(experiment)
    rewards: dict[str, dict[str, Any]] = experiment.config["rewards"]
    calls = [(warm, seed, name, weights) for name, weights in rewards.items() for seed in experiment.seeds]
    trained = iter(experiment.run_all(_teacher, calls))
    arms = {_BEFORE: [warm] * len(experiment.seeds)}
    arms |= {f"after RL, {name}": [next(trained) for _ in experiment.seeds] for name in rewards}
    students = [
        (arm, model, seed) for arm, models in arms.items() for seed, model in zip(experiment.seeds, models, strict=True)
    ]
    results = experiment.run_all(_student, students)
    base = experiment.run_all(evaluate_base, [(seed,) for seed in experiment.seeds])
    if experiment.dry_run:
        return
    results_by_arm: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for (arm, _, _), result in zip(students, results, strict=True):
        results_by_arm[arm].append(result)
    figures: dict[str, Any] = {
        arm: {name: estimate([result[name] for result in seeds]) for name in ("accuracy", "formatted", *_FIGURES)}
        for arm, seeds in results_by_arm.items()
    }
    figures["base"] = {"accuracy": estimate([result["accuracy"] for result in base])}
    before = figures[_BEFORE]["accuracy"].values
    gains = {
        arm: estimate([now - then for now, then in zip(figures[arm]["accuracy"].values, before, strict=True)])
        for arm in arms
        if arm != _BEFORE
    }
    shown = ("reward", "r_ss", "r_kl", "thought_tokens", "truncated", "copied", "repeated")
    columns = ["teacher", "accuracy of its students", "gain", "reward", "r_ss", "r_kl", "tokens", *shown[4:]]
    rows = [
        (arm, figures[arm]["accuracy"], gains.get(arm, ""), *(f"{figures[arm][name].mean:.3f}" for name in shown))
        for arm in arms
    ]
    text = table(columns, [*rows, ("none (base)", figures["base"]["accuracy"], *[""] * (len(shown) + 1))])
    text += (
        "\nThe gain is that of the students by RL of their teacher. Rewards have the weights of the section score.\n"
    )

    def draw(axes: Any) -> None:
        bars(axes, list(figures), {"": [values["accuracy"] for values in figures.values()]}, "accuracy of the students")

    publish(experiment, {"arms": figures, "gains": gains}, text, draw)


def _teacher_before_rl(experiment: Experiment) -> str:
    """Return the configured teacher, or warm one up."""
    if "warmup" not in experiment.config:
        return str(experiment.config["teacher"]["model"])
    out = experiment.path("teachers", "warm")
    experiment.step("warmup", out=out)
    return out


def _teacher(experiment: Experiment, warm: str, seed: int, name: str, weights: dict[str, Any]) -> str:
    return train_teacher(experiment, f"{slug(name)}-{seed}", seed, model=warm, **weights)


def _student(experiment: Experiment, arm: str, model: str, seed: int) -> dict[str, float]:
    return train_and_eval_student(experiment, model, slug(arm), seed)
