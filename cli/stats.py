"""``rlt-data stats``."""

from __future__ import annotations

from typing import Annotated

import typer

from rlt_data.cli.output import print_stats


def stats(run: Annotated[str, typer.Argument(help="Run folder, or its URL.")]) -> None:
    """Print the figures of a run: rows, lengths, shares, and the distribution of every reward term."""
    from rlt_data.statistics import stats
    from rlt_data.storage.run import RunFolder

    print_stats(stats(RunFolder.existing(run)))
