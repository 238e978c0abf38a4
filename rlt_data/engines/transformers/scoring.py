"""Log-probs of given tokens, for groups of texts that share a prefix.

The prefix is computed once per group. The continuations are packed by length into batches, and the LM head runs only at
the scored positions. Batches are planned from the block alone, so running a block again gives the same numbers to the
last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rlt_data.engines.protocol import Failure, Floats, SequenceBlock, SequenceLogprobs, SequenceRequest
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.engines.transformers.prompts import Prompts, compute_prompts

#: A shorter shared prefix is not worth a separate forward pass.
_SHORTEST_PREFIX = 16
#: Maximum size of a batch's KV cache, in multiples of the tokens that the batch computes, and as a share of a GPU.
_CACHED_PER_TOKEN, _CACHED_SHARE = 8, 0.125
#: Minimum length of a batch's rows, as a share of its longest row.
_LENGTH_SHARE = 0.9


_Reduce = Callable[[torch.Tensor, torch.Tensor, npt.NDArray[np.float64] | None], torch.Tensor]
_Result = tuple[SequenceRequest, torch.Tensor | None]


@dataclass(frozen=True)
class _Continuation:
    """The part of a text after the shared prefix.

    Attributes:
        request: the text.
        group: index of the text's group.
        prefix: number of tokens of the shared prefix.
    """

    request: SequenceRequest
    group: int
    prefix: int

    @property
    def length(self) -> int:
        """Number of tokens to compute, up to the one before the last scored token."""
        return int(self.request.positions[-1]) - self.prefix


class Scorer:
    """Scores with one model.

    Args:
        model: the model.
        batch_tokens: maximum number of tokens per forward pass, padding included.
    """

    def __init__(self, model: CausalModel, batch_tokens: int) -> None:
        self._model = model
        self._batch_tokens = batch_tokens
        self._cached_tokens = _CACHED_PER_TOKEN * batch_tokens
        if memory := model.gpu_bytes:
            self._cached_tokens = min(self._cached_tokens, int(_CACHED_SHARE * memory / model.bytes_per_token))

    def logprobs(self, block: SequenceBlock, temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score the texts of a block; see :meth:`rlt_data.engines.Engine.logprobs`."""

        def reduce(
            hidden: torch.Tensor, targets: torch.Tensor, measured: npt.NDArray[np.float64] | None
        ) -> torch.Tensor:
            if measured is None:
                return self._model.token_logprobs(hidden, targets, temperature).cpu()[:, None]
            return self._model.measured_logprobs(hidden, targets, temperature, measured).cpu()

        for chunk in self._chunks(block):
            for request, values in self._compute(chunk, reduce):
                if values is None:
                    reason = f"out of memory on {self._model.device} with a text of {len(request.ids)} tokens"
                    yield Failure(request.key, reason)
                else:
                    yield _result(request, values.T.contiguous().numpy(), temperature)

    def hidden(self, group: Sequence[SequenceRequest]) -> dict[str, torch.Tensor]:
        """Return the last layer's outputs before the scored tokens by key, each of shape (positions, hidden size)."""
        outputs = {request.key: values for request, values in self._compute([group], lambda hidden, *_: hidden)}
        return {key: values for key, values in outputs.items() if values is not None}

    def _compute(self, chunk: list[Sequence[SequenceRequest]], reduce: _Reduce) -> Iterator[_Result]:
        """Compute groups together, or one by one if the device runs out of memory; None for a text that does not fit.

        Args:
            chunk: the groups.
            reduce: computes values, shape (rows, columns), from the last layer's outputs, shape (rows, hidden size),
                the tokens after them, shape (rows,), and the second temperatures of measured rows, shape (rows,).
        """
        done: set[str] = set()
        try:
            for request, values in self._compute_together(chunk, reduce):
                done.add(request.key)
                yield request, values
            return
        except torch.OutOfMemoryError:
            pass  # inside this block, the error would keep the tensors of the failed pass
        torch.cuda.empty_cache()
        remaining = [[request for request in group if request.key not in done] for group in chunk]
        if sum(map(len, chunk)) == 1:
            yield chunk[0][0], None
        elif len(chunk) > 1:
            for group in remaining:
                yield from self._compute([group], reduce)
        else:
            for request in remaining[0]:
                yield from self._compute([[request]], reduce)

    def _compute_together(
        self, chunk: list[Sequence[SequenceRequest]], reduce: _Reduce
    ) -> Iterator[tuple[SequenceRequest, torch.Tensor]]:
        prefixes = [_shared_prefix(group) for group in chunk]
        continuations = [
            _Continuation(request, index, prefixes[index])
            for index, group in enumerate(chunk)
            for request in group
            if len(request.positions)
        ]
        batches = list(self._batches([row for row in continuations if row.prefix], max(prefixes, default=0)))
        batches += self._batches([row for row in continuations if not row.prefix], 0)
        batches = [batch for batch in batches if any(row.request.emit for row in batch)]
        prompts = None
        if any(batch[0].prefix for batch in batches):
            prefix_ids = [group[0].ids[: max(prefix, 1)] for group, prefix in zip(chunk, prefixes, strict=True)]
            prompts = compute_prompts(self._model, prefix_ids, self._batch_tokens)
        for batch in batches:
            hidden, targets, counts = self._forward(batch, prompts if batch[0].prefix else None)
            values = torch.split(reduce(hidden, targets, _measured(batch)), counts)
            for row, value in zip(batch, values, strict=True):
                if row.request.emit:
                    yield row.request, value

    def _chunks(self, block: SequenceBlock) -> Iterator[list[Sequence[SequenceRequest]]]:
        """Cut a block into lists of groups that are computed together."""
        chunk: list[Sequence[SequenceRequest]] = []
        tokens = 0
        for group in block:
            prefix = _shared_prefix(group)
            size = prefix or sum(len(request.ids) for request in group)
            if chunk and tokens + size > self._batch_tokens:
                yield chunk
                chunk, tokens = [], 0
            chunk.append(group)
            tokens += size
        if chunk:
            yield chunk

    def _batches(self, continuations: list[_Continuation], prefix: int) -> Iterator[list[_Continuation]]:
        """Pack continuations of similar length into batches, longest first."""
        batch: list[_Continuation] = []
        for row in sorted(continuations, key=lambda row: (-row.length, row.group)):
            if batch:
                longest, rows = batch[0].length, len(batch) + 1
                full = rows * longest > self._batch_tokens
                cache_full = rows * (longest + prefix) > self._cached_tokens
                uneven = row.length < _LENGTH_SHARE * longest and len(batch) * longest >= self._batch_tokens // 8
                if full or cache_full or uneven:
                    yield batch
                    batch = []
            batch.append(row)
        if batch:
            yield batch

    def _forward(
        self, batch: list[_Continuation], prompts: Prompts | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Run a batch.

        Returns:
            The outputs before the scored tokens of all rows, shape (positions, hidden size); these tokens, shape
            (positions,); and the number of positions per row.
        """
        device = self._model.device
        longest = batch[0].length
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        positions = torch.zeros(len(batch), longest, dtype=torch.int64)
        rows, columns, targets = [], [], []
        for row, continuation in enumerate(batch):
            request, prefix, length = continuation.request, continuation.prefix, continuation.length
            ids[row, :length] = torch.from_numpy(request.ids[prefix : prefix + length].astype(np.int64))
            positions[row] = torch.arange(prefix, prefix + longest)
            scored = request.positions.astype(np.int64)
            rows.append(np.full(len(scored), row))
            columns.append(scored - 1 - prefix)
            targets.append(request.ids[scored].astype(np.int64))
        lengths = torch.tensor([continuation.length for continuation in batch])
        mask = (torch.arange(longest) < lengths[:, None]).long().to(device)
        cache = None
        if prompts is not None:
            index = torch.tensor([continuation.group for continuation in batch], device=device)
            cache = prompts.cache.select(index, longest)
            mask = torch.cat([prompts.mask[index], mask], 1)
        hidden = self._model.hidden(ids.to(device), mask, positions.to(device), cache)
        where = torch.from_numpy(np.concatenate(rows)).to(device), torch.from_numpy(np.concatenate(columns)).to(device)
        target_ids = torch.from_numpy(np.concatenate(targets)).to(device)
        return hidden[where], target_ids, [len(continuation.request.positions) for continuation in batch]


def _measured(batch: list[_Continuation]) -> npt.NDArray[np.float64] | None:
    """Return the second temperature of each scored token of a batch, 0 for those not measured; None if none are."""
    if not any(row.request.measured for row in batch):
        return None
    rows = []
    for row in batch:
        temperatures = np.zeros(len(row.request.positions))
        if measured := row.request.measured:
            temperatures[: measured.tokens] = measured.temperature
        rows.append(temperatures)
    return np.concatenate(rows)


def _result(request: SequenceRequest, columns: Floats, temperature: float) -> SequenceLogprobs:
    """Return the result of a text from its columns, shape (columns, positions)."""
    if request.measured is None:
        return SequenceLogprobs(request.key, columns[0])
    count = request.measured.tokens
    second = columns[1, :count] if request.measured.temperature != temperature else None
    return SequenceLogprobs(request.key, columns[0], second, columns[2, :count].astype(np.int32))


def _shared_prefix(group: Sequence[SequenceRequest]) -> int:
    """Return the number of first tokens that all texts share and at which no output is needed; 0 if too short."""
    requests = [request for request in group if len(request.positions)]
    if len(requests) < 2:
        return 0
    length = min(int(request.positions[0]) for request in requests) - 1
    first = requests[0].ids[:length]
    for request in requests[1:]:
        differs = np.flatnonzero(first != request.ids[: len(first)])
        first = first[: differs[0]] if len(differs) else first
    return len(first) if len(first) >= _SHORTEST_PREFIX else 0
