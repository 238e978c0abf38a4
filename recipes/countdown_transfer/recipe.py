"""Transfer: compare the traces of a teacher trained in another domain with direct RL and a transferred student."""

from __future__ import annotations

from typing import Any

from rlt_data.plots import bars
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.nano.corpus import warm_up_rows
from rlt_data.recipes.stages import (
    compare_arms,
    evaluate,
    make_ranked_traces,
    problems,
    source_traces,
    train_student,
    train_teacher,
    write_rows,
)

ARMS = {
    "base": "the base, as it is",
    "solver": "direct RL in the new domain",
    "home-student": "student of the teacher's traces in its own domain",
    "home-solver": "direct RL in the teacher's domain",
    "home-rival": "student of another pipeline's traces in the teacher's domain",
    "before": "student of the new domain's traces, teacher before RL",
    "after": "student of the new domain's traces, teacher after RL (zero-shot)",
    "rival-solver": "direct RL in the new domain, from the student of another pipeline's traces",
}
#: Arms that are compared problem by problem in the new domain. The paper compares the first pair.
_PAIRS = [("solver", "home-rival"), ("rival-solver", "home-rival"), ("solver", "after"), ("home-rival", "after")]


def run(experiment: Experiment) -> None:
    """Evaluate models in a domain in which no teacher was trained, and in the teacher's own."""
    before = _teacher_before_rl(experiment)
    after = experiment.run_all(_teacher_after_rl, [(before, seed) for seed in experiment.seeds])
    teachers = [{"before": before, "after": teacher} for teacher in after]
    arms = [arm for arm in ARMS if arm != "home-solver" or "solver-home" in experiment.config]
    first = [arm for arm in arms if arm != "rival-solver"]
    calls = [(arm, seed, pair) for arm in first for seed, pair in zip(experiment.seeds, teachers, strict=True)]
    results = experiment.run_all(_arm, calls)
    results_by_arm: dict[str, list[dict[str, Any]]] = {}
    for (arm, _, _), result in zip(calls, results, strict=True):
        results_by_arm.setdefault(arm, []).append(result)
    starts = [result["model"] for result in results_by_arm["home-rival"]]
    calls_of_rival = [(start, seed) for start, seed in zip(starts, experiment.seeds, strict=True)]
    results_by_arm["rival-solver"] = experiment.run_all(_rival_solver, calls_of_rival)
    if experiment.dry_run:
        return
    figures = {
        arm: {name: estimate([result[name] for result in results_by_arm[arm]]) for name in ("new", "home", "rows")}
        for arm in arms
    }
    rows = [(ARMS[arm], f"{values['rows'].mean:.0f}", values["new"], values["home"]) for arm, values in figures.items()]
    text = table(["model", "traces learned from", "accuracy, new domain", "accuracy, teacher's domain"], rows)
    pairs, compared = compare_arms(
        [(ARMS[one], ARMS[other]) for one, other in _PAIRS],
        {ARMS[arm]: results_by_arm[arm] for arm in arms},
        "Pairs of models in the new domain",
    )
    text += f"\n{compared}"

    def draw(axes: Any) -> None:
        labels = {"new": "new domain", "home": "teacher's own"}
        groups = {label: [values[key] for values in figures.values()] for key, label in labels.items()}
        bars(axes, list(figures), groups)

    publish(experiment, {"arms": figures, "pairs": pairs}, text, draw)


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


def _arm(experiment: Experiment, arm: str, seed: int, teachers: dict[str, str]) -> dict[str, Any]:
    """Make one model and evaluate it in both domains."""
    domain = "home" if arm.startswith("home") else "new"
    name = f"{arm}-{seed}"
    if arm == "base":
        return _evaluated(experiment, str(experiment.config["student"]["model"]), name, seed)
    if trained := experiment.config.get("models", {}).get(arm):
        return _evaluated(experiment, str(trained), name, seed)
    if arm.endswith("solver"):
        model = experiment.path("solvers", name)
        experiment.step(
            "solver", f"solver-{domain}", out=model, seed=seed, **problems(experiment, f"train-{domain}", seed)
        )
        return _evaluated(experiment, model, name, seed)
    if arm == "home-rival":
        traces = source_traces(experiment, experiment.config["rival"], arm, seed, data="train-home")
    else:
        teacher = teachers["before" if arm == "before" else "after"]
        traces = make_ranked_traces(experiment, teacher, name, seed, data=f"train-{domain}")
    model, rows = train_student(experiment, traces, arm, seed)
    return _evaluated(experiment, model, name, seed) | {"rows": float(rows)}


def _rival_solver(experiment: Experiment, start: str, seed: int) -> dict[str, Any]:
    """Train the student of another pipeline's traces by RL in the new domain, and evaluate it."""
    name = f"rival-solver-{seed}"
    model = experiment.path("solvers", name)
    experiment.step(
        "solver", "solver-new", model=start, out=model, seed=seed, **problems(experiment, "train-new", seed)
    )
    return _evaluated(experiment, model, name, seed)


def _evaluated(experiment: Experiment, model: str, name: str, seed: int) -> dict[str, Any]:
    """Return a model, its accuracy in both domains, and the runs of its evaluation in the new one."""
    results = {
        test: evaluate(
            experiment, model, f"{name}-in-{test}", seed, test=f"test-{test}", benchmarks=f"benchmarks-{test}"
        )
        for test in ("new", "home")
    }
    accuracy = {test: result["accuracy"] for test, result in results.items()}
    return {"model": model, "runs": results["new"]["runs"], "rows": 0.0, **accuracy}
