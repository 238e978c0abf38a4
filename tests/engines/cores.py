"""An engine core without a model, that dies, hangs or refuses if the key of a text says so."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from rlt_data.engines.protocol import Failure, SequenceLogprobs, SequenceRequest
from rlt_data.engines.worker import Job, Result
from rlt_data.errors import ModelError


class TroubledCore:
    """Answers each text with its process id, once per scored token."""

    context_length = 100
    window = 8

    def __init__(self) -> None:
        self._jobs: list[tuple[int, SequenceRequest]] = []

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def add(self, number: int, job: Job) -> None:
        assert isinstance(job.request, SequenceRequest)
        if job.request.key.startswith("refuse"):
            raise ValueError("this one\nwill not do")
        self._jobs.append((number, job.request))

    def step(self) -> list[tuple[int, Result]]:
        """Finish the oldest job; a deadly job kills the process as soon as it arrives."""
        time.sleep(0.01)
        for _, request in self._jobs:
            kind, _, path = request.key.partition(":")
            if kind == "die" or (kind == "die-once" and not Path(path).exists()):
                Path(path).touch()
                print("the last words", flush=True)
                os._exit(1)
            if kind == "hang":
                time.sleep(1000)
        number, request = self._jobs.pop(0)
        if request.key == "fail":
            return [(number, Failure(request.key, "no"))]
        return [(number, SequenceLogprobs(request.key, np.full(len(request.positions), os.getpid(), np.float32)))]


def too_large(*_: object) -> TroubledCore:
    """Fail like vLLM when the KV cache of one text does not fit into a GPU."""
    print(
        "(EngineCore pid=7) ValueError: To serve at least one request with the model's max seq len (131072), 16.0 GiB "
        "KV cache is needed, which is larger than the available KV cache memory (5.2 GiB).",
        file=sys.stderr,
    )
    raise ModelError("model: vLLM cannot run it: Engine core initialization failed. See root cause above.")


def troubled(trouble: str = "") -> TroubledCore:
    """Return a core, or fail."""
    if trouble == "refuse":
        raise ModelError("model: cannot be run")
    if trouble == "refuse after words":
        print("INFO loading\n\nValueError: the cause", file=sys.stderr)
        raise ModelError("model: cannot be run")
    if trouble == "refuse after many words":
        print(
            "INFO loading\nRuntimeError: the cause\nRuntimeError: what follows", *range(20), sep="\n", file=sys.stderr
        )
        raise ModelError("model: cannot be run")
    if trouble == "die":
        print("no such thing as this model", file=sys.stderr)
        os._exit(3)
    if trouble == "hang":
        time.sleep(1000)
    return TroubledCore()
