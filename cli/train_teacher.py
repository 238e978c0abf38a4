"""``rlt-data train-teacher``: ``warmup`` and ``rl``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_policy_training, print_training
from rlt_data.cli.progress import shown_progress
from rlt_data.settings import TrainTeacherSettings, WarmUpSettings


def add_to(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        help="Train a teacher: warmup (fine-tuning on explanations), then rl (GRPO on the dense reward).",
        no_args_is_help=True,
    )
    app.add_typer(group, name="train-teacher")

    @command(group, WarmUpSettings)
    def warmup(settings: WarmUpSettings) -> None:
        """Fine-tune a model on explanations in the teacher format; run it again to continue."""
        from rlt_data.training.teacher import warm_up

        print_training(settings, warm_up(settings, shown_progress()))

    @command(group, TrainTeacherSettings)
    def rl(settings: TrainTeacherSettings) -> None:
        """Train a teacher by GRPO on the dense reward of a frozen student; run it again to continue."""
        from rlt_data.training.teacher import train_teacher

        print_policy_training(settings, train_teacher(settings, shown_progress()))
