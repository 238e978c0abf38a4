"""The whole way from one YAML file: every flag is a key of its command's section, and an unknown key is an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlt_data.errors import InputError, SettingsError
from rlt_data.progress import SILENT, Progress
from rlt_data.settings import PipelineSettings, Settings, parse_settings, parse_yaml
from rlt_data.steps.registry import DATA_STEPS

#: The steps that a pipeline may have, in their order.
PIPELINE_STEPS = [step for step in DATA_STEPS if step.name in PipelineSettings.model_fields]


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
    except TypeError:
        raise SettingsError(f"pipeline: takes a YAML file, not {type(path).__name__}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start + 1}") from None
    names = [step.name for step in PIPELINE_STEPS]
    if content is None:
        listed = f"{', '.join(['out', *names[:-1]])} and {names[-1]}"
        raise InputError(f"{path}: a pipeline is a YAML mapping with the keys {listed}")
    run = content.get("out")
    if not content.keys() & set(names) and content.keys() <= {"out"}:  # else a key is unknown, perhaps misspelt
        raise SettingsError(f"{path}: has no step; takes the sections {', '.join(names)}")
    for step in PIPELINE_STEPS:
        if step.name not in content:
            continue
        section = {} if content[step.name] is None else content[step.name]
        if isinstance(section, dict) and run is not None:
            defaults = {"in": run} if step.reads else {}
            if step.writes and "out" in step.settings.model_fields:
                defaults["out"] = run
            section = defaults | section
        content[step.name] = section
    return parse_settings(PipelineSettings, content, where=str(path))


def run_pipeline(settings: PipelineSettings, progress: Progress = SILENT) -> Iterator[tuple[str, Settings, Any]]:
    """Run the steps that a pipeline has, and yield each one's name, settings and summary.

    A step that is complete adds nothing and costs little, so a pipeline that was interrupted is run again.
    """
    for step in PIPELINE_STEPS:
        if section := getattr(settings, step.name):
            yield step.name, section, step.load()(section, progress)
