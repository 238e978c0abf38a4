"""Completion servers and fault proxies as processes, for tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Process:
    """A server on loopback; the module prints its port."""

    def __init__(self, module: str, *arguments: object) -> None:
        self.command = [sys.executable, "-m", f"tests.engines.{module}", *map(str, arguments)]
        self.port = 0
        self._start()

    def _start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)

    @property
    def at(self) -> str:
        """The address, once the process listens."""
        if not self.port:
            assert self._process.stdout
            self.port = int(self._process.stdout.readline())
        return f"http://127.0.0.1:{self.port}"

    def url(self, kind: str = "vllm", model: str = "chat") -> str:
        """A base URL."""
        return f"{self.at}/{model}/{kind}/v1"

    def seen(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.at}/seen") as answer:
            return dict(json.load(answer))

    def turns(self, *turns: str) -> None:
        """Replace the turns of a fault proxy."""
        request = urllib.request.Request(f"{self.at}/turns", json.dumps(turns).encode())
        urllib.request.urlopen(request).close()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def restart(self) -> None:
        """Start again on the same port, after a kill."""
        self.command += ["--port", str(self.port)]
        self._start()
        assert self._process.stdout and int(self._process.stdout.readline()) == self.port


@contextmanager
def running(module: str, *arguments: object) -> Iterator[Process]:
    """Run a server for the duration of the block, which does not wait for its start."""
    process = Process(module, *arguments)
    try:
        yield process
    finally:
        process.kill()


def unused_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)
