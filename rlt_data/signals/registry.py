"""The built-in signals by name, in the order of their computation. A new one costs one module and one line here."""

from __future__ import annotations

from rlt_data.signals import answer, contamination, duplicates, leak, pass_rate, review, text
from rlt_data.signals.base import Signal

_MODULES = (text, leak, answer, duplicates, contamination, pass_rate, review)
SIGNALS: dict[str, Signal] = {module.SIGNAL.name: module.SIGNAL for module in _MODULES}

#: What each column of the built-in signals says.
MEANINGS = {name: column.meaning for signal in SIGNALS.values() for name, column in signal.columns.items()}

#: Signals that need a setting. The others are computed by default.
NEEDS = {"contamination": "against", "pass_rate": "evaluation", "review": "reviews"}


def command_of(signal: str) -> str:
    """Return the command that computes a signal of a run, which may be the user's."""
    if signal in NEEDS:
        return f"rlt-data curate RUN --{NEEDS[signal]} ..."
    return "rlt-data curate RUN" if signal in SIGNALS else f"rlt-data curate RUN --signals, with the file of {signal}"
