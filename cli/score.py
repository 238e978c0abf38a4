"""``rlt-data score``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_step
from rlt_data.cli.progress import shown_progress
from rlt_data.settings import ScoreSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, ScoreSettings)
    def score(settings: ScoreSettings) -> int:
        """Score traces by how much they help a student, and how natural it finds them (the RLT reward)."""
        from rlt_data.steps.score import score

        return print_step("scores", score(settings, shown_progress()))
