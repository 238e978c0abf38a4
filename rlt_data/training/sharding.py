"""Models sharded by FSDP2 or DeepSpeed ZeRO-3: complete weights for sampling and for checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from rlt_data.errors import SettingsError
from rlt_data.progress import is_main_process


def check_sharding(trainer: Any) -> None:
    """Check that the trainer can save a complete model with this kind of sharding.

    Raises:
        SettingsError: the accelerate configuration must be changed.
    """
    state = trainer.accelerator.state
    fsdp = getattr(state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version != 2:
        raise SettingsError("fsdp_version: set 2, as in recipes/accelerate/fsdp2.yaml")
    if fsdp is not None and "FULL_STATE_DICT" not in str(fsdp.state_dict_type):
        raise SettingsError(
            "fsdp_state_dict_type: with this value no model is saved; set FULL_STATE_DICT, as in "
            "recipes/accelerate/fsdp2.yaml"
        )
    if _is_zero3(trainer) and not state.deepspeed_plugin.zero3_save_16bit_model:
        raise SettingsError(
            "zero3_save_16bit_model: with this value no model is saved; set true, as in recipes/accelerate/zero3.yaml"
        )


def _is_zero3(trainer: Any) -> bool:
    deepspeed = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return deepspeed is not None and deepspeed.zero_stage == 3


@contextmanager
def complete_weights(trainer: Any) -> Iterator[None]:
    """Hold the complete policy in every process, so that each can sample with it on its own.

    Otherwise every forward pass gathers the weights layer by layer, and waits for the same pass of all other processes,
    whose samples have other lengths.

    Args:
        trainer: GRPO trainer of a policy, sharded or not.
    """
    from torch.distributed.fsdp import FSDPModule
    from trl.models import unwrap_model_for_generation

    model, kwargs = trainer.model_wrapped, trainer.args.gradient_checkpointing_kwargs
    gathered = unwrap_model_for_generation(model, trainer.accelerator, gradient_checkpointing_kwargs=kwargs)
    modules: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    # FSDP's hooks would shard the weights again after each layer.
    registries = [hooks for module in modules for hooks in (module._forward_pre_hooks, module._forward_hooks)]
    saved = [hooks.copy() for hooks in registries]
    with gathered if _is_zero3(trainer) else nullcontext():
        try:
            for hooks in registries:
                hooks.clear()
            for module in modules:
                module.unshard()
            yield
        finally:
            for module in modules:
                module.reshard()
            for hooks, before in zip(registries, saved, strict=True):
                hooks.update(before)


def full_state(model: Any) -> dict[str, torch.Tensor]:
    """Return all weights of a possibly sharded model on the CPU of the main process; every process must call this.

    Args:
        model: the model, without a wrapper of accelerate or DeepSpeed.
    """
    if _is_partitioned(model):
        from deepspeed import zero

        state = {}
        for name, parameter in model.named_parameters():
            with zero.GatheredParameters(parameter):
                if is_main_process():
                    state[name] = parameter.detach().cpu()
    else:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state = dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))
    # safetensors refuses shared memory, so tied weights are copied.
    return {name: value.clone().contiguous() for name, value in state.items()}


def load_full_state(model: Any, file: Path, *, strict: bool = True) -> None:
    """Load weights that :func:`full_state` returned into a possibly sharded model; every process must call this.

    Args:
        model: the model, without a wrapper of accelerate or DeepSpeed.
        file: the weights as safetensors.
        strict: whether the file must contain all weights of the model; ZeRO-3 requires it.
    """
    from safetensors.torch import load_file

    if _is_partitioned(model):
        from deepspeed import zero

        state = load_file(file) if is_main_process() else {}
        for name, parameter in model.named_parameters():
            with zero.GatheredParameters(parameter, modifier_rank=0):
                if is_main_process():
                    parameter.data.copy_(state[name])
    else:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        weights: Any = load_file(file)
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, strict=strict))


def _is_partitioned(model: Any) -> bool:
    """Return whether ZeRO-3 has partitioned the parameters, which then have shape (0,) in every process."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())
