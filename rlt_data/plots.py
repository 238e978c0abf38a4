"""Plots of runs, trainings and recipes, drawn with Matplotlib: as SVG that follows a page's colours, or as PNG.

A frame of traces has the columns of :func:`rlt_data.statistics.scored`. Several of them, by the names of their
sources, are drawn over one another.
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

#: Colours by what they are for. In an SVG each is a CSS variable ``--plot-NAME`` with this value as its default.
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
#: Matplotlib's settings are the whole process's.
_drawing = threading.Lock()

_MOST_BINS = 40
#: Share of the values at each end that the outermost bars hold.
_TAIL = 0.005
#: Columns of the grid of terms.
_TERMS = {
    "r_ss": "solution term r_ss",
    "solution_logprob_mean": "solution log-prob, mean",
    "solution_logprob_min": "solution log-prob, min",
    "r_kl": "KL term r_kl",
    "kl_mean": "KL, mean",
    "kl_max": "KL, max",
}


def svg(draw: Draw, name: str, size: tuple[float, float] = (7.0, 4.2), *, white: bool = False) -> str:
    """Draw an SVG element, for a page or as a file, with text as text.

    Args:
        draw: draws on a figure.
        name: of the plot; its ids are unlike those of plots with other names.
        size: width and height in inches.
        white: on white instead of what is behind it.
    """
    text = _saved(draw, size, "svg", {"svg.hashsalt": name}, {"Date": None}, white=white).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    if not white:
        for colour, value in COLOURS.items():
            text = text.replace(value, f"var(--plot-{colour}, {value})")
    return text


def png(draw: Draw, size: tuple[float, float] = (7.0, 4.2)) -> bytes:
    """Draw a PNG on white; the same plot has the same bytes.

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
    """Draw what a card shows, as PNG files by name; nothing where there are no values."""
    return {f"{name}.png": png(draw, size) for name, (draw, size) in plots_of({"": traces}).items()}


def plots_of(sources: Sources) -> dict[str, tuple[Draw, tuple[float, float]]]:
    """Return the plots that traces give, with their sizes, by name: those for which there are values."""
    frames = list(sources.values())
    columns = {name for frame in frames for name in frame.columns if frame[name].is_not_null().any()}
    value = "reward" if "reward" in columns else "reward_without_entropy"
    found: dict[str, tuple[Draw, tuple[float, float]]] = {}
    if value not in columns:
        return found
    one, wide = (5.6, 3.4), (14.0, 6.0)
    found["reward-distribution"] = lambda figure: _distribution(figure.subplots(), sources, value, _word(value)), one
    if "rank" in columns:
        found["reward-by-rank"] = lambda figure: _by_rank(figure.subplots(), sources), one
    found["reward-by-length"] = lambda figure: _by_length(figure, sources, value), one
    found["reward-terms"] = lambda figure: _terms(figure, sources), wide
    return found


def _word(column: str) -> str:
    return column.replace("_", " ")


def _finite(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    return frame.filter(*(pl.col(name).is_finite() for name in columns))


def _distribution(axes: Axes, sources: Sources, column: str, label: str) -> None:
    """Draw a histogram of a column; of one source with what is not well-formed apart, of several as outlines."""
    frames = {name: _finite(frame, column) for name, frame in sources.items() if column in frame.columns}
    values = [frame[column].to_numpy() for frame in frames.values()]
    every = np.concatenate(values) if values else np.empty(0)
    axes.set(xlabel=label)
    if not len(every):
        return
    low, high = np.quantile(every, [_TAIL, 1 - _TAIL])
    bins = min(_MOST_BINS, 8 + int(np.sqrt(len(every))))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1).tolist()
    if len(frames) == 1:
        [(frame, each)] = zip(frames.values(), values, strict=True)
        good = frame["well_formed"].to_numpy().astype(bool)
        parts, names, colours = [each[good]], ["well-formed"], [COLOURS["first"]]
        if not good.all():
            parts, names, colours = [*parts, each[~good]], [*names, "not well-formed"], [*colours, COLOURS["flawed"]]
        axes.hist([np.clip(part, low, high) for part in parts], edges, stacked=True, color=colours, label=names)
        axes.set_ylabel("traces")
        if len(parts) > 1:
            axes.legend()
        return
    for name, each, colour in zip(frames, values, _SERIES, strict=False):
        weights = np.full(len(each), 1 / max(len(each), 1))
        clipped = np.clip(each, low, high)
        axes.hist(clipped, edges, weights=weights, histtype="step", linewidth=1.8, color=COLOURS[colour], label=name)
    axes.set_ylabel("share of traces")
    axes.legend()


def _terms(figure: Figure, sources: Sources) -> None:
    for axes, (column, label) in zip(figure.subplots(2, 3).flat, _TERMS.items(), strict=True):
        _distribution(axes, sources, column, label)
        axes.set_ylabel("")
        if legend := axes.get_legend():
            legend.remove()


