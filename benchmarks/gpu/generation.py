"""Sections about generation: Transformers alone, the engine, and the batch sizes that it chooses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import TEMPERATURE, Bench, Rows, Unexpected, each_pass
from benchmarks.gpu.device import measured
from benchmarks.gpu.models import Prompts
from rlt_data.engines import PromptRequest, Sample, Sampling

_BLOCKS = 3


def plain_generation(bench: Bench) -> Rows:
    """Generate with model.generate, all samples in one batch."""
    prompts, model = bench.scale.generated, bench.model
    requests = prompts.make(bench.config.vocab_size)
    ids = torch.from_numpy(np.stack([request.ids for request in requests]).astype(np.int64)).to(bench.device)

    def generate(new_tokens: int) -> int:
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_return_sequences=prompts.samples,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        return int(output[:, ids.shape[1] :].numel())

    generate(2)
    with measured(bench.device) as usage:
        tokens = generate(prompts.new_tokens)
    bench.plain_rates[str(prompts)] = tokens / usage.seconds
    yield {
        "samples": str(prompts),
        "side": "model.generate",
        "tokens/s": round(tokens / usage.seconds),
        "ms per step": round(1000 * usage.seconds / prompts.new_tokens, 1),
        "peak GiB": usage.peak_gib,
    }


def generation(bench: Bench) -> Rows:
    """Generate with the engine, which computes each prompt once and returns log-probs."""
    prompts = bench.scale.generated
    vocabulary = bench.config.vocab_size
    list(bench.engine.generate([prompts.make(vocabulary)], sampling(2)))
    with measured(bench.device) as usage:
        results = list(bench.engine.generate([prompts.make(vocabulary)], sampling(prompts.new_tokens)))
    tokens = sum(result.completion_tokens for result in results if isinstance(result, Sample))
    rate, plain = tokens / usage.seconds, bench.plain_rates.get(str(prompts))
    yield {
        "samples": str(prompts),
        "side": "engine",
        "tokens/s": round(rate),
        "ms per step": round(1000 * usage.seconds / prompts.new_tokens, 1),
        "peak GiB": usage.peak_gib,
        "x plain": round(rate / plain, 2) if plain else None,
    }
    _check_all_sampled(prompts, results)


def batch_sizes(bench: Bench) -> Rows:
    """Generate blocks of prompts that fill the memory; the batches of all blocks must have the same sizes.

    Raises:
        Unexpected: the sizes differ, or a sample is missing.
    """
    prompts, sizes = bench.scale.large, []
    requests = [prompts.make(bench.config.vocab_size, seed) for seed in range(_BLOCKS)]

    def blocks() -> Iterator[list[PromptRequest]]:
        for block in requests:
            sizes.append([])
            yield block

    previous_tokens = 0

    def note_batch(ids: torch.Tensor) -> None:
        """Note the rows of the first pass over single tokens after a pass over prompts."""
        nonlocal previous_tokens
        rows, tokens = ids.shape
        if tokens == 1 and previous_tokens > 1:
            sizes[-1].append(rows)
        previous_tokens = tokens

    engine = bench.engine
    with each_pass(note_batch), measured(bench.device) as usage:
        results = list(engine.generate(blocks(), sampling(prompts.new_tokens)))
    for number, block_sizes in enumerate(sizes, 1):
        yield {"block": number, "samples": str(prompts), "batch sizes": ", ".join(map(str, block_sizes))}
    yield {
        "block": "all",
        "seconds": round(usage.seconds, 1),
        "peak GiB": usage.peak_gib,
        "out of memory": usage.out_of_memory,
    }
    if len({tuple(block_sizes) for block_sizes in sizes}) != 1:
        raise Unexpected("the batch sizes differ between blocks of the same shape")
    _check_all_sampled(prompts, results, _BLOCKS)


def sampling(new_tokens: int) -> Sampling:
    """Return sampling parameters with a stop text that no sample contains."""
    return Sampling(TEMPERATURE, 1.0, 0, new_tokens, "</explanation>")


def _check_all_sampled(prompts: Prompts, results: list[Any], blocks: int = 1) -> None:
    expected, samples = blocks * prompts.prompts * prompts.samples, [at for at in results if isinstance(at, Sample)]
    if len(samples) != expected:
        raise Unexpected(f"{expected - len(samples)} of {expected} samples are missing")
