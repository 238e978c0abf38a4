"""``rlt-data show``."""

from __future__ import annotations

from typing import Annotated

import typer

from rlt_data.cli.output import print_question


def show(
    run: Annotated[str, typer.Argument(help="Run folder, or its URL.")],
    key: Annotated[
        str | None, typer.Argument(help="Id of a trace or question (its beginning will do), or the input's id.")
    ] = None,
    ends: Annotated[bool, typer.Option("--ends", help="Only the best and the worst trace of the question.")] = False,
) -> None:
    """Print a question and its traces with their scores, the best first."""
    from rlt_data.reporting.browse import find
    from rlt_data.storage.run import RunFolder

    shown = find(RunFolder.existing(run), key)
    traces = shown.traces
    print_question(shown.question, [traces[0], traces[-1]] if ends and len(traces) > 1 else traces)
