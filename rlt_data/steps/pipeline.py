"""Run several steps from one YAML file.

Each section has the name of a step, and its keys are the step's flags. Relative paths in the file start at the current
folder, like those of flags.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlt_data.errors import InputError, SettingsError
from rlt_data.progress import SILENT, Progress
from rlt_data.settings import PipelineSettings, Settings, parse_settings, parse_yaml
from rlt_data.steps.conflicts import refuse_conflicts
from rlt_data.steps.registry import DATA_STEPS

#: Steps that a pipeline can have, in the order in which they run.
PIPELINE_STEPS = [step for step in DATA_STEPS if step.name in PipelineSettings.model_fields]


def load_pipeline(path: str | Path) -> PipelineSettings:
    """Read a pipeline file. In each section, ``in`` and ``out`` default to the pipeline's run folder.

    Raises:
        InputError: the file does not exist or is not YAML.
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
    if not content.keys() & set(names) and content.keys() <= {"out"}:  # other keys may be misspelt steps
        raise SettingsError(f"{path}: has no step; add one of the sections {', '.join(names)}")
    for step in PIPELINE_STEPS:
        if step.name not in content:
            continue
        section = {} if content[step.name] is None else content[step.name]
        if isinstance(section, dict):
            inputs = section.get("in")
            for name in inputs if isinstance(inputs, list) else [inputs]:
                _refuse_path_next_to_file(name, f"{step.name}.in", Path(path))
            if run is not None:
                defaults = {"in": run} if step.reads else {}
                if step.writes and "out" in step.settings.model_fields:
                    defaults["out"] = run
                section = defaults | section
        content[step.name] = section
    return parse_settings(PipelineSettings, content, where=str(path))


def _refuse_path_next_to_file(name: object, key: str, file: Path) -> None:
    """Refuse an input that exists only relative to the pipeline file, not relative to the current folder."""
    if isinstance(name, str) and name and not Path(name).exists() and (file.parent / name).exists():
        raise SettingsError(
            f"{file}: {key}: {name} is not in the current folder, but next to {file.name}; relative paths start at the "
            f"current folder, so write {file.parent / name}"
        )


def run_pipeline(settings: PipelineSettings, progress: Progress = SILENT) -> Iterator[tuple[str, Settings, Any]]:
    """Run the steps of a pipeline, and yield the name, settings and summary of each.

    To resume an interrupted pipeline, run it again. A complete step adds nothing and takes little time.

    Raises:
        SettingsError: two steps conflict; found before the first model is loaded.
        RltDataError: a step failed.
    """
    refuse_conflicts(settings)
    for step in PIPELINE_STEPS:
        if section := getattr(settings, step.name):
            yield step.name, section, step.run(section, progress)
