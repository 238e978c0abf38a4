"""Settings and conventions of other libraries. They are quiet, unless the command line shows their progress bars."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_bars_shown = False
_HUB_CACHE = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")


def prepare_libraries() -> None:
    """Set the environment variables that libraries read on import; variables that are already set stay."""
    # While libgomp's threads spin, a model is ten times slower as soon as another program uses a core. A short spin
    # costs nothing on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Errors of data sets are raised as well as logged.
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl")
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm in a notebook; its bars are not shown
    # On some CPUs it warns, when PEFT imports it, that an optional kernel is missing.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def show_bars() -> None:
    """Let other libraries show their progress bars from now on."""
    global _bars_shown
    _bars_shown = True


def hub_id(path: str) -> str | None:
    """Return the Hub id of a model, given its path in the Hub's cache; None for other paths."""
    match = _HUB_CACHE.search(path)
    return f"{match[1]}/{match[2]}" if match else None


@contextmanager
def quiet_bars(*, data: bool = False) -> Iterator[None]:
    """Hide the progress bars of transformers and the Hub's client, unless :func:`show_bars` was called.

    Environment variables are not enough: a program may have imported these libraries before, and may show their bars.

    Args:
        data: whether to hide the bars of datasets too.
    """
    if _bars_shown:
        yield
        return
    from transformers.utils import logging as transformers_logging

    with contextlib.ExitStack() as cleanup:
        if transformers_logging.is_progress_bar_enabled():
            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            cleanup.callback(transformers_logging.enable_progress_bar)
        if data:
            import datasets

            if datasets.is_progress_bar_enabled():
                datasets.disable_progress_bars()
                cleanup.callback(datasets.enable_progress_bars)
        yield


@contextmanager
def paused_gc() -> Iterator[None]:
    """Pause the garbage collector while a library creates many objects that stay.

    It would look through all of them again and again: a third of the time of loading a tokenizer with 500,000 merges.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def freed_memory() -> Iterator[None]:
    """Give GPU memory that is no longer used back to the driver afterwards, so that other processes can use it.

    Models and trainers are often in reference cycles, so the garbage collector runs first.
    """
    try:
        yield
    finally:
        import torch

        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            gc.collect()
            torch.cuda.empty_cache()
