"""What exact float32 on a CPU costs and gives: speed with and without it, and how much numbers move with the batch.

    python -m benchmarks.exactness [--model gemma-3-270m] [--questions 2] [--traces 8] [--max-tokens 32]

With it, attention is computed in float64 and small matrix products are filled up (rlt_data/engines/transformers/
exact.py). The same work is done by two engines that differ in nothing else, in turns. The difference is the largest one
between a token's log-prob scored alone and scored in batches of several sizes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from benchmarks.report import print_table, save
from rlt_data.engines import Sampling
from rlt_data.engines.transformers import TransformersEngine

PROMPT, EXPLANATION = 300, 100
BATCH_TOKENS = (512, 1024, 2048, 4096)
TEMPERATURE = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--traces", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    engines = {"exact": _engine(arguments.model, exact=True), "plain": _engine(arguments.model, exact=False)}
    groups = _groups(engines["exact"], arguments.questions, arguments.traces)
    prompts = _prompts(groups)
    sampling = Sampling(TEMPERATURE, 1.0, 0, arguments.max_tokens, "<|never|>")
    tokens = 0

    def score(engine: TransformersEngine) -> float:
        return float(len(list(engine.logprobs(groups, TEMPERATURE))))

    def generate(engine: TransformersEngine) -> float:
        return float(sum(len(sample.token_ids) for sample in engine.generate([prompts], sampling)))  # type: ignore[union-attr]

    work: dict[str, Callable[[TransformersEngine], float]] = {
        "scoring, traces/s": score,
        "generation, tokens/s": generate,
    }
    speeds = {(what, name): 0.0 for what in work for name in engines}
    for _ in range(arguments.rounds):  # in turn, so that a slow moment of the machine meets both
        for what, run in work.items():
            for name, engine in engines.items():
                began = time.perf_counter()
                count = run(engine)
                speeds[what, name] = max(speeds[what, name], count / (time.perf_counter() - began))
    rows = [
        {
            "what": what,
            "exact": speeds[what, "exact"],
            "plain": speeds[what, "plain"],
            "exact / plain": speeds[what, "exact"] / speeds[what, "plain"],
        }
        for what in work
    ]
    print_table(rows)
    moved = {name: _largest_difference(engine, groups) for name, engine in engines.items()}
    differences = [
        {"engine": name, "largest difference of a log-prob": f"{value:.2e}"} for name, value in moved.items()
    ]
    print_table(differences)
    save("exactness", {"settings": vars(arguments), "rows": rows, "largest difference": moved})
