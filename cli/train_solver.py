"""``rlt-data train-solver``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_policy_training
from rlt_data.cli.progress import shown_progress
from rlt_data.settings import TrainSolverSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, TrainSolverSettings, name="train-solver")
    def train_solver(settings: TrainSolverSettings) -> None:
        """Train a student by GRPO on whether its answers are right; run it again to continue."""
        from rlt_data.training.solver import train_solver

        print_policy_training(settings, train_solver(settings, shown_progress()))
