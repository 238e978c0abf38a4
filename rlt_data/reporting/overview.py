"""The upper part of the page: figures, plots and how they were made, as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import polars as pl
from jinja2 import Environment, StrictUndefined, Template

from rlt_data import plots
from rlt_data.publish.redact import redact_paths
from rlt_data.statistics import Stats, figure, scored, stats
from rlt_data.storage.errorlog import failures
from rlt_data.storage.run import RunFolder

#: Reasons of failures that are listed.
_REASONS = 10
#: Settings that every step has and nobody asks for.
_LEFT_OUT = ("in", "input", "out")


def overview(runs: Mapping[str, RunFolder], note: str = "") -> str:
    """Return an HTML fragment; every text in it is escaped.

    Args:
        runs: by the names of their sources.
        note: a sentence to put before it.
    """
    frames = {name: scored(run, "question_id") for name, run in runs.items()}
    filled = {name: frame for name, frame in frames.items() if len(frame)}
    drawn = plots.plots_of(filled) if filled else {}
    return rendered(
        "overview.html",
        note=note,
        sources=[_source(name, run, frames[name]) for name, run in runs.items()],
        plots={name: plots.svg(draw, name, size) for name, (draw, size) in drawn.items()},
        comparison=_comparison(frames) if len(filled) > 1 else None,
        warning=_warning(runs),
    )


def rendered(name: str, **values: Any) -> str:
    """Return one of the page's templates with values in it, escaped; halves of surrogate pairs become "?"."""
    return str(_template(name).render(**values)).encode("utf-8", "replace").decode()


@cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": figure, "words": _words}
    return environment.from_string(asset(name))


def asset(name: str) -> str:
    """Return one of the files that the page is made of."""
    return resources.files("rlt_data.reporting").joinpath(name).read_text(encoding="utf-8")


def _words(name: Any) -> str:
    return str(name) if str(name).startswith("r_") else str(name).replace("_", " ")


def _source(name: str, run: RunFolder, scores: pl.DataFrame) -> dict[str, Any]:
    figures = stats(run, scores)
    reasons = Counter((entry["step"], str(entry.get("reason", ""))) for entry in failures(run))
    return {
        "name": name,
        "stats": figures,
        "cards": _cards(figures),
        "terms": figures.terms.filter(pl.col("mean").is_not_null()).to_dicts(),
        "buckets": figures.buckets.to_dicts(),
        "failures": [(step, reason, count) for (step, reason), count in reasons.most_common(_REASONS)],
        "steps": {step: made for step, entry in figures.steps.items() if (made := _made(redact_paths(entry)))},
    }


def _cards(figures: Stats) -> dict[str, str]:
    means = dict(figures.terms.select("term", "mean").iter_rows()) if figures.rows["scores"] else {}
    reward = "reward" if means.get("reward") is not None else "reward_without_entropy"
    cards = {table: f"{count:,}" for table, count in figures.rows.items() if count and table != "ranks"}
    if means.get(reward) is not None:
        cards[f"mean {reward.replace('_', ' ')}"] = f"{means[reward]:.3f}"
    cards |= {f"{flag.replace('_', ' ')}": f"{figures.shares[flag]:.1%}" for flag in figures.shares if flag != "closed"}
    if figures.completion_tokens:
        cards["sampled tokens"] = f"{figures.completion_tokens:,}"
    cards |= {f"tokens/s, {step}": f"{rate:,.0f}" for step, rate in figures.tokens_per_second.items()}
    if figures.ranks_outdated:
        cards["ranks"] = "older than the scores, left out"
    return cards | {f"failed in {step}": f"{count:,}" for step, count in figures.failed.items()}


def _made(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return what a step's entry in run.json says of models and settings."""
    models = {role: f"{model['name']} ({model['dtype']}, {model['weights']})"
              for role, model in (entry.get("models") or {}).items()}  # fmt: skip
    settings = {
        key: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in (entry.get("settings") or {}).items()
        if value not in (None, False, [], "") and key not in _LEFT_OUT and key not in models
    }
    return models | settings


def _comparison(frames: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """Compare two sources on the questions that both have scores of."""
    (first, one), (second, other) = frames.items()
    value = (
        "reward" if all(frame["reward"].is_finite().any() for frame in frames.values()) else "reward_without_entropy"
    )
    best = [
        frame.filter(pl.col(value).is_finite()).group_by("question_id").agg(pl.col(value).max())
        for frame in (one, other)
    ]
    both = best[0].join(best[1], on="question_id", suffix="_other")
    shared = both.select("question_id")
    rows: dict[str, list[Any]] = {
        "traces": [],
        f"mean {value.replace('_', ' ')}": [],
        "mean of the best of a question": [],
    }
    rows |= {"r_ss": [], "r_kl": [], "well-formed": [], "tokens of the explanation": []}
    for frame, column in ((one, value), (other, f"{value}_other")):
        frame = frame.join(shared, on="question_id", how="semi")
        finite = frame.filter(pl.col(value).is_finite())
        figures = [
            len(frame), finite[value].mean(), both[column].mean(), frame["r_ss"].mean(), frame["r_kl"].mean(),
            frame["well_formed"].cast(pl.Float64).mean(), frame["thought_tokens"].mean(),
        ]  # fmt: skip
        for shown, each in zip(rows.values(), figures, strict=True):
            shown.append(each)
    ahead = (both[value] > both[f"{value}_other"]).sum()
    behind = (both[value] < both[f"{value}_other"]).sum()
    return {
        "names": [first, second], "questions": len(both), "rows": rows, "ahead": ahead, "behind": behind,
        "value": value.replace("_", " "),
    }  # fmt: skip


def _warning(runs: Mapping[str, RunFolder]) -> str:
    """Say in what the scores of several sources were made differently, and so do not compare."""
    made = [run.step("score").get("depends_on", {}) for run in runs.values()]
    keys = sorted({key for each in made for key in each if any(each.get(key) != other.get(key) for other in made)})
    keys = [key for key in keys if key != "teacher"]  # two sources are two teachers
    return ", ".join(keys)
