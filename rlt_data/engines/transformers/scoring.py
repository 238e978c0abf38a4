"""Log-probs of given tokens, for groups of texts that share a beginning.

The beginning is computed once for each group; what differs is packed by length into batches that continue it; the
head runs on the wanted positions alone. Batches are planned from the block alone, so that running a block again
gives the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlt_data.engines.protocol import Failure, SequenceBlock, SequenceLogprobs, SequenceRequest
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.engines.transformers.prompts import Prompts, compute_prompts

#: A shorter shared beginning is not worth a pass of its own.
_SHORTEST_PREFIX = 16
#: Keys and values a batch may hold, in multiples of the tokens it computes.
_CACHED_PER_TOKEN = 8
#: Rows of a batch are at least this share of its longest row.
_LENGTH_SHARE = 0.8


_Reduce = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_Result = tuple[SequenceRequest, torch.Tensor | None]


@dataclass(frozen=True)
class _Rest:
    """What follows the shared beginning in one text."""

    request: SequenceRequest
    group: int
    prefix: int

    @property
    def length(self) -> int:
        """Tokens to compute: up to the one before the last wanted token."""
        return int(self.request.positions[-1]) - self.prefix


class Scorer:
    """Scoring with one model.

    Args:
        model: the model.
        batch_tokens: tokens computed at a time, padding included.
    """

    def __init__(self, model: CausalModel, batch_tokens: int) -> None:
        self._model = model
        self._batch_tokens = batch_tokens

    def logprobs(self, block: SequenceBlock, temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score the texts of a block; see :meth:`rlt_data.engines.Engine.logprobs`."""

        def reduce(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self._model.token_logprobs(hidden, targets, temperature).cpu()

        for chunk in self._chunks(block):
            for request, values in self._each(chunk, reduce):
                if values is None:
                    reason = f"out of memory on {self._model.device} with a text of {len(request.ids)} tokens"
                    yield Failure(request.key, reason)
                else:
                    yield SequenceLogprobs(request.key, values.numpy())

    def hidden(self, group: Sequence[SequenceRequest]) -> dict[str, torch.Tensor]:
        """Return the layers' outputs before the wanted tokens by key, each of shape (wanted, hidden size)."""
        found = {request.key: values for request, values in self._each([group], lambda hidden, _: hidden)}
        return {key: values for key, values in found.items() if values is not None}

    def _each(self, chunk: list[Sequence[SequenceRequest]], reduce: _Reduce) -> Iterator[_Result]:
        """Work on groups together; where the device's memory runs out, on one after the other; None where it cannot."""
        done: set[str] = set()
        try:
            for request, values in self._together(chunk, reduce):
                done.add(request.key)
                yield request, values
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            left = [[request for request in group if request.key not in done] for group in chunk]
            left = [group for group in left if group]
            if len(left) == 1 and len(left[0]) == 1:
                yield left[0][0], None
                return
            for group in left if len(left) > 1 else [[request] for request in left[0]]:
                yield from self._each([group], reduce)

    def _together(
        self, chunk: list[Sequence[SequenceRequest]], reduce: _Reduce
    ) -> Iterator[tuple[SequenceRequest, torch.Tensor]]:
        prefixes = [_shared_prefix(group) for group in chunk]
        rests = [
            _Rest(request, place, prefixes[place])
            for place, group in enumerate(chunk)
            for request in group
            if len(request.positions)
        ]
        batches = list(self._batches([rest for rest in rests if rest.prefix], max(prefixes, default=0)))
        batches += self._batches([rest for rest in rests if not rest.prefix], 0)
        owed = [batch for batch in batches if any(rest.request.emit for rest in batch)]
        prompts = None
        if any(batch[0].prefix for batch in owed):
            begun = [group[0].ids[: max(prefix, 1)] for group, prefix in zip(chunk, prefixes, strict=True)]
            prompts = compute_prompts(self._model, begun, self._batch_tokens)
        for batch in owed:
            hidden, targets, counts = self._forward(batch, prompts if batch[0].prefix else None)
            values = torch.split(reduce(hidden, targets), counts)
            for rest, value in zip(batch, values, strict=True):
                if rest.request.emit:
                    yield rest.request, value

    def _chunks(self, block: SequenceBlock) -> Iterator[list[Sequence[SequenceRequest]]]:
        """Cut a block into runs of groups that are worked on together."""
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

    def _batches(self, rests: list[_Rest], prefix: int) -> Iterator[list[_Rest]]:
        """Pack rows of similar length, longest first."""
        batch: list[_Rest] = []
        for rest in sorted(rests, key=lambda rest: (-rest.length, rest.group)):
            if batch:
                longest, rows = batch[0].length, len(batch) + 1
                full = rows * longest > self._batch_tokens
                heavy = rows * (longest + prefix) > _CACHED_PER_TOKEN * self._batch_tokens
                uneven = rest.length < _LENGTH_SHARE * longest and len(batch) * longest >= self._batch_tokens // 8
                if full or heavy or uneven:
                    yield batch
                    batch = []
            batch.append(rest)
        if batch:
            yield batch

    def _forward(self, batch: list[_Rest], prompts: Prompts | None) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Run a batch.

        Returns:
            Outputs before the wanted tokens of all rows, (wanted, hidden size); those tokens, (wanted,); and how many
            each row has.
        """
        device = self._model.device
        longest = batch[0].length
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        positions = torch.zeros(len(batch), longest, dtype=torch.int64)
        rows, columns, targets = [], [], []
        for row, rest in enumerate(batch):
            end = rest.prefix + rest.length
            ids[row, : rest.length] = torch.from_numpy(rest.request.ids[rest.prefix : end].astype(np.int64))
            positions[row] = torch.arange(rest.prefix, rest.prefix + longest)
            wanted = rest.request.positions.astype(np.int64)
            rows.append(np.full(len(wanted), row))
            columns.append(wanted - 1 - rest.prefix)
            targets.append(rest.request.ids[wanted].astype(np.int64))
        cache = mask = None
        if prompts is not None:
            index = torch.tensor([rest.group for rest in batch], device=device)
            cache = prompts.cache.rows(index, longest)
            mask = torch.cat([prompts.mask[index], prompts.mask.new_ones(len(batch), longest)], 1)
        hidden = self._model.hidden(ids.to(device), mask, positions.to(device), cache)
        where = torch.from_numpy(np.concatenate(rows)).to(device), torch.from_numpy(np.concatenate(columns)).to(device)
        wanted_ids = torch.from_numpy(np.concatenate(targets)).to(device)
        return hidden[where], wanted_ids, [len(rest.request.positions) for rest in batch]


def _shared_prefix(group: Sequence[SequenceRequest]) -> int:
    """Return how many first tokens the texts of a group share and no wanted token needs the output of."""
    requests = [request for request in group if len(request.positions)]
    if len(requests) < 2:
        return 0
    length = min(int(request.positions[0]) for request in requests) - 1
    first = requests[0].ids[:length]
    for request in requests[1:]:
        differs = np.flatnonzero(first != request.ids[: len(first)])
        first = first[: differs[0]] if len(differs) else first
    return len(first) if len(first) >= _SHORTEST_PREFIX else 0
