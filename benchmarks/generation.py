"""Tokens per CPU second of generation: our step and engine, ``model.generate`` and vLLM.

    python -m benchmarks.generation [--questions 2] [--samples 8] [--tokens 64] [--context 4000] [--steps 16]

All sides continue the same prompts at temperature 0.7 by the same number of tokens, on one thread, and ignore the
end-of-text token:

- step: the complete ``generate`` step, which reads and checks the questions and writes the traces; without loading
- ours: the transformers engine alone
- against: the same with the rlt_data of another checkout
- transformers: ``model.generate`` of the unmodified model
- vllm: ``LLM.generate``, with log-probs, which rlt-data always returns, and without

With a prompt of --context tokens, the benchmark measures the steps of decoding alone: the difference between samples of
one token and of --steps more, divided by --steps. Each side has its own process. They take turns, and the benchmark
reports medians.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.report import print_table, print_values, save, save_markdown
from benchmarks.shapes import document_ids
from benchmarks.sides import add_options, chosen, peer_packages, settings_of, start
from benchmarks.worker import Answer, Worker, in_turn

SIDES = ("ours", "against", "transformers", "vllm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, SIDES)
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8, help="samples per question")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per sample")
    parser.add_argument("--context", type=int, default=4000, help="tokens of the long prompt")
    parser.add_argument("--steps", type=int, default=16, help="steps of decoding after the long prompt")
    arguments = parser.parse_args()

    sides = chosen(arguments)
    rows = []
    for dtype in arguments.dtypes:
        workers = start(sides, arguments, dtype, use="generate")
        rows += short_context(workers, dtype, arguments)
        rows += long_context(workers, dtype, arguments)
        for worker in workers.values():
            worker.close()
    print_table(rows)
    save("generation", {"settings": settings_of(arguments, sides), "rows": rows}, *peer_packages())
    save_markdown("generation", rows)


def short_context(workers: dict[str, Worker], dtype: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Continue the prompts of questions; return one row per side."""
    prompts = workers["ours"].call("prompts", arguments.questions).result
    calls: dict[str, Callable[[], Answer]] = {}
    for side, call in generators(workers).items():
        if side == "ours":
            calls["step"] = partial(
                workers["ours"].call, "step", arguments.questions, arguments.samples, arguments.tokens
            )
        calls[side] = partial(call, prompts, arguments.samples, arguments.tokens)
        call(prompts[:1], 2, 2)  # warm-up
    longest = max(map(len, prompts))
    what = f"{len(prompts)} prompts of up to {longest} tokens × {arguments.samples} samples of {arguments.tokens}"
    return _rows(what, dtype, calls, arguments.rounds)


def long_context(workers: dict[str, Worker], dtype: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Decode after a long prompt; return one row per side."""
    prompt = document_ids(arguments.model, arguments.context)
    samples = arguments.questions * arguments.samples
    calls: dict[str, Callable[[], Answer]] = {
        side: partial(decode, call, prompt, samples, arguments.steps) for side, call in generators(workers).items()
    }
    what = f"steps of {samples} samples after {arguments.context:,} tokens"
    return _rows(what, dtype, calls, arguments.rounds)


def decode(generate: Callable[..., Answer], prompt: list[int], samples: int, steps: int) -> Answer:
    """Measure steps of decoding: the difference between samples of one token and of ``steps`` more."""
    one, more = (generate([prompt], samples, tokens) for tokens in (1, 1 + steps))
    megabytes = max(one.megabytes, more.megabytes)
    return Answer(more.result - one.result, more.cpu_seconds - one.cpu_seconds, megabytes)


def generators(workers: dict[str, Worker]) -> dict[str, Callable[..., Answer]]:
    """Return a function per side that takes prompts, samples per prompt and tokens per sample."""
    calls: dict[str, Callable[..., Answer]] = {}
    for side, worker in workers.items():
        if side == "vllm":
            calls["vllm"] = lambda *arguments, worker=worker: worker.call("generate", *arguments, False)
            calls["vllm, log-probs"] = lambda *arguments, worker=worker: worker.call("generate", *arguments, True)
        else:
            calls[side] = partial(worker.call, "generate")
    return calls


def _rows(what: str, dtype: str, calls: dict[str, Callable[[], Answer]], rounds: int) -> list[dict[str, Any]]:
    failed: dict[str, str] = {}
    answers = in_turn(calls, rounds, failed)
    for side, reason in failed.items():
        print(f"{what}, {dtype}, {side}: not measured: {reason}", flush=True)
    speeds = {
        side: statistics.median(answer.result / answer.cpu_seconds for answer in given)
        for side, given in answers.items()
        if side not in failed
    }
    rows = []
    for side, speed in speeds.items():
        row = {
            "what": what,
            "dtype": dtype,
            "side": side,
            "tokens": answers[side][0].result,
            "tokens per CPU second": speed,
            "ours / it": speeds["ours"] / speed if "ours" in speeds else None,
            "peak MB": max(answer.megabytes for answer in answers[side]),
        }
        rows.append(row)
        print_values(row)
    return rows


if __name__ == "__main__":
    main()
