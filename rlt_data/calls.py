"""Calls of steps with keyword arguments: their settings, their signatures and docstrings.

Everything follows from the settings of a step, which are also its flags and YAML keys.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rlt_data.errors import InputError, SettingsError, one_line
from rlt_data.progress import Progress
from rlt_data.settings import Settings
from rlt_data.settings.describe import arguments, entry, first_argument, parameters
from rlt_data.steps.registry import STEPS
from rlt_data.storage.outputs import write_file

AnySettings = TypeVar("AnySettings", bound=Settings)
Function = TypeVar("Function", bound=Callable[..., Any])

logger = logging.getLogger("rlt_data")

_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
_PROGRESS = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=False, annotation="bool | Progress")
_PROGRESS_HELP = (
    "True shows a bar in a notebook or on a terminal, and lines elsewhere; False shows nothing. An object with the "
    "methods of rlt_data.progress.Progress receives the rows."
)
_RAISES = """\
Raises:
    RltDataError: the error's class says what kind of mistake or limit it is. Finished rows are kept."""


def call_step(name: str, values: tuple[Any, ...], keywords: Mapping[str, Any], progress: bool | Progress) -> Any:
    """Run a step.

    Args:
        name: the step's name in the registry.
        values: positional arguments: the settings object, or the input.
        keywords: settings by name.
        progress: see :func:`rlt_data.progress.choose_progress`.

    Returns:
        The step's summary.
    """
    step = STEPS[name]
    settings = make_settings(step.settings, values, keywords)
    summary = step.run(settings, progress)
    if failed := getattr(summary, "failed", 0):
        logger.warning("%s: %d rows failed; the reasons are in %s", name, failed, summary.run / "errors.jsonl")
    return summary


def make_settings(model: type[AnySettings], values: tuple[Any, ...], keywords: Mapping[str, Any]) -> AnySettings:
    """Return the settings of a call.

    Args:
        model: the settings class.
        values: positional arguments: a settings object, or the first setting.
        keywords: settings by name, which override those of a settings object; ``in_`` and ``lambda`` are understood.

    Raises:
        SettingsError: a setting is unknown, missing, wrong or given twice.
    """
    first = first_argument(model)
    if len(values) > 1:
        raise SettingsError(f"takes one positional argument, {first}; pass the others by name")
    content: dict[str, Any] = {}
    if values and isinstance(values[0], Settings):
        settings, values = values[0], ()
        if not isinstance(settings, model):
            raise SettingsError(f"takes {model.__name__}, not {type(settings).__name__}")
        content = {name: getattr(settings, name) for name in settings.model_fields_set}
    names = {field.alias: name for name, field in model.model_fields.items() if field.alias}
    passed: dict[str, Any] = {first: _rows_file(values[0])} if values else {}
    for keyword, value in keywords.items():
        name = names.get(keyword.removesuffix("_"), keyword)
        if name in passed:
            raise SettingsError(f"{keyword}: is given twice")
        passed[name] = _rows_file(value) if name == "input" else value
    return model(**content | passed)


def _rows_file(rows: Any) -> Any:
    """Write rows from memory to a JSONL file named after their content, and return its path; other values unchanged.

    The same rows give the same file, so the step continues where it stopped.
    """
    if hasattr(rows, "to_dicts"):  # polars
        records: Iterable[Any] = rows.to_dicts()
    elif hasattr(rows, "to_dict") and hasattr(rows, "isna"):  # pandas
        records = json.loads(rows.to_json(orient="records"))
    elif hasattr(rows, "column_names") and hasattr(rows, "features"):  # datasets
        records = rows
    elif isinstance(rows, list) and rows and all(isinstance(row, Mapping) for row in rows):
        records = rows
    else:
        return rows
    try:
        text = "".join(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in records)
        content = text.encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"input: rows must hold JSON values: {one_line(error)}") from None
    path = Path("runs", "inputs", f"rows-{hashlib.blake2b(content, digest_size=8).hexdigest()}.jsonl")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: file.write_bytes(content))
    return str(path)


def documented(
    model: type[Settings], *, method: bool = False, leave_out: Iterable[str] = ()
) -> Callable[[Function], Function]:
    """Return a decorator that gives a function the signature and the arguments' help that follow from its settings.

    Args:
        model: the settings class.
        method: the function is a method of a run, which is its input.
        leave_out: settings that have no effect in this function.
    """
    first = first_argument(model)
    hidden = (first, *leave_out)

    def decorate(function: Function) -> Function:
        shown = [_SELF if method else _positional(model, first), *parameters(model, leave_out=hidden)]
        has_progress = "progress" in inspect.signature(function).parameters
        if has_progress:
            shown.append(_PROGRESS)
        entries = [
            "" if method else entry(first, f"{model.model_fields[first].description} Or a {model.__name__} object."),
            arguments(model, leave_out=hidden),
            entry("progress", _PROGRESS_HELP) if has_progress else "",
        ]
        what, separator, returns = inspect.cleandoc(function.__doc__ or "").partition("\n\nReturns:\n")
        function.__doc__ = (
            f"{what}\n\nArgs:\n" + "\n".join(filter(None, entries)) + f"{separator}{returns}\n\n{_RAISES}"
        )
        returned = inspect.get_annotations(function)["return"]
        function.__signature__ = inspect.Signature(shown, return_annotation=returned)  # type: ignore[attr-defined]
        return function

    return decorate


def _positional(model: type[Settings], name: str) -> inspect.Parameter:
    field = model.model_fields[name]
    kind = field.annotation.__name__ if isinstance(field.annotation, type) else str(field.annotation)
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        annotation=f"{kind} | {model.__name__}",
        default=inspect.Parameter.empty if field.is_required() else field.default,
    )
