"""The default path of a run folder, and the log of a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlt_data.storage.paths import disk_errors
from rlt_data.storage.run import RunFolder


def default_run_path(input: str, model: str) -> Path:
    """Return the default path of a run folder, which is named after the input and the model."""
    stem = Path(input).name.split(".")[0] or "input"
    parts = [re.sub(r"[^\w.-]+", "-", part).strip("-") for part in (stem, Path(model).name.removesuffix(".gguf"))]
    return Path("runs") / "-".join(parts)


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
