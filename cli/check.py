"""``rlt-data check``."""

from __future__ import annotations

import typer

from rlt_data.cli.options import command
from rlt_data.cli.output import print_check
from rlt_data.errors import InputError
from rlt_data.settings import CheckSettings


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, CheckSettings)
    def check(settings: CheckSettings) -> int:
        """Validate an input without a model, and show what is understood of it."""
        from rlt_data.inputs import check

        report = check(settings)
        print_check(report)
        return InputError.exit_code if report.bad or not report.good else 0
