"""Drawing tokens, each sample from a stream of random numbers of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

_BLOCK = 512


class Uniforms:
    """The uniform numbers in [0, 1) of one sample, one a token; a function of its seed alone (Philox 4x64)."""

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
    """Draw one token per row by inverting the distribution function at a uniform number.

    The function is built in two levels (sums over 512 tokens, then inside one block), so its rounding errors stay
    far below the probabilities that matter, and a row's token does not depend on the other rows.

    Args:
        logits: float32, shape (rows, vocabulary); overwritten.
        uniforms: one number in [0, 1) per row.
        temperature: 0 takes the likeliest token.
        top_p: probability mass to sample from.
        top_k: number of tokens to sample from, 0 for all.

    Returns:
        Tokens, and their log-probs over the whole vocabulary at ``temperature`` (at 1 if that is 0).
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
        block, rest = _invert(sums.cpu().double(), torch.tensor(uniforms, dtype=torch.float64))
        inside = weights.view(rows, blocks, _BLOCK)[torch.arange(rows), block.to(weights.device)].cpu().double()
        # The part of the block's mass that is below the number, as a share: what is inside sums a little differently.
        share = rest / sums.cpu().double().gather(1, block[:, None])[:, 0]
        within, _ = _invert(inside, share)
        tokens = (block * _BLOCK + within).to(logits.device)
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - log_total
    return tokens.tolist(), logprobs.float().tolist()


def _invert(weights: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find per row the first entry whose running sum exceeds a share of the whole, and what of the share is in it."""
    running = weights.cumsum(-1)
    whole = running[:, -1]
    goal = torch.minimum(shares * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    index = torch.searchsorted(running, goal[:, None], right=True)
    before = torch.where(index > 0, running.gather(1, (index - 1).clamp(min=0)), 0.0)
    return index[:, 0], goal - before[:, 0]


def _keep_likeliest(weights: torch.Tensor, top_p: float, top_k: int) -> None:
    """Set to zero what is outside the top k tokens or the top p of the mass; ties at the edge stay in."""
    ordered = weights.sort(-1, descending=True).values
    if top_k and top_k < ordered.shape[1]:
        edge = ordered[:, top_k - 1 : top_k]
        weights[weights < edge] = 0
        ordered[ordered < edge] = 0
    if top_p < 1:
        reached = ordered.cumsum(-1)
        count = (reached < top_p * reached[:, -1:]).sum(-1, keepdim=True)
        weights[weights < ordered.gather(1, count)] = 0
