"""``rlt-data train-student``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_training
from rlt_data.cli.progress import shown_progress
from rlt_data.settings import TrainStudentSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, TrainStudentSettings, name="train-student")
    def train_student(settings: TrainStudentSettings) -> None:
        """Fine-tune a student on a distilled data set; run it again to continue, under accelerate for many GPUs."""
        from rlt_data.training.sft import train_student

        print_training(settings, train_student(settings, shown_progress()))
