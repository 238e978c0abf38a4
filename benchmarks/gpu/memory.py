"""Sections about too little memory: batches are split until everything is done that fits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu.bench import TEMPERATURE, Bench, Rows, Unexpected, each_pass
from benchmarks.gpu.device import allocated_gib, limited_memory, measured
from benchmarks.gpu.generation import sampling
from rlt_data.engines import Failure, PromptRequest, SampleRequest
from rlt_data.engines.transformers import TransformersEngine

#: Memory beyond that of one small request. Without a GPU, tokens of a forward pass, of which one such request needs
#: fewer.
_SPARE_GIB, _PASS_LIMIT = 1.0, 150
_NEW_TOKENS = 4


def memory_of_scoring(bench: Bench) -> Rows:
    """Score many texts and a giant one with little memory: only the giant one may fail.

    Raises:
        Unexpected: the giant text was scored, or another one failed.
    """
    groups = [*_crowd(bench), *_giant(bench)]

    def run(engine: TransformersEngine, groups: Sequence[Any]) -> list[Any]:
        return list(engine.logprobs([groups], TEMPERATURE))

    yield from _only_the_last_fails(bench, run, groups, groups[-1][0].key)


def memory_of_generation(bench: Bench) -> Rows:
    """Generate from many prompts and a giant one with little memory: only the giant one may fail.

    Raises:
        Unexpected: the giant prompt has a sample, or another one has none.
    """
    prompts = [
        PromptRequest(group[0].ids, [SampleRequest(group[0].key, seed)])
        for seed, group in enumerate([*_crowd(bench), *_giant(bench)])
    ]

    def run(engine: TransformersEngine, prompts: Sequence[Any]) -> list[Any]:
        return list(engine.generate([prompts], sampling(_NEW_TOKENS)))

    yield from _only_the_last_fails(bench, run, prompts, prompts[-1].samples[0].key)


def _crowd(bench: Bench) -> list[Any]:
    return bench.scale.crowd.make(bench.config.vocab_size)


def _giant(bench: Bench) -> list[Any]:
    return bench.scale.giant.make(bench.config.vocab_size)


def _only_the_last_fails(
    bench: Bench, run: Callable[[TransformersEngine, Sequence[Any]], list[Any]], requests: Sequence[Any], giant: str
) -> Rows:
    """Run requests with memory for one small request and a bit more.

    Args:
        bench: the run.
        run: runs requests with an engine.
        requests: small requests, and a giant one at the end.
        giant: key of the giant one.
    """
    engine = bench.load(bench.small_checkpoint(_PASS_LIMIT), batch_tokens=bench.scale.batch_tokens)
    with measured(bench.device) as one:
        before = allocated_gib(bench.device)
        run(engine, requests[:1])
    spare = _SPARE_GIB if one.peak_gib is None or before is None else _SPARE_GIB + one.peak_gib - before
    held = _Held()
    with each_pass(held), limited_memory(bench.device, spare), measured(bench.device) as usage:
        results = run(engine, requests)
    failures = [result for result in results if isinstance(result, Failure)]
    yield {
        "requests": len(requests),
        "spare memory": f"{spare:.2f} GiB" if bench.cuda else f"{_PASS_LIMIT} tokens per pass",
        "passes": held.passes,
        "out of memory": usage.out_of_memory,
        "passes held at a later one": held.most,
        "failures": "; ".join(failure.reason for failure in failures),
    }
    if [failure.key for failure in failures] != [giant] or len(results) != len(requests):
        done = len(results) - len(failures)
        raise Unexpected(f"{done} of {len(requests)} requests succeeded; all but the giant one should")


class _Held:
    """Counts forward passes, and earlier ones whose input still exists and thus keeps memory.

    Attributes:
        passes: number of passes.
        most: the largest number of earlier passes that existed when a pass began.
    """

    def __init__(self) -> None:
        self.passes = self.most = 0
        self._inputs: list[weakref.ref[torch.Tensor]] = []

    def __call__(self, ids: torch.Tensor) -> None:
        self._inputs = [reference for reference in self._inputs if reference() is not None]
        self.most = max(self.most, len(self._inputs))
        self.passes += 1
        self._inputs.append(weakref.ref(ids))
