"""Find the signals that a call of ``curate`` names, or the default ones."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rlt_data.errors import SettingsError, did_you_mean
from rlt_data.plugins import SIGNALS as PLUGINS
from rlt_data.settings import CurateSettings
from rlt_data.settings.base import flag_of
from rlt_data.signals.base import Signal
from rlt_data.signals.own import expressions_of, signal_of_function, signal_of_yaml
from rlt_data.signals.registry import NEEDS, SIGNALS
from rlt_data.storage.run import RunFolder


def choose_signals(run: RunFolder, settings: CurateSettings) -> tuple[list[Signal], dict[str, str]]:
    """Return the signals to compute, and why default ones are left out, by name.

    Raises:
        SettingsError: there is no such signal, two have one name, or a setting is missing or has no effect.
    """
    check_signals(settings)
    names = settings.signals or default_signals(settings)
    left_out = [name for name in NEEDS if name not in names and name not in run.signals and not settings.signals]
    skipped = {name: f"needs --{NEEDS[name]}" for name in left_out}
    signals = {name: _find(run, name) for name in dict.fromkeys(names)}
    spellings: dict[str, str] = {}
    for spelling, signal in signals.items():
        if (other := spellings.setdefault(signal.name, spelling)) != spelling:
            raise SettingsError(f"--signals: {other} and {spelling} are both called {signal.name}; rename one")
    return list(signals.values()), skipped


def check_signals(settings: CurateSettings) -> None:
    """Check the names of signals and whether their settings are there, without a run.

    Raises:
        SettingsError: there is no such signal, or a setting is missing or has no effect.
    """
    names = settings.signals or default_signals(settings)
    for name, option in NEEDS.items():
        if name in names and not getattr(settings, option):
            raise SettingsError(f"--signals: {name} needs --{option}")
        if name not in names and getattr(settings, option):
            raise SettingsError(f"--{option}: has no effect without --signals {name}")
    used = {option for name in names if name in SIGNALS for option in SIGNALS[name].depends_on}
    for name, signal in SIGNALS.items():
        if unused := [option for option in settings.not_default(*signal.depends_on) if option not in used]:
            raise SettingsError(f"{flag_of(unused[0])}: has no effect without --signals {name}")
    for name in names:
        if name not in SIGNALS and not is_yaml(name):
            _check_function(name)


def default_signals(settings: CurateSettings) -> list[str]:
    """Return the built-in signals that are computed without ``signals``."""
    return [name for name in SIGNALS if name not in NEEDS or getattr(settings, NEEDS[name])]


def declared_columns(name: str) -> dict[str, pl.DataType | None] | None:
    """Return the columns of a signal with their types, as far as they are known without computing anything.

    Returns:
        The types by column, None for those of a YAML file; None for a function, which declares no columns.

    Raises:
        InputError: the YAML file cannot be read, or does not map names to texts.
    """
    if name in SIGNALS:
        return {column: declared.type() for column, declared in SIGNALS[name].columns.items()}
    return dict.fromkeys(expressions_of(Path(name))) if is_yaml(name) else None


def _find(run: RunFolder, name: str) -> Signal:
    if name in SIGNALS:
        return SIGNALS[name]
    return signal_of_yaml(run, Path(name)) if is_yaml(name) else signal_of_function(run, name)


def is_yaml(name: str) -> bool:
    """Return whether a signal is named by a file of expressions."""
    return Path(name).suffix in (".yaml", ".yml")


def _check_function(name: str) -> None:
    try:
        PLUGINS.check(name)
    except ValueError:
        known = [*SIGNALS, *PLUGINS.names()]
        proposal = did_you_mean(name, known) or f"; takes {', '.join(known)}, module:function or a YAML file"
        raise SettingsError(f"--signals: no signal {name!r}{proposal}") from None
    PLUGINS.load(name)
