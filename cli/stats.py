"""``rlt-data stats``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlt_data.cli.options import finish


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def stats(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
        """Print the figures of a run: rows, lengths, shares, and the distribution of every reward term."""
        finish(lambda: _stats(run))


def _stats(path: Path) -> None:
    from rlt_data.cli.output import print_stats
    from rlt_data.steps.stats import stats
    from rlt_data.store import Run

    print_stats(stats(Run.existing(path)))
