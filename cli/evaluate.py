"""``rlt-data evaluate``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_evaluation
from rlt_data.cli.progress import shown_progress
from rlt_data.settings import EvaluateSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, EvaluateSettings)
    def evaluate(settings: EvaluateSettings) -> int:
        """Measure a model's accuracy on a benchmark: sample answers in the student's format, and grade them."""
        from rlt_data.steps.evaluate import evaluate

        return print_evaluation(evaluate(settings, shown_progress()))
