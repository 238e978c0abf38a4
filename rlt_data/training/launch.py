"""How this process was launched, from the environment that accelerate and torchrun set."""

from __future__ import annotations

import os


def world_size() -> int:
    """Return the number of processes that ``accelerate launch`` or torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding() -> str | None:
    """Return how ``accelerate launch`` shards the weights over the processes: fsdp, zero3 or None."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp"
    return "zero3" if uses_deepspeed() and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else None


def uses_deepspeed() -> bool:
    """Return whether ``accelerate launch`` was configured to use DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def keeps_shards_in_main_memory() -> bool:
    """Return whether FSDP keeps weights, gradients and optimizer in main memory."""
    return sharding() == "fsdp" and os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true"
