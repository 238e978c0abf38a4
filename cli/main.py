"""``rlt-data``: one command per step, in the order of the way of the data."""

from __future__ import annotations

from typing import Annotated

import typer

from rlt_data.cli import (
    check,
    countdown,
    distill,
    evaluate,
    formats,
    generate,
    merge,
    push,
    rank,
    report,
    run,
    score,
    show,
    stats,
    train_solver,
    train_student,
    train_teacher,
    view,
)

app = typer.Typer(
    name="rlt-data",
    help="Make and curate reasoning data with Reinforcement-Learned Teachers: generate traces from questions with "
    "their solutions, score them by how much they help a student, rank them, distill a data set.",
    epilog="Exit codes: 0 done, 2 wrong flags or keys, 3 bad input, 4 done but some rows failed (errors.jsonl), "
    "5 run folder, 6 model, 7 disk, 8 engine stopped, 9 Hub, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    check,
    generate,
    score,
    merge,
    rank,
    distill,
    push,
    run,
    show,
    stats,
    report,
    view,
    train_teacher,
    train_student,
    train_solver,
    evaluate,
    countdown,
    formats,
):
    module.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"rlt-data {version('rlt-data')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Nothing of its own: the commands do the work."""


def main() -> None:
    """Run the command line; the console script."""
    app()


if __name__ == "__main__":  # for accelerate launch -m rlt_data.cli.main
    main()
