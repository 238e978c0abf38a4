"""``rlt-data run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlt_data.cli.options import finish
from rlt_data.cli.output import print_dataset, print_ranks, print_step
from rlt_data.cli.progress import shown_progress


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def run(
        pipeline: Annotated[Path, typer.Argument(help="YAML with out, generate, score, rank, distill.")],
    ) -> None:
        """Run the whole way from one YAML file whose keys are the commands' flags."""
        finish(lambda: _run(pipeline))


def _run(path: Path) -> int:
    from rlt_data.steps.pipeline import load_pipeline, run_pipeline

    code = 0
    for step, _, summary in run_pipeline(load_pipeline(path), shown_progress()):
        if step in ("generate", "score"):
            code = max(code, print_step("traces" if step == "generate" else "scores", summary))
        elif step == "rank":
            print_ranks(summary)
        else:
            print_dataset(summary)
    return code
