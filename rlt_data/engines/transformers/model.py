"""A causal language model in two halves: the layers, and the LM head, which computes log-probs in blocks.

The head runs only at positions whose log-probs are needed, over one block of the vocabulary at a time, and sums
exponentials block by block. So a float32 tensor of (tokens x vocabulary) never exists. On a CPU the blocks fit into the
cache, which makes the head faster than a plain matrix product (figures in docs/results).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from rlt_data.engines.config import (
    cache_bytes,
    context_length_of,
    describe_device,
    load_config,
    pick_device,
    pick_dtype,
)
from rlt_data.engines.models import Checkpoint
from rlt_data.engines.transformers import attention
from rlt_data.engines.transformers.cache import GrowingCache
from rlt_data.engines.transformers.exact import linear, make_exact
from rlt_data.engines.watchdog import Heartbeat
from rlt_data.errors import ModelError, first_line
from rlt_data.settings import ModelSettings

logger = logging.getLogger(__name__)

#: Rows and vocabulary entries of a block of logits: 64 MB in float32, and 16 MB on a CPU, whose allocator does not
#: reuse larger ones (a tenth more time).
_BLOCK_ROWS, _BLOCK_VOCABULARY_CPU, _BLOCK_VOCABULARY = 1024, 4096, 16384

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
        self._new_cache: Callable[[], GrowingCache] = GrowingCache
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
            causal.use_blocks()
            causal._check()
            logger.info("%s: on %s, %s", name, describe_device(causal.device), str(dtype).removeprefix("torch."))
            return causal
        except ModelError:
            raise
        except Exception as error:  # noqa: BLE001 - too little memory, or mismatched sizes
            reason = first_line(error)
        model = model_and_info = causal = None  # type: ignore[assignment] # the error keeps this frame, not the memory
        raise ModelError(f"{name}: cannot be run on {device}: {reason}")

    def move(self, device: torch.device) -> None:
        """Move the weights to another device."""
        self._model.to(device)
        self.device = device

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a text."""
        return context_length_of(self._text_config)

    @cached_property
    def end_tokens(self) -> set[int]:
        """The model's end-of-text tokens."""
        value = self._model.generation_config.eos_token_id or self._text_config.eos_token_id
        return {token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)}

    @property
    def gpu_bytes(self) -> int | None:
        """Total memory of the model's CUDA device, in bytes; None on other devices."""
        return torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else None

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's keys and values, in bytes."""
        return cache_bytes(self._text_config, 1, self.dtype.itemsize)

    def use_blocks(self) -> None:
        """Use attention in blocks, if the model can; not for training."""
        if new_cache := attention.use_blocks(self._model):
            self._new_cache = new_cache
        else:
            logger.info("%s: attention of Transformers, over all pairs of tokens", self.name)

    def new_cache(self) -> GrowingCache:
        """Return an empty KV cache."""
        return self._new_cache()

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
            attention_mask: 0 at padding, shape (batch, tokens in the cache + tokens). Outputs at padding mean nothing.
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
        if not len(targets):
            return torch.zeros(0, device=hidden.device)
        pieces = []
        for rows, tokens in zip(torch.split(hidden, _BLOCK_ROWS), torch.split(targets, _BLOCK_ROWS), strict=True):
            total = _LogSum()
            target_logits = torch.zeros(len(rows), device=rows.device)
            for start, block in self._blocks(rows, temperature):
                target_logits = torch.where(*_target_values(block, tokens, start), target_logits)
                total.add(block)
            pieces.append(total.logprobs(target_logits))
        return torch.cat(pieces)

    @torch.inference_mode()
    def measured_logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, measured: npt.NDArray[np.float64]
    ) -> torch.Tensor:
        """Return log-probs of given tokens, and for some of them ranks and log-probs at a second temperature.

        The logits are computed once. The first column has the same bits as :meth:`token_logprobs`.

        Args:
            hidden: outputs at the positions before the tokens, shape (rows, hidden size).
            targets: the tokens, shape (rows,).
            temperature: logits are divided by it.
            measured: the second temperature of each row; 0 for rows that are not measured; shape (rows,).

        Returns:
            Log-probs, log-probs at the second temperature and ranks, shape (rows, 3), float32. The last two are 0 in
            rows that are not measured; if all second temperatures equal the first, so is the second column.
        """
        second = bool((measured[measured > 0] != temperature).any())
        pieces = []
        for first_row in range(0, len(hidden), _BLOCK_ROWS):
            chunk = slice(first_row, first_row + _BLOCK_ROWS)
            rows, tokens = hidden[chunk], targets[chunk]
            index = torch.from_numpy(np.flatnonzero(measured[chunk])).to(rows.device)
            divisors = torch.from_numpy(measured[chunk].astype(np.float32)).to(rows.device)[index, None]
            measured_tokens = tokens[index]
            known = self._target_logits(rows[index], measured_tokens)
            total, second_total = _LogSum(), _LogSum()
            target_logits, likelier = torch.zeros(len(rows), device=rows.device), torch.zeros_like(known)
            for start, block in self._blocks(rows):
                logits = block.index_select(0, index)
                likelier += torch.gt(logits, known[:, None], out=torch.empty_like(logits)).sum(-1)
                # On GPUs, the last bits of the target's logit may differ here.
                in_block, own = _target_values(logits, measured_tokens, start)
                likelier -= (in_block & (own > known)).float()
                if second:
                    second_total.add(logits.div_(divisors))
                block.div_(temperature)
                target_logits = torch.where(*_target_values(block, tokens, start), target_logits)
                total.add(block)
            columns = torch.zeros(len(rows), 3, device=rows.device)
            columns[:, 0] = total.logprobs(target_logits)
            if second:
                columns[index, 1] = second_total.logprobs(known / divisors[:, 0])
            columns[index, 2] = 1 + likelier
            pieces.append(columns)
        return torch.cat(pieces) if pieces else torch.zeros(0, 3, device=hidden.device)

    def _target_logits(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the logits of given tokens, shape (rows,), from the same products as those of all tokens."""
        logits = torch.zeros(len(hidden), device=hidden.device)
        for start, end in self._block_bounds(self.vocabulary):
            index = ((targets >= start) & (targets < end)).nonzero()[:, 0]
            if len(index):
                block = self._block(hidden[index], start, end)
                logits[index] = block.gather(1, (targets[index] - start)[:, None])[:, 0]
        return logits

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
                torch.stack([block.logsumexp(-1) for _, block in side._blocks(at, temperature, size)], -1).logsumexp(-1)
                for side, at in ((self, rows), (other, other_rows))
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

    def _blocks(self, hidden: torch.Tensor, temperature: float | None = None, size: int | None = None) -> Any:
        """Yield each block of the vocabulary as its first token and its float32 logits, divided by a temperature."""
        for start, end in self._block_bounds(self.vocabulary if size is None else size):
            block = self._block(hidden, start, end)
            yield start, block if temperature is None else block.div_(temperature)

    def _block_bounds(self, size: int) -> Iterator[tuple[int, int]]:
        width = _BLOCK_VOCABULARY_CPU if self.device.type == "cpu" else _BLOCK_VOCABULARY
        return ((start, min(start + width, size)) for start in range(0, size, width))

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
        """Check on a few tokens that none sees later ones, that padding and the cache change nothing, and our LM head.

        Differences are means relative to the spread of logits, since single logits in half precision and experts of
        mixtures can differ between equal computations.
        """
        # From all over the vocabulary, because the first tokens of many models are untrained and have equal embeddings.
        ids = torch.arange(1, 9, device=self.device)[None] * self.vocabulary // 9
        expected = self._model(input_ids=ids).logits[0].float()
        later = torch.cat([ids[:, :4], ids[:, 4:].flip(1)], 1)
        changed = (self._model(input_ids=later).logits[0].float() - expected).abs().mean(-1)
        if changed[:4].mean() > 0.1 * changed[4:].mean():
            raise ModelError(f"{self.name}: not a causal language model; its tokens see later tokens")
        hidden = self.hidden(ids)
        padded = torch.cat([ids[:, :2], ids], 1)
        mask = (torch.arange(padded.shape[1], device=self.device) >= 2).long()[None]
        positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), self.new_cache()
        first = self.hidden(padded[:, :7], mask[:, :7], positions[:, :7], cache)
        second = self.hidden(padded[:, 7:], mask, positions[:, 7:], cache)
        if not attention.is_close(torch.cat([first[:, 2:], second], 1), hidden):
            raise ModelError(
                f"{self.name}: padding before a text changes its outputs, as positions are not those given"
            )
        difference = (self.logits(hidden[0]) - expected).abs().mean()
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.05
        if not difference <= tolerance * expected.std():
            raise ModelError(
                f"{self.name}: the transformers engine does not support this model's LM head "
                f"(model type {self._text_config.model_type})"
            )


class _LogSum:
    """A running log-sum of exponentials over blocks of logits."""

    def __init__(self) -> None:
        self._peaks: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []

    def add(self, block: torch.Tensor) -> None:
        """Add a block, shape (rows, block), and overwrite it."""
        peak = block.amax(-1)
        self._peaks.append(peak)
        self._sums.append(block.sub_(peak[:, None]).exp_().sum(-1))

    def logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the log-probs of tokens from their logits, shape (rows,).

        Maximum and log of the remaining sum are subtracted one after the other, because their sum of several tens
        would cost digits that the difference to a logit needs.
        """
        # Blocks in the last dimension: the order of a sum over another one depends on the number of rows.
        peaks, sums = torch.stack(self._peaks, -1), torch.stack(self._sums, -1)
        peak = peaks.amax(-1)
        log_total = (sums * (peaks - peak[:, None]).exp()).sum(-1).log()
        return (logits - peak) - log_total


def _target_values(block: torch.Tensor, targets: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which targets are in the block that begins at a token, and their values there; both of shape (rows,)."""
    in_block = (targets >= start) & (targets < start + block.shape[1])
    column = (targets - start).clamp(0, block.shape[1] - 1)
    return in_block, block.gather(1, column[:, None])[:, 0]
