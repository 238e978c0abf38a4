"""Causal attention that computes only the pairs of tokens that a query sees.

For padded rows, continuations of a cached prompt and sliding windows, Transformers writes a mask over all pairs of
queries and keys, and PyTorch computes all of them. Here, :class:`Seen` takes the place of the mask. Rows are computed
without their padding, those of equal bounds together: with a causal kernel, or in blocks of queries over the keys that
the block sees. So the result of a row does not depend on the other rows of the batch, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import torch
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from rlt_data.engines.transformers.cache import GrowingCache

NAME = "rlt_data"

#: Queries of a block. Smaller blocks compute fewer hidden pairs; GPUs need more work per kernel.
BLOCK, _BLOCK_GPU = 64, 1024
#: On other devices than a CPU, rows with fewer pairs are computed together, because starting kernels takes longer.
_FEW_PAIRS = 2**18
#: Products on a CPU give each query the same bits if there is a multiple of this number; measured with AVX-512.
_EXACT_QUERIES = 8


@dataclass(frozen=True)
class Seen:
    """What the queries of a batch see: the tokens of their row up to themselves.

    Attributes:
        rows: first token and end of each row; the tokens outside are padding.
        tokens: number of tokens of the padded rows, up to the last query.
        first_key: index of the first token with a key; a cache drops those before the window.
        window: number of tokens that a query sees, itself included; None for all.
    """

    rows: tuple[tuple[int, int], ...]
    tokens: int
    first_key: int
    window: int | None

    def __getitem__(self, _: Any) -> Seen:
        """Return the same object to models that cut the mask to the last queries (Gemma 4)."""
        return self


#: Receives the window of each layer, by its index, while a model is examined.
_windows: ContextVar[dict[int, int | None] | None] = ContextVar("windows", default=None)


@torch.inference_mode()
def use_blocks(model: PreTrainedModel) -> Callable[[], GrowingCache] | None:
    """Replace the attention of a model that uses SDPA, or that would use it without a soft cap.

    A few tokens are computed with both. A model that needs the mask for something else, or that another attention
    changes, keeps its own. Not for training: rows of padding would have no gradient, and dropout would be ignored.

    Returns:
        A function that makes empty caches, whose layers keep the windows; None if the model keeps its attention.
    """
    implementation = model.config._attn_implementation
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if implementation != "sdpa" and not softcap:
        return None
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    expected = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    model.set_attn_implementation(NAME)
    found: dict[int, int | None] = {}
    token = _windows.set(found)
    try:
        complete = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        windows = [found.get(index) for index in range(max(found, default=-1) + 1)]
        new_cache = partial(GrowingCache.of, windows, BLOCK if _is_exact(expected) else 0)
        cache = new_cache()
        parts = [
            model.base_model(
                input_ids=ids[:, start:end],
                attention_mask=torch.ones_like(ids[:, :end]),
                position_ids=torch.arange(start, end, device=ids.device)[None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            for start, end in ((0, 5), (5, 8))
        ]
        cache.select(torch.tensor([0, 0], device=ids.device), 1)
        is_equal = all(is_close(output, expected) for output in (complete, torch.cat(parts, 1)))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 - models do anything with a mask
        is_equal = False
    finally:
        _windows.reset(token)
    if not is_equal:
        model.set_attn_implementation(implementation)
        return None
    return new_cache


def is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether outputs differ by rounding alone, by the mean, because experts may flip."""
    tolerance = 1e-4 if expected.dtype == torch.float32 else 0.05
    return bool((found - expected).abs().float().mean() <= tolerance * expected.float().abs().mean())


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    *,
    mask_function: Callable[..., Any],
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    device: torch.device,
    **options: Any,
) -> Seen | torch.Tensor | None:
    """Return what the queries see; a mask (None if SDPA needs none) where rows are computed together."""
    tokens = q_offset + q_length
    if device.type == "cpu" or q_length * kv_length >= _FEW_PAIRS or _windows.get() is not None:
        rows = _rows(attention_mask, batch_size, tokens)
        if rows and kv_offset + kv_length == tokens and _is_causal(mask_function, range(q_offset, tokens), local_size):
            return Seen(rows, tokens, kv_offset, local_size)
    if device.type == "cpu":
        options["allow_is_causal_skip"] = False  # keys may be more than the tokens
    mask: torch.Tensor | None = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function,
        attention_mask,
        local_size,
        device=device,
        **options,
    )
    return mask


def _rows(attention_mask: torch.Tensor | None, rows: int, tokens: int) -> tuple[tuple[int, int], ...] | None:
    """Return first token and end of each row; None if padding is elsewhere than at the ends of rows."""
    if attention_mask is None:
        return ((0, tokens),) * rows
    if attention_mask.shape[-1] != tokens:
        return None
    present = attention_mask.to(torch.int8)
    columns = torch.stack([present.argmax(-1), tokens - present.flip(-1).argmax(-1), present.sum(-1)], -1)
    bounds = columns.tolist()
    if any(end - first != count for first, end, count in bounds):
        return None
    return tuple((first, end) for first, end, _ in bounds)


