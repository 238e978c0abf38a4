"""What run.json says about how a step was made."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rlt_data.formats import Format
from rlt_data.settings import Settings, parse_settings
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.run import RunFolder

if TYPE_CHECKING:  # at run time this module must not cost an import of torch
    from rlt_data.engines import Model

_PACKAGES = ("rlt-data", "torch", "transformers", "tokenizers", "polars", "pyarrow", "numpy")


@dataclass(frozen=True)
class StepSummary:
    """What a step did.

    Attributes:
        run: the run folder.
        rows: rows that its table has now.
        new: rows made this time.
        failed: rows in errors.jsonl.
        tokens: tokens generated or scored this time.
        seconds: time spent on them, models loaded.
    """

    run: StoragePath
    rows: int
    new: int
    failed: int
    tokens: int
    seconds: float


def step_entry(settings: Settings, format: Format, models: dict[str, Model]) -> dict[str, Any]:
    """Return what run.json keeps of a step beside what its rows depend on."""
    return {
        "settings": settings.model_dump(mode="json", by_alias=True),
        "format": format.model_dump(mode="json"),
        "format_hash": format.hash,
        "models": {role: asdict(model.identity) for role, model in models.items()},
        "versions": versions(),
    }


def outcome(run: RunFolder, step: str, summary: StepSummary) -> dict[str, Any]:
    """Return what run.json keeps of what a step did; its work adds up over starts that came to their end."""
    before = run.step(step).get("work", {"tokens": 0, "seconds": 0.0})
    work = {"tokens": before["tokens"] + summary.tokens, "seconds": before["seconds"] + summary.seconds}
    return {"rows": summary.rows, "failed": summary.failed, "work": work if summary.new else before}


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on, and of more packages."""
    found = {package: metadata.version(package) for package in (*_PACKAGES, *more)}
    return {"python": platform.python_version(), **found}


def recorded_format(run: RunFolder, step: str) -> Format | None:
    """Return the format that run.json keeps for a step."""
    content = run.step(step).get("format")
    return parse_settings(Format, content, where=str(run.path / "run.json")) if content else None
