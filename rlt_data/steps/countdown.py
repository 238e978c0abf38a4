"""Write Countdown problems with solutions to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlt_data.settings import CountdownSettings
from rlt_data.storage.outputs import write_file
from rlt_data.tasks.countdown import Problem, problems


@dataclass(frozen=True)
class CountdownSummary:
    """Result of making Countdown problems.

    Attributes:
        out: the file.
        rows: number of problems in it.
    """

    out: Path
    rows: int


def make_countdown(settings: CountdownSettings) -> CountdownSummary:
    """Write Countdown problems to a JSONL file; implements ``rlt-data countdown make``.

    Raises:
        SettingsError: the ranges contain fewer problems than ``rows``; nothing is written.
        DiskError: the file cannot be written.
    """
    out = Path(settings.out)
    write_file(out, lambda path: _write(path, problems(settings), settings.split))
    return CountdownSummary(out, settings.rows)


def _write(path: Path, problems: Iterator[Problem], split: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, problem in enumerate(problems):
            file.write(json.dumps(problem.row(number, split)) + "\n")
