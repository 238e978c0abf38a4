"""``rlt-data merge``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_merge
from rlt_data.cli.progress import shown_progress
from rlt_data.settings import MergeSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, MergeSettings)
    def merge(settings: MergeSettings) -> None:
        """Merge runs of the same settings, such as those of machines that shared the questions, into a new one."""
        from rlt_data.steps.merge import merge

        print_merge(merge(settings, shown_progress()))
