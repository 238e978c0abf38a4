"""``rlt-data rank``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_ranks
from rlt_data.cli.progress import shown_progress
from rlt_data.settings import RankSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, RankSettings)
    def rank(settings: RankSettings) -> None:
        """Rank the traces of each question by reward, and sort them into buckets."""
        from rlt_data.steps.rank import rank

        print_ranks(rank(settings, shown_progress()))
