"""Opening a model: everything that can be known and refused before its weights are loaded, and then the engine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from rlt_data.engines.config import load_config, longest_text, open_tokenizer, pick_device, pick_dtype
from rlt_data.engines.models import (
    Checkpoint,
    find_checkpoint,
    has_weights,
    text_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from rlt_data.engines.protocol import Engine, ModelIdentity
from rlt_data.formats import ChatTemplate, Tokenizer
from rlt_data.libraries import quiet_bars
from rlt_data.settings import ModelSettings


@dataclass
class Model:
    """A model that has been found and examined; its weights are loaded when :attr:`engine` is first asked for.

    Attributes:
        checkpoint: where it lies.
        settings: how it is run.
        tokenizer: its tokenizer.
        template: its chat template.
        identity: which model it is.
        scoring: what the engine is for: log-probs of texts, or samples.
        share: of the GPUs that the settings allow, where another model runs beside it.
        logs: folder for what the engine's processes write.
    """

    checkpoint: Checkpoint
    settings: ModelSettings
    tokenizer: Tokenizer
    template: ChatTemplate
    identity: ModelIdentity
    scoring: bool = False
    share: float = 1.0
    logs: Path | None = None

    @cached_property
    def engine(self) -> Engine:
        """The engine that runs the model."""
        if self.settings.ray:
            from rlt_data.engines.ray import RayEngine

            without = self.settings.model_copy(update={"ray": None, "engines": None, "gpus_per_engine": None})
            return RayEngine(self, partial(open_model, self.checkpoint.name, without, scoring=self.scoring))
        if self.settings.engine == "vllm":
            from rlt_data.engines.vllm import open_pool

            memory = self.settings.gpu_memory * self.share
            settings = self.settings.model_copy(update={"gpu_memory": memory})
            return open_pool(self.checkpoint, settings, scoring=self.scoring, logs=self.logs)
        if self.settings.engine == "server":
            from rlt_data.engines.server import ServerEngine

            return ServerEngine(self.checkpoint, self.tokenizer, self.settings, scoring=self.scoring)
        from rlt_data.engines.transformers import TransformersEngine

        return TransformersEngine.load(self.checkpoint, self.tokenizer, self.settings)

    @property
    def context_length(self) -> int:
        """The most tokens of a text, as the checkpoint's configuration and the settings have it."""
        longest = longest_text(load_config(self.checkpoint, self.settings))
        return min(longest, self.settings.max_model_len or longest)

    def load(self, logs: Path | None = None) -> None:
        """Load the weights now, so that a model that will not do is refused before anything is written.

        Args:
            logs: folder for what the engine's processes write.

        Raises:
            ModelError: the engine cannot run the model.
        """
        self.logs = logs
        with quiet_bars():
            _ = self.engine

    def close(self) -> None:
        """Give back what the engine holds, if there is one."""
        if engine := self.__dict__.pop("engine", None):
            engine.close()


def open_model(name: str, settings: ModelSettings, *, scoring: bool = False) -> Model:
    """Find a model, load its tokenizer and take its fingerprint.

    Args:
        name: Hub id, folder, GGUF file or packaged name.
        settings: how it is run.
        scoring: whether it is to score texts.

    Raises:
        ModelError: there is no such model, or its tokenizer cannot be used.
        SettingsError: the device or the chat template is not there.
    """
    served = settings.engine == "server"
    checkpoint = find_checkpoint(name, tokenizer_only=served)
    config = load_config(checkpoint, settings)
    tokenizer, template = open_tokenizer(checkpoint, settings)
    dtype = "served" if served else str(pick_dtype(settings.dtype, config, pick_device(settings.device)))
    identity = ModelIdentity(
        name=name,
        revision=checkpoint.revision,
        weights=_served_fingerprint(checkpoint, settings) if served else weights_fingerprint(checkpoint),
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=text_fingerprint(template.text),
        dtype=dtype.removeprefix("torch."),
    )
    return Model(checkpoint, settings, tokenizer, template, identity, scoring)


def _served_fingerprint(checkpoint: Checkpoint, settings: ModelSettings) -> str:
    """Return what stands for the weights of a model that a server runs, whose bytes nobody here sees.

    A folder's weights are taken to be the served ones; of a model from the Hub they may be there or not, so its name
    and commit count. A name given to the served model counts too: it may be an adapter's.
    """
    if checkpoint.revision is None and has_weights(checkpoint):
        weights = weights_fingerprint(checkpoint)
    else:
        weights = text_fingerprint(f"{checkpoint.name} {checkpoint.revision}")
    return text_fingerprint(f"{weights} {settings.served_model}") if settings.served_model else weights
