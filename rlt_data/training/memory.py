"""Estimate the GPU memory of a training, part by part, from the model's configuration and the settings.

Weights, gradients, optimizer state and reference model are counted on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from rlt_data.engines.config import cache_bytes, pick_device
from rlt_data.settings import FineTuneSettings, PolicySettings, TrainingSettings, TrainTeacherSettings
from rlt_data.settings.base import flag_of
from rlt_data.training.activations import Activations, checkpointed_layers, count_activations, meta_model
from rlt_data.training.launch import keeps_shards_in_main_memory, sharding, world_size
from rlt_data.training.models import loaded_dtype

_GIB = 2**30
#: Share of a GPU's memory that a training can fill; CUDA, NCCL and fragmentation take the rest.
_USABLE = 0.92
#: Tokens and vocabulary entries of TRL's tiles of logits (trl/kernels/chunked_logprob.py, trl/trainer/utils.py).
_TILE_TOKENS, _TILE_VOCABULARY = 4096, 32768
#: bitsandbytes' 8-bit state: tensors below this size stay in float32; one float32 scale for each block of values.
_SMALLEST_8BIT, _BLOCK_8BIT = 4096, 256
#: Values that remedies propose.
_LORA_RANK, _SMALL_VLLM = 16, 0.2
#: Memory of vLLM beside weights, keys and values: activations of a batch, which TRL limits to 4,096 tokens, and graphs.
_VLLM_OTHER = _GIB
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
        offload: the shards are in main memory.
    """

    name: str
    gpus: int
    gpu_bytes: int | None
    sharded: bool = False
    offload: bool = False


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
    name = f"this launch, {processes} x {device.type}"
    return Machine(name, processes, memory, sharding() is not None, keeps_shards_in_main_memory())


