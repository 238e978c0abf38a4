"""Estimate the GPU memory of a training, part by part, from the model's configuration and the settings.

Weights, gradients, optimizer state and reference model are counted on the meta device. Activations are counted in one
forward pass with fake tensors, which have shapes and dtypes but no data, so no formula per architecture is needed. A
model of 7 billion parameters takes about a second.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from rlt_data.engines.config import pick_device
from rlt_data.settings import PolicySettings, TrainingSettings, TrainTeacherSettings
from rlt_data.settings.base import flag_of
from rlt_data.training.runs import loaded_dtype, lora_config, sharding, world_size

_GIB = 2**30
#: Share of a GPU's memory that a training can fill; CUDA, NCCL and fragmentation take the rest.
_USABLE = 0.92
#: Tokens and vocabulary entries of TRL's tiles of logits (trl/kernels/chunked_logprob.py, trl/trainer/utils.py).
_TILE_TOKENS, _TILE_VOCABULARY = 4096, 32768
#: bitsandbytes' 8-bit state: tensors below this size stay in float32; one float32 scale for each block of values.
_SMALLEST_8BIT, _BLOCK_8BIT = 4096, 256
#: Attention of Transformers with our masks.
_ATTENTION = "rlt_data_plan"
#: Values that remedies propose.
_LORA_RANK, _SMALL_VLLM = 16, 0.2
#: Bytes of a 4-bit weight with its doubly quantized scales (blocks of 64 and 256).
_BYTES_4BIT = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Machine:
    """GPUs on which a training could run.

    Attributes:
        name: name in tables.
        gpus: number of GPUs, one process each.
        gpu_bytes: memory of one GPU, None without GPUs.
        sharded: weights, gradients and optimizer are sharded over the GPUs (FSDP2).
        in_main_memory: the sharded weights, gradients and optimizer are in main memory, except for gathered layers.
    """

    name: str
    gpus: int
    gpu_bytes: int | None
    sharded: bool = False
    in_main_memory: bool = False


def common_machines(settings: TrainingSettings) -> tuple[Machine, ...]:
    """Return the machines that every dry run shows."""
    eight = Machine("8 x 80 GB, FSDP2", 8, 80 * _GIB, sharded=True)
    return (
        Machine("1 x 24 GB", 1, 24 * _GIB),
        Machine("1 x 80 GB", 1, 80 * _GIB),
        eight if _can_be_sharded(settings) else replace(eight, name="8 x 80 GB", sharded=False),
    )


def _can_be_sharded(settings: TrainingSettings) -> bool:
    """Return whether FSDP can shard the weights and the optimizer state, unlike those of bitsandbytes."""
    return settings.optimizer == "adamw" and not settings.load_in_4bit


def this_machine(settings: TrainingSettings) -> Machine:
    """Return the GPUs of this launch."""
    device, processes = pick_device(settings.device), world_size()
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    offload = os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true"  # set by accelerate launch
    return Machine(
        f"this launch, {processes} x {device.type}",
        gpus=processes,
        gpu_bytes=memory,
        sharded=sharding() is not None,
        in_main_memory=sharding() == "fsdp" and offload,
    )


@dataclass(frozen=True)
class Memory:
    """Memory of a training on each GPU of a machine, in bytes.

    Attributes:
        machine: name of the machine.
        gpu: memory of one GPU, None if unknown.
        weights: policy or model, with frozen weights and adapters; if sharded, with the gathered layers.
        gradients: gradients of the trained weights.
        optimizer: optimizer state; 0 if paged, because it moves to the CPU when the GPU is full.
        reference: reference model of the KL penalty.
        student: frozen student of the dense reward; 0 on another device.
        vllm: share of colocated vLLM: its copy of the weights, and the KV cache.
        sampling: complete weights of a sharded policy that samples without vLLM; on the GPU only between updates.
        activations: tensors that one forward pass of the longest micro-batch saves for the backward pass, with those
            that activation checkpointing recomputes for one layer; None if they cannot be counted for this model.
        logits: a tile of logits, and float32 gradients of the LM head, of one micro-batch.
        offloaded: the student is on the GPU only between updates.
        remedies: changes of flags or machines, each of which makes the training fit.
    """

    machine: str
    gpu: int | None
    weights: int
    gradients: int
    optimizer: int
    reference: int
    student: int
    vllm: int
    sampling: int
    activations: int | None
    logits: int
    offloaded: bool = False
    remedies: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, int | None]:
        """The parts by name."""
        names = [field.name for field in fields(self)]
        return {name: getattr(self, name) for name in names[names.index("weights") : names.index("offloaded")]}

    def gib(self, part: str) -> float | None:
        """Return a part, or ``total``, in GiB."""
        size = self.total if part == "total" else self.parts[part]
        return None if size is None else size / _GIB

    @property
    def total(self) -> int:
        """The largest sum of parts that are on the GPU at the same time."""
        always = self.weights + self.optimizer + self.reference + self.vllm
        update = self.gradients + (self.activations or 0) + self.logits
        if self.offloaded:
            return always + max(update, self.sampling, self.student)
        return always + self.student + max(update, self.sampling)

    @property
    def fits(self) -> bool | None:
        """Whether the GPU holds the total; None if its memory is unknown."""
        return None if self.gpu is None else self.total <= _USABLE * self.gpu

    @property
    def verdict(self) -> str:
        """Whether the training fits, and what would make it fit."""
        without = " without activations, which cannot be counted for this model" if self.activations is None else ""
        if self.gpu is None:
            return f"{self.machine}: about {self.total / _GIB:.1f} GiB{without}"
        size = f"about {self.total / _GIB:.1f} of {self.gpu / _GIB:.1f} GiB per GPU{without}"
        if self.fits:
            return f"{self.machine}: fits, {size}"
        remedies = f"; fits with {', or '.join(self.remedies)}" if self.remedies else ""
        return f"{self.machine}: does not fit, {size}{remedies}"


@dataclass(frozen=True)
class Activations:
    """Bytes of the tensors that a forward pass saves for the backward pass.

    Attributes:
        saved: saved until the backward pass.
        recomputed: recomputed in the backward pass for the largest layer.
    """

    saved: int
    recomputed: int


class Estimator:
    """Estimates the memory of trainings of one model.

    Args:
        config: Transformers configuration of the model.
        length: tokens of the longest row.
        student_bytes: size of the frozen student of the dense reward.
    """

    def __init__(self, config: Any, length: int, student_bytes: int = 0) -> None:
        self._config = config
        self._length = length
        self._student_bytes = student_bytes
        self._models: dict[tuple[Any, ...], Any] = {}
        self._counted: dict[tuple[Any, ...], Activations | None] = {}

    def memory(self, settings: TrainingSettings, machine: Machine) -> Memory:
        """Return the memory of a training on a machine."""
        key = (settings.dtype, settings.lora_rank)
        model = self._models[key] = self._models.get(key) or meta_model(self._config, settings)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        shards = machine.gpus if machine.sharded else 1
        on_gpu = 0 if machine.in_main_memory else 1
        copies = 2 if machine.gpus > shards else 1  # data parallelism reduces gradients in buckets
        weights, gradients = _weight_bytes(model, settings), sum(map(_nbytes, trained))
        reference = vllm = sampling = 0
        if isinstance(settings, PolicySettings):
            if settings.beta and not settings.lora_rank:
                reference = weights
            elif settings.lora_rank and settings.has_synchronised_reference:
                reference = gradients
            if settings.vllm == "colocate":
                vllm = int(settings.vllm_memory * (machine.gpu_bytes or 0))
            elif settings.vllm == "none" and machine.sharded:
                sampling = 2 * sum(weight.numel() for weight in model.parameters())  # gathered in bfloat16
        scores_here = not isinstance(settings, TrainTeacherSettings) or settings.student_device in ("auto", "offload")
        activations = self._activations(settings, machine)
        return Memory(
            machine=machine.name,
            gpu=machine.gpu_bytes,
            weights=on_gpu * weights // shards
            + (_gathered_bytes(model) if shards > 1 or machine.in_main_memory else 0),
            gradients=on_gpu * copies * gradients // shards,
            optimizer=on_gpu * _optimizer_bytes(model, settings.optimizer) // shards,
            reference=on_gpu * reference // shards,
            student=self._student_bytes if scores_here else 0,
            vllm=vllm,
            sampling=sampling,
            activations=activations.saved + activations.recomputed if activations else None,
            logits=self._logits(settings, machine, model),
            offloaded=isinstance(settings, TrainTeacherSettings) and settings.student_device == "offload",
        )

    def with_remedies(self, settings: TrainingSettings, machine: Machine) -> Memory:
        """Return the memory of a training on a machine, and what would make it fit."""
        memory = self.memory(settings, machine)
        return memory if memory.fits is not False else replace(memory, remedies=self._remedies(settings, machine))

    def _remedies(self, settings: TrainingSettings, machine: Machine) -> tuple[str, ...]:
        def fits(changes: dict[str, Any], on: Machine = machine) -> bool:
            return bool(self.memory(settings.model_copy(update=changes), on).fits)

        possible = list(self._changes(settings, machine))
        found: list[dict[str, Any]] = []
        for changes in possible:
            if not any(fewer.items() <= changes.items() for fewer in found) and fits(changes):
                found.append(changes)
        together: dict[str, Any] = {}
        for changes in [] if found else possible:
            together |= changes
        if together and fits(together):
            for name in reversed(together):
                fewer = {key: value for key, value in together.items() if key != name}
                together = fewer if fits(fewer) else together
            found = [together]
        texts = [
            " ".join(flag_of(key) + f" {value}" * (value is not True) for key, value in each.items()) for each in found
        ]
        if _can_be_sharded(settings):
            larger = (replace(machine, gpus=gpus, sharded=True) for gpus in (2, 4, 8, 16, 32, 64))
            enough = (each for each in larger if each.gpus > machine.gpus and fits({}, each))
            texts += [f"{each.gpus} such GPUs with FSDP2" for each in islice(enough, 1)]
        return tuple(texts)

    def _changes(self, settings: TrainingSettings, machine: Machine) -> Iterator[dict[str, Any]]:
        """Yield changes of settings that save memory, those first that change results least."""
        if not settings.activation_checkpointing:
            yield {"activation_checkpointing": True}
        if settings.micro_batch_size > 1:
            yield {"micro_batch_size": 1}
        if self._student_bytes and isinstance(settings, TrainTeacherSettings) and settings.student_device == "auto":
            yield {"student_device": "offload"}
        if isinstance(settings, PolicySettings) and settings.vllm == "colocate" and settings.vllm_memory > _SMALL_VLLM:
            yield {"vllm_memory": _SMALL_VLLM}
        if settings.optimizer == "adamw" and not machine.sharded:
            yield {"optimizer": "adamw_8bit"}
        if loaded_dtype(settings, self._config) == torch.float32:
            yield {"dtype": "bfloat16"}
        lora = {"lora_rank": settings.lora_rank or _LORA_RANK}
        if not settings.lora_rank:
            yield lora
        if not settings.load_in_4bit and not machine.sharded and getattr(settings, "vllm", "none") == "none":
            yield lora | {"load_in_4bit": True}

    def _activations(self, settings: TrainingSettings, machine: Machine) -> Activations | None:
        autocast = machine.gpu_bytes is not None and not machine.sharded
        if machine.sharded:  # FSDP2 gathers float32 weights in bfloat16
            settings = settings.model_copy(update={"dtype": "bfloat16"})
        key = (
            settings.dtype,
            settings.lora_rank,
            settings.micro_batch_size,
            settings.activation_checkpointing,
            autocast,
        )
        if key not in self._counted:
            self._counted[key] = count_activations(self._config, settings, self._length, autocast=autocast)
        return self._counted[key]

    def _logits(self, settings: TrainingSettings, machine: Machine, model: Any) -> int:
        text = self._config.get_text_config()
        tokens = settings.micro_batch_size * self._length
        itemsize = 2 if machine.gpu_bytes is not None else loaded_dtype(settings, self._config).itemsize
        tile = min(tokens, _TILE_TOKENS) * min(text.vocab_size, _TILE_VOCABULARY) * itemsize
        hidden = tokens * text.hidden_size * 4  # the float32 gradient of the head's inputs
        head = model.get_output_embeddings().weight
        return int(tile + hidden + (4 * head.numel() if head.requires_grad else 0))


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

            model = get_peft_model(model, lora)
    return model


def count_parameters(config: Any, settings: TrainingSettings) -> int:
    """Return the number of a model's parameters, without adapters."""
    model = meta_model(config, settings.model_copy(update={"lora_rank": 0}))
    return sum(parameter.numel() for parameter in model.parameters())


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _weight_bytes(model: Any, settings: TrainingSettings) -> int:
    quantized: set[torch.Tensor] = set()
    if settings.load_in_4bit:
        head = model.get_output_embeddings()
        linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
        quantized = {layer.weight for layer in linear if not layer.weight.requires_grad}
    return sum(
        int(_BYTES_4BIT * weight.numel()) if weight in quantized else _nbytes(weight) for weight in model.parameters()
    )


