"""Count the floating-point operations that a text needs, and measure how fast this machine could do them.

Two operations per weight of the layers and token, two per weight of the LM head and scored token, and four per layer,
head, head dimension and pair of a token with a token that it sees. Pairs hidden by causality or by a window do not
count, and a prompt shared by several texts counts once. Everything else (norms, softmax, copies) counts as nothing, so
that the result is a lower bound.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

#: Rows of the measured products: a batch of this many tokens.
_ROWS = 2048
#: CPU seconds of one measurement.
_SECONDS = 1.0


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder with gated feed-forward layers.

    Attributes:
        windows: per layer, the number of last tokens that a token sees, itself included; None for all.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """Read the sizes from a configuration of Transformers.

        Raises:
            ValueError: the model has experts, of which a token uses only some.
        """
        if any("experts" in name for name in config.to_dict()):
            raise ValueError(f"{config.model_type}: operations of models with experts are not counted")
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=config.num_key_value_heads or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            feed_forward=config.intermediate_size,
            vocabulary=config.vocab_size,
            windows=tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds),
        )

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Sizes of one layer's weights: inputs and outputs."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        up = (self.hidden, self.feed_forward)
        return [(self.hidden, query), (self.hidden, key), (self.hidden, key), (query, self.hidden), up, up, up[::-1]]

    @property
    def layer_parameters(self) -> int:
        """Number of weights of all layers, without the LM head."""
        return len(self.windows) * sum(inputs * outputs for inputs, outputs in self.matrices)

    @property
    def head_parameters(self) -> int:
        """Number of weights of the LM head."""
        return self.hidden * self.vocabulary

    @property
    def cache_bytes(self) -> int:
        """Bytes of a token's keys and values in bfloat16."""
        return 2 * 2 * len(self.windows) * self.kv_heads * self.head_size

    def operations(self, tokens: int, first: int, scored: int) -> float:
        """Operations of a pass over positions ``first`` to ``tokens`` of a text, with the LM head at ``scored``."""
        pairs = sum(seen_pairs(first, tokens, window) for window in self.windows)
        layers = 2 * self.layer_parameters * (tokens - first)
        return float(layers + 2 * self.head_parameters * scored + 4 * self.heads * self.head_size * pairs)

    def scoring_operations(self, prompt: int, texts: Sequence[int]) -> float:
        """Operations of scoring all tokens of texts that continue one prompt, by their numbers of tokens.

        The last token of a text is scored, but nothing is scored after it, so it passes no layer.
        """
        shared = prompt - 1 if len(texts) > 1 else 0  # the prompt's last token already predicts a scored one
        once = self.operations(shared, 0, 0)
        return once + sum(self.operations(prompt + text - 1, shared, text) for text in texts)


def seen_pairs(first: int, end: int, window: int | None) -> int:
    """Return the number of tokens that the tokens ``first`` to ``end`` of a text see, themselves included."""
    seen = np.arange(first + 1, end + 1, dtype=np.int64)
    return int((seen if window is None else np.minimum(seen, window)).sum())


def matmul_rate(decoder: Decoder, dtype: torch.dtype) -> float:
    """Measure the operations per CPU second of matrix products in the sizes of a decoder's layers, on one thread."""
    products = [
        (torch.randn(_ROWS, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype))
        for inputs, outputs in decoder.matrices
    ]
    done, start, seconds = 0, time.process_time(), 0.0
    while seconds < _SECONDS:
        for rows, weight in products:
            torch.nn.functional.linear(rows, weight)
        done += 2 * _ROWS * sum(weight.numel() for _, weight in products)
        seconds = time.process_time() - start
    return done / seconds
