"""Work for processes of a recipe; this module imports little, as each of them imports it again."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from rlt_data.errors import SettingsError

if TYPE_CHECKING:
    from rlt_data.recipes.experiment import Experiment


def process_of_step(settings: Any) -> dict[str, int]:
    """A step that returns its process."""
    return {"process": os.getpid()}


def process_of_call(experiment: Experiment, number: int) -> tuple[int, int]:
    """Return the number of a call and its process; the first call ends last, and nine is refused."""
    time.sleep(0.2 * (number == 0))
    if number == 9:
        raise SettingsError("nine is too many")
    return number, os.getpid()
