"""What run.json says about how a step was made, and names and formats that follow from it."""

from __future__ import annotations

import logging
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlt_data.formats import ChatTemplate, Format, load_format, own_format
from rlt_data.settings import Settings, parse_settings
from rlt_data.storage.paths import Place, disk_errors
from rlt_data.storage.run import Run

if TYPE_CHECKING:  # at run time this module must not cost an import of torch
    from rlt_data.engines import Checkpoint, Model

logger = logging.getLogger("rlt_data")

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

    run: Place
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


def outcome(run: Run, step: str, summary: StepSummary) -> dict[str, Any]:
    """Return what run.json keeps of what a step did; its work adds up over starts that came to their end."""
    before = run.step(step).get("work", {"tokens": 0, "seconds": 0.0})
    work = {"tokens": before["tokens"] + summary.tokens, "seconds": before["seconds"] + summary.seconds}
    return {"rows": summary.rows, "failed": summary.failed, "work": work if summary.new else before}


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on, and of more packages."""
    found = {package: metadata.version(package) for package in (*_PACKAGES, *more)}
    return {"python": platform.python_version(), **found}


def choose_format(name: str, checkpoint: Checkpoint, template: ChatTemplate) -> Format:
    """Load the format of a step; ``auto`` takes the model's own, else goes by whether it has a chat template."""
    if name == "auto" and (own := own_format(checkpoint.folder)):
        logger.info("%s comes with a format of its own, %s", checkpoint.name, own.name)
        return own
    chosen = name
    if name == "auto":
        chosen = "rlt-shots" if template.source == "plain" else "rlt"
    if template.source == "plain":
        logger.info(
            "%s has no chat template; rlt-data's plain one is used, with the format %s", checkpoint.name, chosen
        )
    elif template.merges_system:
        logger.info("%s takes no system text; it goes to the head of the question", checkpoint.name)
    return load_format(chosen)


def recorded_format(run: Run, step: str) -> Format | None:
    """Return the format that run.json keeps for a step."""
    content = run.step(step).get("format")
    return parse_settings(Format, content, where=str(run.path / "run.json")) if content else None


def default_run(input: str, model: str) -> Path:
    """Name a run folder after its input and its model."""
    stem = Path(input).name.split(".")[0] or "input"
    parts = [re.sub(r"[^\w.-]+", "-", part).strip("-") for part in (stem, Path(model).name.removesuffix(".gguf"))]
    return Path("runs") / "-".join(parts)


@contextmanager
def run_log(run: Run) -> Iterator[None]:
    """Write what the library logs into the run's run.log, with the time; into that of a store at the end."""
    with run.folder.appending("run.log") as file:
        with disk_errors(run.path):
            handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()
