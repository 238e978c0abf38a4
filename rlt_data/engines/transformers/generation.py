"""Batched generation that yields samples as they finish.

Batches are planned from the block alone, so running a block again gives the same samples to the last bit. Each prompt
is computed once for all its samples, and finished rows leave the batch. Batches without a sample to emit are skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from rlt_data.engines.protocol import Failure, PromptRequest, Sample, SampleRequest, Sampling
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.engines.transformers.prompts import compute_prompts
from rlt_data.engines.transformers.sampling import Uniforms, draw
from rlt_data.formats import Tokenizer
from rlt_data.formats.spans import CONTEXT_TOKENS, decode_after

#: A batch is repacked when this share of its rows has finished.
_FINISHED_SHARE = 0.125


@dataclass
class _Row:
    """A sample being drawn."""

    prompt: PromptRequest
    request: SampleRequest
    max_tokens: int
    uniforms: Uniforms
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Generator:
    """Generates with one model.

    Args:
        model: the model.
        tokenizer: the model's tokenizer.
        batch_size: number of samples per batch; None for as many as fit into memory.
        batch_tokens: maximum number of prompt tokens per forward pass.
    """

    def __init__(self, model: CausalModel, tokenizer: Tokenizer, *, batch_size: int | None, batch_tokens: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._batch_tokens = batch_tokens
        self._stop_tokens: dict[str, set[int]] = {}

    def run(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Sample the requests of each block; see :meth:`rlt_data.engines.Engine.generate`."""
        for block in blocks:
            for batch in self._plan(block, sampling):
                if any(sample.emit for request in batch for sample in request.samples):
                    yield from self._run_batch(batch, sampling)

    def _plan(self, block: Sequence[PromptRequest], sampling: Sampling) -> Iterator[list[PromptRequest]]:
        """Cut a block into batches; the samples of one prompt may be split over several batches."""
        size = self._batch_size or self._fitting_size(block, sampling)
        batch: list[PromptRequest] = []
        free = size
        for request in block:
            samples = list(request.samples)
            while samples:
                added, samples = samples[:free], samples[free:]
                batch.append(replace(request, samples=added))
                free -= len(added)
                if not free:
                    yield batch
                    batch, free = [], size
        if batch:
            yield batch

    def _fitting_size(self, block: Sequence[PromptRequest], sampling: Sampling) -> int:
        """Return how many samples of a block fit into memory; 32 without CUDA."""
        device = self._model.device
        if device.type != "cuda":
            return 32
        longest = max((len(request.ids) for request in block), default=1)
        expected = min(longest + (sampling.max_tokens or 4096), self._model.context_length)
        free, _ = torch.cuda.mem_get_info(device)
        # The driver does not count memory as free that PyTorch keeps from earlier batches.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(min(max(0.7 * free / (self._model.bytes_per_token * expected), 1), 256))

    def _run_batch(self, batch: list[PromptRequest], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Run a batch, or its halves one after the other if the device runs out of memory."""
        done: set[str] = set()
        try:
            for sample in self._decode(batch, sampling):
                done.add(sample.key)
                yield sample
            return
        except torch.OutOfMemoryError:
            pass  # inside this block, the error would keep the tensors of the failed batch
        torch.cuda.empty_cache()
        rows = [replace(request, samples=[sample]) for request in batch for sample in request.samples]
        if len(rows) == 1:
            reason = f"out of memory on {self._model.device} with a prompt of {len(batch[0].ids)} tokens"
            yield Failure(rows[0].samples[0].key, reason)
            return
        rows = [row for row in rows if row.samples[0].emit and row.samples[0].key not in done]
        middle = (len(rows) + 1) // 2
        for half in (rows[:middle], rows[middle:]):
            if half:
                yield from self._run_batch(half, sampling)

    def _decode(self, batch: list[PromptRequest], sampling: Sampling) -> Iterator[Sample]:
        prompts = compute_prompts(
            self._model,
            [request.ids for request in batch],
            self._batch_tokens,
            tails=[request.tail for request in batch],
            temperature=sampling.temperature or 1.0,
        )
        rows, prompt_of_row = [], []
        for prompt_index, request in enumerate(batch):
            max_tokens = sampling.room(request, self._model.context_length)
            for sample in request.samples:
                rows.append(_Row(request, sample, max_tokens, Uniforms(sample.seed)))
                prompt_of_row.append(prompt_index)
        tails = {
            sample.key: tail for request, tail in zip(batch, prompts.tails, strict=True) for sample in request.samples
        }
        device = self._model.device
        index = torch.tensor(prompt_of_row, device=device)
        capacity = min(max(row.max_tokens for row in rows), 256)
        cache, mask, last = prompts.cache.select(index, capacity), prompts.mask[index], prompts.last[index]
        position = prompts.lengths[index][:, None]
        del prompts  # the copies in the batch's cache are enough
        live = list(range(len(rows)))  # per batch row its index in rows, or -1 once the sample has finished
        while True:
            logits = self._model.logits(last)
            uniforms = [next(rows[row].uniforms) if row >= 0 else 0.0 for row in live]
            tokens, logprobs = draw(logits, uniforms, sampling.temperature, sampling.top_p, sampling.top_k)
            for batch_row, row_index in enumerate(live):
                if row_index < 0:
                    continue
                row = rows[row_index]
                if reason := self._append_token(row, tokens[batch_row], logprobs[batch_row], sampling.stop):
                    live[batch_row] = -1
                    if row.request.emit:
                        end = tokens[batch_row] if reason == "eos" else None
                        yield self._to_sample(row, reason, end, tails[row.request.key])
            remaining = [batch_row for batch_row, row_index in enumerate(live) if row_index >= 0]
            if not remaining:
                return
            if len(live) - len(remaining) > _FINISHED_SHARE * len(live):
                keep = torch.tensor(remaining, device=device)
                cache, mask, position = cache.select(keep, 256), mask[keep], position[keep]
                tokens, live = [tokens[row] for row in remaining], [live[row] for row in remaining]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
            ids = torch.tensor(tokens, device=device)[:, None]
            last = self._model.hidden(ids, mask, position, cache)[:, -1]
            position = position + 1

    def _append_token(
        self, row: _Row, token: int, logprob: float, stop: str
    ) -> Literal["stop", "eos", "length"] | None:
        """Append a token to a row, and return why the sample ends with it; None if it continues."""
        if token in self._model.end_tokens:
            return "eos"
        row.tokens.append(token)
        row.logprobs.append(logprob)
        if token in self._tokens_that_may_complete(stop):
            tail = row.tokens[-len(stop) - CONTEXT_TOKENS :]
            if stop in decode_after(self._tokenizer, [], tail):
                return "stop"
        return "length" if len(row.tokens) >= row.max_tokens else None

    def _tokens_that_may_complete(self, stop: str) -> set[int]:
        """Return the tokens that contain the last character of the stop text; all tokens if it has other spellings."""
        if stop not in self._stop_tokens:
            pieces = self._tokenizer.convert_ids_to_tokens(range(self._model.vocabulary))  # type: ignore[attr-defined]
            plain = stop[-1].isascii() and not stop[-1].isspace()
            self._stop_tokens[stop] = {
                token for token, piece in enumerate(pieces) if not plain or (piece and stop[-1] in piece)
            }
        return self._stop_tokens[stop]

    def _to_sample(
        self, row: _Row, reason: Literal["stop", "eos", "length"], end: int | None, tail: np.ndarray
    ) -> Sample:
        context = row.prompt.ids[-CONTEXT_TOKENS:].tolist()
        return Sample(
            key=row.request.key,
            text=decode_after(self._tokenizer, context, row.tokens),
            token_ids=np.asarray(row.tokens, np.int32),
            logprobs=np.asarray(row.logprobs, np.float32),
            tail_logprobs=tail,
            finish_reason=reason,
            prompt_tokens=len(row.prompt.ids),
            completion_tokens=len(row.tokens),
            end_token=end,
        )
