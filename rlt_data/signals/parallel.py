"""Compute row-wise signals on all cores, in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import polars as pl

from rlt_data.progress import Progress

#: Bytes of text in a slice. Its words and hashes take about 60 times as much.
_SLICE = 2_000_000


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slices(frame: pl.DataFrame, texts: tuple[str, ...]) -> Iterator[pl.DataFrame]:
    """Divide a frame into slices of about 2 MB.

    Args:
        frame: the frame.
        texts: columns that make up the size of a row.
    """
    sizes = frame.select(pl.sum_horizontal(pl.col(*texts).str.len_bytes())).to_series().to_numpy()
    edges = np.flatnonzero(np.diff(np.cumsum(sizes) // _SLICE)) + 1
    for start, end in pairwise([0, *edges.tolist(), len(frame)]):
        yield frame.slice(start, end - start)


def by_slices(
    frames: Iterable[pl.DataFrame],
    compute: Callable[[pl.DataFrame], pl.DataFrame],
    texts: tuple[str, ...],
    progress: Progress,
) -> Iterator[pl.DataFrame]:
    """Compute frames in threads, each in slices of about 2 MB, and yield the results in order.

    Threads suffice, because polars, numpy and zlib release the lock of the interpreter.

    Args:
        frames: the frames; one more than there are cores is held in memory.
        compute: computes a slice; returns as many rows.
        texts: columns that make up the size of a row; see :func:`slices`.
        progress: receives the rows of each frame.
    """

    def computed(frame: pl.DataFrame) -> pl.DataFrame:
        return pl.concat(map(compute, slices(frame, texts)))

    def next_result() -> pl.DataFrame:
        result = results.popleft().result()
        progress.advance(len(result))
        return result

    results: deque[Future[pl.DataFrame]] = deque()
    with ThreadPoolExecutor(cores()) as threads:
        for frame in frames:
            results.append(threads.submit(computed, frame))
            if len(results) > cores():
                yield next_result()
        while results:
            yield next_result()
