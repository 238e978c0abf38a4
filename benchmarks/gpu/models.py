"""Random models, and texts and prompts of random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlt_data.engines import PromptRequest, SampleRequest, SequenceRequest

#: The texts of a group share a prompt.
Groups = list[list[SequenceRequest]]


@dataclass(frozen=True)
class Texts:
    """Texts of equal length: groups, texts per group, tokens of the shared prompt, and tokens of the whole text."""

    groups: int
    traces: int
    prompt: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.groups * self.traces} x {self.tokens:,} tokens, prompts of {self.prompt}"

    def make(self, vocabulary: int, seed: int = 0) -> Groups:
        """Draw the texts; all tokens after the prompt are scored."""
        draw = np.random.default_rng(seed)
        positions = np.arange(self.prompt, self.tokens, dtype=np.int32)
        groups = []
        for group in range(self.groups):
            prompt = draw.integers(5, vocabulary, self.prompt)
            groups.append(
                [
                    SequenceRequest(
                        f"{self.tokens}-{group}-{trace}",
                        np.concatenate([prompt, draw.integers(5, vocabulary, self.tokens - self.prompt)]).astype("i4"),
                        positions,
                    )
                    for trace in range(self.traces)
                ]
            )
        return groups


@dataclass(frozen=True)
class Prompts:
    """Prompts of equal length: prompts, samples per prompt, tokens of a prompt, and tokens of a sample."""

    prompts: int
    samples: int
    tokens: int
    new_tokens: int

    def __str__(self) -> str:
        return f"{self.prompts * self.samples} samples of {self.new_tokens} tokens, prompts of {self.tokens:,}"

    def make(self, vocabulary: int, seed: int = 0) -> list[PromptRequest]:
        """Draw the prompts; the seeds of their samples differ."""
        draw = np.random.default_rng(seed)
        return [
            PromptRequest(
                draw.integers(5, vocabulary, self.tokens).astype("i4"),
                [SampleRequest(f"{seed}-{prompt}-{i}", 1000 * prompt + i) for i in range(self.samples)],
            )
            for prompt in range(self.prompts)
        ]


@dataclass(frozen=True)
class Scale:
    """Sizes of models and inputs.

    Attributes:
        matrix: rows and columns of the multiplied matrices.
        model: the configuration of the main model.
        sliding: the configuration of the model with sliding windows.
        small_layers: layers of the small model, which otherwise has the main model's shape.
        long, short: texts to score.
        generated: prompts to continue.
        large: prompts that fill the memory.
        crowd: texts or prompts of which a few fit, in the sections about memory.
        giant: one that never fits.
        batch_tokens: maximum number of tokens per forward pass in these sections.
    """

    matrix: int
    model: dict[str, int]
    sliding: dict[str, Any]
    small_layers: int
    long: Texts
    short: Texts
    generated: Prompts
    large: Prompts
    crowd: Texts
    giant: Texts
    batch_tokens: int


FULL = Scale(
    matrix=8192,
    model={  # Qwen2.5-7B
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
    },
    sliding={  # Gemma 3 1B: five of six layers have a window
        "vocab_size": 262144,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
        "max_position_embeddings": 32768,
        "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(26)],
    },
    small_layers=7,
    long=Texts(2, 4, 400, 16_000),
    short=Texts(4, 16, 400, 1_500),
    generated=Prompts(32, 4, 400, 128),
    large=Prompts(16, 16, 6_000, 8),  # on 80 GB, half of a block fits
    crowd=Texts(16, 1, 20, 1_500),
    giant=Texts(1, 1, 20, 32_000),
    batch_tokens=16_384,
)

TINY = Scale(
    matrix=128,
    model={
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    sliding={
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 24,
        "max_position_embeddings": 2048,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    small_layers=1,
    long=Texts(2, 2, 40, 300),
    short=Texts(2, 4, 20, 60),
    generated=Prompts(4, 2, 20, 8),
    large=Prompts(8, 8, 30, 4),
    crowd=Texts(6, 1, 20, 60),
    giant=Texts(1, 1, 20, 400),
    batch_tokens=200,
)


class LimitedConfig(Qwen2Config):
    """Configuration of :class:`LimitedModel`, with ``pass_limit``, the maximum number of tokens per forward pass."""

    model_type = "limited_qwen2"


class LimitedModel(Qwen2ForCausalLM):
    """A model that raises PyTorch's out-of-memory error in larger passes, which stands in for the memory of a GPU."""

    config_class = LimitedConfig

    def __init__(self, config: LimitedConfig) -> None:
        super().__init__(config)
        self.model.norm.register_forward_pre_hook(self._check_size)

    def _check_size(self, _: Any, arguments: tuple[torch.Tensor]) -> None:
        rows, tokens, _ = arguments[0].shape
        if rows * tokens > self.config.pass_limit:
            raise torch.OutOfMemoryError(f"a pass has {rows} x {tokens} tokens; the limit is {self.config.pass_limit}")


AutoConfig.register(LimitedConfig.model_type, LimitedConfig)
AutoModelForCausalLM.register(LimitedConfig, LimitedModel)


def main_config(scale: Scale, *, layers: int | None = None, pass_limit: int | None = None) -> Any:
    """Return the configuration of the main model, with another number of layers or as :class:`LimitedModel`."""
    options: dict[str, Any] = scale.model | {"eos_token_id": 0, "tie_word_embeddings": False}
    if layers:
        options["num_hidden_layers"] = layers
    return LimitedConfig(**options, pass_limit=pass_limit) if pass_limit else Qwen2Config(**options)


def sliding_config(scale: Scale) -> Any:
    """Return the configuration of the model with sliding windows, of Gemma 3's architecture."""
    return Gemma3TextConfig(**scale.sliding, eos_token_id=0)


def random_model(config: Any, device: torch.device) -> Any:
    """Make a model of Transformers in bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(torch.float32)
    randomize(model, 0)
    return model.eval()


@torch.inference_mode()
def randomize(model: Any, seed: int) -> None:
    """Draw all weight matrices. The standard deviation of the logits is about 3, as wide as that of trained models."""
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.normal_(0, 0.02)
    head = model.get_output_embeddings().weight
    head.normal_(0, 3 / head.shape[1] ** 0.5)


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one word per token, none of which contains ``>``."""
    words = {f"t{token}_": token for token in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0_"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t0_", unk_token="t0_")
