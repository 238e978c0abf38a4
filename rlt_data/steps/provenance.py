"""The run.json entry of a step: settings, format, models, versions, and the work done."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rlt_data.errors import ModelError
from rlt_data.formats import Format
from rlt_data.settings import Settings, parse_settings
from rlt_data.storage.errorlog import failures
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.run import RunFolder

if TYPE_CHECKING:  # at run time this module must not import torch
    from rlt_data.engines import Model
    from rlt_data.steps.dry_run import StepPlan

_PACKAGES = ("rlt-data", "torch", "transformers", "tokenizers", "polars", "pyarrow", "numpy")


@dataclass(frozen=True)
class StepSummary:
    """Result of a step.

    Attributes:
        run: run folder.
        rows: rows in the step's table.
        new: rows added by this call.
        failed: rows of the step in errors.jsonl.
        tokens: tokens generated or scored by this call.
        seconds: time spent on them, without loading models.
        failure: the most frequent reason in errors.jsonl, with the numbers of its latest row; None if nothing failed.
        failure_rows: rows that failed for this reason, with any numbers in its text.
        plan: what a dry run found; all counts but ``rows`` are then 0.
    """

    run: StoragePath
    rows: int
    new: int
    failed: int
    tokens: int
    seconds: float
    failure: str | None = None
    failure_rows: int = 0
    plan: StepPlan | None = None


def step_entry(
    settings: Settings, depends_on: dict[str, Any], format: Format, models: dict[str, Model]
) -> dict[str, Any]:
    """Return the run.json entry of a step, except its outcome."""
    return {
        "depends_on": depends_on,
        "settings": settings.model_dump(mode="json", by_alias=True),
        "format": format.model_dump(mode="json"),
        "format_hash": format.hash,
        "models": {role: asdict(model.identity) for role, model in models.items()},
        "templates": {role: asdict(model.template.facts) for role, model in models.items()},
        "versions": versions(),
    }


def recorded_engine(entry: Mapping[str, Any]) -> str | None:
    """Return the engine in a step's run.json entry, None for an empty one; early versions had only transformers."""
    return str(entry["settings"].get("engine", "transformers")) if "settings" in entry else None


def example_prompt(run: RunFolder, prompt: Callable[[dict[str, Any]], str]) -> dict[str, str]:
    """Return a rendered prompt for a step's run.json entry; empty if it cannot be rendered.

    Args:
        run: the run.
        prompt: renders the prompt of a row of the questions table. It gets the shortest of the first part.
    """
    for part in run.parts("questions")[:1]:
        questions = run.read("questions", part).to_pylist()
        with suppress(ModelError):
            return {"example_prompt": prompt(min(questions, key=lambda row: len(row["question"] + row["solution"])))}
    return {}


def record_work(run: RunFolder, step: str, tokens: int, seconds: float) -> None:
    """Add tokens and seconds to those in a step's run.json entry, of which its speed is computed."""
    before = run.step(step).get("work", {"tokens": 0, "seconds": 0.0})
    work = {"tokens": before["tokens"] + tokens, "seconds": before["seconds"] + seconds}
    run.record(step, {"work": work})


def most_frequent_failure(run: RunFolder, step: str) -> tuple[str | None, int]:
    """Return the most frequent reason among a step's failures and its number of rows; numbers in reasons are ignored.

    ``the prompt has 900 tokens, the context is 512`` and the same text with 901 tokens count as one reason.
    """
    reasons = [str(entry["reason"]) for entry in failures(run) if entry["step"] == step]
    if not reasons:
        return None, 0
    patterns = [re.sub(r"\d+", "#", reason) for reason in reasons]
    [(pattern, rows)] = Counter(patterns).most_common(1)
    return dict(zip(patterns, reasons, strict=True))[pattern], rows


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that results depend on, and of the packages ``more``."""
    installed = {package: metadata.version(package) for package in (*_PACKAGES, *more)}
    return {"python": platform.python_version(), **installed}


def recorded_format(run: RunFolder, step: str) -> Format | None:
    """Return the format in a step's run.json entry; None if it has none."""
    content = run.step(step).get("format")
    return parse_settings(Format, content, where=str(run.path / "run.json")) if content else None
