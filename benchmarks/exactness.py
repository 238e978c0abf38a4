"""Cost and benefit of exact float32 on a CPU: speed with and without it, and how log-probs depend on the batch.

    python -m benchmarks.exactness [--model gemma-3-270m] [--questions 2] [--traces 8] [--max-tokens 32]

Exact mode computes attention in float64 and pads small matrix products (rlt_data/engines/transformers/exact.py). Two
engines that differ only in this mode take turns: both sample explanations of real questions, and score the samples of
the exact engine, cut to various lengths. Then the same texts are scored in batches of several sizes and one by one. The
benchmark reports the largest difference of a token's log-prob from that in the largest batch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.report import print_table, save
from rlt_data.engines import Model, PromptRequest, Sample, SampleRequest, Sampling, SequenceRequest, open_model
from rlt_data.engines.protocol import Floats, SequenceLogprobs
from rlt_data.engines.transformers import TransformersEngine
from rlt_data.engines.transformers import model as engine_model
from rlt_data.engines.transformers.scoring import Scorer
from rlt_data.formats import Problem, Views, encode, load_format
from rlt_data.settings import ModelSettings

QUESTIONS = Path(__file__).parent.parent / "recipes" / "demo" / "questions.jsonl"
BATCH_TOKENS = (4096, 512, 128)
TEMPERATURE = 0.7

Groups = list[list[SequenceRequest]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--traces", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    settings = ModelSettings(device="cpu", dtype="float32")
    opened = open_model(arguments.model, settings)
    engines = {"exact": _engine(opened), "plain": _plain_engine(open_model(arguments.model, settings))}
    prompts = _prompts(opened, arguments.questions, arguments.traces)
    sampling = Sampling(TEMPERATURE, 1.0, 0, arguments.max_tokens, "<|end_of_explanation|>")
    samples = {engine: list(engines[engine].generate([prompts], sampling)) for engine in engines}  # warm-up
    groups = _texts(prompts, [sample for sample in samples["exact"] if isinstance(sample, Sample)])

    def score(engine: TransformersEngine) -> int:
        return len(list(engine.logprobs([groups], TEMPERATURE)))

    def generate(engine: TransformersEngine) -> int:
        samples = engine.generate([prompts], sampling)
        return sum(len(sample.token_ids) for sample in samples if isinstance(sample, Sample))

    work: dict[str, Callable[[TransformersEngine], int]] = {
        "scoring, traces/s": score,
        "generation, tokens/s": generate,
    }
    speeds = {what: dict.fromkeys(engines, 0.0) for what in work}
    for _ in range(arguments.rounds):  # in turn, so that slow moments affect both
        for what, run in work.items():
            for name, engine in engines.items():
                start_time = time.perf_counter()
                count = run(engine)
                speeds[what][name] = max(speeds[what][name], count / (time.perf_counter() - start_time))
    rows = [{"what": what, **speed, "exact / plain": speed["exact"] / speed["plain"]} for what, speed in speeds.items()]
    print_table(rows)
    moved = [{"engine": name, **_differences(engine, groups)} for name, engine in engines.items()]
    print_table([{name: value if name == "engine" else f"{value:.1e}" for name, value in row.items()} for row in moved])
    save("exactness", {"settings": vars(arguments), "rows": rows, "largest differences of a log-prob": moved})


def _engine(model: Model) -> TransformersEngine:
    engine = model.engine
    assert isinstance(engine, TransformersEngine)
    return engine


def _plain_engine(model: Model) -> TransformersEngine:
    """Load a model without exact.py."""
    with mock.patch.multiple(engine_model, make_exact=lambda _: None, linear=torch.nn.functional.linear):
        return _engine(model)


def _prompts(model: Model, questions: int, traces: int) -> list[PromptRequest]:
    views = Views(load_format("rlt"), model.template)
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[:questions]]
    encodings = encode(
        model.tokenizer, [views.teacher_prompt(Problem(row["question"], row["solution"])) for row in rows]
    )
    return [
        PromptRequest(encoding.ids, [SampleRequest(f"{row}/{i}", row * traces + i) for i in range(traces)])
        for row, encoding in enumerate(encodings)
    ]


def _texts(prompts: list[PromptRequest], samples: list[Sample]) -> Groups:
    """Return prompts with samples cut to various lengths, grouped by prompt."""
    by_key = {sample.key: sample.token_ids for sample in samples}
    groups = []
    for prompt in prompts:
        start = len(prompt.ids)
        group = []
        for number, sample in enumerate(prompt.samples):
            ids = np.concatenate([prompt.ids, by_key[sample.key][number:]])
            group.append(SequenceRequest(sample.key, ids, np.arange(start, len(ids), dtype=np.int32)))
        groups.append(group)
    return groups


def _differences(engine: TransformersEngine, groups: Groups) -> dict[str, float]:
    """Return the largest difference from the first batch size, for each other size and for single texts."""
    first, *others = (_logprobs(engine, groups, tokens) for tokens in BATCH_TOKENS)
    logprobs = {f"{tokens} tokens a batch": other for tokens, other in zip(BATCH_TOKENS[1:], others, strict=True)}
    logprobs["one by one"] = _logprobs(engine, [[request] for group in groups for request in group], 1)
    return {
        name: max(float(np.abs(values - first[key]).max(initial=0)) for key, values in other.items())
        for name, other in logprobs.items()
    }


def _logprobs(engine: TransformersEngine, groups: Groups, batch_tokens: int) -> dict[str, Floats]:
    results = Scorer(engine.model, batch_tokens).logprobs(groups, TEMPERATURE)
    return {result.key: result.logprobs for result in results if isinstance(result, SequenceLogprobs)}


if __name__ == "__main__":
    main()
