"""Draw tokens; each sample has a separate stream of random numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

_BLOCK = 512


class Uniforms:
    """Uniform numbers in [0, 1), one per token of a sample; they depend only on the sample's seed (Philox 4x64)."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=seed))
        self._numbers: Iterator[float] = iter(())

    def __next__(self) -> float:
        for number in self._numbers:
            return float(number)
        self._numbers = iter(self._generator.random(256).tolist())
        return float(next(self._numbers))


@torch.inference_mode()
def draw(
    logits: torch.Tensor, uniforms: list[float], temperature: float, top_p: float, top_k: int
) -> tuple[list[int], list[float]]:
    """Draw one token per row by inverting the cumulative distribution function at a uniform number.

    The function is summed in two levels, over blocks of 512 tokens and inside one block. So rounding errors stay far
    below the probabilities that matter, and a row's token does not depend on the other rows.

    Args:
        logits: float32, shape (rows, vocabulary); overwritten.
        uniforms: one number in [0, 1) per row.
        temperature: sampling temperature; 0 takes the likeliest token.
        top_p: probability mass to sample from.
        top_k: number of likeliest tokens to sample from; 0 for all.

    Returns:
        One token per row, and its log-prob over the complete vocabulary at ``temperature`` (at 1 if that is 0).
    """
    rows, vocabulary = logits.shape
    if temperature > 0:
        logits.div_(temperature)
    peak = logits.amax(-1, keepdim=True)
    blocks = -(-vocabulary // _BLOCK)
    weights = logits.new_zeros(rows, blocks * _BLOCK)
    torch.exp(logits.sub_(peak), out=weights[:, :vocabulary])
    sums = weights.view(rows, blocks, _BLOCK).sum(-1)
    log_total = sums.double().sum(-1).log() if logits.device.type != "mps" else sums.sum(-1).log()
    if temperature == 0:
        tokens = weights.argmax(-1)
    else:
        if top_k or top_p < 1:
            _keep_likeliest(weights, top_p, top_k)
            sums = weights.view(rows, blocks, _BLOCK).sum(-1)
        block, remainder = _invert(sums.cpu().double(), torch.tensor(uniforms, dtype=torch.float64))
        block_weights = weights.view(rows, blocks, _BLOCK)[torch.arange(rows), block.to(weights.device)].cpu().double()
        # A share of the block's mass, because the weights inside add up to a slightly different sum.
        share = remainder / sums.cpu().double().gather(1, block[:, None])[:, 0]
        index, _ = _invert(block_weights, share)
        tokens = (block * _BLOCK + index).to(logits.device)
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - log_total
    return tokens.tolist(), logprobs.float().tolist()


def _invert(weights: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Invert the cumulative sum of each row's weights at a share of their total.

    Returns:
        Per row, the first index whose cumulative sum exceeds the share, and how far the share reaches into its weight.
    """
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    target = torch.minimum(shares * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, target[:, None], right=True)
    before = torch.where(index > 0, cumulative.gather(1, (index - 1).clamp(min=0)), 0.0)
    return index[:, 0], target - before[:, 0]


def _keep_likeliest(weights: torch.Tensor, top_p: float, top_k: int) -> None:
    """Set the weights of tokens outside top-k or top-p to zero; tokens that tie with the last one stay."""
    ordered = weights.sort(-1, descending=True).values
    if top_k and top_k < ordered.shape[1]:
        threshold = ordered[:, top_k - 1 : top_k]
        weights[weights < threshold] = 0
        ordered[ordered < threshold] = 0
    if top_p < 1:
        cumulative = ordered.cumsum(-1)
        count = (cumulative < top_p * cumulative[:, -1:]).sum(-1, keepdim=True)
        weights[weights < ordered.gather(1, count)] = 0
