"""Commands out of settings: every field becomes a flag, and what goes wrong becomes one line and an exit code."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from rlt_data.errors import INTERRUPTED, InputError, RltDataError
from rlt_data.libraries import quiet_libraries
from rlt_data.progress import speaks
from rlt_data.settings import Settings, parse_settings

AnySettings = TypeVar("AnySettings", bound=Settings)

#: What a command returns: its exit code.
Body = Callable[[AnySettings], int | None]


def command(
    app: typer.Typer, settings: type[AnySettings], **options: Any
) -> Callable[[Body[AnySettings]], Body[AnySettings]]:
    """Add a command whose flags are the fields of a settings class; its help is the function's docstring.

    Args:
        app: where to add it.
        settings: the settings class.
        options: further arguments of ``typer.Typer.command``.
    """

    def register(body: Body[AnySettings]) -> Body[AnySettings]:
        def run(context: typer.Context, config: str | None, **flags: Any) -> None:
            sources = {name: context.get_parameter_source(name) for name in flags}
            given = {name: flags[name] for name, source in sources.items() if source and source.name != "DEFAULT"}
            keys = {_key(settings, name): value for name, value in given.items()}
            finish(lambda: body(parse_settings(settings, (read_keys(config) if config else {}) | keys, flags=True)))

        fields = sorted(settings.model_fields.items(), key=lambda item: not item[1].is_required())
        parameters = [_parameter(name, field) for name, field in fields]
        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        run.__signature__ = inspect.Signature([context, *parameters, _CONFIG])  # type: ignore[attr-defined]
        run.__doc__ = body.__doc__
        run.__name__ = body.__name__
        app.command(**options)(run)
        return body

    return register


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
    import yaml

    try:
        with open(file, encoding="utf-8-sig") as opened:
            data = yaml.safe_load(opened)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config: {file}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"--config: {file}: a YAML mapping is needed, with flags such as max_tokens as keys")
    return data


def finish(work: Callable[[], int | None]) -> None:
    """Do the work of a command and end with the exit code that fits.

    Raises:
        typer.Exit: with an exit code other than 0.
    """
    prepare_libraries()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = work() or 0
    except RltDataError as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}" if not line.startswith("  ") else line, err=True)
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


def _key(settings: type[Settings], name: str) -> str:
    return settings.model_fields[name].alias or name


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def prepare_libraries() -> None:
    """Quieten other libraries, which are imported after this, and show our own notices."""
    quiet_libraries()
    logger = logging.getLogger("rlt_data")
    if not any(isinstance(handler, _Notices) for handler in logger.handlers):
        logger.addHandler(_Notices())
        logger.setLevel(logging.INFO if speaks() else logging.WARNING)
        logger.propagate = False


class _Notices(logging.Handler):
    """Writes what the library notes to wherever stderr goes at the moment; results of steps are for stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("rlt_data.steps"):
            typer.echo(record.getMessage(), err=True)
