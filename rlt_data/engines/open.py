"""Open a model: check everything that needs no weights, then load the engine."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path

import torch

from rlt_data.engines.choose import choose_engine
from rlt_data.engines.config import (
    context_length_of,
    load_config,
    open_tokenizer,
    pick_device,
    pick_dtype,
    stored_dtype,
    vocabulary_size,
)
from rlt_data.engines.models import (
    Checkpoint,
    find_checkpoint,
    has_weights,
    text_fingerprint,
    tokenizer_fingerprint,
    weight_bytes,
    weights_fingerprint,
)
from rlt_data.engines.protocol import (
    Engine,
    Failure,
    ModelIdentity,
    PromptRequest,
    Sample,
    Sampling,
    SequenceBlock,
    SequenceLogprobs,
    SequenceRequest,
)
from rlt_data.engines.results import checked_full_kl, checked_logprobs, checked_samples
from rlt_data.errors import ModelError, RltDataError, one_line
from rlt_data.formats import ChatTemplate, ControlTokens, Tokenizer
from rlt_data.libraries import quiet_bars
from rlt_data.plugins import ENGINES
from rlt_data.settings import ModelSettings


@dataclass
class Model:
    """A model whose files have been checked; :meth:`load` loads its weights.

    Steps call the model and not its engine, so that every result is checked.

    Attributes:
        checkpoint: the model's files.
        settings: settings of the engine.
        tokenizer: the model's tokenizer.
        template: the model's chat template.
        identity: identifies the model by its content.
        scoring: the engine scores texts; otherwise it samples.
        served_temperature: temperature of the servers' log-probs of texts, for ``--engine server``.
    """

    checkpoint: Checkpoint
    settings: ModelSettings
    tokenizer: Tokenizer
    template: ChatTemplate
    identity: ModelIdentity
    scoring: bool = False
    served_temperature: float = 1.0

    def __getstate__(self) -> dict[str, object]:
        """Pickle the model for another process, without its engine."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def control(self) -> ControlTokens:
        """The model's control tokens."""
        as_text = self.settings.control_tokens == "text"
        return ControlTokens(self.tokenizer, self.template, self.checkpoint.name, as_text=as_text)

    @cached_property
    def engine(self) -> Engine:
        """The engine that runs the model, loaded at the first use."""
        return self._open_engine(None, 1.0)

    def _open_engine(self, logs: Path | None, memory_share: float) -> Engine:
        if self.settings.ray:
            from rlt_data.engines.ray import RayEngine

            without = self.settings.model_copy(update={"ray": None, "engines": None, "gpus_per_engine": None})
            name, fingerprint = self.checkpoint.name, self.identity.fingerprint
            return RayEngine(
                self.settings,
                partial(open_same_engine, name, without, scoring=self.scoring, fingerprint=fingerprint),
                context_length=self.context_length,
                share=memory_share,
            )
        name = self.settings.engine
        try:
            engine: Engine = ENGINES.load(name)(self, logs, memory_share)
        except RltDataError:
            raise
        except Exception as error:
            if name in ENGINES.built_in:
                raise
            raise ModelError(f"engine: {name} raised {type(error).__name__}: {one_line(error)}") from error
        if name not in ENGINES.built_in:
            members = (*Engine.__annotations__, *(member for member in vars(Engine) if not member.startswith("_")))
            if missing := [member for member in members if not hasattr(engine, member)]:
                raise ModelError(f"engine: {name} returned {type(engine).__name__}, which has no {missing[0]}")
        return engine

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a text, by the engine if it is loaded, else by configuration and flags."""
        if "engine" in self.__dict__:
            return self.engine.context_length
        model_context = context_length_of(load_config(self.checkpoint, self.settings))
        return min(model_context, self.settings.max_model_len or model_context)

    @property
    def gpu_dtype(self) -> torch.dtype:
        """Data type of the weights on a GPU; this machine may have none."""
        return pick_dtype(self.settings.dtype, load_config(self.checkpoint, self.settings), torch.device("cuda"))

    @property
    def weight_bytes(self) -> float:
        """Size of the weights on a GPU, in bytes; quantized weights keep their types."""
        config, stored = load_config(self.checkpoint, self.settings), weight_bytes(self.checkpoint)
        if getattr(config, "quantization_config", None):
            return stored
        return stored * self.gpu_dtype.itemsize / stored_dtype(config).itemsize

    def load(self, logs: Path | None = None, *, memory_share: float = 1.0) -> None:
        """Load the engine, unless it is loaded already.

        Steps call this before they write anything, so that an unusable model leaves no files behind.

        Args:
            logs: folder for the logs of engine processes.
            memory_share: fraction of the allowed GPU memory (on a cluster, of the GPUs) for this model; a second model
                gets the remainder.

        Raises:
            ModelError: the engine cannot run the model.
        """
        if "engine" not in self.__dict__:
            with quiet_bars():
                self.engine = self._open_engine(logs, memory_share)

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Sample completions; see :meth:`rlt_data.engines.Engine.generate`. Impossible results become failures."""
        return checked_samples(self.engine, blocks, sampling, self._vocabulary)

    def logprobs(self, blocks: Iterable[SequenceBlock], temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score texts; see :meth:`rlt_data.engines.Engine.logprobs`. Impossible results become failures."""
        return checked_logprobs(self.engine, blocks, temperature, self._vocabulary)

    def full_kl(
        self,
        group: Sequence[SequenceRequest],
        other: Model,
        other_group: Sequence[SequenceRequest],
        temperature: float,
    ) -> Iterator[SequenceLogprobs | Failure]:
        """Yield KL(this model || other) at the scored tokens; see :class:`~rlt_data.engines.protocol.FullKL`.

        Raises:
            ModelError: the engines cannot compare distributions.
        """
        return checked_full_kl(self.engine, group, other.engine, other_group, temperature)

    @cached_property
    def _vocabulary(self) -> int:
        return vocabulary_size(load_config(self.checkpoint, self.settings))

    def close(self) -> None:
        """Close the engine, if it is loaded."""
        if engine := self.__dict__.pop("engine", None):
            engine.close()


def memory_shares(models: Sequence[Model]) -> list[float]:
    """Return the share of the GPU memory for each of the models that run together; see :meth:`Model.load`.

    With vLLM, each gets its weights and an equal part of the rest. On a cluster, shares are equal numbers of GPUs.
    """
    settings = models[0].settings
    if settings.engine != "vllm" or settings.ray or not torch.cuda.is_available():
        return [1 / len(models)] * len(models)
    weights = [model.weight_bytes / settings.tensor_parallel for model in models]
    budget = settings.gpu_memory * torch.cuda.get_device_properties(0).total_memory
    rest = max(budget - sum(weights), 0) / len(models)
    return [(weight + rest) / (sum(weights) + rest * len(models)) for weight in weights]


def open_transformers(model: Model, _logs: Path | None, _memory_share: float) -> Engine:
    """Load a model into this process."""
    from rlt_data.engines.transformers import TransformersEngine

    return TransformersEngine.load(model.checkpoint, model.tokenizer, model.settings)


def open_vllm(model: Model, logs: Path | None, memory_share: float) -> Engine:
    """Start vLLM processes."""
    from rlt_data.engines.vllm.loading import open_pool

    return open_pool(model.checkpoint, model.settings, scoring=model.scoring, logs=logs, memory_share=memory_share)


def open_server(model: Model, _logs: Path | None, _memory_share: float) -> Engine:
    """Connect to servers."""
    from rlt_data.engines.server import ServerEngine

    return ServerEngine(
        model.checkpoint,
        model.tokenizer,
        model.settings,
        scoring=model.scoring,
        served_temperature=model.served_temperature,
    )


def open_model(name: str, settings: ModelSettings, *, scoring: bool = False, served_temperature: float = 1.0) -> Model:
    """Find a model, load its tokenizer and compute its fingerprint.

    Args:
        name: Hub id, folder, GGUF file or packaged name.
        settings: settings of the engine. Steps have replaced ``auto``, because it depends on their run.
        scoring: score texts; otherwise sample.
        served_temperature: temperature of the servers' log-probs of texts, for ``--engine server``.

    Raises:
        ModelError: the model does not exist, or its tokenizer cannot be used.
        SettingsError: the device or the chat template does not exist.
    """
    settings = choose_engine(settings, quiet=settings.engine != "auto")
    ENGINES.load(settings.engine)  # fails here, before anything is loaded
    served = settings.engine == "server"
    checkpoint = find_checkpoint(name, tokenizer_only=served)
    config = load_config(checkpoint, settings)
    tokenizer, template = open_tokenizer(checkpoint, settings)
    dtype = "served" if served else str(pick_dtype(settings.dtype, config, pick_device(settings.device)))
    identity = ModelIdentity(
        name=name,
        revision=checkpoint.revision,
        weights=_served_fingerprint(checkpoint, settings) if served else weights_fingerprint(checkpoint),
        tokenizer=tokenizer_fingerprint(tokenizer, None if settings.trust_remote_code else checkpoint),
        chat_template=template.identity,
        dtype=dtype.removeprefix("torch."),
    )
    return Model(checkpoint, settings, tokenizer, template, identity, scoring, served_temperature)


def open_same_engine(name: str, settings: ModelSettings, *, scoring: bool, fingerprint: str) -> Engine:
    """Open and load a model on another machine, and check its fingerprint; picklable.

    Args:
        name: the model's name, as for :func:`open_model`.
        settings: settings of the engine.
        scoring: score texts; otherwise sample.
        fingerprint: the required fingerprint.

    Raises:
        ModelError: this machine lacks the model, has another one under the name, or cannot run it.
    """
    model = open_model(name, settings, scoring=scoring)
    if model.identity.fingerprint != fingerprint:
        raise ModelError(f"{name}: {socket.gethostname()} has another model under this name")
    model.load()
    return model.engine


def _served_fingerprint(checkpoint: Checkpoint, settings: ModelSettings) -> str:
    """Return a fingerprint for the weights of a served model, which cannot be read from the server.

    For a folder with weights it is the hash of these. Weights from the Hub may be missing on this machine, so name and
    commit count instead. ``--served-model`` counts too, because it may name an adapter.
    """
    if checkpoint.revision is None and has_weights(checkpoint):
        weights = weights_fingerprint(checkpoint)
    else:
        weights = text_fingerprint(f"{checkpoint.name} {checkpoint.revision}")
    return text_fingerprint(f"{weights} {settings.served_model}") if settings.served_model else weights