def _by_rank(axes: Axes, sources: Sources) -> None:
    """Draw the median value of each rank, with the middle half of its values and nine tenths of them."""
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
        axes.plot(ranks, table["value"], color=shade, marker="o", markersize=4, label=name)
    axes.set(xlabel="rank (shades: middle half and nine tenths)", ylabel="value ranked by")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(sources) > 1:
        axes.legend()


def _by_length(figure: Figure, sources: Sources, column: str) -> None:
    """Draw how many traces have a length and a value, as squares, with the median value along the lengths."""
    from matplotlib.colors import to_rgba

    every = figure.subplots(1, len(sources), sharex=True, sharey=True, squeeze=False).flat
    frames = [_finite(frame, column) for frame in sources.values()]
    lengths = np.concatenate([frame["thought_tokens"].to_numpy() for frame in frames]).astype(float)
    values = np.concatenate([frame[column].to_numpy() for frame in frames])
    if not len(values):
        return
    longest = max(np.quantile(lengths, 1 - _TAIL), 1.0)
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL])
    high = high if high > low else low + 1
    across, up = np.linspace(0, longest, 22), np.linspace(low, high, 17)
    for axes, (name, frame), colour in zip(every, zip(sources, frames, strict=True), _SERIES, strict=False):
        x = np.clip(frame["thought_tokens"].to_numpy(), 0, longest)
        y = np.clip(frame[column].to_numpy(), low, high)
        counts = np.histogram2d(x, y, (across, up))[0]
        # A rectangle for each square and no image, so that it follows the page's colours.
        i, j = np.nonzero(counts)
        strength = 0.08 + 0.8 * np.sqrt(counts[i, j] / max(counts.max(), 1))
        shades = [to_rgba(COLOURS[colour], float(each)) for each in strength]
        axes.bar(across[i], up[1] - up[0], across[1] - across[0], up[j], align="edge", color=shades, linewidth=0)
        place = np.clip(np.digitize(x, across) - 1, 0, len(across) - 2)
        columns = pl.DataFrame({"place": place, "value": y}).group_by("place").agg(pl.len(), pl.col("value").median())
        columns = columns.filter(pl.col("len") > 2).sort("place")
        middles = (across[:-1] + across[1:]) / 2
        axes.plot(middles[columns["place"].to_numpy()], columns["value"], color=COLOURS["ink"], linewidth=1.4)
        axes.set(xlabel="tokens of the explanation", xlim=(0, longest), ylim=(low, high))
        axes.set_title(name if len(sources) > 1 else "")
    figure.axes[0].set_ylabel(_word(column))


# Plots of trainings and recipes


def training_image(entries: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Draw the course of a training as PNG: its reward, or its loss, by step; None where neither was logged.

    Args:
        entries: lines of metrics.jsonl.
    """
    for column, label in (("reward", "reward"), ("loss", "loss")):
        curves = {name: [each for each in entries if name in each] for name in (column, f"eval_{column}")}
        if len(curves[column]) < 2:
            continue
        return png(partial(_curves, curves=curves, label=label), (7.0, 3.8))
    return None


def _curves(figure: Figure, curves: Mapping[str, Sequence[Mapping[str, Any]]], label: str) -> None:
    axes = figure.subplots()
    for (name, entries), colour in zip(curves.items(), _SERIES, strict=False):
        if entries:
            word = "held out" if name.startswith("eval_") else "training"
            steps, values = [each["step"] for each in entries], [each[name] for each in entries]
            axes.plot(steps, values, color=COLOURS[colour], label=word)
    axes.set(xlabel="step", ylabel=label)
    axes.legend()


def bars(axes: Axes, names: Sequence[str], groups: Mapping[str, Sequence[Any]], ylabel: str = "accuracy") -> None:
    """Draw bars with their intervals: one place for each name, one bar there for each group.

    Args:
        axes: where to.
        names: of the places.
        groups: estimates with ``mean`` and ``half`` (of the interval), one for each place, by the name of the group.
        ylabel: of the axis.
    """
    width = 0.8 / len(groups)
    for number, (label, means) in enumerate(groups.items()):
        places = [place + (number - (len(groups) - 1) / 2) * width for place in range(len(names))]
        heights, halves = [each.mean for each in means], [each.half for each in means]
        colour = COLOURS[_SERIES[number % len(_SERIES)]]
        ink = COLOURS["ink"]
        axes.bar(places, heights, 0.95 * width, yerr=halves, capsize=3, label=label, color=colour, ecolor=ink)
    axes.set_xticks(range(len(names)), names, rotation=12, fontsize="small")
    axes.set(ylabel=ylabel)
    axes.grid(axis="x", visible=False)
    if len(groups) > 1:
        axes.legend()
