"""``rlt-data push``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_push
from rlt_data.cli.progress import shown_progress
from rlt_data.settings import PushSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, PushSettings)
    def push(settings: PushSettings) -> None:
        """Publish a distilled data set or a trained model on the Hugging Face Hub, with a card about its making."""
        from rlt_data.publish.push import push

        print_push(settings, push(settings, shown_progress()))
