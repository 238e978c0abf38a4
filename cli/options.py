"""Commands out of settings: every field becomes a flag, and what goes wrong becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any, ParamSpec, TypeVar, cast, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from rlt_data.cli.output import printable
from rlt_data.errors import INTERRUPTED, InputError, RltDataError, one_line
from rlt_data.libraries import show_bars
from rlt_data.progress import is_main_process
from rlt_data.settings import Settings, parse_settings, parse_yaml

AnySettings = TypeVar("AnySettings", bound=Settings)
Parameters = ParamSpec("Parameters")


def add_command(
    app: typer.Typer,
    name: str,
    settings: type[AnySettings],
    help: str,
    body: Callable[[AnySettings], int | None],
) -> None:
    """Add a command whose flags are the fields of a settings class.

    Args:
        app: where to add it.
        name: of the command.
        settings: the settings class.
        help: what ``--help`` says.
        body: does the work, and returns the exit code if that is not always 0.
    """

    def run(context: typer.Context, config: str | None, **flags: Any) -> None:
        sources = {name: context.get_parameter_source(name) for name in flags}
        given = {name: flags[name] for name, source in sources.items() if source and source.name != "DEFAULT"}
        keys = {settings.model_fields[name].alias or name: value for name, value in given.items()}
        finish(lambda: body(parse_settings(settings, (read_keys(config) if config else {}) | keys, flags=True)))

    fields = sorted(settings.model_fields.items(), key=lambda item: not item[1].is_required())
    parameters = [_parameter(name, field) for name, field in fields]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    run.__signature__ = inspect.Signature([context, *parameters, _CONFIG])  # type: ignore[attr-defined]
    app.command(name, help=help)(run)


#: A file of flags, for every command.
_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None, typer.Option("--config", help="YAML file with flags as keys; flags given here go before it.")
    ],
)


def read_keys(file: str) -> dict[str, Any]:
    """Read the keys of a settings file.

    Raises:
        InputError: there is no such file, or it is no YAML mapping.
    """
    try:
        with open(file, encoding="utf-8-sig") as opened:
            data = parse_yaml(opened.read(), f"--config: {file}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config: {file}: cannot be read: {one_line(error)}") from None
    if data is None:
        raise InputError(f"--config: {file}: a YAML mapping is needed, with flags such as max_tokens as keys")
    return data


def finishing(body: Callable[Parameters, int | None]) -> Callable[Parameters, None]:
    """Make a command's function end as :func:`finish` does; its help and its parameters stay."""

    @functools.wraps(body)
    def run(*arguments: Parameters.args, **flags: Parameters.kwargs) -> None:
        finish(lambda: body(*arguments, **flags))

    return run


def finish(work: Callable[[], int | None]) -> None:
    """Do the work of a command and end with the exit code that fits.

    Raises:
        typer.Exit: with an exit code other than 0.
    """
    prepare_output()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = work() or 0
        sys.stdout.flush()
    except RltDataError as error:
        for line in str(error).splitlines():
            typer.echo(printable(f"error: {line}" if not line.startswith("  ") else line), err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        typer.echo("interrupted; what is finished is kept, and the same command goes on from there", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if code:
        raise typer.Exit(code)


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    extra = field.json_schema_extra
    panel = cast("str | None", extra.get("panel")) if isinstance(extra, dict) else None
    flag = "--" + (field.alias or name).replace("_", "-")
    annotation: Any = field.annotation
    default: Any = field.default
    if get_origin(annotation) is tuple:
        annotation, default = list[get_args(annotation)[0]], []  # type: ignore[misc]
    if default is True:
        flag += "/--no-" + flag.removeprefix("--")
    if field.is_required():
        # Typer would stop at the first missing flag; settings name all of them.
        annotation, default = annotation | None, None
    help = (field.description or "") + (" (needed)" if field.is_required() else "")
    option = typer.Option(
        flag, help=help, rich_help_panel=panel, show_default=default is not False and default not in (None, [])
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def prepare_output() -> None:
    """Show the library's notices, and on a terminal other libraries' progress bars."""
    if sys.stderr.isatty():
        show_bars()
    else:  # for child processes too
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logger = logging.getLogger("rlt_data")
    if not any(isinstance(handler, _Notices) for handler in logger.handlers):
        logger.addHandler(_Notices())
        logger.setLevel(logging.INFO if is_main_process() else logging.WARNING)
        logger.propagate = False


class _Notices(logging.Handler):
    """Writes what the library notes to wherever stderr goes at the moment; results of steps are for stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("rlt_data.steps"):
            with contextlib.suppress(BrokenPipeError):  # whoever reads the notices may leave; the work goes on
                typer.echo(printable(record.getMessage()), err=True)