def _gathered_bytes(model: Any) -> int:
    """Return the bytes of the weights that FSDP2 holds in bfloat16: two layers, and what is in no layer."""
    layers = [sum(weight.numel() for weight in layer.parameters()) for layer in _layers(model)]
    outside = sum(weight.numel() for weight in model.parameters()) - sum(layers)
    return int(2 * (outside + 2 * max(layers, default=0)))


def _optimizer_bytes(model: Any, optimizer: str) -> int:
    if optimizer.startswith("paged"):
        return 0
    embeddings = {layer.weight for layer in model.modules() if isinstance(layer, nn.Embedding)}
    size = 0
    for weight in model.parameters():
        if weight.requires_grad and optimizer == "adamw":
            size += 2 * _nbytes(weight)
        elif weight.requires_grad:
            # Transformers keeps the state of embeddings in 32 bits.
            small = weight.numel() < _SMALLEST_8BIT or weight in embeddings
            size += 8 * weight.numel() if small else int((2 + 8 / _BLOCK_8BIT) * weight.numel())
    return size


def _layers(model: Any) -> list[nn.Module]:
    """Return the layers that activation checkpointing recomputes."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def count_activations(
    config: Any, settings: TrainingSettings, length: int, *, autocast: bool = False
) -> Activations | None:
    """Count what a forward pass of one micro-batch saves for the backward pass.

    Args:
        config: Transformers configuration.
        settings: dtype, adapters, rows of a micro-batch, and activation checkpointing.
        length: tokens per row.
        autocast: mixed precision in bfloat16, as on GPUs.

    Returns:
        The bytes, or None if the model does not run with fake tensors.
    """
    model = meta_model(config, settings)
    base = model.get_base_model() if settings.lora_rank else model
    if base.config._attn_implementation == "sdpa":
        AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
        AttentionMaskInterface.register(_ATTENTION, _mask)
        base.set_attn_implementation(_ATTENTION)
    try:
        with _without_messages(), FakeTensorMode():
            _make_fake(model)
            if settings.lora_rank:
                base.enable_input_require_grads()
            counter = _Counter(base)
            ids = torch.zeros(settings.micro_batch_size, length, dtype=torch.int64)
            # Rows of different lengths, or packed ones, need a mask of all pairs of tokens.
            masked = settings.micro_batch_size > 1 or getattr(settings, "packing", False)
            mask = torch.ones_like(ids) if masked else None
            with counter, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                hidden = base.train().base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    except Exception:  # noqa: BLE001 - models do anything, such as looking at values, which fake tensors lack
        if loaded_dtype(settings, config) != torch.float32:
            return None
        # Grouped products of experts have no fake version in float32.
        half = count_activations(config, settings.model_copy(update={"dtype": "bfloat16"}), length)
        return half and Activations(2 * half.saved, 2 * half.recomputed)
    # TRL's loss saves a copy of the hidden states, and of each token its id, log-prob and entropy.
    outside = sum(counter.outside.values()) + _nbytes(hidden) + 16 * ids.numel()
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

    Attributes:
        outside: bytes by storage of what is saved outside of layers.
        in_layers: the same for each layer.
        inputs: bytes by storage of what the layers receive.
    """

    def __init__(self, model: Any) -> None:
        self._own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._kept: list[torch.Tensor] = []  # while a tensor is alive, no other one gets its storage's key
        self.outside: dict[int, int] = {}
        self.in_layers: list[dict[int, int]] = []
        self.inputs: dict[int, int] = {}
        self._current = self.outside
        for layer in _layers(model):
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
            to[_storage(tensor)] = tensor.untyped_storage().nbytes()


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
