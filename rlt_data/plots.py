"""Plots of runs, trainings and recipes with Matplotlib, as PNG or as SVG that follows the colours of the page.

Plots of runs take frames with the columns of :func:`rlt_data.statistics.scored`. Several runs are drawn in one plot.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]
Sources = Mapping[str, pl.DataFrame]

#: Colours by use. In an SVG, each is a CSS variable ``--plot-NAME`` with this value as its default.
COLOURS = {
    "ink": "#2b3138", "grid": "#dfe3e8", "first": "#3867d6", "second": "#d9731a", "third": "#2f8f6b",
    "fourth": "#8e5bc0", "flawed": "#a9b1bb",
}  # fmt: skip
_SERIES = ("first", "second", "third", "fourth")
_STYLE = {
    "axes.edgecolor": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["ink"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
    "svg.fonttype": "none",
}
#: Matplotlib's settings are global, so plots are drawn one at a time.
_drawing = threading.Lock()

#: Size of the plots on the report page in inches: on a phone, text has about its nominal size.
PAGE_SIZE = (4.4, 2.9)
#: Sizes of the plots of a card.
_CARD_SIZE, _CARD_TERMS_SIZE = (5.6, 3.4), (14.0, 6.0)
_MAX_BINS = 40
#: Share of the values at each end that are clipped into the outermost bins.
_TAIL = 0.005
#: Characters of the name of a run.
_MAX_NAME = 24
#: Columns of the plot of reward terms, and their labels.
_TERMS = {
    "r_ss": "solution term r_ss",
    "solution_logprob_mean": "solution log-prob, mean",
    "solution_logprob_min": "solution log-prob, min",
    "r_kl": "KL term r_kl",
    "kl_mean": "KL, mean",
    "kl_max": "KL, max",
}


def svg(draw: Draw, name: str, size: tuple[float, float] = (7.0, 4.2), *, white: bool = False) -> str:
    """Draw an SVG element, for a page or a file, in which text stays text.

    Args:
        draw: draws on a figure.
        name: name of the plot, which makes its ids unique within a page.
        size: width and height in inches.
        white: use a white background instead of a transparent one.
    """
    text = _saved(draw, size, "svg", {"svg.hashsalt": name}, {"Date": None}, white=white).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    if not white:
        for colour, value in COLOURS.items():
            text = text.replace(value, f"var(--plot-{colour}, {value})")
    return text


def png(draw: Draw, size: tuple[float, float] = (7.0, 4.2)) -> bytes:
    """Draw a PNG on a white background; the same plot gives the same bytes.

    Args:
        draw: draws on a figure.
        size: width and height in inches.
    """
    return _saved(draw, size, "png", {}, {"Software": None}, white=True)


def _saved(
    draw: Draw,
    size: tuple[float, float],
    format: str,
    style: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    white: bool,
) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = {**_STYLE, **style}
    with _drawing, rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format=format, dpi=150, transparent=not white, metadata=dict(metadata))
    return file.getvalue()


# Plots of runs


def card_images(traces: pl.DataFrame) -> dict[str, bytes]:
    """Draw the plots of a card, as PNG by file name; empty without scores."""
    sources = {"": traces}
    images = {f"{name}.png": png(draw, _CARD_SIZE) for name, draw in plots_of(sources).items()}
    if images:
        images["reward-terms.png"] = png(partial(_terms, sources=sources), _CARD_TERMS_SIZE)
    return images


def plots_of(sources: Sources) -> dict[str, Draw]:
    """Return the plots of rewards that the data allows, by name; empty without scores.

    Args:
        sources: the scores of each run, by the name of the run.
    """
    columns = _columns(sources)
    value = "reward" if "reward" in columns else "reward_without_entropy"
    if value not in columns:
        return {}
    label = value.replace("_", " ")
    plots: dict[str, Draw] = {
        "reward-distribution": partial(_one_distribution, sources=sources, column=value, label=label)
    }
    if "rank" in columns:
        plots["reward-by-rank"] = lambda figure: _by_rank(figure.subplots(), sources)
    plots["reward-by-length"] = lambda figure: _by_length(figure, sources, value)
    return plots


def plots_of_terms(sources: Sources) -> dict[str, Draw]:
    """Return the distributions of the terms of the reward that the data has, by column.

    Args:
        sources: as for :func:`plots_of`.
    """
    columns = _columns(sources)
    return {
        column: partial(_one_distribution, sources=sources, column=column, label=label)
        for column, label in _TERMS.items()
        if column in columns
    }


def _columns(sources: Sources) -> set[str]:
    """Return the columns with a value in any of the sources."""
    return {name for frame in sources.values() for name in frame.columns if frame[name].is_not_null().any()}


def _short(name: str) -> str:
    """Return the name of a run, without its beginning if it is too long for a plot."""
    return name if len(name) <= _MAX_NAME else "…" + name[1 - _MAX_NAME :]


def _finite(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    return frame.filter(*(pl.col(name).is_finite() for name in columns))


def _distribution(axes: Axes, sources: Sources, column: str, label: str) -> None:
    """Draw a histogram: of one run with its flawed traces in another colour, of several runs as outlines."""
    from matplotlib.ticker import MaxNLocator

    frames = {name: _finite(frame, column) for name, frame in sources.items() if column in frame.columns}
    values = [frame[column].to_numpy() for frame in frames.values()]
    all_values = np.concatenate(values) if values else np.empty(0)
    axes.set(xlabel=label)
    if not len(all_values):
        return
    low, high = np.quantile(all_values, [_TAIL, 1 - _TAIL])
    bins = min(_MAX_BINS, 8 + int(np.sqrt(len(all_values))))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1).tolist()
    if len(frames) == 1:
        [frame] = frames.values()
        well_formed = frame["well_formed"].to_numpy().astype(bool)
        groups, names, colours = [all_values[well_formed]], ["well-formed"], [COLOURS["first"]]
        if not well_formed.all():
            groups, names = [*groups, all_values[~well_formed]], [*names, "not well-formed"]
            colours.append(COLOURS["flawed"])
        axes.hist([np.clip(group, low, high) for group in groups], edges, stacked=True, color=colours, label=names)
        axes.set_ylabel("traces")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if len(groups) > 1:
            axes.legend()
        return
    for name, run_values, colour in zip(frames, values, _SERIES, strict=False):
        weights = np.full(len(run_values), 1 / max(len(run_values), 1))
        clipped = np.clip(run_values, low, high)
        axes.hist(
            clipped, edges, weights=weights, histtype="step", linewidth=1.8, color=COLOURS[colour], label=_short(name)
        )
    axes.set_ylabel("share of traces")
    axes.legend()


def _one_distribution(figure: Figure, sources: Sources, column: str, label: str) -> None:
    _distribution(figure.subplots(), sources, column, label)


def _terms(figure: Figure, sources: Sources) -> None:
    for axes, (column, label) in zip(figure.subplots(2, 3).flat, _TERMS.items(), strict=True):
        _distribution(axes, sources, column, label)
        axes.set_ylabel("")
        if legend := axes.get_legend():
            legend.remove()


def _by_rank(axes: Axes, sources: Sources) -> None:
    """Draw the median value of each rank, with the middle 50 % and 90 % of the values shaded."""
    from matplotlib.ticker import MaxNLocator

    for (name, frame), colour in zip(sources.items(), _SERIES, strict=False):
        if frame["rank"].is_null().all():
            continue
        value = pl.col("value")
        table = _finite(frame, "value").group_by("rank").agg(
            value.median(), *(value.quantile(q).alias(str(q)) for q in (0.05, 0.25, 0.75, 0.95))
        ).sort("rank")  # fmt: skip
        ranks = table["rank"].to_numpy()
        shade = COLOURS[colour]
        axes.fill_between(ranks, table["0.05"], table["0.95"], color=shade, alpha=0.12, linewidth=0)
        axes.fill_between(ranks, table["0.25"], table["0.75"], color=shade, alpha=0.28, linewidth=0)
        axes.plot(ranks, table["value"], color=shade, marker="o", markersize=4, label=_short(name))
    axes.set(xlabel="rank (1: best; shaded: middle 50 % and 90 %)", ylabel="value")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(sources) > 1:
        axes.legend()


def _by_length(figure: Figure, sources: Sources, column: str) -> None:
    """Draw a 2D histogram of length and value, with the median value by length."""
    from matplotlib.colors import to_rgba

    all_axes = figure.subplots(1, len(sources), sharex=True, sharey=True, squeeze=False).flat
    frames = [_finite(frame, column) for frame in sources.values()]
    lengths = np.concatenate([frame["thought_tokens"].to_numpy() for frame in frames]).astype(float)
    values = np.concatenate([frame[column].to_numpy() for frame in frames])
    if not len(values):
        return
    longest = max(np.quantile(lengths, 1 - _TAIL), 1.0)
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL])
    high = high if high > low else low + 1
    x_edges, y_edges = np.linspace(0, longest, 22), np.linspace(low, high, 17)
    for axes, (name, frame), colour in zip(all_axes, zip(sources, frames, strict=True), _SERIES, strict=False):
        x = np.clip(frame["thought_tokens"].to_numpy(), 0, longest)
        y = np.clip(frame[column].to_numpy(), low, high)
        counts = np.histogram2d(x, y, (x_edges, y_edges))[0]
        # Rectangles instead of an image, so that the colours follow the page.
        i, j = np.nonzero(counts)
        opacity = 0.08 + 0.8 * np.sqrt(counts[i, j] / max(counts.max(), 1))
        shades = [to_rgba(COLOURS[colour], float(alpha)) for alpha in opacity]
        height, width = y_edges[1] - y_edges[0], x_edges[1] - x_edges[0]
        axes.bar(x_edges[i], height, width, y_edges[j], align="edge", color=shades, linewidth=0)
        x_bin = np.clip(np.digitize(x, x_edges) - 1, 0, len(x_edges) - 2)
        medians = pl.DataFrame({"bin": x_bin, "value": y}).group_by("bin").agg(pl.len(), pl.col("value").median())
        medians = medians.filter(pl.col("len") > 4).sort("bin")
        centres = (x_edges[:-1] + x_edges[1:]) / 2
        axes.plot(centres[medians["bin"].to_numpy()], medians["value"], color=COLOURS["ink"], linewidth=1.4)
        axes.set(xlim=(0, longest), ylim=(low, high))
        axes.set_title(_short(name) if len(sources) > 1 else "")
    figure.supxlabel("length of the explanation in tokens", fontsize="medium")
    figure.axes[0].set_ylabel(column.replace("_", " "))


# Plots of trainings and recipes


def training_image(entries: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Draw the reward of a training by step, or else its loss, as PNG; None if neither was logged twice.

    Args:
        entries: the lines of metrics.jsonl.
    """
    for metric in ("reward", "loss"):
        curves = {name: [entry for entry in entries if name in entry] for name in (metric, f"eval_{metric}")}
        if len(curves[metric]) >= 2:
            return png(partial(_curves, curves=curves, label=metric), (7.0, 3.8))
    return None


