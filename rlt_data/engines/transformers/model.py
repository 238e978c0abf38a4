"""A causal language model in two halves: the layers, and the LM head, which computes log-probs in blocks.

The head runs only at positions whose log-probs are needed, over one block of the vocabulary at a time, and sums
exponentials block by block. So a float32 tensor of (tokens x vocabulary) never exists. On a CPU the blocks fit into the
cache, which makes the head faster than a plain matrix product (figures in docs/results).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from rlt_data.engines.config import context_length_of, load_config, pick_device, pick_dtype
from rlt_data.engines.models import Checkpoint
from rlt_data.engines.transformers.cache import GrowingCache
from rlt_data.engines.transformers.exact import linear, make_exact
from rlt_data.engines.watchdog import Heartbeat
from rlt_data.errors import ModelError, first_line
from rlt_data.settings import ModelSettings

#: Rows and vocabulary entries of one block of logits: 32 MB in float32 on a CPU, 128 MB elsewhere.
_BLOCK_ROWS, _BLOCK_VOCABULARY_CPU, _BLOCK_VOCABULARY = 2048, 4096, 16384

_ATTENTION_KINDS = {"full_attention", "sliding_attention"}


class CausalModel:
    """Runs a causal language model.

    Args:
        model: the model on its device, in evaluation or training mode.
        name: the model's name, for messages.
        exact: make results independent of the batch; see :mod:`rlt_data.engines.transformers.exact`. This changes the
            model's layers, so it must not be used for a model in training.

    Raises:
        ModelError: the model has no LM head, or layers with another state than keys and values.
    """

    def __init__(self, model: Any, name: str, *, exact: bool = False) -> None:
        self.name = name
        self.heartbeat = Heartbeat()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self._model = model
        self._text_config = model.config.get_text_config()
        kinds = set(getattr(self._text_config, "layer_types", None) or ()) - _ATTENTION_KINDS
        if kinds or getattr(model, "_is_stateful", False):
            raise ModelError(
                f"{self.name}: has {', '.join(sorted(kinds)) or 'recurrent'} layers; the transformers engine runs only "
                "models with attention layers"
            )
        self._layers = model.base_model
        head = model.get_output_embeddings()
        if head is None or not hasattr(head, "weight"):
            raise ModelError(f"{self.name}: the model has no language-model head")
        self._head = head
        self._softcap: float | None = getattr(self._text_config, "final_logit_softcapping", None)
        self._scale = float(getattr(self._text_config, "logit_scale", None) or 1.0) / float(
            getattr(self._text_config, "logits_scaling", None) or 1.0
        )
        self.vocabulary: int = head.weight.shape[0]
        self._linear: Callable[..., torch.Tensor] = torch.nn.functional.linear
        if exact:
            make_exact(self._model)
            self._linear = linear

    @classmethod
    def load(cls, checkpoint: Checkpoint, settings: ModelSettings) -> CausalModel:
        """Load a checkpoint.

        Args:
            checkpoint: the checkpoint.
            settings: device, dtype, and whether the checkpoint's code may run.

        Raises:
            ModelError: the model cannot be loaded or run, or its LM head is not supported.
        """
        from transformers import AutoModelForCausalLM

        name, device = checkpoint.name, pick_device(settings.device)
        dtype = pick_dtype(settings.dtype, load_config(checkpoint, settings), device)
        try:
            model_and_info: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=settings.trust_remote_code,
            )
        except Exception as error:  # noqa: BLE001 - damaged weights raise errors of several libraries
            raise ModelError(f"{name}: cannot be loaded as a causal language model: {first_line(error)}") from None
        model, info = model_and_info
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise ModelError(f"{name}: not a causal language model with a head; the checkpoint lacks {missing}")
        exact = dtype == torch.float32 and device.type == "cpu"
        try:
            causal = cls(model.to(device).eval(), name, exact=exact)
            causal._check()
        except ModelError:
            raise
        except Exception as error:  # noqa: BLE001 - too little memory, or mismatched sizes
            raise ModelError(f"{name}: cannot be run on {device}: {first_line(error)}") from None
        return causal

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a text."""
        return context_length_of(self._text_config)

    @property
    def end_tokens(self) -> set[int]:
        """The model's end-of-text tokens."""
        value = self._model.generation_config.eos_token_id or self._text_config.eos_token_id
        return {token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)}

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's keys and values, in bytes."""
        config = self._text_config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * self.dtype.itemsize)

    @torch.inference_mode()
    def hidden(
        self,
        ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: GrowingCache | None = None,
    ) -> torch.Tensor:
        """Run the layers.

        Args:
            ids: shape (batch, tokens).
            attention_mask: 0 at padding, shape (batch, tokens in the cache + tokens).
            position_ids: shape (batch, tokens).
            cache: keys and values of earlier tokens; those of the new tokens are appended.

        Returns:
            The last layer's output, shape (batch, tokens, hidden size).
        """
        self.heartbeat.touch_or_raise()
        output = self._layers(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return cast(torch.Tensor, output.last_hidden_state)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits of a few positions, shape (rows, vocabulary), from (rows, hidden size)."""
        return self._block(hidden, 0, self.vocabulary)

    @torch.inference_mode()
    def token_logprobs(self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return log-probs of given tokens.

        Args:
            hidden: outputs at the positions before the tokens, shape (rows, hidden size).
            targets: the tokens, shape (rows,).
            temperature: logits are divided by it.

        Returns:
            Shape (rows,), float32.
        """
        pieces = []
        for rows, tokens in zip(torch.split(hidden, _BLOCK_ROWS), torch.split(targets, _BLOCK_ROWS), strict=True):
            peaks, sums = [], []
            target_logits = torch.zeros(len(rows), device=rows.device)
            for start, block in self._blocks(rows, temperature):
                in_block = (tokens >= start) & (tokens < start + block.shape[1])
                column = (tokens - start).clamp(0, block.shape[1] - 1)
                target_logits = torch.where(in_block, block.gather(1, column[:, None])[:, 0], target_logits)
                peak = block.amax(-1)
                peaks.append(peak)
                sums.append(block.sub_(peak[:, None]).exp_().sum(-1))
            peak, log_total = _log_sum(peaks, sums)
            pieces.append((target_logits - peak) - log_total)
        return torch.cat(pieces) if pieces else torch.zeros(0, device=hidden.device)

    @torch.inference_mode()
    def full_kl(
        self, hidden: torch.Tensor, other: CausalModel, other_hidden: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Return KL(this || other) over the tokens that both models have.

        Args:
            hidden: this model's outputs, shape (rows, hidden size).
            other: the other model, with the same tokenizer.
            other_hidden: the other model's outputs at the same tokens, shape (rows, other hidden size).
            temperature: both models' logits are divided by it.

        Returns:
            Shape (rows,), float32, in nats.
        """
        size = min(self.vocabulary, other.vocabulary)
        pieces = []
        for rows, other_rows in zip(
            torch.split(hidden, _BLOCK_ROWS), torch.split(other_hidden, _BLOCK_ROWS), strict=True
        ):
            normalisers = [
                torch.stack([block.logsumexp(-1) for _, block in model._blocks(at, temperature, size)]).logsumexp(0)
                for model, at in ((self, rows), (other, other_rows))
            ]
            kl = torch.zeros(len(rows), device=rows.device)
            for (_, p), (_, q) in zip(
                self._blocks(rows, temperature, size), other._blocks(other_rows, temperature, size), strict=True
            ):
                log_p = p - normalisers[0][:, None]
                log_q = (q - normalisers[1][:, None]).to(log_p.device)
                kl += (log_p.exp() * (log_p - log_q)).sum(-1)
            pieces.append(kl)
        return torch.cat(pieces) if pieces else torch.zeros(0, device=hidden.device)

    def _blocks(self, hidden: torch.Tensor, temperature: float, size: int | None = None) -> Any:
        """Yield each block of the vocabulary as its first token and its float32 logits divided by the temperature."""
        size = self.vocabulary if size is None else size
        width = _BLOCK_VOCABULARY_CPU if self.device.type == "cpu" else _BLOCK_VOCABULARY
        for start in range(0, size, width):
            yield start, self._block(hidden, start, min(start + width, size)).div_(temperature)

    def _block(self, hidden: torch.Tensor, start: int, end: int) -> torch.Tensor:
        bias = getattr(self._head, "bias", None)
        logits = self._linear(hidden, self._head.weight[start:end], None if bias is None else bias[start:end])
        logits = logits.float() if logits.dtype != torch.float32 else logits
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._softcap:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits

    @torch.inference_mode()
    def _check(self) -> None:
        """Compare our LM head with the model's own logits on a few tokens, and check that no token sees later ones."""
        ids = torch.arange(1, 9, device=self.device)[None] % self.vocabulary
        expected = self._model(input_ids=ids).logits[0].float().log_softmax(-1)
        computed = self.logits(self.hidden(ids)[0]).log_softmax(-1)
        first_half = self._model(input_ids=ids[:, :4]).logits[0].float().log_softmax(-1)
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.5
        if not torch.allclose(expected[:4], first_half, atol=tolerance):
            raise ModelError(f"{self.name}: not a causal language model; its tokens see later tokens")
        if not torch.allclose(expected, computed, atol=tolerance):
            raise ModelError(
                f"{self.name}: the transformers engine does not support this model's LM head "
                f"(model type {self._text_config.model_type})"
            )


def _log_sum(peaks: list[torch.Tensor], sums: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine blocks' maxima and sums of exponentials into the overall maximum and the log of the remaining sum.

    They are not added, because a sum of several tens would cost digits that the difference to a logit needs.
    """
    stacked = torch.stack(peaks)
    peak = stacked.amax(0)
    return peak, (torch.stack(sums) * (stacked - peak).exp()).sum(0).log()
