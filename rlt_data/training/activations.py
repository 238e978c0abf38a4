"""Count the activations of a training in one forward pass with fake tensors.

Fake tensors have shapes and dtypes but no data, so the count follows the model's code, and no formula per architecture
is needed. A model of 7 billion parameters takes about a second.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from rlt_data.settings import TrainingSettings
from rlt_data.training.models import loaded_dtype, lora_config

#: Attention of Transformers with our masks.
_ATTENTION = "rlt_data_plan"


@dataclass(frozen=True)
class Activations:
    """Bytes of the tensors that a forward pass saves for the backward pass.

    Attributes:
        saved: saved until the backward pass.
        recomputed: recomputed in the backward pass for the largest layer.
    """

    saved: int
    recomputed: int


def meta_model(config: Any, settings: TrainingSettings) -> Any:
    """Return the model on the meta device, with its adapters."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            # A copy, because from_config writes the dtype into the configuration.
            copy.deepcopy(config),
            dtype=loaded_dtype(settings, config),
            trust_remote_code=settings.trust_remote_code,
        )
        if lora := lora_config(settings):
            from peft import get_peft_model

            with warnings.catch_warnings(action="ignore"):  # the training itself gives them
                model = get_peft_model(model, lora)
    return model


def checkpointed_layers(model: Any) -> list[nn.Module]:
    """Return the layers that activation checkpointing recomputes."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def count_activations(
    config: Any, settings: TrainingSettings, length: int, *, autocast: bool = False, gathered: bool = False
) -> Activations | None:
    """Count what a forward pass of one micro-batch saves for the backward pass.

    Args:
        config: Transformers configuration.
        settings: dtype, adapters, rows of a micro-batch, and activation checkpointing.
        length: tokens per row.
        autocast: mixed precision in bfloat16, as on GPUs.
        gathered: all weights are in bfloat16, as FSDP2 gathers them.

    Returns:
        The bytes, or None if the model does not run with fake tensors.
    """
    model = meta_model(config, settings)
    if gathered:
        model = model.to(torch.bfloat16)
    try:
        return _count(model, settings, length, autocast)
    except Exception:  # noqa: BLE001 - models do anything, such as looking at values, which fake tensors lack
        pass
    # Grouped products of experts have a fake version in bfloat16 only; in float32, as many tensors are twice as large.
    scale = 1 if gathered or loaded_dtype(settings, config) != torch.float32 else 2
    try:
        return _count(meta_model(config, settings).to(torch.bfloat16), settings, length, False, scale)
    except Exception:  # noqa: BLE001
        return None


def _count(model: Any, settings: TrainingSettings, length: int, autocast: bool, scale: int = 1) -> Activations:
    """Count activations, those in bfloat16 ``scale`` times."""
    base = model.get_base_model() if settings.lora_rank else model
    if base.config._attn_implementation == "sdpa":
        AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
        AttentionMaskInterface.register(_ATTENTION, _mask)
        base.set_attn_implementation(_ATTENTION)
    with _without_messages(), FakeTensorMode():
        _make_fake(model)
        if settings.lora_rank:
            base.enable_input_require_grads()
        counter = _Counter(base, scale)
        ids = torch.zeros(settings.micro_batch_size, length, dtype=torch.int64)
        # Rows of different lengths, or packed ones, need a mask of all pairs of tokens.
        masked = settings.micro_batch_size > 1 or getattr(settings, "packing", False)
        mask = torch.ones_like(ids) if masked else None
        with counter, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = base.train().base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    # TRL's loss saves a copy of the hidden states, and of each token its id, log-prob and entropy.
    outside = sum(counter.outside.values()) + counter.size(hidden) + 16 * ids.numel()
    layers = [sum(saved.values()) for saved in counter.in_layers]
    if not settings.activation_checkpointing or not layers:
        return Activations(outside + sum(layers), 0)
    inputs = sum(size for key, size in counter.inputs.items() if key not in counter.outside)
    return Activations(outside + inputs, max(_cast_bytes(base) if autocast else 0, *layers))


def _cast_bytes(model: Any) -> int:
    """Return the bytes of the copies of trained float32 weights that autocast holds until the forward pass ends."""
    linear = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    return sum(2 * weight.numel() for weight in linear if weight.requires_grad and weight.dtype == torch.float32)


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *_: Any,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    **__: Any,
) -> torch.Tensor | None:
    """Return a mask where Transformers needs one; with fake tensors, its own function cannot look whether it does."""
    if attention_mask is None and (local_size is None or kv_length <= local_size):
        return None
    return torch.ones(batch_size, 1, q_length, kv_length, dtype=torch.bool)


@contextmanager
def _without_messages() -> Iterator[None]:
    """Suppress PyTorch's messages about operations that fake tensors do not support."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def _make_fake(model: nn.Module) -> None:
    """Replace the tensors of a model on the meta device by fake ones on the CPU; tied weights stay tied."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = tensors is module._parameters
                    made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                tensors[name] = made[id(tensor)]  # type: ignore[assignment]


class _Counter:
    """Counts tensors that are saved for the backward pass, each storage once, without the model's own.

    Args:
        model: the model, with fake tensors.
        scale: how many times tensors in bfloat16 count.

    Attributes:
        outside: bytes by storage of what is saved outside of layers.
        in_layers: the same for each layer.
        inputs: bytes by storage of what the layers receive.
    """

    def __init__(self, model: Any, scale: int) -> None:
        self._scale = scale
        self._own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._kept: list[torch.Tensor] = []  # while a tensor is alive, no other one gets its storage's key
        self.outside: dict[int, int] = {}
        self.in_layers: list[dict[int, int]] = []
        self.inputs: dict[int, int] = {}
        self._current = self.outside
        for layer in checkpointed_layers(model):
            layer.register_forward_pre_hook(self._enter, with_kwargs=True)
            layer.register_forward_hook(self._leave)
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor)

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _enter(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self._add(value, self.inputs)
        self.in_layers.append({})
        self._current = self.in_layers[-1]

    def _leave(self, *_: Any) -> None:
        self._current = self.outside

    def _save(self, tensor: torch.Tensor) -> torch.Tensor:
        if not any(_storage(tensor) in saved for saved in (self.outside, *self.in_layers)):
            self._add(tensor, self._current)
        return tensor

    def _add(self, tensor: torch.Tensor, to: dict[int, int]) -> None:
        if _storage(tensor) not in self._own:
            self._kept.append(tensor)
            to[_storage(tensor)] = self.size(tensor)

    def size(self, tensor: torch.Tensor) -> int:
        """Return the bytes of a tensor's storage."""
        return tensor.untyped_storage().nbytes() * (self._scale if tensor.dtype == torch.bfloat16 else 1)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