def _curves(figure: Figure, curves: Mapping[str, Sequence[Mapping[str, Any]]], label: str) -> None:
    axes = figure.subplots()
    for (name, entries), colour in zip(curves.items(), _SERIES, strict=False):
        if entries:
            split = "held-out" if name.startswith("eval_") else "training"
            steps, values = [entry["step"] for entry in entries], [entry[name] for entry in entries]
            axes.plot(steps, values, color=COLOURS[colour], label=split)
    axes.set(xlabel="step", ylabel=label)
    axes.legend()


def bars(axes: Axes, names: Sequence[str], groups: Mapping[str, Sequence[Any]], ylabel: str = "accuracy") -> None:
    """Draw groups of bars with confidence intervals.

    Args:
        axes: the axes to draw on.
        names: labels of the x axis.
        groups: estimates with ``mean`` and ``half`` (half the width of the interval), one per name, by group label.
        ylabel: label of the y axis.
    """
    width = 0.8 / len(groups)
    for number, (label, estimates) in enumerate(groups.items()):
        x = [position + (number - (len(groups) - 1) / 2) * width for position in range(len(names))]
        heights, errors = [estimate.mean for estimate in estimates], [estimate.half for estimate in estimates]
        colour = COLOURS[_SERIES[number % len(_SERIES)]]
        ink = COLOURS["ink"]
        axes.bar(x, heights, 0.95 * width, yerr=errors, capsize=3, label=label, color=colour, ecolor=ink)
    axes.set_xticks(range(len(names)), names, rotation=12, fontsize="small")
    axes.set(ylabel=ylabel)
    axes.grid(axis="x", visible=False)
    if len(groups) > 1:
        axes.legend()
