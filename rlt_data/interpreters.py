"""Start Python interpreters that work for this process and talk to it through a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO


def start_interpreter(
    module: str, output: IO[bytes] | int, environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start an interpreter and return it with this process's end of the pipe.

    Ctrl-C does not reach it, and ``killpg`` ends it with all its children.

    Args:
        module: the interpreter calls its function ``main``, which finds the pipe's file descriptor in ``sys.argv[1]``.
        output: file for stdout and stderr, as for :class:`subprocess.Popen`.
        environment: variables to set.
    """
    connection, end = Pipe()
    # PYTHONSAFEPATH keeps Python from finding modules of the working directory first.
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        # With -m, the classes that it pickles would belong to __main__.
        [sys.executable, "-c", f"from {module} import main; main()", str(end.fileno())],
        env={**os.environ, **own, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=[end.fileno()],
        start_new_session=True,
    )
    end.close()
    return process, connection
