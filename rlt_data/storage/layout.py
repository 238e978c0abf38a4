"""The default path of a run folder, and the log of a run."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt_data.storage.paths import disk_errors
from rlt_data.storage.run import RunFolder


def default_run_path(input: str | tuple[str, ...], model: str, share: str | None = None) -> Path:
    """Return the default path of a run folder, which is named after the input, the model and the share.

    A pattern such as ``data/*.jsonl`` has the name of its folder, and several inputs have that of the first with the
    number of the others.
    """
    first, *others = [input] if isinstance(input, str) else input
    stem = _plain(Path(first).name.split(".")[0] or "input")
    if not stem and glob.has_magic(first):
        stem = _plain(Path(first).parent.name) or "input"
    parts = [stem, *([f"and-{len(others)}-more"] if others else []), _plain(Path(model).name.removesuffix(".gguf"))]
    if share:
        parts += ["share", *share.split("/")]
    return Path("runs") / "-".join(parts)


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


@contextmanager
def run_log(run: RunFolder) -> Iterator[None]:
    """Write the log messages of the library to run.log. In an object store, the file is written at the end."""
    with run.folder.append_to("run.log") as file:
        with disk_errors(run.path):
            handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("rlt_data")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()
