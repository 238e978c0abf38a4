"""What do students learn from an RL teacher's traces, compared with other pipelines, at two data sizes?"""

from __future__ import annotations

import math
from typing import Any

from rlt_data.plots import bars
from rlt_data.recipes.experiment import Estimate, Experiment, estimate, publish, table
from rlt_data.recipes.stages import by_benchmark, evaluate_base, slug, source_traces, train_and_eval_on_traces


def run(experiment: Experiment) -> None:
    """Train students on the traces of each source in each size, and compare them with the base."""
    sources, sizes = experiment.config["sources"], experiment.config["sizes"]
    pairs = [(source, seed) for source in sources for seed in experiment.seeds]
    traces = dict(zip(pairs, experiment.run_all(_traces, pairs), strict=True))
    calls = [
        (source, traces[source, seed], size, seed)
        for source, seed in pairs
        for size in sources[source].get("sizes", sizes)
    ]
    results = experiment.run_all(_student, calls)
    base = experiment.run_all(evaluate_base, [(seed,) for seed in experiment.seeds])
    if experiment.dry_run:
        return
    results_by_arm: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (source, _, size, _), result in zip(calls, results, strict=True):
        results_by_arm.setdefault((source, size), []).append(result)
    names = ("accuracy", "formatted", "truncated", "tokens", "rows")
    figures: dict[str, Any] = {
        f"{source}, {size}": {name: estimate([float(result[name]) for result in seeds]) for name in names}
        | {"benchmarks": by_benchmark(seeds)}
        for (source, size), seeds in results_by_arm.items()
    }
    figures["none (base)"] = {
        "accuracy": estimate([result["accuracy"] for result in base]),
        "benchmarks": by_benchmark(base),
    }
    benchmarks = list(experiment.config["benchmarks"])
    listed = benchmarks if len(benchmarks) > 1 else []
    columns = ["traces", "rows", "accuracy", *listed, "in format", "cut off", "tokens of an answer"]
    rows = []
    for arm in [f"{source}, {size}" for source, size in results_by_arm]:
        values = figures[arm]
        shares = [f"{values[name].mean:.3f}" for name in ("formatted", "truncated")]
        each = [values["benchmarks"][name] for name in listed]
        rows.append(
            (arm, f"{values['rows'].mean:.0f}", values["accuracy"], *each, *shares, f"{values['tokens'].mean:.1f}")
        )
    without = figures["none (base)"]
    base_row = ("none (base)", "", without["accuracy"], *(without["benchmarks"][name] for name in listed), "", "", "")
    text = table(columns, [*rows, base_row])

    def draw(axes: Any) -> None:
        nothing = {"accuracy": Estimate(math.nan, math.nan, ())}
        groups = {
            size: [figures.get(f"{source}, {size}", nothing)["accuracy"] for source in sources]
            for size in reversed(sizes)
        }
        bars(axes, list(sources), groups, "accuracy of the students")
        axes.axhline(without["accuracy"].mean, color="gray", linestyle="--", linewidth=1)

    publish(experiment, {"arms": figures}, text, draw)


def _traces(experiment: Experiment, source: str, seed: int) -> str:
    """Return the run folder with the ranked traces of a source."""
    section = experiment.config["sources"][source]
    settings = {key: value for key, value in section.items() if key not in ("sizes", "evaluation")}
    return source_traces(experiment, settings, slug(source), seed)


def _student(experiment: Experiment, source: str, traces: str, size: str, seed: int) -> dict[str, Any]:
    """Train a student with the settings of a size, and evaluate it with those of the source."""
    return train_and_eval_on_traces(
        experiment,
        traces,
        f"{slug(source)}-{slug(size)}",
        seed,
        evaluation=experiment.config["sources"][source].get("evaluation"),
        **experiment.config["sizes"][size],
    )
