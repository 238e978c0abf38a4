"""A teacher that was trained in one domain explains another: against direct RL there, and transferring a student."""

from __future__ import annotations

from typing import Any

from rlt_data.plots import bars
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.nano.corpus import warm_up_rows
from rlt_data.recipes.stages import accuracy, problems, ranked_traces, trained_student, trained_teacher, write_rows

ARMS = {
    "base": "the base, as it is",
    "solver": "direct RL in the new domain",
    "home-student": "student of the teacher's traces in its own domain",
    "home-solver": "direct RL in the teacher's domain",
    "before": "student of the new domain's traces, teacher before RL",
    "after": "student of the new domain's traces, teacher after RL (zero-shot)",
}


def run(experiment: Experiment) -> None:
    """Measure six models in a domain that no teacher was trained in; and each in the teacher's own."""
    before = _warmed_up(experiment)
    after = experiment.each(_trained, [(before, seed) for seed in experiment.seeds])
    teachers = [{"before": before, "after": each} for each in after]
    calls = [(arm, seed, each) for arm in ARMS for seed, each in zip(experiment.seeds, teachers, strict=True)]
    results = experiment.each(_arm, calls)
    if experiment.dry_run:
        return
    found: dict[str, list[dict[str, float]]] = {}
    for (arm, _, _), result in zip(calls, results, strict=True):
        found.setdefault(arm, []).append(result)
    figures = {
        arm: {name: estimate([each[name] for each in seeds]) for name in ("new", "home", "rows")}
        for arm, seeds in found.items()
    }
    rows = [(ARMS[arm], f"{each['rows'].mean:.0f}", each["new"], each["home"]) for arm, each in figures.items()]
    text = table(["model", "traces learned from", "accuracy, new domain", "accuracy, teacher's domain"], rows)

    def draw(axes: Any) -> None:
        labels = {"new": "new domain", "home": "teacher's own"}
        bars(axes, list(figures), {label: [each[key] for each in figures.values()] for key, label in labels.items()})

    publish(experiment, {"arms": figures}, text, draw)


def _warmed_up(experiment: Experiment) -> str:
    """Return the teacher before RL: the configured one, or one that is warmed up here on both domains."""
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


def _trained(experiment: Experiment, before: str, seed: int) -> str:
    """Return the teacher after RL in its own domain: the configured one, or one that is trained here."""
    if "teacher" not in experiment.config:
        return str(experiment.config["teachers"]["after"])
    return trained_teacher(experiment, f"after-{seed}", seed, asked="train-home", model=before)


def _arm(experiment: Experiment, arm: str, seed: int, teachers: dict[str, str]) -> dict[str, float]:
    """Make one model and measure it in both domains."""
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
        traces = ranked_traces(experiment, teacher, name, seed, asked=f"train-{domain}")
        model, rows = trained_student(experiment, traces, arm, seed)
    found = {
        each: accuracy(
            experiment, model, f"{name}-in-{each}", seed, test=f"test-{each}", benchmarks=f"benchmarks-{each}"
        )
        for each in ("new", "home")
    }
    return {each: result["accuracy"] for each, result in found.items()} | {"rows": float(rows)}
