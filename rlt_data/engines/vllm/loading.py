"""Start vLLM in processes of a pool, with its arguments for a checkpoint on this machine."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from rlt_data.engines.config import context_length_of, load_config, open_tokenizer, pick_device, pick_dtype
from rlt_data.engines.models import Checkpoint
from rlt_data.engines.pool import Pool
from rlt_data.engines.vllm.core import VllmCore
from rlt_data.engines.vllm.version import installed_version
from rlt_data.errors import ModelError, SettingsError, one_line
from rlt_data.settings import ModelSettings

logger = logging.getLogger(__name__)

#: The log-probs of prompts take memory that vLLM's memory planning does not include, in proportion to these tokens.
SCORING_BATCH_TOKENS = 2048

#: The function that makes an engine core.
_CORE = "rlt_data.engines.vllm.loading:open_core"

#: vLLM's messages when a model, or the KV cache of one text, does not fit into a GPU's memory.
_MEMORY_ERRORS = "max seq len|memory for the cache blocks|out of memory|free memory on device"

#: Size of the KV cache on a CPU; VLLM_CPU_KVCACHE_SPACE, in GiB, overrides it.
_CPU_CACHE_BYTES = 2 * 2**30


def open_pool(
    checkpoint: Checkpoint, settings: ModelSettings, *, scoring: bool, logs: Path | None, memory_share: float = 1.0
) -> Pool:
    """Start vLLM engines for a checkpoint, in processes of a pool.

    Args:
        checkpoint: the model.
        settings: settings of the engine.
        scoring: score texts; otherwise sample.
        logs: folder for the engines' logs.
        memory_share: fraction of ``--gpu-memory`` for this model.

    Raises:
        ModelError: vLLM cannot run the model.
        SettingsError: this machine has too few GPUs.
    """
    own_settings = settings.model_copy(update={"gpu_memory": settings.gpu_memory * memory_share})
    environments = _environments(settings)
    gpus = "; ".join(environment.get("CUDA_VISIBLE_DEVICES", "") for environment in environments).strip("; ")
    logger.info("%s: vLLM %s on %s", checkpoint.name, installed_version(), f"GPUs {gpus}" if gpus else "the CPU")
    try:
        return Pool(
            _CORE,
            (checkpoint, own_settings, scoring),
            environments,
            name=checkpoint.name,
            logs=logs,
            load_timeout=settings.stall_timeout,
        )
    except ModelError as error:
        remedies = []
        if re.search(_MEMORY_ERRORS, str(error), re.I):
            context = context_length_of(load_config(checkpoint, settings))
            remedies += [
                "A smaller --max-model-len reduces the GPU memory for a text's KV cache (the model's context is "
                f"{context} tokens); --gpu-memory (now {settings.gpu_memory:g}) sets vLLM's share of the GPU."
            ]
            if memory_share < 1:
                remedies += [
                    f"Student and teacher share it, and this model gets {memory_share:.0%}. Without --teacher only the "
                    "student runs, if the traces have the teacher's log-probs."
                ]
        remedies += ["--engine transformers runs the model without vLLM."]
        raise ModelError("\n".join([str(error), *remedies])) from None


def _environments(settings: ModelSettings) -> list[dict[str, str]]:
    """Return the environment of each engine process; each process gets the next GPUs."""
    # Pickled functions (see rlt_data.engines.vllm.core) need insecure serialization.
    common = {"VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    processes, gpus_each = settings.data_parallel, settings.tensor_parallel
    if not torch.cuda.is_available():
        # Without a second process inside the first, the engine starts in seconds; a CPU gains nothing from it.
        return [common | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}] * processes
    # With ROCm, vLLM requires that both variables agree.
    variables = ["CUDA_VISIBLE_DEVICES", *(["HIP_VISIBLE_DEVICES"] if torch.version.hip else [])]
    count = torch.cuda.device_count()
    visible = next(filter(None, map(os.environ.get, variables)), ",".join(map(str, range(count))))
    gpus = visible.split(",")[:count]  # CUDA ignores what follows the first invalid number
    if len(gpus) < processes * gpus_each:
        raise SettingsError(
            f"--data-parallel {processes} with --tensor-parallel {gpus_each} takes {processes * gpus_each} GPUs; "
            f"{len(gpus)} are visible"
        )
    shares = [gpus[start : start + gpus_each] for start in range(0, processes * gpus_each, gpus_each)]
    return [common | dict.fromkeys(variables, ",".join(share)) for share in shares]


def open_core(checkpoint: Checkpoint, settings: ModelSettings, scoring: bool) -> VllmCore:
    """Load a checkpoint into vLLM; called in a process of the pool.

    Raises:
        ModelError: vLLM cannot run the model.
    """
    from vllm import LLM

    tokenizer, _ = open_tokenizer(checkpoint, settings)
    arguments = engine_arguments(checkpoint, settings, scoring=scoring)
    try:
        llm = LLM(**arguments)
    except Exception as error:  # noqa: BLE001 - vLLM refuses models and settings with many kinds of errors
        raise ModelError(f"{checkpoint.name}: vLLM cannot run it: {one_line(error)}") from error
    return VllmCore(llm, tokenizer)


def engine_arguments(checkpoint: Checkpoint, settings: ModelSettings, *, scoring: bool) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM`` for a checkpoint on this machine."""
    config = load_config(checkpoint, settings)
    options: dict[str, Any] = {
        "max_num_batched_tokens": settings.batch_tokens or (SCORING_BATCH_TOKENS if scoring else None),
        "max_num_seqs": settings.batch_size,
        "max_model_len": settings.max_model_len,
    }
    if not torch.cuda.is_available():
        options |= {"enforce_eager": True}  # on a CPU, compiling takes longer than most runs
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            options |= {"kv_cache_memory_bytes": _CPU_CACHE_BYTES}
        if not scoring:
            # Chunked prefill kills vLLM 0.32 on a CPU when samples have seeds (it resets a counter that the CPU's
            # generators lack), so one step must fit the longest prompt.
            longest = settings.max_model_len or context_length_of(config)
            tokens = max(longest, settings.batch_tokens or 0)
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": tokens}
    return {
        "model": str(checkpoint.folder),
        "dtype": str(pick_dtype(settings.dtype, config, pick_device("auto"))).removeprefix("torch."),
        "trust_remote_code": settings.trust_remote_code,
        "tensor_parallel_size": settings.tensor_parallel,
        "gpu_memory_utilization": settings.gpu_memory,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        **{name: value for name, value in options.items() if value is not None},
    }
