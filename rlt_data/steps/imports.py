"""Runs and files as the input of a step: score and curate take a run, or import the traces of files into one."""

from __future__ import annotations

from rlt_data.errors import SettingsError
from rlt_data.settings import InputSettings, Settings
from rlt_data.settings.base import flag_of, is_url
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
        raise SettingsError(f"{', '.join(map(flag_of, sorted(unread)))}: no effect with a run, whose traces are all read")
