"""A KV cache that grows in place and whose rows several continuations can copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

#: Minimum number of tokens by which a full cache grows.
GROWTH = 256


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, each of shape (batch, heads, tokens, head size), in a buffer with spare capacity.

    The layer of Transformers copies everything for each new token.

    Args:
        window: number of tokens that a query of this layer sees, itself included; None for all. Tokens before the
            window are dropped. So all rows must end at the same column, with padding on the left.
        spare: number of zeros that :meth:`update` returns after the last token, for attention in blocks.
    """

    def __init__(self, window: int | None = None, spare: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window, self.spare = window, spare
        self.is_sliding = window is not None
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._tokens = 0
        self._dropped = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Set dtype and device; called by Transformers at the first update."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states of new tokens, and return those of all tokens that these see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[-2]
        first = self._first_seen
        end = self._tokens + new
        if self._buffers is None or end + self.spare - self._dropped > self._buffers[0].shape[-2]:
            self._move(first, end, (key_states, value_states))
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._tokens - self._dropped : end - self._dropped] = states
        self._tokens = end
        self.keys, self.values = self._states(first, end + self.spare)
        return self.keys, self.values

    @property
    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all tokens that the next token sees."""
        return self._states(self._first_seen, self._tokens)

    def get_seq_length(self) -> int:
        """Return the number of tokens, dropped ones included."""
        return self._tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of tokens that :meth:`update` will return for new tokens, and how many are before these."""
        return self._tokens + query_length - self._first_seen, self._first_seen

    def select(self, index: torch.Tensor, capacity: int) -> GrowingLayer:
        """Return a layer with copies of the given batch rows and capacity for more tokens."""
        if self._buffers is None:  # the layer uses the states of another one
            return GrowingLayer(self.window, self.spare)
        states = self.states
        count = states[0].shape[-2]
        layer = GrowingLayer(self.window, self.spare)
        layer.dtype, layer.device, layer.is_initialized = self.dtype, self.device, True
        layer._tokens, layer._dropped = self._tokens, self._tokens - count
        buffers = []
        for state in states:
            _, heads, _, size = state.shape
            copy = state.new_empty(len(index), heads, count + capacity + self.spare, size)
            copy[:, :, count:] = 0
            torch.index_select(state, 0, index, out=copy[:, :, :count])
            buffers.append(copy)
        layer._buffers = (buffers[0], buffers[1])
        layer.keys, layer.values = layer.states
        return layer

    @staticmethod
    def concatenate(layers: Sequence[GrowingLayer]) -> GrowingLayer:
        """Return one layer with the batch rows of all layers, which have the same number of tokens."""
        if layers[0]._buffers is None:
            return layers[0]
        result = GrowingLayer(layers[0].window, layers[0].spare)
        keys, values = zip(*(layer.states for layer in layers), strict=True)
        result._tokens = result._dropped = layers[0]._first_seen
        result.update(torch.cat(keys), torch.cat(values))
        return result

    @property
    def _first_seen(self) -> int:
        """Index of the first token that the next token sees."""
        return self._dropped if self.window is None else max(self._tokens - self.window + 1, self._dropped)

    def _states(self, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._buffers is not None
        part = slice(first - self._dropped, end - self._dropped)
        return self._buffers[0][:, :, part], self._buffers[1][:, :, part]

    def _move(self, first: int, end: int, like: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Move the states from token ``first`` on to new buffers with room for the tokens up to ``end``.

        Args:
            first: the first token that is still needed.
            end: end of the tokens that must have room.
            like: tensors of the shape and dtype of the buffers.
        """
        size = end - first
        capacity = (max(size, self._tokens - first + GROWTH) if self._tokens else size) + self.spare
        buffers = []
        for index, states in enumerate(like):
            batch, heads, _, width = states.shape
            buffer = states.new_zeros(batch, heads, capacity, width)
            if self._buffers is not None:
                buffer[:, :, : self._tokens - first] = self._states(first, self._tokens)[index]
            buffers.append(buffer)
        self._buffers, self._dropped = (buffers[0], buffers[1]), first


class GrowingCache(Cache):
    """A model's KV cache: one :class:`GrowingLayer` per layer."""

    layers: list[GrowingLayer]  # type: ignore[assignment]

    def __init__(self, layers: Sequence[GrowingLayer] | None = None) -> None:
        if layers is None:
            super().__init__(layer_class_to_replicate=GrowingLayer)
        else:
            super().__init__(layers=list(layers))

    @staticmethod
    def of(windows: Sequence[int | None], spare: int = 0) -> GrowingCache:
        """Return an empty cache for layers with these windows; see :class:`GrowingLayer`."""
        # A block of queries begins up to this number of tokens before the next token.
        return GrowingCache([GrowingLayer(window and window + spare, spare) for window in windows])

    def select(self, index: torch.Tensor, capacity: int) -> GrowingCache:
        """Return a cache with copies of the given batch rows, which may repeat, and capacity for more tokens."""
        return GrowingCache([layer.select(index, capacity) for layer in self.layers])

    @staticmethod
    def concatenate(caches: Sequence[GrowingCache]) -> GrowingCache:
        """Return one cache with the batch rows of all caches, which have the same number of tokens."""
        if len(caches) == 1:
            return caches[0]
        return GrowingCache(
            [GrowingLayer.concatenate(layers) for layers in zip(*(cache.layers for cache in caches), strict=True)]
        )
