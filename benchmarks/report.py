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
        table.add_row(*(f"{value:,.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)


def save(name: str, content: dict[str, Any], *packages: str) -> None:
    """If RLT_DATA_KEEP_RESULTS is set, save results with command, machine and versions (of ``packages`` too)."""
    if not os.environ.get("RLT_DATA_KEEP_RESULTS"):
        return
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    RESULTS.mkdir(parents=True, exist_ok=True)
    saved = {"command": command, "machine": machine, "versions": versions(*packages), **content}
    (RESULTS / f"{name}.json").write_text(json.dumps(saved, indent=2, default=str) + "\n", encoding="utf-8")
