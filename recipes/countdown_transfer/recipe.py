"""A teacher that was trained in one domain explains another: against direct RL there, and transferring a student."""

from __future__ import annotations

from typing import Any

from rlt_data.plots import bars
from rlt_data.recipes.lab import Lab, estimate, publish, table
from rlt_data.recipes.nano.corpus import warm_up_rows
from rlt_data.recipes.pieces import accuracy, problems, ranked_traces, trained_student, trained_teacher, write_rows

ARMS = {
    "base": "the base, as it is",
    "solver": "direct RL in the new domain",
    "home-student": "student of the teacher's traces in its own domain",
    "home-solver": "direct RL in the teacher's domain",
    "before": "student of the new domain's traces, teacher before RL",
    "after": "student of the new domain's traces, teacher after RL (zero-shot)",
}


def run(lab: Lab) -> None:
    """Measure six models in a domain that no teacher was trained in; and each in the teacher's own."""
    before = _warmed_up(lab)
    after = lab.each(_trained, [(before, seed) for seed in lab.seeds])
    teachers = [{"before": before, "after": each} for each in after]
    calls = [(arm, seed, each) for arm in ARMS for seed, each in zip(lab.seeds, teachers, strict=True)]
    results = lab.each(_arm, calls)
    if lab.dry_run:
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

    publish(lab, {"arms": figures}, text, draw)


def _warmed_up(lab: Lab) -> str:
    """Return the teacher before RL: the configured one, or one that is warmed up here on both domains."""
    if "warmup" not in lab.config:
        return str(lab.config["teachers"]["before"])
    out = lab.path("teachers", "before")
    rows = "warm-up.jsonl" if lab.dry_run else write_rows(lab, warm_up_rows(0, **lab.config["warmup-rows"]), "warm-up")
    lab.step("warmup", in_=rows, out=out)
    return out


def _trained(lab: Lab, before: str, seed: int) -> str:
    """Return the teacher after RL in its own domain: the configured one, or one that is trained here."""
    if "teacher" not in lab.config:
        return str(lab.config["teachers"]["after"])
    return trained_teacher(lab, f"after-{seed}", seed, asked="train-home", model=before)


def _arm(lab: Lab, arm: str, seed: int, teachers: dict[str, str]) -> dict[str, float]:
    """Make one model and measure it in both domains."""
    domain = "home" if arm.startswith("home") else "new"
    name, rows = f"{arm}-{seed}", 0
    if arm == "base":
        model = str(lab.config["student"]["model"])
    elif arm.endswith("solver"):
        model = lab.path("solvers", name)
        lab.step("solver", f"solver-{domain}", out=model, seed=seed, **problems(lab, f"train-{domain}", seed))
    else:
        teacher = teachers["before" if arm == "before" else "after"]
        traces = ranked_traces(lab, teacher, name, seed, asked=f"train-{domain}")
        model, rows = trained_student(lab, traces, arm, seed)
    found = {
        each: accuracy(lab, model, f"{name}-in-{each}", seed, test=f"test-{each}", benchmarks=f"benchmarks-{each}")
        for each in ("new", "home")
    }
    return {each: result["accuracy"] for each, result in found.items()} | {"rows": float(rows)}
