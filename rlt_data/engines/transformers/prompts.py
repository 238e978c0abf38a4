"""Run the model once over prompts, and keep their keys and values for all continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlt_data.engines.protocol import Floats, Ints
from rlt_data.engines.transformers.cache import GrowingCache
from rlt_data.engines.transformers.model import CausalModel


@dataclass
class Prompts:
    """Computed prompts, padded on the left to one length.

    Attributes:
        cache: keys and values, one batch row per prompt.
        mask: 0 at padding, shape (prompts, longest prompt), int64.
        lengths: number of tokens of each prompt, shape (prompts,).
        last: the last layer's output at each prompt's last token, shape (prompts, hidden size).
        tails: per prompt, the log-probs of its last tokens, shape (tail,).
    """

    cache: GrowingCache
    mask: torch.Tensor
    lengths: torch.Tensor
    last: torch.Tensor
    tails: list[Floats]


def compute_prompts(
    model: CausalModel,
    prompts: Sequence[Ints],
    batch_tokens: int,
    *,
    tails: Sequence[int] | None = None,
    temperature: float = 1.0,
) -> Prompts:
    """Run the model over prompts, a few at a time.

    Args:
        model: the model.
        prompts: token ids, each of shape (tokens,), at least one token.
        batch_tokens: maximum number of tokens per forward pass, padding included.
        tails: per prompt, the number of last tokens whose log-probs are returned; None for none.
        temperature: temperature of these log-probs.
    """
    device = model.device
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    caches, last, tail_logprobs = [], [], []
    step = max(1, batch_tokens // longest)
    for start in range(0, len(prompts), step):
        rows = slice(start, start + step)
        cache = model.new_cache()
        hidden = model.hidden(ids[rows], mask[rows], positions[rows], cache)
        caches.append(cache)
        last.append(hidden[:, -1].clone())  # a view would keep all outputs
        counts = list(tails[rows]) if tails else [0] * len(hidden)
        before = [row[longest - tail - 1 : longest - 1] for row, tail in zip(hidden, counts, strict=True)]
        targets = [row[longest - tail :] for row, tail in zip(ids[rows], counts, strict=True)]
        logprobs = model.token_logprobs(torch.cat(before), torch.cat(targets), temperature)
        tail_logprobs += [values.numpy() for values in torch.split(logprobs.cpu(), counts)]
    return Prompts(GrowingCache.concatenate(caches), mask, mask.sum(-1), torch.cat(last), tail_logprobs)
