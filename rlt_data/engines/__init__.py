"""Engines run models. Open one by name with :func:`open_model`; steps use it through :class:`Engine`."""

from rlt_data.engines.choose import choose_engine
from rlt_data.engines.config import open_tokenizer
from rlt_data.engines.models import Checkpoint, find_checkpoint
from rlt_data.engines.open import Model, memory_shares, open_model
from rlt_data.engines.protocol import (
    Engine,
    Failure,
    Measured,
    ModelIdentity,
    PromptRequest,
    Sample,
    SampleRequest,
    Sampling,
    SequenceBlock,
    SequenceLogprobs,
    SequenceRequest,
)
from rlt_data.engines.watchdog import Heartbeat

__all__ = [
    "Checkpoint",
    "Engine",
    "Failure",
    "Heartbeat",
    "Measured",
    "Model",
    "ModelIdentity",
    "PromptRequest",
    "Sample",
    "SampleRequest",
    "Sampling",
    "SequenceBlock",
    "SequenceLogprobs",
    "SequenceRequest",
    "choose_engine",
    "find_checkpoint",
    "memory_shares",
    "open_model",
    "open_tokenizer",
]
