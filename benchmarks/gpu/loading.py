"""Sections about models: the check of the LM head, and loading."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.bench import Bench, Row, Rows, Unexpected
from benchmarks.gpu.device import GIB, limited_memory, measured
from benchmarks.gpu.models import randomize
from rlt_data.engines import Checkpoint
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.errors import ModelError

#: Memory for a model that needs more. Without a GPU, tokens of a forward pass of which loading needs more.
_TOO_FEW_GIB, _TOO_FEW_TOKENS = 1.0, 2
_SEEDS = 5


def head_check(bench: Bench) -> Rows:
    """Check the main model's LM head with five seeds, and measure the rounding that the check must tolerate.

    Raises:
        Unexpected: a model was refused.
    """
    refused = []
    model = bench.model
    causal = CausalModel(model, "random", exact=False)
    try:
        for seed in range(_SEEDS):
            randomize(model, seed)
            later, blocks = _rounding(model)
            try:
                causal._check()
                verdict = "accepted"
            except ModelError as error:
                verdict = str(error)
                refused.append(seed)
            yield {"seed": seed, "with later tokens": later, "head in blocks": blocks, "check": verdict}
    finally:
        randomize(model, 0)  # the weights of the other sections
    if refused:
        raise Unexpected(f"the head check refused a model that is supported, with seed {refused[0]}")


@torch.inference_mode()
def _rounding(model: Any) -> tuple[float, float]:
    """Return the largest differences of a log-prob over the vocabulary.

    Returns:
        The difference at four tokens when four more tokens follow, and the difference at eight tokens when the head is
        computed in blocks of the vocabulary.
    """
    ids = torch.arange(1, 9, device=model.device)[None]
    logprobs = model(input_ids=ids).logits[0].float().log_softmax(-1)
    first_half = model(input_ids=ids[:, :4]).logits[0].float().log_softmax(-1)
    hidden = model.base_model(input_ids=ids).last_hidden_state[0]
    weight = model.get_output_embeddings().weight
    weights = weight.split(len(weight) // 10)
    in_blocks = torch.cat([torch.nn.functional.linear(hidden, block) for block in weights], -1).float().log_softmax(-1)
    later, blocks = (logprobs[:4] - first_half).abs().max(), (logprobs - in_blocks).abs().max()
    return round(float(later), 4), round(float(blocks), 4)


def loading(bench: Bench) -> Rows:
    """Load the main model, and one that does not fit, which must give a ModelError of one line.

    Raises:
        Unexpected: the second model was loaded, or its error has several lines.
    """
    yield {"model": "main", "weights GiB": _weights_gib(bench.checkpoint)} | _load(bench)
    checkpoint, message = bench.small_checkpoint(_TOO_FEW_TOKENS), None
    with limited_memory(bench.device, _TOO_FEW_GIB):
        try:
            bench.load(checkpoint)
        except ModelError as error:
            message = str(error)
    yield {"model": "does not fit", "weights GiB": _weights_gib(checkpoint), "ModelError": message}
    if message is None or "\n" in message:
        raise Unexpected(f"a model that does not fit gave {message!r} instead of an error of one line")


def _load(bench: Bench) -> Row:
    with measured(bench.device) as usage:
        _ = bench.engine
    return {"seconds": round(usage.seconds, 2), "peak GiB": usage.peak_gib}


def _weights_gib(checkpoint: Checkpoint) -> float:
    return round(sum(file.stat().st_size for file in checkpoint.folder.glob("*.safetensors")) / GIB, 2)
