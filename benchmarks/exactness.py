"""Cost and benefit of exact float32 on a CPU: time with and without it, and how log-probs depend on the batch.

    python -m benchmarks.exactness [--shapes A B] [--contexts 250 4000] [--samples 16] [--steps 32] [--rounds 3]

Two sides with their own processes take turns, on one thread: our engine as it runs in float32 on a CPU (exact), and the
same scorer and generator on an unmodified model (plain). First each side scores texts of various lengths in batches of
several sizes and one by one; the benchmark reports the largest difference of a token's log-prob from the largest batch.
Then they score the texts of benchmarks/scoring.py and decode after contexts of several lengths; the benchmark
reports medians of CPU seconds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.generation import decode
from benchmarks.report import print_table, print_values, save, save_markdown
from benchmarks.shapes import SHAPES, document_ids, shape
from benchmarks.worker import Answer, Worker, in_turn

SIDES = {"exact": "ours.Ours", "plain": "ours.Plain"}
BATCH_TOKENS = (4096, 512, 128)
#: Texts of the comparison of batches: tokens of their prompt, number, and tokens of the shortest.
PROMPT, TEXTS, SHORTEST = 120, 12, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--shapes", type=shape, nargs="+", default=[SHAPES["A"], SHAPES["B"]])
    parser.add_argument("--contexts", type=int, nargs="+", default=[250, 4000], help="tokens before decoding")
    parser.add_argument("--samples", type=int, default=16, help="samples that are decoded together")
    parser.add_argument("--steps", type=int, default=32, help="steps of decoding")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    workers = {name: Worker(side, arguments.model, "float32") for name, side in SIDES.items()}
    ids = document_ids(arguments.model, max(*arguments.contexts, *(of.tokens for of in arguments.shapes), 4096))
    moved = [{"side": side, **differences(worker, ids)} for side, worker in workers.items()]
    rows = []
    for of in arguments.shapes:
        score = {side: partial(worker.call, "score", of.group(ids)) for side, worker in workers.items()}
        rows.append(_row(f"a trace of {of}", of.traces, score, arguments.rounds))
    for context in arguments.contexts:
        decoding = {
            side: partial(decode, partial(worker.call, "generate"), ids[:context], arguments.samples, arguments.steps)
            for side, worker in workers.items()
        }
        what = f"a step of {arguments.samples} samples after {context:,} tokens"
        rows.append(_row(what, arguments.steps, decoding, arguments.rounds))
    for worker in workers.values():
        worker.close()
    print_table(rows)
    print_table(moved)
    settings = vars(arguments) | {"shapes": list(map(str, arguments.shapes))}
    save("exactness", {"settings": settings, "rows": rows, "largest differences of a log-prob": moved})
    save_markdown("exactness", rows, moved)


def _row(what: str, count: int, calls: dict[str, Callable[[], Answer]], rounds: int) -> dict[str, Any]:
    answers = in_turn(calls, rounds)
    seconds = {
        side: statistics.median(answer.cpu_seconds for answer in given) / count for side, given in answers.items()
    }
    row = {"CPU seconds for": what, **seconds, "exact / plain": seconds["exact"] / seconds["plain"]}
    print_values(row)
    return row


def differences(worker: Worker, ids: list[int]) -> dict[str, float]:
    """Return the largest difference of a log-prob from the largest batch, for smaller batches and single texts."""
    starts = [PROMPT + index * (SHORTEST + 3 * TEXTS) for index in range(TEXTS)]
    texts = [[ids[:PROMPT], ids[start : start + SHORTEST + 3 * index]] for index, start in enumerate(starts)]
    first, *others = (worker.call("score", texts, tokens).result for tokens in BATCH_TOKENS)
    scored = {f"{tokens} tokens a batch": other for tokens, other in zip(BATCH_TOKENS[1:], others, strict=True)}
    scored["one by one"] = [worker.call("score", [text], 1).result[0] for text in texts]
    return {
        name: max(float(np.abs(np.subtract(*pair)).max()) for pair in zip(first, other, strict=True))
        for name, other in scored.items()
    }


if __name__ == "__main__":
    main()
