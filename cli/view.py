"""``rlt-data view``."""

from __future__ import annotations

from typing import Annotated

import typer

from rlt_data.settings import ReportSettings

_LIMIT = ReportSettings.model_fields["limit"].default


def view(
    run: Annotated[str, typer.Argument(help="Run folder, or its URL.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8377,
    limit: Annotated[int, typer.Option(min=1, help="Traces to read, at most.")] = _LIMIT,
    open: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Show a run in a browser while it goes on: progress, throughput, time left, and what report shows."""
    import webbrowser

    from rlt_data.reporting.serve import serve

    def started(address: str) -> None:
        typer.echo(f"{address} shows {run} until Ctrl-C")
        if open:
            webbrowser.open(address)

    try:
        serve(run, limit, port, started)
    except KeyboardInterrupt:
        pass  # this is how it ends
