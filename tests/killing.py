"""Run commands in new processes, kill them at random moments, and compare the tables that result."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl

QUESTIONS, SAMPLES = 1200, 2


def write_questions(path: Path, count: int = QUESTIONS) -> Path:
    """Write many short questions, all different."""
    lines = [
        f'{{"id": "q{i}", "question": "What is {i} + {i * 7 % 13}?", "solution": "{i + i * 7 % 13}"}}\n'
        for i in range(count)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def command(*arguments: str | Path) -> list[str]:
    """Return the arguments that start rlt-data in a new process."""
    return [sys.executable, "-c", "from rlt_data.cli.main import main; main()", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return an environment in which models run on one thread and nothing is downloaded."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_to_end(arguments: Sequence[str]) -> float:
    """Run a command, which must succeed, and return its duration in seconds."""
    began = time.monotonic()
    result = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return time.monotonic() - began


def run_and_kill(arguments: Sequence[str], kills: int, seconds: float, seed: int) -> int:
    """Start a command again and again, kill it at a random moment each time, and at last let it finish.

    Args:
        arguments: the command.
        kills: maximum number of kills; fewer if the command finishes earlier.
        seconds: longest time from a start to its kill.
        seed: random seed of the moments.

    Returns:
        The number of kills.
    """
    moments = random.Random(seed)
    for killed in range(kills):
        process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(moments.uniform(0, seconds)) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:
            return killed
    run_to_end(arguments)
    return kills


def table_bytes(run: Path, table: str) -> dict[str, bytes]:
    """Return the content of the files of a table, by name."""
    return {path.name: path.read_bytes() for path in sorted((run / table).glob("*.parquet"))}


def assert_same_table(run: Path, other: Path, table: str, rows: int) -> None:
    """Assert that a table has all rows, no duplicates, and the same bytes as that of another run."""
    keys = pl.read_parquet(run / table / "*.parquet")["trace_id"]
    assert len(keys) == rows and keys.n_unique() == rows
    assert table_bytes(run, table) == table_bytes(other, table)
    assert not (run / "journal").exists()
