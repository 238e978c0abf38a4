"""``rlt-data``: one command per step, in the order in which they are used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from rlt_data.cli.commands import COMMANDS
from rlt_data.cli.options import CommandGroup, add_command
from rlt_data.cli.output import print_summary
from rlt_data.settings import Settings
from rlt_data.steps.registry import DATA_STEPS, MODEL_STEPS, Step

#: Groups of commands, with their help.
_GROUPS = {
    "train-teacher": "Train a teacher: warmup (fine-tuning on explanations), then rl (GRPO on the dense reward).",
    "countdown": "Make Countdown problems: reach a target from given numbers by arithmetic.",
}

app = typer.Typer(
    name="rlt-data",
    cls=CommandGroup,
    help="Make and curate reasoning data with Reinforcement-Learned Teachers: generate traces for questions with "
    "solutions, score how much each trace helps a student, rank the traces, and distill a data set.",
    epilog="Exit codes: 0 done, 2 wrong flags or keys, 3 bad input, 4 done but some rows failed (errors.jsonl), "
    "5 run folder, 6 model, 7 disk, 8 engine stopped, 9 Hub, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


#: Arguments of :func:`add_command`: name, settings, help and function.
_CommandArguments = tuple[str, type[Settings], str, Callable[[Any], int | None]]


def _step_command(step: Step) -> _CommandArguments:
    return step.command, step.settings, step.help, partial(_run_step, step)


def _run_step(step: Step, settings: Settings) -> int:
    return print_summary(step, settings, step.run(settings, progress=True))


def _add_commands() -> None:
    """Add the commands in the order in which ``--help`` lists them."""
    groups = {name: typer.Typer(help=help, no_args_is_help=True, cls=CommandGroup) for name, help in _GROUPS.items()}
    *others, formats = [(name, settings, str(body.__doc__), body) for name, (settings, body) in COMMANDS.items()]
    commands: list[_CommandArguments] = [
        *map(_step_command, DATA_STEPS),
        *others,
        *map(_step_command, MODEL_STEPS),
        formats,
    ]
    for command, settings, help, body in commands:
        group, _, name = command.rpartition(" ")
        add_command(groups.get(group, app), name, settings, help, body)
    for name, group_app in groups.items():
        app.add_typer(group_app, name=name)


_add_commands()


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"rlt-data {version('rlt-data')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Do nothing; the commands do the work."""


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":  # for accelerate launch -m rlt_data.cli.main
    main()
