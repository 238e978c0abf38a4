"""Commands from settings: each field becomes a flag, and each error one line and an exit code."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand, TyperGroup

from rlt_data.cli.output import printable
from rlt_data.errors import INTERRUPTED, InputError, RltDataError, SettingsError, one_line
from rlt_data.libraries import show_bars
from rlt_data.progress import is_main_process
from rlt_data.settings import Settings, parse_settings, parse_yaml
from rlt_data.settings.base import PANELS, canonical_keys, constraint_message, declared, flag_of, keys_of, unknown_key

AnySettings = TypeVar("AnySettings", bound=Settings)

#: Flags in the first panel of ``--help``, ``--help`` itself included.
FIRST_FLAGS = 10
_OTHER = PANELS[-1]

#: Seconds that other processes of ``accelerate launch`` wait before they print an error. If the main process has the
#: same error, it prints it, and the launcher ends the others meanwhile.
_SAME_ERROR_SECONDS = 2.0

#: Typer has a copy of Click, or imports it, depending on its version.
_UsageError: Any = typer.BadParameter.__bases__[0]


class CommandGroup(TyperGroup):
    """A group of commands that reports a usage error in one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line."""
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
        except _UsageError as error:
            if message := _usage_message(error):  # else the help has been printed
                typer.echo(printable(f"error: {message}"), err=True)
            code = SettingsError.exit_code
        sys.exit(code if isinstance(code, int) else 0)

    def format_help(self, context: Any, formatter: Any) -> None:
        """Print the help."""
        with _leave_broken_pipe():
            super().format_help(context, formatter)


class _Command(TyperCommand):
    """A command that also accepts the earlier names of its flags."""

    #: Flags by their earlier names.
    earlier_flags: Mapping[str, str] = {}

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        """Parse the arguments."""
        renamed = []
        for argument in arguments:
            flag, equals, value = argument.partition("=")
            renamed.append(self.earlier_flags.get(flag, flag) + equals + value)
        return super().parse_args(context, renamed)

    def format_help(self, context: Any, formatter: Any) -> None:
        """Print the help."""
        with _leave_broken_pipe():
            super().format_help(context, formatter)


@contextlib.contextmanager
def _leave_broken_pipe() -> Iterator[None]:
    """End with exit code 0 where the reader of stdout has left; rich would end with 1."""
    try:
        yield
    except SystemExit:
        raise typer.Exit from None


def _usage_message(error: Any) -> str:
    """Return Click's message as one line; empty if the error is the help that a group prints without arguments."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    see = f"see {error.ctx.command_path} --help" if error.ctx else ""
    if type(error).__name__ == "NoSuchOption":
        flag, near = error.option_name, error.possibilities
        if others := _commands_with(flag, error.ctx.find_root().command):
            return f"{flag}: {error.ctx.info_name} has no such flag, unlike {_listed(others)}"
        return f"{flag}: no such flag; " + (f"did you mean {near[0]}?" if near else see)
    message = " ".join(error.format_message().split()).rstrip(".")
    what, colon, reason = message.partition(": ")
    message = what + colon + constraint_message(reason)
    message = message.replace(". Did you mean ", "; did you mean ")
    message = message[0].lower() + message[1:]
    return message if message.endswith("?") else f"{message}; {see}"


def _commands_with(flag: str, command: Any, path: str = "") -> list[str]:
    """Return the commands of a group that have a flag."""
    if commands := getattr(command, "commands", None):
        return [name for key, inner in commands.items() for name in _commands_with(flag, inner, f"{path} {key}")]
    return [path.strip()] * any(flag in parameter.opts and not parameter.hidden for parameter in command.params)


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def add_command(
    app: typer.Typer,
    name: str,
    settings: type[AnySettings],
    help: str,
    body: Callable[[AnySettings], int | None],
) -> None:
    """Add a command whose flags and arguments are the fields of a settings class.

    Args:
        app: application or group to add it to.
        name: name of the command.
        settings: settings class.
        help: help text of the command.
        body: function of the command; returns the exit code, or None for 0.
    """
    keys = keys_of(settings)

    def run(context: typer.Context, config: str | None, **values: Any) -> None:
        sources = {name: context.get_parameter_source(name) for name in values}
        passed = {name: values[name] for name, source in sources.items() if source and source.name != "DEFAULT"}
        flags = {keys[name]: value for name, value in passed.items() if name in keys}
        arguments = {keys[name]: passed[_argument(name)] for name in keys if _argument(name) in passed}

        def work() -> int | None:
            for key, value in arguments.items():
                if flags.setdefault(key, value) != value:
                    shown = " ".join(map(str, value)) if isinstance(value, list) else value
                    raise SettingsError(f"{flag_of(key)}: differs from the argument {shown!r}; give one of them")
            content = (_read_config(settings, config) if config else {}) | flags
            _refuse_missing(context, settings, content)
            return body(parse_settings(settings, content, flags=True))

        finish(work)

    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    run.__signature__ = inspect.Signature([context, *_parameters(settings)])  # type: ignore[attr-defined]
    earlier = {flag_of(name): flag_of(key) for name, key in keys.items() if name != key and not name.endswith("_")}
    app.command(name, help=help, cls=type("Command", (_Command,), {"earlier_flags": earlier}))(run)


def _argument(name: str) -> str:
    """Return the name of the parameter for a field's value without its flag."""
    return f"{name}_argument"


