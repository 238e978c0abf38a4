"""The built-in signals by name, in the order of their computation. A new one costs one module and one line here."""

from __future__ import annotations

from rlt_data.signals import pass_rate, review
from rlt_data.signals.base import Signal

SIGNALS: dict[str, Signal] = {signal.name: signal for signal in (pass_rate.SIGNAL, review.SIGNAL)}

#: What each column of the built-in signals says.
MEANINGS = {name: column.meaning for signal in SIGNALS.values() for name, column in signal.columns.items()}
