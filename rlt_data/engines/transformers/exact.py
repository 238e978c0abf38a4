"""Make float32 results on a CPU independent of the batch.

Sums of floating-point numbers depend on their order, which libraries choose by the shape of the batch. Three
operations are affected. Attention is computed row by row, in blocks of fixed size; see
:mod:`rlt_data.engines.transformers.attention`. Matrix products of a few rows use special kernels, so they get at least
:func:`min_rows` rows, filled up with zeros. Log-sums over the vocabulary add its blocks along the last dimension; see
:mod:`rlt_data.engines.transformers.model`. tests/engines/test_exact.py compares the bits, docs/results has the cost.

Other dtypes and devices are unchanged: their results depend on the batch within rounding.
"""

from __future__ import annotations

import torch

#: A few rows times a wide matrix, such as an LM head when sampling, take two thirds of the time in blocks of columns.
_MANY_ROWS, _WIDE, _COLUMNS = 64, 8192, 1024


def make_exact(model: torch.nn.Module) -> None:
    """Prepare a float32 model on a CPU."""
    for module in model.modules():
        # Classes with another forward pass do more than multiply.
        if isinstance(module, torch.nn.Linear) and type(module).forward is torch.nn.Linear.forward:
            module.forward = _Linear(module)  # type: ignore[method-assign]


def min_rows() -> int:
    """Return the number of rows from which a product's rows do not depend on it; measured with 1 and 2 threads."""
    return min(max(8, 4 * torch.get_num_threads()), 16)


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply like ``torch.nn.functional.linear``, with enough rows; ``input`` has shape (..., in features)."""
    rows = input.numel() // input.shape[-1]
    missing = min_rows() - rows
    if missing > 0:
        padded = torch.cat([input.reshape(rows, -1), input.new_zeros(missing, input.shape[-1])])
        return linear(padded, weight, bias)[:rows].reshape(*input.shape[:-1], -1)
    if bias is None and rows < _MANY_ROWS and len(weight) > _WIDE:
        output = input.new_empty(rows, len(weight))
        flat = input.reshape(rows, -1)
        for start in range(0, len(weight), _COLUMNS):
            part = slice(start, start + _COLUMNS)
            torch.mm(flat, weight[part].T, out=output[:, part])
        return output.reshape(*input.shape[:-1], -1)
    return torch.nn.functional.linear(input, weight, bias)


class _Linear:
    """The forward pass of a linear layer with :func:`linear`."""

    def __init__(self, module: torch.nn.Linear) -> None:
        self._module = module

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self._module.weight, self._module.bias)
