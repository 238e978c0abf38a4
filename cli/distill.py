"""``rlt-data distill``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_dataset
from rlt_data.cli.progress import shown_progress
from rlt_data.settings import DistillSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, DistillSettings)
    def distill(settings: DistillSettings) -> None:
        """Choose traces and write them as a data set in the student's format."""
        from rlt_data.steps.distill import distill

        print_dataset(distill(settings, shown_progress()))