@dataclass(frozen=True)
class Memory:
    """Memory of a training on each GPU of a machine, in bytes.

    Attributes:
        machine: name of the machine.
        gpu: memory of one GPU, None if unknown.
        weights: policy or model, with frozen weights and adapters; if sharded, with the gathered layers.
        gradients: gradients of the trained weights; if sharded, with those of layers that are not reduced yet.
        optimizer: optimizer state; 0 if paged, because it moves to the CPU when the GPU is full.
        reference: reference model of the KL penalty.
        student: frozen student of the dense reward; 0 on another device.
        vllm: share of colocated vLLM: its copy of the weights, and the KV cache.
        sampling: complete weights of a sharded policy that samples without vLLM, or of a sharded reference model, which
            TRL gathers as a whole; on the GPU only between updates.
        activations: tensors that one forward pass of the longest micro-batch saves for the backward pass, with those
            that activation checkpointing recomputes for one layer; None if they cannot be counted for this model.
        logits: a tile of logits, and float32 gradients of the LM head, of one micro-batch.
        student_moves: the student is on the GPU only between updates.
        vllm_least: smallest ``vllm`` with which colocated vLLM starts: weights, one text, and its own buffers.
        requires: what the training needs beside the memory of each GPU, in words.
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
    student_moves: bool = False
    vllm_least: int = 0
    requires: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, int | None]:
        """The parts by name."""
        names = [field.name for field in fields(self)]
        return {name: getattr(self, name) for name in names[names.index("weights") : names.index("student_moves")]}

    def gib(self, part: str) -> float | None:
        """Return a part, or ``total``, in GiB."""
        size = self.total if part == "total" else self.parts[part]
        return None if size is None else size / _GIB

    @property
    def total(self) -> int:
        """The largest sum of parts that are on the GPU at the same time."""
        always = self.weights + self.optimizer + self.reference + self.vllm
        update = self.gradients + (self.activations or 0) + self.logits
        if self.student_moves:
            return always + max(update, self.sampling, self.student)
        return always + self.student + max(update, self.sampling)

    @property
    def fits(self) -> bool | None:
        """Whether the GPU holds the total, and vLLM's part what it needs; None if the GPU's memory is unknown."""
        return None if self.gpu is None else self.total <= _USABLE * self.gpu and self.vllm >= self.vllm_least

    @property
    def verdict(self) -> str:
        """Whether the training fits, and what would make it fit."""
        without = " without activations, which cannot be counted for this model" if self.activations is None else ""
        if self.gpu is None:
            return f"{self.machine}: about {self.total / _GIB:.1f} GiB{without}"
        size = f"about {self.total / _GIB:.1f} of {self.gpu / _GIB:.1f} GiB per GPU{without}"
        if self.fits:
            return "; requires ".join([f"{self.machine}: fits, {size}", *self.requires])
        if self.vllm < self.vllm_least:
            size += (
                f", and vLLM's {self.vllm / _GIB:.1f} GiB are less than the {self.vllm_least / _GIB:.1f} that it needs"
            )
        remedy = f"fits with {', or '.join(self.remedies)}" if self.remedies else "shorten rows, or use a smaller model"
        return f"{self.machine}: does not fit, {size}; {remedy}"


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
        shards = machine.gpus if machine.sharded else 1
        share = 0 if machine.offload else 1 / shards
        copies = 2 if machine.gpus > shards else 1  # data parallelism reduces gradients in buckets
        weights = _weight_bytes(model, settings)
        gradients = sum(_nbytes(weight) for weight in model.parameters() if weight.requires_grad)
        reference = vllm = vllm_least = sampling = 0
        if isinstance(settings, PolicySettings):
            if settings.beta and not settings.lora_rank:
                reference = weights
            elif settings.lora_rank and settings.has_synchronised_reference:
                reference = gradients
            if settings.vllm == "colocate":
                vllm = int(settings.vllm_memory * (machine.gpu_bytes or 0))
                vllm_least = self._vllm_least(settings, model)
            if machine.sharded and (settings.vllm == "none" or reference == weights):
                sampling = 2 * sum(weight.numel() for weight in model.parameters())  # in bfloat16
        student_device = getattr(settings, "student_device", "auto")
        student_gpu = getattr(settings, "student_gpu", None)
        shares_gpu = student_device != "cpu" if student_gpu is None else student_gpu < machine.gpus
        activations = self._activations(settings, machine)
        return Memory(
            machine=machine.name,
            gpu=machine.gpu_bytes,
            weights=int(share * weights) + (_gathered_bytes(model) if shards > 1 else 0),
            gradients=int(share * copies * gradients) + (_gathered_bytes(model, gradients=True) if shards > 1 else 0),
            optimizer=int(share * _optimizer_bytes(model, settings.optimizer)),
            reference=int(share * reference),
            student=self._student_bytes if shares_gpu else 0,
            vllm=vllm,
            sampling=sampling,
            activations=activations.saved + activations.recomputed if activations else None,
            logits=self._logits(settings, machine, model),
            student_moves=student_device == "offload",
            vllm_least=vllm_least,
            requires=_requirements(settings, machine),
        )

    def _vllm_least(self, settings: PolicySettings, model: Any) -> int:
        """Return the memory that colocated vLLM needs on a GPU, in bfloat16."""
        weights = int(sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name))
        parallel = settings.vllm_tensor_parallel
        return 2 * weights // parallel + cache_bytes(self._config, self._length, 2, gpus=parallel) + _VLLM_OTHER

    def with_remedies(self, settings: TrainingSettings, machine: Machine) -> Memory:
        """Return the memory of a training on a machine, and what would make it fit."""
        memory = self.memory(settings, machine)
        return memory if memory.fits is not False else replace(memory, remedies=self._remedies(settings, machine))

    def _remedies(self, settings: TrainingSettings, machine: Machine) -> tuple[str, ...]:
        """Return the changes that fit: single ones, or else the fewest together; other ways to shard; more GPUs."""

        def fits(changes: dict[str, Any], on: Machine = machine) -> bool:
            return bool(self.memory(settings.model_copy(update=changes), on).fits)

        possible = list(self._changes(settings, machine))
        found = [changes for changes in possible if fits(changes)]
        found = [changes for changes in found if not any(fewer.items() < changes.items() for fewer in found)]
        together = {name: value for changes in possible for name, value in changes.items()}
        if not found and fits(together):
            for name in reversed(list(together)):
                fewer = {key: value for key, value in together.items() if key != name}
                together = fewer if fits(fewer) else together
            found = [together]
        texts = [
            " ".join(flag_of(key) + f" {value}" * (value is not True) for key, value in each.items()) for each in found
        ]
        if _can_be_sharded(settings):
            if machine.gpus > 1 and fits({}, replace(machine, sharded=True, offload=True)):
                whole = self.memory(settings, Machine("", 1, None))
                size = whole.weights + whole.gradients + whole.optimizer + whole.reference
                texts.append(f"fsdp2-offload.yaml and {size / _GIB:.0f} GiB of main memory")
            larger = (
                replace(machine, gpus=gpus, sharded=True) for gpus in (2, 4, 8, 16, 32, 64) if gpus > machine.gpus
            )
            enough = (each for each in larger if not _requirements(settings, each) and fits({}, each))
            texts += [f"{each.gpus} such GPUs with FSDP2" for each in islice(enough, 1)]
        if not texts and getattr(settings, "vllm", "none") == "colocate":
            without = settings.model_copy(update={"vllm": "none"})
            texts = [
                f"--vllm none {text}".strip()
                for text in ([""] if fits({"vllm": "none"}) else self._remedies(without, machine))
            ]
        return tuple(texts)

    def _changes(self, settings: TrainingSettings, machine: Machine) -> Iterator[dict[str, Any]]:
        """Yield changes of settings that save memory, those first that change results least."""
        if not settings.activation_checkpointing:
            yield {"activation_checkpointing": True}
        if settings.micro_batch_size > 1:
            yield {"micro_batch_size": 1}
        if self._student_bytes and isinstance(settings, TrainTeacherSettings) and settings.student_device == "auto":
            yield {"student_device": "offload"}
        if isinstance(settings, PolicySettings) and settings.vllm == "colocate":
            yield from self._vllm_changes(settings, machine)
        if settings.optimizer == "adamw" and not machine.sharded:
            yield {"optimizer": "adamw_8bit"}
        lora = {"lora_rank": settings.lora_rank or _LORA_RANK}
        if not settings.lora_rank:
            yield lora
        if not settings.load_in_4bit and not machine.sharded and getattr(settings, "vllm", "none") == "none":
            yield lora | {"load_in_4bit": True}
        if loaded_dtype(settings, self._config) == torch.float32:
            yield {"dtype": "bfloat16"}

    def _vllm_changes(self, settings: PolicySettings, machine: Machine) -> Iterator[dict[str, Any]]:
        """Yield the smallest share of a GPU for vLLM, and how many GPUs it needs with the present share."""
        assert machine.gpu_bytes is not None
        memory = self.memory(settings, machine)
        share = max(math.ceil(20 * memory.vllm_least / machine.gpu_bytes) / 20, _SMALL_VLLM)
        if share < 1 and share != settings.vllm_memory:
            yield {"vllm_memory": share}
        larger = (
            {"vllm_tensor_parallel": gpus} for gpus in (2, 4, 8) if settings.vllm_tensor_parallel < gpus <= machine.gpus
        )
        enough = (
            change
            for change in larger
            if self.memory(settings.model_copy(update=change), machine).vllm_least <= memory.vllm
        )
        yield from islice(enough, 1)

    def _activations(self, settings: TrainingSettings, machine: Machine) -> Activations | None:
        options = {"autocast": machine.gpu_bytes is not None, "gathered": machine.sharded}
        key = (
            settings.dtype,
            settings.lora_rank,
            settings.micro_batch_size,
            settings.activation_checkpointing,
            *options.values(),
        )
        if key not in self._counted:
            self._counted[key] = count_activations(self._config, settings, self._length, **options)
        return self._counted[key]

    def _logits(self, settings: TrainingSettings, machine: Machine, model: Any) -> int:
        text = self._config.get_text_config()
        tokens = settings.micro_batch_size * self._length
        itemsize = 2 if machine.gpu_bytes is not None else loaded_dtype(settings, self._config).itemsize
        tile = min(tokens, _TILE_TOKENS) * min(text.vocab_size, _TILE_VOCABULARY) * itemsize
        hidden = tokens * text.hidden_size * 4  # the float32 gradient of the head's inputs
        head = model.get_output_embeddings().weight
        return int(tile + hidden + (4 * head.numel() if head.requires_grad else 0))


def batch_of(settings: TrainingSettings) -> tuple[int, str]:
    """Return the rows or samples of an optimizer step, and the flags that set them."""
    if isinstance(settings, PolicySettings):
        return settings.questions * settings.group, "--questions-per-step times --samples-per-question"
    assert isinstance(settings, FineTuneSettings)
    return settings.batch_size, "--batch-size"


def _requirements(settings: TrainingSettings, machine: Machine) -> tuple[str, ...]:
    """Return what the command would refuse on a machine, as what it requires instead."""
    found = []
    batch, flag = batch_of(settings)
    if batch % (share := settings.micro_batch_size * machine.gpus):
        found.append(f"a multiple of {share} as {flag} (now {batch})")
    if machine.gpus % (parallel := getattr(settings, "vllm_tensor_parallel", 1)):
        found.append(f"a multiple of {parallel} GPUs for --vllm-tensor-parallel")
    student_gpu = getattr(settings, "student_gpu", None)
    if student_gpu is not None and student_gpu >= machine.gpus:
        found.append("further GPUs for the student")
    return tuple(found)


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


def _gathered_bytes(model: Any, *, gradients: bool = False) -> int:
    """Return the bytes in bfloat16 of the weights, or gradients, that FSDP2 holds unsharded.

    These are two layers, and what is in no layer.
    """

    def size(module: nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters() if weight.requires_grad or not gradients)

    layers = [size(layer) for layer in checkpointed_layers(model)]
    return 2 * (size(model) - sum(layers) + 2 * max(layers, default=0))


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
