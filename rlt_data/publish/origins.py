"""The table of a data-set card that credits the authors of the explanations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlt_data.publish.markdown import inline, table
from rlt_data.statistics import UNKNOWN, Stats


def origins_table(counts: Mapping[str, Any], stats: Stats | None) -> str:
    """Return the number of traces and of selected rows by origin, the most frequent first; empty if none is known.

    Args:
        counts: the counts in distill.json, which earlier versions wrote without origins.
        stats: the statistics of the run; None without the run.
    """
    rows = Counter(counts.get("origins", {}))
    if unknown := counts["rows"] - rows.total():
        rows[UNKNOWN] = unknown
    traces = Counter(stats.origins) if stats else rows
    if not traces.keys() - {UNKNOWN}:
        return ""
    lines = [
        {"origin": inline(origin), **({"traces": count} if stats else {}), "selected rows": rows[origin]}
        for origin, count in sorted(traces.items(), key=lambda item: (-item[1], item[0]))
    ]
    return f"Authors of the explanations:\n\n{table(lines)}"
