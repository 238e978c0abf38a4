"""Sections about models: the check of the LM head, and loading."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.bench import Bench, Rows, Unexpected
from benchmarks.gpu.device import GIB, free, limited_memory, measured
from benchmarks.gpu.models import random_model, randomize
from rlt_data.engines import Checkpoint
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.errors import ModelError
from rlt_data.settings import ModelSettings

#: Memory for a model that needs more. Without a GPU, tokens of a forward pass of which loading needs more.
_TOO_FEW_GIB, _TOO_FEW_TOKENS = 1.0, 2
_SEEDS = 5


def head_check(bench: Bench) -> Rows:
    """Check the main model's LM head with five seeds, and measure the rounding that the check must tolerate.

    Raises:
        Unexpected: a model was refused.
    """
    refused = []
    causal, model = bench.engine.model, bench.model
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
    """Load the small model, and one that does not fit, which must give a ModelError of one line.

    Raises:
        Unexpected: the second model was loaded, or its error has several lines.
    """
    settings = ModelSettings(device=bench.device.type, dtype="bfloat16")
    checkpoint = _save(bench, "fits", None)
    size = sum(file.stat().st_size for file in checkpoint.folder.glob("*.safetensors")) / GIB
    with measured(bench.device) as usage:
        CausalModel.load(checkpoint, settings)
    yield {"model": "fits", "weights GiB": round(size, 2), "seconds": round(usage.seconds, 2)}
    if not bench.cuda:
        checkpoint = _save(bench, "does not fit", _TOO_FEW_TOKENS)
    message = None
    with limited_memory(bench.device, _TOO_FEW_GIB):
        try:
            CausalModel.load(checkpoint, settings)
        except ModelError as error:
            message = str(error)
    yield {"model": "does not fit", "weights GiB": round(size, 2), "ModelError": message}
    if message is None or "\n" in message:
        raise Unexpected(f"a model that does not fit gave {message!r} instead of an error of one line")


def _save(bench: Bench, name: str, pass_limit: int | None) -> Checkpoint:
    model = random_model(bench.scale, bench.device, layers=bench.scale.small_layers, pass_limit=pass_limit)
    model.save_pretrained(bench.folder / name)
    del model
    free(bench.device)
    return Checkpoint("random", bench.folder / name)
