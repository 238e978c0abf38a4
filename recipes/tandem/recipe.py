"""Alternate between teacher and student: does a student retrained on the best traces make a better teacher?"""

from __future__ import annotations

from typing import Any

from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.stages import make_ranked_traces, train_and_eval_student, train_student, train_teacher

ARMS = {
    "fixed": "the student stays the base",
    "tandem": "the student is refreshed from the teacher's best traces",
    "one-model": "one model in both roles: the teacher so far is the student too",
}


def run(experiment: Experiment) -> None:
    """Train a teacher in rounds with three kinds of scoring student, and train new students on its traces."""
    calls = [(arm, seed) for arm in ARMS for seed in experiment.seeds]
    results = experiment.run_all(_arm, calls)
    if experiment.dry_run:
        return
    rounds = int(experiment.config["rounds"])
    figures: dict[str, Any] = {}
    for number, arm in enumerate(ARMS):
        seeds = results[number * len(experiment.seeds) : (number + 1) * len(experiment.seeds)]
        figures[arm] = {
            name: [estimate([result[turn][name] for result in seeds]) for turn in range(rounds)]
            for name in ("accuracy", "reward", "thought_tokens", "truncated")
        }
    turns = [f"accuracy after round {turn + 1}" for turn in range(rounds)]
    columns = ["student that rewards", *turns, "tokens", "cut off"]
    rows = [
        (
            ARMS[arm],
            *values["accuracy"],
            f"{values['thought_tokens'][-1].mean:.1f}",
            f"{values['truncated'][-1].mean:.3f}",
        )
        for arm, values in figures.items()
    ]
    text = table(columns, rows) + "\nAccuracy is that of fresh students from the base, on one trace per question.\n"
    publish(experiment, {"arms": figures}, text, lambda axes: _draw(axes, figures, rounds))


def _arm(experiment: Experiment, arm: str, seed: int) -> list[dict[str, float]]:
    """Return the figures of new students and of the teacher's traces after each round."""
    teacher, student = str(experiment.config["teacher"]["model"]), str(experiment.config["teacher"]["student"])
    results = []
    rounds = int(experiment.config["rounds"])
    for turn in range(rounds):
        name = f"{arm}-{turn}"
        teacher = train_teacher(experiment, f"{name}-{seed}", 100 * turn + seed, model=teacher, student=student)
        results.append(train_and_eval_student(experiment, teacher, name, seed))
        if arm == "tandem" and turn + 1 < rounds:
            best = make_ranked_traces(experiment, teacher, f"{name}-best-{seed}", seed, "refresh")
            student, _ = train_student(experiment, best, f"{name}-best", seed)
        elif arm == "one-model":
            student = teacher
    return results


def _draw(axes: Any, figures: dict[str, Any], rounds: int) -> None:
    for arm, values in figures.items():
        means, halves = [point.mean for point in values["accuracy"]], [point.half for point in values["accuracy"]]
        axes.errorbar(range(1, rounds + 1), means, halves, capsize=3, label=ARMS[arm])
    axes.set(xlabel="round", ylabel="accuracy of fresh students", xticks=range(1, rounds + 1))
    axes.legend(fontsize="small")