def _is_causal(mask_function: Callable[..., Any], queries: range, window: int | None) -> bool:
    """Return whether the first, middle and last query see the tokens up to themselves, or the window's, and no others.

    Masks of packed texts, of chunks and of images differ from that.
    """
    keys = torch.arange(queries.stop)
    for query in {queries[0], queries[len(queries) // 2], queries[-1]}:
        expected = keys <= query
        if window is not None:
            expected &= keys > query - window
        found = torch.as_tensor(mask_function(0, 0, torch.tensor(query), keys), device=keys.device)
        if not torch.equal(found.expand(keys.shape), expected):
            return False
    return True


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Seen | torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return outputs of shape (batch, queries, heads, head size), from states of (batch, heads, tokens, head size)."""
    seen = attention_mask
    if not isinstance(seen, Seen):
        if seen is not None:
            key, value = key[:, :, : seen.shape[-1]], value[:, :, : seen.shape[-1]]  # without a cache's spare tokens
        if softcap:
            return _softcapped(query, key, value, seen, scaling, softcap).transpose(1, 2).contiguous(), None
        output, _ = sdpa_attention_forward(module, query, key, value, seen, scaling=scaling, **options)
        return output, None
    if any(options.get(name) is not None for name in ("position_bias", "s_aux")):
        raise NotImplementedError("attention in blocks has neither biases nor sinks")
    if (windows := _windows.get()) is not None:
        windows[module.layer_idx] = seen.window  # type: ignore[index]
    batch, heads, queries, _ = query.shape
    output = query.new_zeros(batch, queries, heads, value.shape[-1])
    first_query = seen.tokens - queries
    stop = 0
    for (first, end), equal in groupby(seen.rows):
        start, stop = stop, stop + len(list(equal))
        begin, first_key = max(first, first_query), max(first, seen.first_key)
        if begin < end:
            q = query[start:stop, :, begin - first_query : end - first_query]
            k, v = (states[start:stop, :, first_key - seen.first_key :] for states in (key, value))
            result = _texts(q, k, v, begin - first, first_key - first, seen.window, scaling, softcap)
            output[start:stop, begin - first_query : end - first_query] = result.transpose(1, 2)
    return output, None


def _texts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    start: int,
    dropped: int,
    window: int | None,
    scale: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Return the outputs of texts of equal length, shape (texts, heads, queries, head size).

    In float32 on a CPU, all sums have the same order and thus the same bits however a text is split: blocks begin at
    fixed tokens and have all their keys, and queries are filled up with zeros.

    Args:
        query: tokens of the texts, shape (texts, heads, queries, head size).
        key: all tokens up to the last query that are not dropped, shape (texts, heads, keys, head size); later ones are
            ignored.
        value: like ``key``.
        start: index of the first query in its text.
        dropped: index of the first key in its text.
        window: number of tokens that a query sees; None for all.
        scale: factor of the products; None for 1 / sqrt(head size).
        softcap: limit of the scaled products; None for none.
    """
    stop = start + query.shape[2]
    window = None if window is None or window >= stop else window
    exact = _is_exact(query)
    if window is None and not softcap and not exact and key.shape[-1] == value.shape[-1]:
        key, value = key[:, :, : stop - dropped], value[:, :, : stop - dropped]
        if start == 0:
            return _sdpa(query, key, value, None, scale, is_causal=True)
        if query.is_cuda and query.dtype != torch.float32 and stop - start > 1:
            return _sdpa(query, key, value, causal_lower_right(stop - start, stop), scale)
    size = BLOCK if query.device.type == "cpu" else _BLOCK_GPU
    outputs = []
    for block in range(start // size * size, stop, size):
        begin, end = max(block, start), min(block + size, stop)
        low = dropped if window is None else max((block if exact else begin) - window + 1, dropped)
        high = block + size if exact else end
        q = query[:, :, begin - start : end - start]
        k, v = (states[:, :, low - dropped : high - dropped] for states in (key, value))
        if exact:
            k, v = _filled(k, high - low), _filled(v, high - low)
            if end - begin > 1:
                q = _filled(q, -(-(end - begin) // _EXACT_QUERIES) * _EXACT_QUERIES)
        mask = _visible(begin - low, q.shape[2], high - low, window, q.device) if exact or q.shape[2] > 1 else None
        output = _softcapped(q, k, v, mask, scale, softcap) if softcap else _sdpa(q, k, v, mask, scale)
        outputs.append(output[:, :, : end - begin])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


@lru_cache(maxsize=8)  # layers, rows and most blocks of windows have the same mask
def _visible(first: int, queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which keys the queries see, shape (queries, keys); the first query's own key has index ``first``."""
    positions = torch.arange(first, first + queries, device=device)[:, None]
    key_positions = torch.arange(keys, device=device)
    mask = key_positions <= positions
    if window is not None:
        mask &= key_positions > positions - window
    return mask


def _is_exact(states: torch.Tensor) -> bool:
    """Return whether sums keep their order; see :func:`_texts`."""
    return states.device.type == "cpu" and states.dtype == torch.float32


def _filled(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return states filled up with zeros, shape (batch, heads, tokens, head size)."""
    missing = tokens - states.shape[2]
    return pad(states, (0, 0, 0, missing)) if missing > 0 else states


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    """Return the outputs of texts of equal length by PyTorch's attention; see :func:`_texts`."""
    texts, heads, queries, _ = query.shape
    group = heads // key.shape[1]
    if queries == 1:  # the heads that share keys become the queries, enough of them for the bits of a block
        query = query.reshape(texts, key.shape[1], group, -1)
        query = _filled(query, _EXACT_QUERIES if mask is not None else 1)
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return output[:, :, :group].reshape(texts, heads, 1, -1)
    in_flash = query.dtype != torch.float32 and (mask is None or isinstance(mask, CausalBias))
    if group > 1 and query.device.type != "cpu" and not in_flash:  # no other fast kernel of a GPU knows groups
        key, value, group = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1), 1
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, is_causal=is_causal, enable_gqa=group > 1
    )


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    softcap: float,
) -> torch.Tensor:
    """Return outputs with scores limited by ``softcap * tanh(score / softcap)`` (Gemma 2, arXiv 2408.00118).

    Like Transformers, the softmax is computed in float32.
    """
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
