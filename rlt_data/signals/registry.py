"""The built-in signals by name, in the order of their computation. A new one costs one module and one line here."""

from __future__ import annotations

from rlt_data.signals import answer, contamination, duplicates, leak, pass_rate, review, text
from rlt_data.signals.base import Signal

_MODULES = (text, leak, answer, duplicates, contamination, pass_rate, review)
SIGNALS: dict[str, Signal] = {module.SIGNAL.name: module.SIGNAL for module in _MODULES}

#: What each column of the built-in signals says.
MEANINGS = {name: column.meaning for signal in SIGNALS.values() for name, column in signal.columns.items()}
