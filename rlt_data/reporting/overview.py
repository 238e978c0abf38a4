"""The overview of the report as HTML: statistics, plots and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import polars as pl
from jinja2 import Environment, StrictUndefined, Template

from rlt_data import plots
from rlt_data.publish.redact import redact_paths
from rlt_data.reporting.facts import facts
from rlt_data.signals.matching import Matching
from rlt_data.statistics import FLAGS, UNKNOWN, Stats, figure, scored, stats
from rlt_data.steps.makers import makers_of
from rlt_data.steps.registry import STEPS
from rlt_data.storage.columns import MEANINGS
from rlt_data.storage.data_set import DataSet, read_data_set
from rlt_data.storage.errorlog import failures
from rlt_data.storage.run import RunFolder

#: Number of failure reasons that are listed.
_MAX_REASONS = 10
#: Settings that are not listed, because every step has them.
_HIDDEN_SETTINGS = ("in", "input", "out")

#: Terms that the overview explains.
_GLOSSARY = {
    "trace": "one explanation of how to get from a question to its solution, written by a teacher or imported",
    "explanation": "the text of a trace between the teacher's tags, which the student reads as its own thought",
    "score": "the reward of a trace and the numbers it is computed from, its terms",
    "log-prob": "natural logarithm of the probability that a model gives to a token; 0 is certain",
    "KL": "difference between the log-probs of teacher and student at a token; large where the teacher expects the "
    "token and the student does not",
} | {name: MEANINGS[name] for name in ("reward", "r_ss", "r_kl", "rank", "bucket", "value", "well_formed")}
#: Meanings of the numbers on the cards, in addition to those of columns.
_CARD_MEANINGS = {
    "traces": _GLOSSARY["trace"],
    "scores": "scored traces",
    "sampled_tokens": "tokens that the teacher sampled in all traces",
    "in_the_data_set": "traces that rlt-data distill selected for the data set in the run's folder",
}
#: What each plot shows.
_PLOTS = {
    "reward-distribution": "number of traces by reward",
    "reward-by-rank": "line: median of the traces of a rank; shaded: the middle 50 % and 90 %",
    "reward-by-length": "darker: more traces; line: median of the traces of a length",
}


def overview(
    runs: Mapping[str, RunFolder],
    note: str = "",
    matching: Mapping[str, Matching] = MappingProxyType({}),
    data_sets: Mapping[str, DataSet | None] = MappingProxyType({}),
) -> str:
    """Return the overview as an HTML fragment in which all texts are escaped.

    Args:
        runs: the runs by name.
        note: a sentence to show first.
        matching: the traces that the figures are about, by the name of their run; all traces of the other runs.
        data_sets: the data sets of the runs, as far as they are already loaded.
    """
    frames = {name: scored(run, "question_id", matching=matching.get(name)) for name, run in runs.items()}
    non_empty = {name: frame for name, frame in frames.items() if len(frame)}
    drawings = plots.plots_of(non_empty) if non_empty else {}
    terms = plots.plots_of_terms(non_empty) if drawings else {}
    return rendered(
        "overview.html",
        note=note,
        glossary=_GLOSSARY,
        meanings={**MEANINGS, **_CARD_MEANINGS},
        sources=[
            _source(name, run, frames[name], matching.get(name), data_sets.get(name)) for name, run in runs.items()
        ],
        plots=[
            (name.replace("-", " ").capitalize(), _PLOTS[name], _svg(draw, name)) for name, draw in drawings.items()
        ],
        term_plots=[(_words(name), MEANINGS[name], _svg(draw, name)) for name, draw in terms.items()],
        comparison=_comparison(frames) if len(non_empty) > 1 else None,
        warning=", ".join(_different_settings(runs)),
    )


def rendered(name: str, **values: Any) -> str:
    """Render a template of the page with escaped values; lone surrogates become "?"."""
    return str(_template(name).render(**values)).encode("utf-8", "replace").decode()


def _svg(draw: plots.Draw, name: str) -> str:
    return plots.svg(draw, name, plots.PAGE_SIZE)


@cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": figure, "words": _words, "cell": _cell}
    return environment.from_string(asset(name))


def asset(name: str) -> str:
    """Return the text of a file in this package."""
    return resources.files("rlt_data.reporting").joinpath(name).read_text(encoding="utf-8")


def _words(name: Any) -> str:
    return " ".join(word if word.startswith("r_") else word.replace("_", " ") for word in str(name).split(" "))


def _cell(value: Any, name: str) -> str:
    """Return a number as the tables show it: shares in percent, tokens with at most one decimal.

    Args:
        value: the number.
        name: name of its column or row.
    """
    if isinstance(value, float) and name in FLAGS:
        return f"{value:.1%}"
    if isinstance(value, float) and "tokens" in name:
        return f"{value:,.1f}".removesuffix(".0")
    return figure(value)


def _source(
    name: str, run: RunFolder, scores: pl.DataFrame, matching: Matching | None, data_set: DataSet | None
) -> dict[str, Any]:
    data_set = data_set or read_data_set(run)
    figures = stats(run, scores, matching, data_set)
    funnel = data_set.funnel if data_set else []
    reasons = Counter((entry["step"], str(entry.get("reason", ""))) for entry in failures(run))
    return {
        "name": name,
        "stats": figures,
        "facts": facts(run, data_set),
        "cards": _cards(figures, data_set),
        "terms": figures.terms.filter(pl.col("mean").is_not_null()).to_dicts(),
        "origins": figures.by_origin.to_dicts() if figures.origins.keys() - {UNKNOWN} else [],
        "buckets": figures.buckets.to_dicts(),
        "funnel": [step for step in funnel if not step["note"]],
        "unapplied": [step for step in funnel if step["note"]],
        "failures": [(step, reason, count) for (step, reason), count in reasons.most_common(_MAX_REASONS)],
        "steps": {
            title: settings
            for step, entry in figures.steps.items()
            for title, one in _titled(step, entry)
            if (settings := _models_and_settings(redact_paths(one)))
        },
    }


def _cards(figures: Stats, data_set: DataSet | None) -> dict[str, str]:
    means = dict(figures.terms.select("term", "mean").iter_rows()) if figures.rows["scores"] else {}
    reward = "reward" if means.get("reward") is not None else "reward_without_entropy"
    cards = {table: f"{count:,}" for table, count in figures.rows.items() if count and table != "ranks"}
    if data_set:
        cards["in the data set"] = f"{len(data_set.keys):,}"
    if means.get(reward) is not None:
        cards[f"mean {_words(reward)}"] = f"{means[reward]:.3f}"
    shares = {flag: share for flag, share in figures.shares.items() if flag != "closed"}
    cards |= {_words(flag): f"{shares[flag]:.1%}" for flag in reversed(shares)}  # well-formed first
    if figures.completion_tokens:
        cards["sampled tokens"] = f"{figures.completion_tokens:,}"
    cards |= {f"tokens/s, {step}": f"{rate:,.0f}" for step, rate in figures.tokens_per_second.items()}
    if figures.ranks_outdated:
        cards["ranks"] = "outdated: run rlt-data rank"
    return cards | {f"failed in {step}": f"{count:,}" for step, count in figures.failed.items()}


def _titled(step: str, entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of a step in run.json with their titles; ``generate`` has one for each maker of traces."""
    title = f"rlt-data {STEPS[step].command}" if step in STEPS else f"{step} file"
    makers = list(makers_of(entry).values()) if step == "generate" else []
    if len(makers) < 2:
        yield title, entry
        return
    for number, maker in enumerate(makers, 1):
        yield f"{title} {number}: {maker.get('origin', 'unknown')}", maker


