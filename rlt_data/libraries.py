"""How other libraries behave when this one uses them: silent, unless the command line lets them speak."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_bars_shown = False


def prepare_libraries() -> None:
    """Set what libraries read when they are imported; what the environment says already stays."""
    # Threads of libgomp that spin while they wait make a model ten times slower as soon as another program wants a
    # core; a short spin costs nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # What goes wrong with a data set is raised as well as logged.
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl")
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm in a notebook; its bars are not shown


def show_bars() -> None:
    """Let libraries show their progress bars from now on."""
    global _bars_shown
    _bars_shown = True


@contextmanager
def quiet_bars(*, data: bool = False) -> Iterator[None]:
    """Hide the progress bars of transformers and the Hub's client, unless :func:`show_bars` was called.

    The environment would not do: a program may have imported these libraries before, and wants its own bars.

    Args:
        data: also hide those of datasets.
    """
    if _bars_shown:
        yield
        return
    from transformers.utils import logging

    with contextlib.ExitStack() as restored:
        if logging.is_progress_bar_enabled():
            logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            restored.callback(logging.enable_progress_bar)
        if data:
            import datasets

            if datasets.is_progress_bar_enabled():
                datasets.disable_progress_bars()
                restored.callback(datasets.enable_progress_bars)
        yield
