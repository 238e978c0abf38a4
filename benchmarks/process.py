"""Measure time and memory of a command in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Starts the command from a small process, because a forked child starts with its parent's peak memory.
_MEASURE = """
import json, resource, subprocess, sys, time
start_time = time.monotonic()
code = subprocess.call(sys.argv[2:], stdout=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
scale = 2**20 if sys.platform == "darwin" else 2**10
with open(sys.argv[1], "w") as file:
    took = {"seconds": time.monotonic() - start_time, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    json.dump({"code": code, **took, "megabytes": usage.ru_maxrss / scale}, file)
"""


@dataclass(frozen=True)
class Measured:
    """Wall-clock seconds and CPU seconds of a process, start included, and its peak resident memory in MiB."""

    seconds: float
    cpu_seconds: float
    megabytes: float


def measure(command: Sequence[str], folder: Path, threads: int | None = None) -> Measured:
    """Run a command and measure it.

    Args:
        command: program and arguments; only its stderr is shown.
        folder: folder for a temporary file.
        threads: number of threads for numerical libraries.

    Raises:
        RuntimeError: the command failed.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    file = folder / "measured.json"
    subprocess.run([sys.executable, "-c", _MEASURE, str(file), *command], env=environment, check=True)
    measured = json.loads(file.read_text(encoding="utf-8"))
    if measured["code"]:
        raise RuntimeError(f"{' '.join(command)}: exit code {measured['code']}")
    return Measured(measured["seconds"], measured["cpu_seconds"], measured["megabytes"])
