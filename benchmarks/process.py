"""Running a command in a process of its own, and what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Starts the command from a small process: right after a fork a child counts the memory of its parent as its own peak.
_MEASURE = """
import json, resource, subprocess, sys, time
began = time.monotonic()
code = subprocess.call(sys.argv[2:], stdout=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
scale = 2**20 if sys.platform == "darwin" else 2**10
with open(sys.argv[1], "w") as file:
    took = {"seconds": time.monotonic() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    json.dump({"code": code, **took, "megabytes": usage.ru_maxrss / scale}, file)
"""


@dataclass(frozen=True)
class Measured:
    """What a process took, start included: seconds by the clock and of all cores, and most resident memory in MiB."""

    seconds: float
    cpu_seconds: float
    megabytes: float


def measure(command: Sequence[str], folder: Path, threads: int | None = None) -> Measured:
    """Run a command to its end and measure it.

    Args:
        command: program and arguments; its errors are shown, what else it prints is not.
        folder: where a small file may be written.
        threads: threads of its numerical libraries.

    Raises:
        RuntimeError: it failed.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    file = folder / "measured.json"
    subprocess.run([sys.executable, "-c", _MEASURE, str(file), *command], env=environment, check=True)
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["code"]:
        raise RuntimeError(f"{' '.join(command)}: exit code {found['code']}")
    return Measured(found["seconds"], found["cpu_seconds"], found["megabytes"])
