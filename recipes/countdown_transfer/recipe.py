"""Transfer: compare the traces of a teacher trained in another domain with direct RL and a transferred student."""

from __future__ import annotations

from typing import Any

from rlt_data.plots import bars
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.nano.corpus import warm_up_rows
from rlt_data.recipes.stages import evaluate, make_ranked_traces, problems, train_student, train_teacher, write_rows

ARMS = {
    "base": "the base, as it is",
    "solver": "direct RL in the new domain",
    "home-student": "student of the teacher's traces in its own domain",
    "home-solver": "direct RL in the teacher's domain",
    "before": "student of the new domain's traces, teacher before RL",
    "after": "student of the new domain's traces, teacher after RL (zero-shot)",
}


def run(experiment: Experiment) -> None:
    """Evaluate six models in a domain in which no teacher was trained, and in the teacher's own."""
    before = _teacher_before_rl(experiment)
    after = experiment.run_all(_teacher_after_rl, [(before, seed) for seed in experiment.seeds])
    teachers = [{"before": before, "after": teacher} for teacher in after]
    calls = [(arm, seed, pair) for arm in ARMS for seed, pair in zip(experiment.seeds, teachers, strict=True)]
    results = experiment.run_all(_arm, calls)
    if experiment.dry_run:
        return
    results_by_arm: dict[str, list[dict[str, float]]] = {}
    for (arm, _, _), result in zip(calls, results, strict=True):
        results_by_arm.setdefault(arm, []).append(result)
    figures = {
        arm: {name: estimate([result[name] for result in seeds]) for name in ("new", "home", "rows")}
        for arm, seeds in results_by_arm.items()
    }
    rows = [(ARMS[arm], f"{values['rows'].mean:.0f}", values["new"], values["home"]) for arm, values in figures.items()]
    text = table(["model", "traces learned from", "accuracy, new domain", "accuracy, teacher's domain"], rows)

    def draw(axes: Any) -> None:
        labels = {"new": "new domain", "home": "teacher's own"}
        groups = {label: [values[key] for values in figures.values()] for key, label in labels.items()}
        bars(axes, list(figures), groups)

    publish(experiment, {"arms": figures}, text, draw)


def _teacher_before_rl(experiment: Experiment) -> str:
    """Return the configured teacher, or warm one up on both domains."""
    if "warmup" not in experiment.config:
        return str(experiment.config["teachers"]["before"])
    out = experiment.path("teachers", "before")
    rows = (
        "warm-up.jsonl"
        if experiment.dry_run
        else write_rows(experiment, warm_up_rows(0, **experiment.config["warmup-rows"]), "warm-up")
    )
    experiment.step("warmup", in_=rows, out=out)
    return out


def _teacher_after_rl(experiment: Experiment, before: str, seed: int) -> str:
    """Return the configured teacher, or train one by RL in its own domain."""
    if "teacher" not in experiment.config:
        return str(experiment.config["teachers"]["after"])
    return train_teacher(experiment, f"after-{seed}", seed, data="train-home", model=before)


def _arm(experiment: Experiment, arm: str, seed: int, teachers: dict[str, str]) -> dict[str, float]:
    """Make one model and evaluate it in both domains."""
    domain = "home" if arm.startswith("home") else "new"
    name, rows = f"{arm}-{seed}", 0
    if arm == "base":
        model = str(experiment.config["student"]["model"])
    elif arm.endswith("solver"):
        model = experiment.path("solvers", name)
        experiment.step(
            "solver", f"solver-{domain}", out=model, seed=seed, **problems(experiment, f"train-{domain}", seed)
        )
    else:
        teacher = teachers["before" if arm == "before" else "after"]
        traces = make_ranked_traces(experiment, teacher, name, seed, data=f"train-{domain}")
        model, rows = train_student(experiment, traces, arm, seed)
    accuracy = {
        test: evaluate(
            experiment, model, f"{name}-in-{test}", seed, test=f"test-{test}", benchmarks=f"benchmarks-{test}"
        )
        for test in ("new", "home")
    }
    return {test: result["accuracy"] for test, result in accuracy.items()} | {"rows": float(rows)}
