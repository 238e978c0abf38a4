"""Opening a model: everything that can be known and refused before its weights are loaded, and then the engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch

from rlt_data.engines.models import (
    Checkpoint,
    find_checkpoint,
    text_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from rlt_data.engines.protocol import Engine, ModelIdentity
from rlt_data.errors import ModelError, SettingsError, first_line
from rlt_data.formats import ChatTemplate, Tokenizer
from rlt_data.settings import ModelSettings


@dataclass
class Model:
    """A model that has been found and examined; its weights are loaded when :attr:`engine` is first asked for."""

    checkpoint: Checkpoint
    settings: ModelSettings
    tokenizer: Tokenizer
    template: ChatTemplate
    identity: ModelIdentity

    @cached_property
    def engine(self) -> Engine:
        """The engine that runs the model."""
        from rlt_data.engines.transformers import TransformersEngine

        return TransformersEngine(self.checkpoint, self.tokenizer, self.settings)

    def load(self) -> None:
        """Load the weights now, so that a model that will not do is refused before anything is written.

        Raises:
            ModelError: the engine cannot run the model.
        """
        _ = self.engine


def open_model(name: str, settings: ModelSettings) -> Model:
    """Find a model, load its tokenizer and take its fingerprint.

    Raises:
        ModelError: there is no such model, or its tokenizer cannot be used.
        SettingsError: the device or the chat template is not there.
    """
    checkpoint = find_checkpoint(name)
    config = load_config(checkpoint, settings)
    tokenizer, template = open_tokenizer(checkpoint, settings)
    identity = ModelIdentity(
        name=name,
        revision=checkpoint.revision,
        weights=weights_fingerprint(checkpoint),
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=text_fingerprint(template.text),
        dtype=str(pick_dtype(settings.dtype, config, pick_device(settings.device))).removeprefix("torch."),
    )
    return Model(checkpoint, settings, tokenizer, template, identity)


def open_tokenizer(checkpoint: Checkpoint, settings: ModelSettings) -> tuple[Tokenizer, ChatTemplate]:
    """Load a checkpoint's tokenizer and chat template.

    Raises:
        ModelError: there is no tokenizer, or it cannot tell character offsets.
        SettingsError: ``--chat-template`` names no file.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{checkpoint.name}: its tokenizer cannot be loaded: {first_line(error)}") from None
    if not tokenizer.is_fast:
        raise ModelError(f"{checkpoint.name}: its tokenizer gives no character offsets (a fast tokenizer is needed)")
    return cast(Tokenizer, tokenizer), ChatTemplate(tokenizer, settings.chat_template)


def load_config(checkpoint: Checkpoint, settings: ModelSettings) -> Any:
    """Load a checkpoint's configuration.

    Raises:
        ModelError: it cannot be read, or needs code of its own and ``--trust-remote-code`` was not given.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{checkpoint.name}: its configuration cannot be loaded: {first_line(error)}") from None


def pick_device(name: str) -> torch.device:
    """Turn ``--device`` into a device that is there.

    Raises:
        SettingsError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f"--device: {name!r} cannot be used here: {first_line(error)}") from None
    return device


def pick_dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    """Turn ``--dtype`` into a type; ``auto`` is the checkpoint's unless a CPU would have to emulate it."""
    if name != "auto":
        return cast(torch.dtype, getattr(torch, name))
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    if device.type != "cpu":
        return cast(torch.dtype, stored)
    native = torch.cpu.get_capabilities()
    has_bfloat16 = any(native.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if stored == torch.bfloat16 and has_bfloat16 else torch.float32