def _models_and_settings(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the models and settings in a step's entry of run.json."""
    models = {role: f"{model['name']} ({model['dtype']}, {model['weights']})"
              for role, model in (entry.get("models") or {}).items()}  # fmt: skip
    settings = {
        key: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in (entry.get("settings") or {}).items()
        if value not in (None, False, [], "") and key not in _HIDDEN_SETTINGS and key not in models
    }
    return models | settings


def _comparison(frames: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """Compare two runs on the questions that both have scored."""
    (first, one), (second, other) = frames.items()
    value = (
        "reward" if all(frame["reward"].is_finite().any() for frame in frames.values()) else "reward_without_entropy"
    )
    best = [
        frame.filter(pl.col(value).is_finite()).group_by("question_id").agg(pl.col(value).max())
        for frame in (one, other)
    ]
    both = best[0].join(best[1], on="question_id", suffix="_other")
    names = [
        "traces", f"mean {_words(value)}", "mean of the best per question", "mean r_ss", "mean r_kl",
        "well_formed", "mean tokens per explanation",
    ]  # fmt: skip
    rows: dict[str, list[Any]] = {name: [] for name in names}
    for frame, column in ((one, value), (other, f"{value}_other")):
        frame = frame.join(both, on="question_id", how="semi")
        finite = frame.filter(pl.col(value).is_finite())
        figures = [
            len(frame), finite[value].mean(), both[column].mean(), frame["r_ss"].mean(), frame["r_kl"].mean(),
            frame["well_formed"].cast(pl.Float64).mean(), frame["thought_tokens"].mean(),
        ]  # fmt: skip
        for cells, number in zip(rows.values(), figures, strict=True):
            cells.append(number)
    ahead = (both[value] > both[f"{value}_other"]).sum()
    behind = (both[value] < both[f"{value}_other"]).sum()
    return {
        "names": [first, second], "questions": len(both), "rows": rows, "ahead": ahead, "behind": behind,
        "value": _words(value),
    }  # fmt: skip


def _different_settings(runs: Mapping[str, RunFolder]) -> list[str]:
    """Return the settings of the scores in which the runs differ, so that their rewards are not comparable."""
    settings = [run.step("score").get("depends_on", {}) for run in runs.values()]
    keys = {key for one in settings for other in settings for key in one if one.get(key) != other.get(key)}
    return sorted(keys - {"teacher"})  # runs of two teachers are meant to be compared
