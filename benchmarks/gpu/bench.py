"""What the sections share: the device, the scale, the models, and the figures that later sections compare with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import Scale, random_model, word_tokenizer
from rlt_data.engines.transformers import TransformersEngine
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.settings import ModelSettings

#: One line of a section's table. A None is a figure that this device does not have.
Row = dict[str, Any]
#: A section yields its rows as it measures them, so that they are kept if it fails later.
Rows = Iterator[Row]

TEMPERATURE = 0.7


class Unexpected(Exception):
    """A section measured something that must not be; the message says what."""


class Bench:
    """The state of a run.

    Args:
        scale: sizes of models and inputs.
        device: where the models run.
        folder: where checkpoints are saved.
    """

    def __init__(self, scale: Scale, device: torch.device, folder: Path) -> None:
        self.scale, self.device, self.folder = scale, device, folder
        self.cuda = device.type == "cuda"
        self.matmul_rate: float | None = None
        #: Per set of inputs: tokens per second of Transformers alone, and its log-probs by key.
        self.plain_rates: dict[str, float] = {}
        self.plain_logprobs: dict[str, Any] = {}

    @cached_property
    def model(self) -> Any:
        """The main model, unmodified until :attr:`engine` is used."""
        return random_model(self.scale, self.device)

    @cached_property
    def engine(self) -> TransformersEngine:
        """The engine of the main model, with default settings."""
        return wrap(self.model)

    def share_of_matmul(self, operations: float, seconds: float) -> float | None:
        """Return operations per second as a share of the measured rate of a large matrix product."""
        return round(operations / seconds / self.matmul_rate, 3) if self.matmul_rate else None


def wrap(model: Any, **settings: Any) -> TransformersEngine:
    """Return the engine of a model."""
    causal = CausalModel(model, "random", exact=False)
    return TransformersEngine(causal, word_tokenizer(model.config.vocab_size), ModelSettings(**settings))
