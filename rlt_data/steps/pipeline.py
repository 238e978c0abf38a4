"""The whole way from one YAML file: every flag is a key of its command's section, and an unknown key is an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlt_data.errors import InputError, SettingsError
from rlt_data.progress import SILENT, Progress
from rlt_data.settings import PipelineSettings, Settings, parse_settings, parse_yaml

_STEPS = ("generate", "score", "rank", "distill")


def load_pipeline(path: str | Path) -> PipelineSettings:
    """Read a pipeline; sections get the run folder as their ``in`` and ``out`` where they name none.

    Raises:
        InputError: the file is not there, or not YAML.
        SettingsError: a key is unknown, missing or wrong.
    """
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start + 1}") from None
    if content is None:
        raise InputError(f"{path}: a pipeline is a YAML mapping with the keys out, generate, score, rank and distill")
    run = content.get("out")
    if not content.keys() & set(_STEPS) and content.keys() <= {"out"}:  # else a key is unknown, perhaps misspelt
        raise SettingsError(f"{path}: has no step; takes the sections {', '.join(_STEPS)}")
    for name in _STEPS:
        if name not in content:
            continue
        section = {} if content[name] is None else content[name]
        if isinstance(section, dict) and run is not None:
            defaults = {"in": run} if name != "generate" else {}
            defaults |= {"out": run} if name in ("generate", "score") else {}
            section = defaults | section
        content[name] = section
    return parse_settings(PipelineSettings, content, where=str(path))


def run_pipeline(settings: PipelineSettings, progress: Progress = SILENT) -> Iterator[tuple[str, Settings, Any]]:
    """Run the steps that a pipeline has, and yield each one's name, settings and summary.

    A step that is complete adds nothing and costs little, so a pipeline that was interrupted is run again.
    """
    if settings.generate:
        from rlt_data.steps.generate import generate

        yield "generate", settings.generate, generate(settings.generate, progress)
    if settings.score:
        from rlt_data.steps.score import score

        yield "score", settings.score, score(settings.score, progress)
    if settings.rank:
        from rlt_data.steps.rank import rank

        yield "rank", settings.rank, rank(settings.rank, progress)
    if settings.distill:
        from rlt_data.steps.distill import distill

        yield "distill", settings.distill, distill(settings.distill, progress)
