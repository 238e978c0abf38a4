"""``rlt-data run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlt_data.cli.output import print_summary
from rlt_data.progress import choose_progress
from rlt_data.steps.registry import STEPS


def run(pipeline: Annotated[Path, typer.Argument(help="YAML with out, generate, score, rank, distill.")]) -> int:
    """Run the whole way from one YAML file whose keys are the commands' flags."""
    from rlt_data.steps.pipeline import load_pipeline, run_pipeline

    code = 0
    for name, settings, summary in run_pipeline(load_pipeline(pipeline), choose_progress(True)):
        code = max(code, print_summary(STEPS[name], settings, summary))
    return code
