"""Count the floating-point operations that a score needs."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu.models import Groups


def scoring_operations(config: Any, groups: Groups, *, shared: bool) -> float:
    """Return the operations of scoring texts: two per multiplied weight, four per head dimension and seen pair.

    Only pairs of a token and one that it sees count, so masks and windows reduce the number. The LM head counts at
    scored positions only.

    Args:
        config: configuration of a model with gated feed-forward layers.
        groups: texts whose prompt ends before the first scored token.
        shared: compute the prompt of a group once, up to the token before its last.
    """
    total = 0.0
    for group in groups:
        prompt = int(group[0].positions[0]) - 1 if shared else 0
        total += _operations(config, 0, prompt, 0)
        for request in group:
            total += _operations(config, prompt, int(request.positions[-1]), len(request.positions))
    return total


def _operations(config: Any, first: int, end: int, scored: int) -> float:
    """Return the operations for the tokens ``first`` to ``end`` of a text, with the LM head at some of them."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    weights = config.num_hidden_layers * config.hidden_size * (heads * head_size + 3 * config.intermediate_size)
    pairs = sum(
        seen_pairs(first, end, config.sliding_window if kind == "sliding_attention" else None)
        for kind in config.layer_types
    )
    attention = 4 * config.num_attention_heads * head_size * pairs
    return 2 * weights * (end - first) + attention + 2 * config.hidden_size * config.vocab_size * scored


def seen_pairs(first: int, end: int, window: int | None) -> int:
    """Return the number of tokens that the tokens ``first`` to ``end`` of a text see, themselves included."""
    seen = np.arange(first, end) + 1
    return int((seen if window is None else np.minimum(seen, window)).sum())
