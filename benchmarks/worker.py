"""A side of a comparison in its own process, so that its CPU seconds and its peak memory are its own.

Sides are classes of benchmarks/ours.py and benchmarks/peers.py. They stay loaded, and the benchmark calls them in turn,
so that slow moments of the machine affect all. Every side computes on one thread. Linux only.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
#: Memory that a side leaves to the rest of the machine, in bytes.
_SPARE = 2**30


class SideError(Exception):
    """A side failed; the message says how in one line."""


@dataclass(frozen=True)
class Answer:
    """The result of a call, the CPU seconds that it took, and the peak resident memory during it, in MiB."""

    result: Any
    cpu_seconds: float
    megabytes: float


class Worker:
    """Starts a side and calls its methods.

    Args:
        side: module and class, such as ``peers.Script``.
        arguments: arguments of the class.
        checkout: the checkout whose ``rlt_data`` the side imports.

    Raises:
        SideError: the side cannot start.
    """

    def __init__(self, side: str, *arguments: str, checkout: Path = ROOT) -> None:
        self._log = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "benchmarks.worker", str(checkout.absolute()), side, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=self._log, text=True
        )
        try:
            self._answer()
        except SideError:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Answer:
        """Call a method of the side; arguments and result are JSON.

        Raises:
            SideError: the call failed, for example for lack of memory.
        """
        assert self._process.stdin
        with suppress(BrokenPipeError):  # reading the answer says why
            print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def _answer(self) -> Answer:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            if code == -signal.SIGKILL:
                raise SideError("killed, probably for lack of memory")
            self._log.seek(0)
            last = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise SideError(f"ended with exit code {code}: {' '.join(last)}")
        answer = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"])
        return Answer(**answer)


def in_turn(
    sides: dict[str, Callable[[], Answer]], rounds: int, failed: dict[str, str] | None = None
) -> dict[str, list[Answer]]:
    """Call each side once per round, in turn, and return the answers.

    A side that fails is not called again; ``failed`` gets its message, and without it the error is raised.
    """
    answers: dict[str, list[Answer]] = {side: [] for side in sides}
    left = dict(sides)
    for _ in range(rounds):
        for side, call in list(left.items()):
            try:
                answers[side].append(call())
            except SideError as error:
                if failed is None:
                    raise
                failed[side] = str(error)
                del left[side]
    return answers


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process with all threads and of all its children, ended ones included."""
    process = psutil.Process()
    times = process.cpu_times()
    children = [child.cpu_times() for child in process.children(recursive=True)]
    ended = times.children_user + times.children_system
    return time.process_time() + ended + sum(sum(child[:4]) for child in children)


def _peak_megabytes() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def _limit_memory() -> None:
    """Let allocations beyond the free memory fail, so that the kernel does not end this or another process."""
    import resource

    limit = psutil.Process().memory_info().data + psutil.virtual_memory().available - _SPARE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _measured(work: Callable[[], Any]) -> dict[str, Any]:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    _limit_memory()
    start = _cpu_seconds()
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - libraries raise anything; the benchmark reports it
        text = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {text}"[:300]}
    return {"result": result, "cpu_seconds": _cpu_seconds() - start, "megabytes": _peak_megabytes()}


def _serve(checkout: str, name: str, arguments: Iterable[str]) -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    sys.path.insert(0, checkout)
    side: Any = None

    def start() -> None:
        nonlocal side
        module, side_class = name.split(".")
        side = getattr(import_module(f"benchmarks.{module}"), side_class)(*arguments)

    print(json.dumps(_measured(start)), file=channel, flush=True)
    for line in sys.stdin:
        method, values = json.loads(line)
        print(json.dumps(_measured(lambda: getattr(side, method)(*values))), file=channel, flush=True)  # noqa: B023


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], sys.argv[3:])
