"""The base class of all settings, and how they are parsed from flags and YAML keys."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from rlt_data.errors import InputError, SettingsError, did_you_mean, one_line
from rlt_data.settings.describe import arguments, parameters

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

#: What a setting can affect; see :func:`field`.
Affects = Literal["rows", "speed", "output"]

#: Characters that neither a file name nor a text file can contain.
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


class _SettingsType(ModelMetaclass):
    """Lists the fields of a settings class, not pydantic's methods, so that ``help`` and completion stay short."""

    def __dir__(cls) -> list[str]:
        return list(cls.model_fields)  # type: ignore[attr-defined]


class Settings(BaseModel, metaclass=_SettingsType):
    """Immutable settings. An unknown key is an error.

    Each field has one key: its alias if it has one, else its name. Other spellings of a key are accepted too: hyphens
    for underscores, and the field's name where it has an alias.
    """

    # Validators are built when first used: --help needs none, and building them took half of its time.
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False, defer_build=True)

    #: Fields whose flags ``--help`` lists first; the other flags follow in their panels.
    first_flags: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any) -> None:
        """Validate the values.

        Raises:
            SettingsError: a key is unknown, missing or wrong; one line per mistake.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _settings_error(type(self), error, python=True) from None

    # Nested settings are validated with the outer ones, so that a message names the full path of a key.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        raise SettingsError(f"{name}: settings are immutable; create new ones with another value")

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Validate values by key.

        Raises:
            SettingsError: a key is unknown, missing or wrong; one line per mistake.
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

    @model_validator(mode="before")
    @classmethod
    def _read_keys(cls, data: Any) -> Any:
        return cls.fill_in(canonical_keys(cls, data)) if isinstance(data, Mapping) else data

    @classmethod
    def fill_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values with those of a preset added; called before validation, with canonical keys."""
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _paths_are_texts(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("*")
    @classmethod
    def _is_usable(cls, value: Any, info: ValidationInfo) -> Any:
        setting = cls.model_fields[str(info.field_name)]
        texts = [text for text in (value if isinstance(value, tuple) else (value,)) if isinstance(text, str)]
        # A format is no command: its required texts may be empty.
        if "" in texts and (setting.default is None or (setting.is_required() and declared(setting))):
            raise ValueError("must not be empty")  # as of --out "$FOLDER" without a FOLDER
        if isinstance(value, int) and value.bit_length() > 63:
            raise ValueError("must be less than 2^63")
        if match := _NOT_TEXT.search("".join(texts)):
            raise ValueError(f"must not contain {'half of a surrogate pair' if ord(match[0]) else 'a NUL character'}")
        return value

    def depends_on(self, **content: Any) -> dict[str, Any]:
        """Return what the step's rows depend on: the values of the fields that affect them, by key.

        Args:
            content: what the ``by_content`` fields stand for, and anything else that the rows depend on.
        """
        names = [
            name
            for name, info in type(self).model_fields.items()
            if (declaration := declared(info))["affects"] == "rows"
            and not declaration["by_content"]
            and (not declaration["omit_default"] or self.not_default(name))
        ]
        return self.model_dump(mode="json", include=set(names), by_alias=True) | content

    def not_default(self, *names: str) -> list[str]:
        """Return the names of those fields whose values differ from their defaults."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


AnySettings = TypeVar("AnySettings", bound=Settings)

#: How a model can be named.
MODEL_HELP = "Hub id, folder, GGUF file, gemma-3-270m, or nano."
#: How a run can be named.
RUN_HELP = "Run folder or URL, such as s3://bucket/run"

_URL = re.compile(r"[A-Za-z][\w+.:-]+://")

#: Panels of ``--help``, in their order.
PANELS = (
    COLUMNS := "Input columns",
    INPUT := "Input",
    NUMBERS := "Numbers",
    SELECTION := "Selection",
    SAMPLING := "Sampling",
    REWARD := "Reward",
    TRAINING := "Training",
    MODEL := "Model",
    ENGINE := "Engine",
    VLLM := "vLLM engine",
    SERVER := "Server engine",
    CLUSTER := "Ray cluster",
    OUTPUT := "Output",
    "Other",
)


def nano(role: str) -> BeforeValidator:
    """Let ``nano`` stand for the miniature model of a role."""
    return BeforeValidator(lambda name: f"nano-{role}" if name == "nano" else name)


#: Names of models; ``nano`` names a different miniature in each role.
StudentName = Annotated[str, nano("student")]
TeacherName = Annotated[str, nano("teacher")]
WarmTeacherName = Annotated[str, nano("teacher-warm")]


def is_url(name: str) -> bool:
    """Return whether a name is a URL, whatever its protocol (``C://`` is a drive)."""
    return _URL.match(name) is not None


def _one_or_several(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and value and all(isinstance(name, str) for name in value):
        return value[0] if len(value) == 1 else tuple(value)
    if not isinstance(value, str):
        raise ValueError("must be a path or a list of paths")
    return value


#: One name of an input, or several; a list of one name is that name.
InputNames = Annotated[str | tuple[str, ...], BeforeValidator(_one_or_several)]


#: Accepts a single text as a list of one.
SEVERAL = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
#: Texts, each once.
Texts = Annotated[tuple[str, ...], SEVERAL, AfterValidator(lambda texts: tuple(dict.fromkeys(texts)))]


def name_of_input(names: str | tuple[str, ...]) -> str:
    """Return an input's name for messages: ``a.jsonl and 2 more`` if it has several."""
    return names if isinstance(names, str) else f"{names[0]} and {len(names) - 1} more"


def _is_local(name: str) -> str:
    if is_url(name):
        raise ValueError("must be a local path; only run folders and data sets can be URLs")
    return name


#: A path on this machine.
LocalName = Annotated[str, AfterValidator(_is_local)]


def field(
    default: Any,
    panel: str | None,
    help: str,
    *,
    affects: Affects,
    by_content: bool = False,
    omit_default: bool = False,
    positional: str | None = None,
    engines: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """Declare a setting.

    Args:
        default: default value.
        panel: panel of ``--help`` that lists the flag.
        help: help text of the flag.
        affects: ``rows``: which rows a step makes; ``speed``: how they are computed, and how fast; ``output``: where
            results go, and what is printed.
        by_content: the rows depend on what the value names (a model's weights, a file's rows) and not on the name; the
            step passes that content to :meth:`Settings.depends_on`.
        omit_default: leave the default out of :meth:`Settings.depends_on`, because older rows lack the setting.
        positional: placeholder, such as ``RUN``, of a setting that the command line also takes without its flag.
        engines: engines that read the setting; empty: all of them.
        options: further arguments of ``pydantic.Field``. With an ``alias``, the alias is the key and the flag, and the
            field's name an older spelling of it; recorded trainings contain the names.
    """
    extra: Any = {
        "panel": panel,
        "affects": affects,
        "by_content": by_content,
        "omit_default": omit_default,
        "positional": positional,
        "engines": list(engines),
    }
    return Field(default, description=help, json_schema_extra=extra, **options)


def declared(info: FieldInfo) -> Mapping[str, Any]:
    """Return what :func:`field` declared of a field; empty if it was not used."""
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def where_field(verb: str, *, affects: Affects) -> Any:
    """Declare ``--where``, whose help starts with what it does to which traces, such as ``Show only traces``."""
    return field(
        (),
        SELECTION,
        f"{verb} that satisfy a SQL expression over the columns of all tables and signals, such as "
        '"reward < -2 AND thought_tokens > 500"; repeatable, and all must be true.',
        affects=affects,
    )


def flag_of(key: str) -> str:
    """Return the flag of a key."""
    return "--" + key.replace("_", "-")


def keys_of(model: type[Settings]) -> dict[str, str]:
    """Return the key of each field, by the field's name."""
    return {name: info.alias or name for name, info in model.model_fields.items()}


def canonical_keys(model: type[Settings], values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return values by key, whichever spelling of the keys they have.

    Raises:
        ValueError: two spellings of a key have different values.
    """
    keys = keys_of(model)
    spellings: dict[Any, Any] = {}
    canonical: dict[Any, Any] = {}
    for spelling, value in values.items():
        key = spelling.replace("-", "_") if isinstance(spelling, str) else spelling
        key = keys.get(key, key)
        if key not in keys.values():
            key = spelling  # unknown: messages show it as it was written
        if key in canonical and canonical[key] != value:
            raise ValueError(f"{spelling}: another spelling of {spellings[key]}, which has a different value")
        canonical[key], spellings[key] = value, spelling
    return canonical


def parse_settings(
    model: type[AnySettings], data: Mapping[str, Any], *, where: str = "", flags: bool = False
) -> AnySettings:
    """Return settings from flags or YAML keys.

    Args:
        model: settings class.
        data: values by key.
        where: source of the values, such as a file name; precedes each message.
        flags: whether messages show keys as flags (``--max-tokens``).

    Raises:
        SettingsError: a key is unknown, missing or wrong; one line per mistake.
    """
    try:
        settings: AnySettings = model.__pydantic_validator__.validate_python(dict(data))
        return settings
    except ValidationError as error:
        raise _settings_error(model, error, where=where, flags=flags) from None


#: Keys that the message about an unknown key lists at most.
_LISTED_KEYS = 12


def unknown_key(model: type[Settings], key: str) -> str:
    """Return the message for a key that a settings class lacks, with the nearest key that it has."""
    keys = list(keys_of(model).values())
    if proposal := did_you_mean(key, keys):
        return f"{key}: unknown key{proposal}"
    listed = ", ".join(keys[:_LISTED_KEYS]) + (", ..." if len(keys) > _LISTED_KEYS else "")
    return f"{key}: unknown key; known: {listed}"


def constraint_message(message: str) -> str:
    """Return pydantic's message about a value, shortened: ``must be a valid integer``."""
    message = message.removeprefix("Value error, ").partition(", unable to ")[0]
    return re.sub(r"^[Ii]nput should be ", "must be ", message)


def parse_yaml(text: str, where: str) -> dict[str, Any] | None:
    """Parse YAML text; return None where it is not a mapping.

    Raises:
        InputError: the text is not YAML.
    """
    import yaml  # here, so that --help does not wait for it

    try:
        data = yaml.load(text, _strict_loader())  # noqa: S506 - it is a SafeLoader
    except RecursionError:
        raise InputError(f"{where}: not YAML: nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - for an invalid date or number, PyYAML raises what Python raises
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {error.problem}" if mark else one_line(error)  # type: ignore[attr-defined]
        raise InputError(f"{where}: not YAML: {reason}") from None
    return data if isinstance(data, dict) else None


def _strict_loader() -> Any:
    """Return a SafeLoader that refuses a key that a mapping has twice, where PyYAML uses the last value."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in keys:
                    raise yaml.MarkedYAMLError(problem=f"has the key {key.value!r} twice", problem_mark=key.start_mark)
                keys.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader


def _settings_error(
    model: type[Settings], error: ValidationError, *, where: str = "", flags: bool = False, python: bool = False
) -> SettingsError:
    prefix = f"{where}: " if where else ""
    mistakes = error.errors()
    misspelled = {_meant(model, details["loc"]) for details in mistakes if details["type"] == "extra_forbidden"}
    lines = [
        prefix + _explain(model, details, flags)
        for details in mistakes
        if details["type"] != "missing" or details["loc"] not in misspelled
    ]
    if python:  # arguments have the names of fields: input, lambda_
        names = {key: name for name, key in keys_of(model).items()}
        lines = [re.sub(r"^\w+", lambda key: names.get(key[0], key[0]), line) for line in lines]
    return SettingsError("\n".join(lines))


def _meant(model: type[Settings], path: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the path of the key that an unknown key probably means."""
    keys = keys_of(_settings_at(model, [str(part) for part in path[:-1]])).values()
    near = difflib.get_close_matches(str(path[-1]), keys, 1)
    return (*path[:-1], near[0]) if near else None


def _explain(model: type[Settings], details: Any, flags: bool) -> str:
    path = [str(part) for part in details["loc"]]
    value = details.get("input")
    if details["type"] == "missing":
        message = "is required"
    elif details["type"] == "extra_forbidden":
        _, _, message = unknown_key(_settings_at(model, path[:-1]), path[-1]).partition(": ")
    else:
        message = constraint_message(str(details["msg"]))
        key, colon, reason = message.partition(": ")
        if colon and key in keys_of(_settings_at(model, path)).values():  # from a validator of several fields
            path.append(key)
            message = reason
        else:
            message = message[0].lower() + message[1:]
        if not isinstance(value, (dict, list, tuple)):
            message += f" (got {value!r})"
    name = flag_of(path[0]) if flags and path else ".".join(path)
    return f"{name}: {message}" if name else message


def _settings_at(model: type[Settings], path: list[str]) -> type[Settings]:
    """Return the settings class that a path of keys leads to, as far as it does."""
    fields = {key: name for name, key in keys_of(model).items()}
    if path and path[0] in fields:
        inner = model.model_fields[fields[path[0]]].annotation
        for candidate in getattr(inner, "__args__", (inner,)):
            if isinstance(candidate, type) and issubclass(candidate, Settings):
                return _settings_at(candidate, path[1:])
    return model
