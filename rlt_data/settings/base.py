"""What all settings are made of, and how they are made from flags and YAML keys."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo

from rlt_data.errors import InputError, SettingsError, one_line
from rlt_data.settings.describe import arguments, parameters

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

#: What a setting can affect; see :func:`field`.
Affects = Literal["rows", "speed", "output"]

#: Characters that neither a file name nor a file of text can have.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class _SettingsType(ModelMetaclass):
    """Lists the fields of a settings class, not pydantic's methods, so that ``help`` and completion stay short."""

    def __dir__(cls) -> list[str]:
        return list(cls.model_fields)  # type: ignore[attr-defined]


class Settings(BaseModel, metaclass=_SettingsType):
    """Immutable settings that know all their keys; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        """Check the values.

        Raises:
            SettingsError: one line for each unknown, missing or wrong key.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _settings_error(type(self), error, python=True) from None

    # Settings inside others are checked with them, so that a message names the whole path of a key.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        raise SettingsError(f"{name}: settings do not change; make new ones with another value")

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Check values by key.

        Raises:
            SettingsError: one line for each unknown, missing or wrong key.
        """
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise _settings_error(cls, error) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Explain the fields to ``help``."""
        cls.__signature__ = inspect.Signature(parameters(cls))
        cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\nArgs:\n{arguments(cls)}"

    @field_validator("*", mode="before")
    @classmethod
    def _paths_are_texts(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        texts = [text for text in (value if isinstance(value, tuple) else (value,)) if isinstance(text, str)]
        if found := _NO_TEXT.search("".join(texts)):
            raise ValueError(f"must not hold {'half of a surrogate pair' if ord(found[0]) else 'a NUL character'}")
        return value

    def depends_on(self, **content: Any) -> dict[str, Any]:
        """Return what the step's rows depend on: the values of the fields that affect them, by key.

        Args:
            content: what the fields that are given by content stand for, and anything else that rows depend on.
        """
        names = [
            name
            for name, info in type(self).model_fields.items()
            if (how := declared(info))["affects"] == "rows"
            and not how["by_content"]
            and (not how["omit_default"] or self.not_default(name))
        ]
        return self.model_dump(mode="json", include=set(names), by_alias=True) | content

    def not_default(self, *names: str) -> list[str]:
        """Return those of the fields whose values are not their defaults."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


AnySettings = TypeVar("AnySettings", bound=Settings)

#: What a model can be named by.
MODEL_HELP = "Hub id, folder, GGUF file, gemma-3-270m, or nano."
#: What a run can be named by.
RUN_HELP = "Run folder, or its URL such as s3://bucket/run"

_URL = re.compile(r"[A-Za-z][\w+.:-]+://")

INPUT, MODEL, ENGINE, OUTPUT = "Input", "Model", "Engine", "Output"
REWARD, SAMPLING, TRAINING = "Reward", "Sampling", "Training"


def nano(role: str) -> BeforeValidator:
    """Let ``nano`` stand for the miniature that has this role."""
    return BeforeValidator(lambda name: f"nano-{role}" if name == "nano" else name)


#: Names of models; ``nano`` means another miniature in each place.
StudentName = Annotated[str, nano("student")]
TeacherName = Annotated[str, nano("teacher")]
WarmTeacherName = Annotated[str, nano("teacher-warm")]


def is_url(name: str) -> bool:
    """Whether a name is a URL, of a known protocol or not (``C://`` is a drive)."""
    return _URL.match(name) is not None


def _on_this_machine(name: str) -> str:
    if is_url(name):
        raise ValueError("takes a place on this machine; only run folders and data sets can be URLs")
    return name


#: Names of what can be on this machine only.
LocalName = Annotated[str, AfterValidator(_on_this_machine)]


def field(
    default: Any,
    panel: str | None,
    help: str,
    *,
    affects: Affects,
    by_content: bool = False,
    omit_default: bool = False,
    **options: Any,
) -> Any:
    """Describe one setting.

    Args:
        default: its default.
        panel: the panel of ``--help`` that shows it.
        help: its help.
        affects: ``rows``: what the step makes; ``speed``: how it is computed, and how fast; ``output``: where results
            go, and what is shown.
        by_content: rows depend on what the value names (a model's weights, a file's rows), not on the name; the step
            tells :meth:`Settings.depends_on` what that is.
        omit_default: rows with the default were made before the setting existed.
        options: further arguments of ``pydantic.Field``.
    """
    extra: Any = {"panel": panel, "affects": affects, "by_content": by_content, "omit_default": omit_default}
    return Field(default, description=help, json_schema_extra=extra, **options)


def declared(info: FieldInfo) -> Mapping[str, Any]:
    """Return what :func:`field` declared of a field; empty if it was not used."""
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def parse_settings(
    model: type[AnySettings], data: Mapping[str, Any], *, where: str = "", flags: bool = False
) -> AnySettings:
    """Make settings from flags or YAML keys.

    Args:
        model: the settings class.
        data: values by key (an alias such as ``in`` is the key).
        where: what the values came from, such as a file name; put before each message.
        flags: name keys as flags (``--max-tokens``) in messages.

    Raises:
        SettingsError: one line for each unknown, missing or wrong key.
    """
    try:
        settings: AnySettings = model.__pydantic_validator__.validate_python(dict(data))
        return settings
    except ValidationError as error:
        raise _settings_error(model, error, where=where, flags=flags) from None


def _settings_error(
    model: type[Settings], error: ValidationError, *, where: str = "", flags: bool = False, python: bool = False
) -> SettingsError:
    prefix = f"{where}: " if where else ""
    lines = [prefix + _explain(model, problem, flags) for problem in error.errors()]
    if python:  # arguments have the names of fields: input, lambda_
        names = {field.alias: name for name, field in model.model_fields.items() if field.alias}
        lines = [re.sub(r"^\w+", lambda key: names.get(key[0], key[0]), line) for line in lines]
    return SettingsError("\n".join(lines))


def parse_yaml(text: str, where: str) -> dict[str, Any] | None:
    """Read YAML text; None where it is not a mapping.

    Raises:
        InputError: it is not YAML.
    """
    import yaml  # here, so that --help does not wait for it

    try:
        data = yaml.safe_load(text)
    except RecursionError:
        raise InputError(f"{where}: not YAML: nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - for a date or number that is none, PyYAML raises what Python does
        raise InputError(f"{where}: not YAML: {one_line(error)}") from None
    return data if isinstance(data, dict) else None


def _explain(model: type[Settings], problem: Any, flags: bool) -> str:
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if flags and path:
        name = "--" + path[0].replace("_", "-")
    kind, value = problem["type"], problem.get("input")
    if kind == "missing":
        return f"{name}: is needed"
    if kind == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, 1)
        return f"{name}: unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = "" if isinstance(value, (dict, list, tuple)) else f" (got {value!r})"
    return (f"{name}: " if name else "") + message + shown


def _keys_at(model: type[Settings], path: list[str]) -> list[str]:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if path and path[0] in fields:
        inner = fields[path[0]].annotation
        for candidate in getattr(inner, "__args__", (inner,)):
            if isinstance(candidate, type) and issubclass(candidate, Settings):
                return _keys_at(candidate, path[1:])
    return list(fields)
