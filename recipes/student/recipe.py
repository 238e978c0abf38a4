"""What do students learn from an RL teacher's traces, compared with other pipelines, at two data sizes?"""

from __future__ import annotations

from typing import Any

from rlt_data.plots import bars
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.nano.rivals import rival_rows
from rlt_data.recipes.stages import (
    evaluate_base,
    import_ranked_traces,
    make_ranked_traces,
    questions,
    train_and_eval_on_traces,
)


def run(experiment: Experiment) -> None:
    """Train students on all traces and on a subset of each source, and compare them with the base."""
    sources = list(experiment.config["sources"])
    pairs = [(source, seed) for source in sources for seed in experiment.seeds]
    traces = dict(zip(pairs, experiment.run_all(_traces, pairs), strict=True))
    sizes = {"all": None, "subset": int(experiment.config["subset"])}
    calls = [
        (source, traces[source, seed], size, limit, seed) for source, seed in traces for size, limit in sizes.items()
    ]
    results = experiment.run_all(_student, calls)
    base = experiment.run_all(evaluate_base, [(seed,) for seed in experiment.seeds])
    if experiment.dry_run:
        return
    results_by_arm: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (source, _, size, _, _), result in zip(calls, results, strict=True):
        results_by_arm.setdefault((source, size), []).append(result)
    names = ("accuracy", "formatted", "truncated", "tokens", "rows")
    figures = {
        f"{source}, {size}": {name: estimate([float(result[name]) for result in seeds]) for name in names}
        for (source, size), seeds in results_by_arm.items()
    }
    figures["none (base)"] = {"accuracy": estimate([result["accuracy"] for result in base])}
    columns = ["traces", "rows", "accuracy", "in format", "cut off", "tokens of an answer"]
    rows = []
    for source, size in results_by_arm:
        values = figures[f"{source}, {size}"]
        shares = [f"{values[name].mean:.3f}" for name in ("formatted", "truncated")]
        means = [f"{values['rows'].mean:.0f}", values["accuracy"], *shares, f"{values['tokens'].mean:.1f}"]
        rows.append((f"{source}, {size}", *means))
    text = table(columns, [*rows, ("none (base)", "", figures["none (base)"]["accuracy"], "", "", "")])

    def draw(axes: Any) -> None:
        groups = {size: [figures[f"{source}, {size}"]["accuracy"] for source in sources] for size in ("subset", "all")}
        bars(axes, sources, groups, "accuracy of the students")
        axes.axhline(figures["none (base)"]["accuracy"].mean, color="gray", linestyle="--", linewidth=1)

    publish(experiment, {"arms": figures}, text, draw)


def _traces(experiment: Experiment, source: str, seed: int) -> str:
    """Return the run folder with ranked traces from a source: a teacher, a rule, a file or a data set."""
    section = dict(experiment.config["sources"][source])
    name = f"{source}-{seed}".replace(" ", "-")
    if "teacher" in section:
        return make_ranked_traces(experiment, section["teacher"], name, seed, n=section["n"])
    if "rule" in section:
        if experiment.dry_run:
            return ""
        rows = rival_rows(questions(experiment, "train", seed)["in"], section["rule"], seed)
        return import_ranked_traces(experiment, rows, name)
    folder = experiment.path("traces", name)
    experiment.step("score", out=folder, teacher="none", **section)
    experiment.step("rank", in_=folder, by="reward_without_entropy")
    return folder


def _student(
    experiment: Experiment, source: str, traces: str, size: str, limit: int | None, seed: int
) -> dict[str, Any]:
    return train_and_eval_on_traces(experiment, traces, f"{source}-{size}".replace(" ", "-"), seed, limit=limit)
