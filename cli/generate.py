"""``rlt-data generate``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_step
from rlt_data.cli.progress import shown_progress
from rlt_data.settings import GenerateSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, GenerateSettings)
    def generate(settings: GenerateSettings) -> int:
        """Sample explanations from a teacher that sees each question and its solution."""
        from rlt_data.steps.generate import generate

        return print_step("traces", generate(settings, shown_progress()))
