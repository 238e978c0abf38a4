"""Print and save the results of a benchmark."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlt_data.steps.provenance import versions

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table()
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*map(_text, row.values()))
    Console(width=120).print(table)


def print_values(row: dict[str, Any]) -> None:
    """Print the values of a row in one line, without those that are missing."""
    print("; ".join(f"{name} {_text(value)}" for name, value in row.items() if value not in (None, "")), flush=True)


def save(name: str, content: dict[str, Any], *packages: str) -> None:
    """If RLT_DATA_KEEP_RESULTS is set, save results with command, machine and versions (of ``packages`` too)."""
    if not os.environ.get("RLT_DATA_KEEP_RESULTS"):
        return
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    saved = {"command": _command(name), "machine": machine, "versions": versions(*packages), **content}
    (RESULTS / f"{name}.json").write_text(json.dumps(saved, indent=2, default=str) + "\n", encoding="utf-8")


def save_markdown(name: str, *tables: list[dict[str, Any]]) -> None:
    """If RLT_DATA_KEEP_RESULTS is set, save tables with their command as docs/results/NAME.md."""
    if not os.environ.get("RLT_DATA_KEEP_RESULTS"):
        return
    text = "\n".join([f"`{_command(name)}`\n", *map(markdown, tables)])
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(f"# benchmarks.{name}\n\n{text}", encoding="utf-8")


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"
    return str(value).replace("|", "\\|")


def _command(name: str) -> str:
    """Return the command line, with absolute paths reduced to their last part."""
    arguments = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    return shlex.join(["python", "-m", f"benchmarks.{name}", *arguments])
