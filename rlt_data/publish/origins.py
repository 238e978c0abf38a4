"""The table of a data-set card that compares the authors of the explanations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlt_data.publish.markdown import inline, table
from rlt_data.statistics import UNKNOWN, Stats


def origins_table(counts: Mapping[str, Any], stats: Stats | None) -> str:
    """Return the figures and the selected rows of each origin, the most frequent first; empty if none is known.

    Args:
        counts: the counts in distill.json, which earlier versions wrote without origins.
        stats: the statistics of the run; None without the run.
    """
    rows = Counter(counts.get("origins", {}))
    if unknown := counts["rows"] - rows.total():
        rows[UNKNOWN] += unknown  # an origin may have this name
    figures = (
        {row.pop("origin"): row for row in stats.by_origin.drop("selected", strict=False).to_dicts()} if stats else {}
    )
    if not (figures or rows).keys() - {UNKNOWN}:
        return ""
    lines = [
        {"origin": inline(origin), "selected rows": rows[origin], **figures.get(origin, {})}
        for origin in sorted(figures or rows, key=lambda name: (-figures.get(name, {}).get("traces", rows[name]), name))
    ]
    return f"Authors of the explanations, with means and shares over all their traces:\n\n{table(lines)}"
