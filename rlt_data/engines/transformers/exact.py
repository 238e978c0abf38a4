"""Make float32 results on a CPU independent of the batch.

Sums of floating-point numbers depend on their order, which libraries choose by the shape of the batch. Two operations
are affected: attention, whose blocks move with padding and cached prefixes, and matrix products of a few rows, which
use special kernels. So attention is computed in float64 and rounded, where the order changes only the 16th digit, and
products have at least :func:`min_rows` rows, filled up with zeros. tests/engines/test_exact.py measures the remaining
difference, docs/results the cost.

Other dtypes and devices are unchanged: their results depend on the batch within rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "rlt_data_float64"


def make_exact(model: PreTrainedModel) -> None:
    """Prepare a float32 model on a CPU. Attention other than SDPA is left unchanged."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _attention_in_float64)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = _Linear(module)  # type: ignore[method-assign]


def min_rows() -> int:
    """Return the number of rows from which a product's rows do not depend on it; measured with 1 and 2 threads."""
    return min(max(8, 4 * torch.get_num_threads()), 16)


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply like ``torch.nn.functional.linear``, with enough rows; ``input`` has shape (..., in features)."""
    rows = input.numel() // input.shape[-1]
    missing = min_rows() - rows
    if missing <= 0:
        return torch.nn.functional.linear(input, weight, bias)
    padded = torch.cat([input.reshape(rows, -1), input.new_zeros(missing, input.shape[-1])])
    output = torch.nn.functional.linear(padded, weight, bias)[:rows]
    return output.reshape(*input.shape[:-1], -1)


class _Linear:
    """The forward pass of a linear layer with :func:`linear`."""

    def __init__(self, module: torch.nn.Linear) -> None:
        self._module = module

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self._module.weight, self._module.bias)


def _attention_in_float64(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.double()
    output, _ = sdpa_attention_forward(module, query.double(), key.double(), value.double(), attention_mask, **options)
    return output.to(query.dtype), None
