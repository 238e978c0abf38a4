"""The Transformers engine: an :class:`~rlt_data.engines.Engine` for one model in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch

from rlt_data.engines.models import Checkpoint
from rlt_data.engines.protocol import (
    Engine,
    Failure,
    PromptRequest,
    Sample,
    Sampling,
    SequenceBlock,
    SequenceLogprobs,
    SequenceRequest,
)
from rlt_data.engines.transformers.generation import Generator
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.engines.transformers.scoring import Scorer
from rlt_data.errors import ModelError
from rlt_data.formats import Tokenizer
from rlt_data.libraries import freed_memory
from rlt_data.settings import ModelSettings


class TransformersEngine:
    """Generates and scores with a model on one device.

    Args:
        model: the model.
        tokenizer: the model's tokenizer.
        settings: batch sizes.
    """

    def __init__(self, model: CausalModel, tokenizer: Tokenizer, settings: ModelSettings) -> None:
        self.model = model
        self.context_length = model.context_length
        self.heartbeat = model.heartbeat
        tokens = settings.batch_tokens or (4096 if self.model.device.type == "cpu" else 16384)
        self._generator = Generator(self.model, tokenizer, batch_size=settings.batch_size, batch_tokens=tokens)
        self._scorer = Scorer(self.model, tokens)
        self._runs_on: torch.device | None = None

    @classmethod
    def load(cls, checkpoint: Checkpoint, tokenizer: Tokenizer, settings: ModelSettings) -> TransformersEngine:
        """Load a checkpoint.

        Raises:
            ModelError: the model cannot be loaded or used.
        """
        return cls(CausalModel.load(checkpoint, settings), tokenizer, settings)

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Sample completions; see :class:`~rlt_data.engines.Engine`."""
        return self._generator.run(blocks, sampling)

    def logprobs(self, blocks: Iterable[SequenceBlock], temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score texts; see :class:`~rlt_data.engines.Engine`."""
        if self._runs_on:
            self.model.move(self._runs_on)
        try:
            for block in blocks:
                yield from self._scorer.logprobs(block, temperature)
        finally:
            if self._runs_on:
                self.offload()

    def offload(self) -> None:
        """Keep the weights on the CPU from now on, except while texts are scored."""
        self._runs_on = self._runs_on or self.model.device
        self.model.move(torch.device("cpu"))
        if self._runs_on.type == "cuda":
            torch.cuda.empty_cache()

    def full_kl(
        self,
        group: Sequence[SequenceRequest],
        other: Engine,
        other_group: Sequence[SequenceRequest],
        temperature: float,
    ) -> Iterator[SequenceLogprobs | Failure]:
        """Compare distributions; see :class:`~rlt_data.engines.protocol.FullKL`."""
        if not isinstance(other, TransformersEngine):
            raise ModelError("the full KL needs both models in the transformers engine")
        other_hidden = other._scorer.hidden(other_group)
        for key, hidden in self._scorer.hidden(group).items():
            if key in other_hidden:
                values = self.model.full_kl(hidden, other.model, other_hidden[key], temperature)
                yield SequenceLogprobs(key, values.cpu().numpy())
            else:
                yield Failure(key, f"out of memory on {other.model.device}")

    def log_tail(self) -> str:
        """Return an empty string: the engine runs in this process and has no log."""
        return ""

    def close(self) -> None:
        """Free the model's memory, even if something still refers to this engine."""
        with freed_memory():
            self.model = self._generator = self._scorer = cast(Any, None)
