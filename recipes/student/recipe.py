"""What do students learn from an RL teacher's traces, against other pipelines, at two sizes of data?"""

from __future__ import annotations

from typing import Any

from rlt_data.plots import bars
from rlt_data.recipes.experiment import Experiment, estimate, publish, table
from rlt_data.recipes.nano.rivals import rival_rows
from rlt_data.recipes.stages import base_accuracy, imported_traces, questions, ranked_traces, student_of


def run(experiment: Experiment) -> None:
    """Train students on the traces of each source, all of them and a subset, and on none."""
    sources = list(experiment.config["sources"])
    pairs = [(source, seed) for source in sources for seed in experiment.seeds]
    traces = dict(zip(pairs, experiment.each(_traces, pairs), strict=True))
    sizes = {"all": None, "subset": int(experiment.config["subset"])}
    calls = [
        (source, traces[source, seed], size, limit, seed) for source, seed in traces for size, limit in sizes.items()
    ]
    results = experiment.each(_student, calls)
    base = experiment.each(base_accuracy, [(seed,) for seed in experiment.seeds])
    if experiment.dry_run:
        return
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (source, _, size, _, _), result in zip(calls, results, strict=True):
        found.setdefault((source, size), []).append(result)
    names = ("accuracy", "formatted", "truncated", "tokens", "rows")
    figures = {
        f"{source}, {size}": {name: estimate([float(each[name]) for each in seeds]) for name in names}
        for (source, size), seeds in found.items()
    }
    figures["none (base)"] = {"accuracy": estimate([each["accuracy"] for each in base])}
    columns = ["traces", "rows", "accuracy", "in format", "cut off", "tokens of an answer"]
    rows = []
    for source, size in found:
        each = figures[f"{source}, {size}"]
        shares = [f"{each[name].mean:.3f}" for name in ("formatted", "truncated")]
        means = [f"{each['rows'].mean:.0f}", each["accuracy"], *shares, f"{each['tokens'].mean:.1f}"]
        rows.append((f"{source}, {size}", *means))
    text = table(columns, [*rows, ("none (base)", "", figures["none (base)"]["accuracy"], "", "", "")])

    def draw(axes: Any) -> None:
        groups = {size: [figures[f"{source}, {size}"]["accuracy"] for source in sources] for size in ("subset", "all")}
        bars(axes, sources, groups, "accuracy of the students")
        axes.axhline(figures["none (base)"]["accuracy"].mean, color="gray", linestyle="--", linewidth=1)

    publish(experiment, {"arms": figures}, text, draw)


def _traces(experiment: Experiment, source: str, seed: int) -> str:
    """Return a run with the ranked traces of a source: a teacher's, a rule's, or those of a file or data set."""
    section = dict(experiment.config["sources"][source])
    name = f"{source}-{seed}".replace(" ", "-")
    if "teacher" in section:
        return ranked_traces(experiment, section["teacher"], name, seed, n=section["n"])
    if "rule" in section:
        if experiment.dry_run:
            return ""
        rows = rival_rows(questions(experiment, "train", seed)["in"], section["rule"], seed)
        return imported_traces(experiment, rows, name)
    folder = experiment.path("traces", name)
    experiment.step("score", out=folder, teacher="none", **section)
    experiment.step("rank", in_=folder, by="reward_without_entropy")
    return folder


def _student(
    experiment: Experiment, source: str, traces: str, size: str, limit: int | None, seed: int
) -> dict[str, Any]:
    return student_of(experiment, traces, f"{source}-{size}".replace(" ", "-"), seed, limit=limit)
