"""Cut the traces of a part into blocks, and let several models read the same blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

T = TypeVar("T")

#: Approximate size of a block of traces that is tokenised at once: whichever limit is reached first.
_TRACES, _CHARACTERS = 1024, 2_000_000


def split_into_blocks(traces: pa.Table) -> Iterator[pa.Table]:
    """Cut the traces of a part into blocks, between questions, so that several copies of a block fit in memory."""
    start = characters = 0
    questions = traces["question_id"].to_pylist()
    for row, length in enumerate(pc.utf8_length(traces["completion"]).to_pylist()):
        full = characters > _CHARACTERS or row - start >= _TRACES
        if full and questions[row] != questions[row - 1]:
            yield traces.slice(start, row - start)
            start, characters = row, 0
        characters += length
    yield traces.slice(start)


def to_rows(traces: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries, with lists of numbers as arrays, which share the table's memory."""
    columns = [_arrays(column) if pa.types.is_list(column.type) else column.to_pylist() for column in traces.columns]
    return [dict(zip(traces.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _arrays(column: pa.ChunkedArray) -> list[Any]:
    arrays: list[Any] = []
    for chunk in column.chunks:
        values, bounds = chunk.values.to_numpy(), chunk.offsets.to_pylist()
        valid = chunk.is_valid().to_pylist()
        arrays += [values[bounds[i] : bounds[i + 1]] if valid[i] else None for i in range(len(chunk))]
    return arrays


def duplicate(blocks: Iterator[T], copies: int) -> list[Iterator[T]]:
    """Let several readers iterate over blocks; ``itertools.tee`` would keep up to 57 blocks that all have consumed."""
    queues: list[deque[T]] = [deque() for _ in range(copies)]

    def consume(queue: deque[T]) -> Iterator[T]:
        while True:
            if not queue:
                block = next(blocks, None)
                if block is None:
                    return
                for other in queues:
                    other.append(block)
            yield queue.popleft()

    return [consume(queue) for queue in queues]
