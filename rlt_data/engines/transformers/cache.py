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

    The layer of Transformers copies everything for each new token. This one also keeps all tokens of sliding-window
    layers, whose mask does the sliding, so that a batch of prefixes of different lengths can be continued.
    """

    def __init__(self, **_: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None
        self._length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Set dtype and device; called by Transformers at the first update."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states of new tokens, and return those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[-2]
        if self._buffers is None or self._length + new > self._buffers[0].shape[-2]:
            self._grow((key_states, value_states), self._length + new)
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : self._length + new] = states
        self._length += new
        self._view()
        return self.states

    @property
    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all tokens."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return the number of tokens."""
        return self._length

    def select(self, index: torch.Tensor, capacity: int) -> GrowingLayer:
        """Return a layer with copies of the given batch rows and capacity for more tokens."""
        assert self._buffers is not None
        layer = GrowingLayer()
        layer.dtype, layer.device, layer.is_initialized = self.dtype, self.device, True
        layer._length = self._length
        buffers = []
        for buffer in self._buffers:
            _, heads, _, size = buffer.shape
            copy = buffer.new_empty(len(index), heads, self._length + capacity, size)
            torch.index_select(buffer[:, :, : self._length], 0, index, out=copy[:, :, : self._length])
            buffers.append(copy)
        layer._buffers = (buffers[0], buffers[1])
        layer._view()
        return layer

    @staticmethod
    def concatenate(layers: Sequence[GrowingLayer]) -> GrowingLayer:
        """Return one layer with the batch rows of all layers, which have the same number of tokens."""
        result = GrowingLayer()
        keys, values = zip(*(layer.states for layer in layers), strict=True)
        result.update(torch.cat(keys), torch.cat(values))
        return result

    def _grow(self, like: tuple[torch.Tensor, torch.Tensor], tokens: int) -> None:
        """Move the states to buffers for at least ``tokens`` tokens, in the shape and dtype of ``like``."""
        capacity = max(tokens, self._length + GROWTH) if self._length else tokens
        buffers = []
        for index, states in enumerate(like):
            batch, heads, _, size = states.shape
            buffer = states.new_empty(batch, heads, capacity, size)
            if self._buffers is not None:
                buffer[:, :, : self._length] = self._buffers[index][:, :, : self._length]
            buffers.append(buffer)
        self._buffers = (buffers[0], buffers[1])

    def _view(self) -> None:
        assert self._buffers is not None
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)


class GrowingCache(Cache):
    """A model's KV cache: one :class:`GrowingLayer` per layer."""

    layers: list[GrowingLayer]  # type: ignore[assignment]

    def __init__(self, layers: list[GrowingLayer] | None = None) -> None:
        if layers is None:
            super().__init__(layer_class_to_replicate=GrowingLayer)
        else:
            super().__init__(layers=list(layers))

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
