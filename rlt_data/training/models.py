"""The base model of a training, its dtype and adapters, and the trained model as it is saved."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from rlt_data.engines import Checkpoint, find_checkpoint, open_tokenizer
from rlt_data.engines.config import pick_device, stored_dtype
from rlt_data.formats import ChatTemplate, ControlTokens, Format, Tokenizer
from rlt_data.settings import ModelSettings, TrainingSettings
from rlt_data.storage.outputs import write_file, write_json
from rlt_data.training.checkpoints import RECORD, STATE
from rlt_data.training.requirements import check_requirements, missing_dependency

#: Files of a checkpoint that belong to the model, and exceptions that belong to the training.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
_TRAINING_FILES = {STATE, "zero_to_fp32.py", "zero_to_torch.py", RECORD}


def find_base_model(settings: TrainingSettings) -> tuple[Checkpoint, Tokenizer, ChatTemplate, ControlTokens]:
    """Return the base model's checkpoint, tokenizer, chat template and control tokens, without loading weights.

    Raises:
        ModelError: the model does not exist, or its tokenizer is unusable.
        SettingsError: the ``--chat-template`` file is missing, or a package or GPU that a setting needs.
    """
    check_requirements(settings)
    checkpoint = find_checkpoint(settings.model)
    tokenizer, template = open_tokenizer(checkpoint, base_model_settings(settings))
    control = ControlTokens(tokenizer, template, checkpoint.name, as_text=settings.control_tokens == "text")
    return checkpoint, tokenizer, template, control


def base_model_settings(settings: TrainingSettings) -> ModelSettings:
    """Return the settings with which a training opens its base model."""
    return ModelSettings(
        device=settings.device,
        chat_template=settings.chat_template,
        template_option=settings.template_option,
        template_date=settings.template_date,
        control_tokens=settings.control_tokens,
        trust_remote_code=settings.trust_remote_code,
    )


def saved_dtype(settings: TrainingSettings, config: Any) -> torch.dtype:
    """Return the dtype of the saved model: bfloat16 if trained in bfloat16, else the dtype of the base model.

    Args:
        settings: settings of the training.
        config: Transformers configuration of the base model.
    """
    return torch.bfloat16 if settings.dtype == "bfloat16" else stored_dtype(config)


def loaded_dtype(settings: TrainingSettings, config: Any) -> torch.dtype:
    """Return the dtype in which the base model is loaded; frozen weights have the saved model's.

    Args:
        settings: settings of the training.
        config: Transformers configuration of the base model.
    """
    return saved_dtype(settings, config) if settings.lora_rank else getattr(torch, settings.dtype)


def lora_config(settings: TrainingSettings) -> Any:
    """Return PEFT's configuration of the adapters, None without adapters."""
    if not settings.lora_rank:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise missing_dependency("peft for --lora-rank", error) from None
    rank = settings.lora_rank
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def model_arguments(settings: TrainingSettings, config: Any) -> dict[str, Any]:
    """Return the trainer's arguments for adapters and a base model in 4 bits.

    Args:
        settings: settings of the training.
        config: Transformers configuration of the base model.
    """
    quantization = None
    if settings.load_in_4bit:
        from transformers import BitsAndBytesConfig

        on_gpu = pick_device(settings.device).type == "cuda"
        quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if on_gpu else loaded_dtype(settings, config),
        )
    return {"peft_config": lora_config(settings), "quantization_config": quantization}


def prepare_quantized(model: Any) -> None:
    """Make a training of adapters over 4-bit weights exact, so that it resumes with the same weights.

    TRL converts the adapters to bfloat16, but PEFT loads them from a checkpoint in float32; here, they stay in float32.
    On some CPUs, bitsandbytes repacks 4-bit weights for inference, through which no gradient flows.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def with_pad_token(tokenizer: Any) -> Any:
    """Set the tokenizer's missing padding token to its end-of-text token, and return the tokenizer."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def complete_model(folder: Path, base: Checkpoint, dtype: torch.dtype, format: Format | None) -> None:
    """Complete a trained model as the trainer saved it.

    Args:
        folder: folder of the model or of an adapter.
        base: initial model; an adapter names it.
        dtype: dtype of the weights; adapters are unchanged.
        format: format of the model's texts, saved as ``format.yaml``.
    """
    _cast_weights(folder, dtype)
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        # The trainer names the base model's folder in the local cache.
        path = Path(base.name)
        name = str(path.resolve()) if path.exists() else base.name
        content = json.loads(adapter.read_text(encoding="utf-8"))
        write_json(adapter, content | {"base_model_name_or_path": name, "revision": base.revision})
    if format:
        _save_format(format, folder)


def _cast_weights(folder: Path, dtype: torch.dtype) -> None:
    """Convert the weights of a saved model to a dtype."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    size = 0
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        weights = load_file(file)
        if any(tensor.is_floating_point() and tensor.dtype != dtype for tensor in weights.values()):
            weights = {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()
            }
            write_file(file, partial(save_file, weights, metadata=metadata))
        size += sum(tensor.nbytes for tensor in weights.values())
    config, index = folder / "config.json", folder / "model.safetensors.index.json"
    if size and config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        for section in [content, *(value for value in content.values() if isinstance(value, dict))]:
            if "dtype" in section or section is content:
                section["dtype"] = str(dtype).removeprefix("torch.")
        write_json(config, content)
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["metadata"]["total_size"] = size
        write_json(index, content)


def _save_format(format: Format, folder: Path) -> None:
    """Save a format in a model's folder, where ``--format auto`` finds it."""
    text = yaml.safe_dump(format.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
    write_file(folder / "format.yaml", lambda path: path.write_text(text, encoding="utf-8"))


def copy_model(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint's model files to a folder, without the training state."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _MODEL_FILES:
        for file in checkpoint.glob(pattern):
            if file.name not in _TRAINING_FILES:
                shutil.copy2(file, folder / file.name)
