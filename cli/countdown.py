"""``rlt-data countdown make``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.settings import CountdownSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    countdown = typer.Typer(help="Countdown problems: reach a target from given numbers by arithmetic.")
    app.add_typer(countdown, name="countdown", no_args_is_help=True)

    @countdown.callback()
    def _root() -> None:
        """Nothing of its own."""

    @command(countdown, CountdownSettings)
    def make(settings: CountdownSettings) -> None:
        """Write problems with solutions; no problem is in both splits, whatever the seeds."""
        from rlt_data.steps.countdown import make_countdown

        made = make_countdown(settings)
        typer.echo(f"{made.rows} problems of the {settings.split} split in {made.out}")
