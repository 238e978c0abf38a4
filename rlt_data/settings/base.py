"""What all settings are made of, and how they are made from flags and YAML keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rlt_data.errors import SettingsError


class Settings(BaseModel):
    """Immutable settings that know all their keys; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


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


def field(default: Any, panel: str | None, help: str, **options: Any) -> Any:
    """Describe one setting: its default, the panel of ``--help`` that it stands in, and its help."""
    return Field(default, description=help, json_schema_extra={"panel": panel}, **options)


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
        return model.model_validate(dict(data))
    except ValidationError as error:
        lines = [_explain(model, problem, flags) for problem in error.errors()]
    prefix = f"{where}: " if where else ""
    raise SettingsError("\n".join(prefix + line for line in lines))


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
