"""Measure time and memory of a GPU. On a CPU, memory is None, because PyTorch does not count it there."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

GIB = 2**30


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


@dataclass
class Usage:
    """What a block of code used: seconds, the peak of the allocated GiB, and how often the memory did not suffice."""

    seconds: float = 0.0
    peak_gib: float | None = None
    out_of_memory: int | None = None


@contextmanager
def measured(device: torch.device) -> Iterator[Usage]:
    """Measure a block of code; the usage is complete after the block."""
    usage, cuda = Usage(), device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = _out_of_memory(device)
    start = time.perf_counter()
    yield usage
    if cuda:
        torch.cuda.synchronize(device)
        usage.peak_gib = round(torch.cuda.max_memory_allocated(device) / GIB, 2)
        usage.out_of_memory = _out_of_memory(device) - before
    usage.seconds = time.perf_counter() - start


def _out_of_memory(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0))


def allocated_gib(device: torch.device) -> float | None:
    """Return the memory of live tensors."""
    return round(torch.cuda.memory_allocated(device) / GIB, 2) if device.type == "cuda" else None


def free(device: torch.device) -> None:
    """Give back memory that no tensor uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def limited_memory(device: torch.device, more_gib: float) -> Iterator[None]:
    """Let PyTorch take at most ``more_gib`` more GPU memory than it has now. Without effect on a CPU."""
    if device.type != "cuda":
        yield
        return
    free(device)
    total = torch.cuda.get_device_properties(device).total_memory
    limit = torch.cuda.memory_reserved(device) + more_gib * GIB
    torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        free(device)
