"""What the sections share: device, scale, models, and the figures that later sections compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.device import free
from benchmarks.gpu.models import Scale, main_config, random_model, word_tokenizer
from rlt_data.engines import Checkpoint
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
        self.config = main_config(scale)
        self.matmul_rate: float | None = None
        #: Per set of inputs: tokens per second of Transformers alone, and its log-probs by key.
        self.plain_rates: dict[str, float] = {}
        self.plain_logprobs: dict[str, Any] = {}

    @cached_property
    def model(self) -> Any:
        """The main model, as Transformers makes it."""
        return random_model(self.config, self.device)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The saved main model, which is then no longer in memory."""
        checkpoint = self.save(self.model, "main")
        del self.model
        free(self.device)
        return checkpoint

    @cached_property
    def engine(self) -> TransformersEngine:
        """The engine of the main model, with default batch sizes."""
        return self.load(self.checkpoint)

    def small_checkpoint(self, pass_limit: int | None = None) -> Checkpoint:
        """Return the saved small model, which refuses larger passes if there is a limit and no GPU."""
        limit = None if self.cuda else pass_limit
        name = f"small-{limit}" if limit else "small"
        if (self.folder / name).exists():
            return Checkpoint(name, self.folder / name)
        config = main_config(self.scale, layers=self.scale.small_layers, pass_limit=limit)
        return self.save(random_model(config, self.device), name)

    def save(self, model: Any, name: str) -> Checkpoint:
        """Save a model in the folder of the run."""
        model.save_pretrained(self.folder / name)
        return Checkpoint(name, self.folder / name)

    def load(self, checkpoint: Checkpoint, *, dtype: Any = "bfloat16", **settings: Any) -> TransformersEngine:
        """Load a checkpoint as rlt-data does.

        Raises:
            ModelError: it cannot be loaded.
        """
        chosen = ModelSettings(device=self.device.type, dtype=dtype, **settings)
        causal = CausalModel.load(checkpoint, chosen)
        return TransformersEngine(causal, word_tokenizer(causal.vocabulary), chosen)

    def share_of_matmul(self, operations: float, seconds: float) -> float | None:
        """Return operations per second as a share of the measured rate of a large matrix product."""
        return round(operations / seconds / self.matmul_rate, 3) if self.matmul_rate else None


@contextmanager
def each_pass(note: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Call a function with the token ids of each forward pass, shape (rows, tokens), before it begins."""

    def hook(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, torch.nn.Embedding):
            note(arguments[0])

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
