"""Runs and files as the input of a step: score and curate take a run, or import the traces of files into one."""

from __future__ import annotations

from pathlib import Path

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.formats import Format, load_format
from rlt_data.settings import CurateSettings, InputSettings, Settings
from rlt_data.settings.base import flag_of, is_url, name_of_input
from rlt_data.signals.frames import trace_format
from rlt_data.steps.makers import differing_explanations, refuse_import
from rlt_data.storage.run import RunFolder


def source_run(input: str | tuple[str, ...]) -> RunFolder | None:
    """Return the run that an input names, or None if it names files.

    Raises:
        SettingsError: it names a run and other inputs.
        RunFolderError: the run cannot be opened.
    """
    names = [input] if isinstance(input, str) else input
    runs = [name for name in names if is_url(name) or RunFolder.exists_at(name)]
    if runs and len(names) > 1:
        raise SettingsError(f"--in: {runs[0]} is a run, which is read alone; combine runs with rlt-data merge")
    return RunFolder.existing(runs[0]) if runs else None


def refuse_input_flags(settings: Settings, *others: str) -> None:
    """Refuse flags that say how files are read, because the input is a run.

    Args:
        settings: settings of the step.
        others: further settings that only files have.

    Raises:
        SettingsError: such a flag is given.
    """
    names = InputSettings.model_fields.keys() - {"input"}
    if unread := settings.not_default(*names, *others):
        flags = ", ".join(map(flag_of, sorted(unread)))
        raise SettingsError(f"{flags}: no effect with a run, whose traces are all read")


def run_for_files(settings: CurateSettings) -> RunFolder:
    """Return the run into which files are imported without a model.

    Raises:
        SettingsError: none is named.
        RunFolderError: it has generated traces, or the input is neither a run nor a file.
    """
    if settings.out is None:
        name = name_of_input(settings.input)
        if isinstance(settings.input, str) and not Path(settings.input).exists():
            raise RunFolderError(f"{name}: no such run or file")
        raise SettingsError(f"--out: requires the run folder into which the traces of {name} are imported")
    run = RunFolder(settings.out)
    refuse_import(run)
    return run


def format_for_files(run: RunFolder, name: str) -> Format:
    """Return the format in which the traces of files are stored; ``auto``: that of the run's traces, else rlt.

    Raises:
        SettingsError: it is unknown, or the run has traces with other tags or padding.
    """
    existing = trace_format(run)
    if name == "auto":
        return existing or load_format("rlt")
    format = load_format(name)
    if existing and (difference := differing_explanations(existing, format)):
        raise SettingsError(
            f"--format: {format.name!r} and the format of the traces in {run.path}, {existing.name!r}, have different "
            f"{difference}; omit --format, or choose another --out"
        )
    return format
