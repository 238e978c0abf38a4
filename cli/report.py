"""``rlt-data report``."""

from __future__ import annotations

from typing import Annotated

import typer

from rlt_data.cli.output import print_report
from rlt_data.progress import choose_progress
from rlt_data.settings import ReportSettings, parse_settings

_FIELDS = ReportSettings.model_fields


def report(
    run: Annotated[str, typer.Argument(help="Run folder, or its URL.")],
    against: Annotated[str | None, typer.Option(help=_FIELDS["against"].description)] = None,
    out: Annotated[str, typer.Option(help=_FIELDS["out"].description)] = _FIELDS["out"].default,
    limit: Annotated[int, typer.Option(help=_FIELDS["limit"].description)] = _FIELDS["limit"].default,
    title: Annotated[str | None, typer.Option(help=_FIELDS["title"].description)] = None,
) -> None:
    """Write an HTML page about a run: figures, plots, and every trace, coloured token by token."""
    from rlt_data.reporting.report import report

    keys = {"in": run, "against": against, "out": out, "limit": limit, "title": title}
    print_report(report(parse_settings(ReportSettings, keys, flags=True), choose_progress(True)))
