"""The command line."""

from __future__ import annotations

import os
import signal
from types import FrameType


def start() -> None:
    """Run the command line; the console script."""
    # Nothing is open while modules are imported, so Ctrl-C may end the process immediately.
    before = signal.signal(signal.SIGINT, _exit_now)
    from rlt_data.cli.main import main

    signal.signal(signal.SIGINT, before)
    main()


def _exit_now(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)