def _refuse_missing(context: typer.Context, settings: type[Settings], content: Mapping[str, Any]) -> None:
    """Name all required settings that are missing in one line."""
    missing = [
        declared(info)["positional"] or flag_of(keys_of(settings)[name])
        for name, info in settings.model_fields.items()
        if info.is_required() and keys_of(settings)[name] not in content
    ]
    if missing:
        command = context.command_path
        verb = "is" if len(missing) == 1 else "are"
        raise SettingsError(f"{_listed(missing)} {verb} required; see {command} --help")


def _read_config(settings: type[Settings], file: str) -> dict[str, Any]:
    """Return the keys of a YAML file of flags.

    Raises:
        InputError: the file cannot be read, or is not a YAML mapping.
        SettingsError: a key is unknown, or given twice.
    """
    where = f"--config: {file}"
    try:
        with open(file, encoding="utf-8-sig") as opened:
            data = parse_yaml(opened.read(), where)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: cannot be read: {one_line(error)}") from None
    if data is None:
        raise InputError(f"{where}: must be a YAML mapping with flags such as max_tokens as keys")
    try:
        content = canonical_keys(settings, data)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from None
    if unknown := [str(key) for key in content if key not in keys_of(settings).values()]:
        raise SettingsError("\n".join(f"{where}: {unknown_key(settings, key)}" for key in unknown))
    return content


def finish(work: Callable[[], int | None]) -> None:
    """Do the work of a command, print its error if it fails, and set the exit code.

    Raises:
        typer.Exit: the exit code is not 0.
    """
    prepare_output()
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not launched:  # processes that wait for each other cannot run a handler, and the launcher has to end them
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = work() or 0
        sys.stdout.flush()
    except RltDataError as error:
        if not is_main_process():
            time.sleep(_SAME_ERROR_SECONDS)
        for line in str(error).splitlines():
            typer.echo(printable(f"error: {line}" if not line.startswith("  ") else line), err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        if is_main_process():
            typer.echo("interrupted; finished rows are saved, and the same command continues from there", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception:
        if not launched:
            raise
        traceback.print_exc()
        code = 1
    if code and launched:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the exit of Python would wait for the other processes
    if code:
        raise typer.Exit(code)


def _parameters(settings: type[Settings]) -> list[inspect.Parameter]:
    """Return the arguments and options of a command, in the order in which ``--help`` lists them."""
    fields = settings.model_fields
    flags = [name for name, info in fields.items() if not declared(info)["positional"]]
    one_panel = len(flags) + 2 <= FIRST_FLAGS  # --config and --help
    first = flags if one_panel else settings.first_flags
    panels = {name: str(declared(fields[name])["panel"] or _OTHER) for name in flags if name not in first}
    order = [*first, *sorted(panels, key=lambda name: PANELS.index(panels[name]))]
    parameters = []
    for name, info in fields.items():
        if declared(info)["positional"]:
            parameters += [_argument_parameter(name, info), _option_parameter(name, info, None, hidden=True)]
    parameters += [_option_parameter(name, fields[name], panels.get(name)) for name in order]
    config = typer.Option("--config", help="YAML file of flags; command-line flags override it.")
    config.rich_help_panel = None if one_panel else _OTHER
    return [*parameters, _keyword("config", str | None, config)]


def _keyword(name: str, annotation: Any, parameter: Any, default: Any = None) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=Annotated[annotation, parameter])


def _type_of(field: FieldInfo) -> tuple[Any, Any]:
    """Return the type and the default value of a field as Typer takes them."""
    annotation: Any = field.annotation
    default: Any = field.default
    if _takes_several(annotation):
        annotation, default = list[str], []
    if field.is_required():
        # Typer would stop at the first missing flag; _refuse_missing names all of them.
        annotation, default = annotation | None, None
    return annotation, default


def _takes_several(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(map(_takes_several, get_args(annotation)))


def _help_of(field: FieldInfo, note: str = "") -> str:
    notes = ["required"] * field.is_required() + [note] * bool(note)
    return (field.description or "") + (f" ({', '.join(notes)})" if notes else "")


def _argument_parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    annotation, _ = _type_of(field)
    annotation = annotation if field.is_required() else annotation | None
    metavar = str(declared(field)["positional"])
    help = _help_of(field, f"also {flag_of(field.alias or name)}")
    argument = typer.Argument(metavar=metavar, help=help, show_default=False)
    return _keyword(_argument(name), annotation, argument)


def _option_parameter(name: str, field: FieldInfo, panel: str | None, *, hidden: bool = False) -> inspect.Parameter:
    annotation, default = _type_of(field)
    flag = flag_of(field.alias or name)
    if default is True:
        flag += "/--no-" + flag.removeprefix("--")
    option = typer.Option(
        flag,
        help=_help_of(field),
        rich_help_panel=panel,
        show_default=default is not False and default not in (None, []),
        hidden=hidden,
    )
    return _keyword(name, annotation, option, default)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def prepare_output() -> None:
    """Print the library's notices, and on a terminal other libraries' progress bars."""
    if sys.stderr.isatty():
        show_bars()
    else:  # for child processes too
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logger = logging.getLogger("rlt_data")
    if not any(isinstance(handler, _Notices) for handler in logger.handlers):
        logger.addHandler(_Notices())
        logger.setLevel(logging.INFO if is_main_process() else logging.ERROR)
        logger.propagate = False


class _Notices(logging.Handler):
    """Print the library's notices on the current stderr. Results of steps go to stdout; their warnings do not."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or not record.name.startswith("rlt_data.steps"):
            with contextlib.suppress(BrokenPipeError):  # the reader of the notices may leave; the work continues
                typer.echo(printable(record.getMessage()), err=True)
