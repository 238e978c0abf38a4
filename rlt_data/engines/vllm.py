"""The vLLM engine. No other module uses vLLM's API.

vLLM is imported only in the processes of a pool. The process that starts them reads only its version.

The temperature is applied inside the model: its logits processor multiplies logits by 1 / temperature, and vLLM samples
at 1. So vLLM's raw log-probs are at that temperature and over the complete vocabulary, with any top-p and top-k. This
also covers the log-probs of prompts, for which vLLM has no temperature setting.

All running requests share that temperature. Requests at another one wait until none runs. A text with tokens that are
measured at a second temperature is therefore read twice.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from rlt_data.engines.config import context_length_of, load_config, open_tokenizer, pick_device, pick_dtype
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
from rlt_data.engines.vllm_version import installed_version, major_minor
from rlt_data.engines.worker import Job
from rlt_data.errors import ModelError, SettingsError, first_line
from rlt_data.formats import Tokenizer
from rlt_data.formats.spans import CONTEXT_TOKENS, decode_after
from rlt_data.settings import ModelSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Log-probs and ranks of a text's scored tokens.
_Scores = tuple[Floats, Ints | None]

#: The first version whose ``prompt_logprob_token_ids`` takes tokens per position. 0.31 takes one list of at most 20
#: tokens for all positions, so it gets ``prompt_logprobs`` instead.
_TOKENS_BY_POSITION = (0, 32)

#: The log-probs of prompts take memory that vLLM's memory planning does not include, in proportion to these tokens.
_SCORING_BATCH_TOKENS = 2048

#: The function that makes an engine core.
_CORE = "rlt_data.engines.vllm:open_core"

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
    # Pickled functions (see _divide_logits) need insecure serialization.
    common = {"VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    processes, gpus_each = settings.data_parallel, settings.tensor_parallel
    if not torch.cuda.is_available():
        # Without a second process inside the first, the engine starts in seconds; a CPU gains nothing from it.
        return [common | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}] * processes
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",")
    if len(gpus) < processes * gpus_each:
        raise SettingsError(
            f"--data-parallel {processes} with --tensor-parallel {gpus_each} takes {processes * gpus_each} GPUs; "
            f"{len(gpus)} are visible"
        )
    shares = [gpus[start : start + gpus_each] for start in range(0, processes * gpus_each, gpus_each)]
    return [common | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


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
        raise ModelError(f"{checkpoint.name}: vLLM cannot run it: {first_line(error)}") from error
    return VllmCore(llm, tokenizer)


def engine_arguments(checkpoint: Checkpoint, settings: ModelSettings, *, scoring: bool) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM`` for a checkpoint on this machine."""
    config = load_config(checkpoint, settings)
    options: dict[str, Any] = {
        "max_num_batched_tokens": settings.batch_tokens or (_SCORING_BATCH_TOKENS if scoring else None),
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


@dataclass
class _Prompt:
    """A prompt whose samples are being drawn.

    Attributes:
        number: the job's number.
        request: the prompt.
        tail: log-probs of the prompt's last tokens, filled in as they arrive.
        missing: number of log-probs still missing in ``tail``.
        finished: finished samples that wait for ``tail``.
    """

    number: int
    request: PromptRequest
    tail: Floats
    missing: int
    finished: list[tuple[SampleRequest, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Waiting:
    """A request, or the requests of a prompt, at one temperature.

    Attributes:
        temperature: the model's temperature while it runs.
        number: the job's number.
        keys: keys of its results.
        submit: submits it to vLLM.
    """

    temperature: float
    number: int
    keys: list[str]
    submit: Callable[[], None]


class VllmCore:
    """One vLLM engine; an :class:`~rlt_data.engines.worker.EngineCore`.

    Args:
        llm: a ``vllm.LLM`` that returns raw log-probs.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, llm: Any, tokenizer: Tokenizer) -> None:
        config = llm.llm_engine.vllm_config
        self.context_length: int = config.model_config.max_model_len
        max_running: int = config.scheduler_config.max_num_seqs
        self.window = max_running + max(max_running // 4, 32)
        self.llm = llm
        self._engine = llm.llm_engine
        self._tokenizer = tokenizer
        self._picks_tokens = picks_tokens(installed_version() or "", config)
        self._temperature = 1.0
        self._waiting: deque[_Waiting] = deque()
        self._handlers: dict[str, tuple[Any, ...]] = {}  # by request id: a method for the output, and its arguments

    @property
    def busy(self) -> bool:
        """Whether any job is unfinished."""
        return bool(self._waiting) or self._running

    @property
    def _running(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    def add(self, number: int, job: Job) -> None:
        """Add a job; see :class:`~rlt_data.engines.worker.EngineCore`."""
        if isinstance(job.request, PromptRequest):
            assert isinstance(job.parameters, Sampling)
            submit = partial(self._add_prompt, number, job.request, job.parameters)
            self._run_at(_Waiting(job.parameters.temperature or 1.0, number, job.keys, submit))
        else:
            assert isinstance(job.parameters, float)
            submit = partial(self._add_text, number, job.request, job.parameters)
            self._run_at(_Waiting(job.parameters, number, job.keys, submit))

    def step(self) -> list[tuple[int, Result]]:
        """Compute one step; see :class:`~rlt_data.engines.worker.EngineCore`."""
        results: list[tuple[int, Result]] = []
        if self._waiting and not self._running:
            results += self._start_waiting()
        for output in self._engine.step() if self._running else ():  # without requests, it would wait for one
            if output.finished:
                handle, *arguments = self._handlers.pop(output.request_id)
                results += handle(output, *arguments)
        return results

    def _start_waiting(self) -> list[tuple[int, Result]]:
        """Set the temperature of the first waiting request and submit all requests that wait for it."""
        self.set_temperature(self._waiting[0].temperature)
        waiting, self._waiting = self._waiting, deque()
        failures: list[tuple[int, Result]] = []
        for request in waiting:
            if request.temperature != self._temperature:
                self._waiting.append(request)
                continue
            try:
                request.submit()
            except ValueError as error:
                failures += [(request.number, Failure(key, first_line(error))) for key in request.keys]
        return failures

    def _run_at(self, request: _Waiting) -> None:
        """Submit a request, now if no request runs at another temperature."""
        if not self.busy:
            self.set_temperature(request.temperature)
        if request.temperature == self._temperature and not self._waiting:
            request.submit()
        else:
            self._waiting.append(request)

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature by which the model divides its logits."""
        if temperature != self._temperature:
            assert not self._running, "the temperature cannot change while requests run"
            if not all(self.llm.apply_model(partial(_divide_logits, temperature=temperature))):
                raise ModelError("vLLM runs this model without a logits processor, so its temperature cannot be set")
            self._temperature = temperature

    def _submit(self, name: str, ids: Ints, handler: tuple[Any, ...], **params: Any) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True, **params)
        try:
            self._engine.add_request(name, {"prompt_token_ids": ids.tolist()}, sampling)
        except Exception as error:  # vLLM's validation errors have several classes
            raise ValueError(first_line(error)) from error
        self._handlers[name] = handler

    # Samples

    def _add_prompt(self, number: int, request: PromptRequest, sampling: Sampling) -> None:
        prompt = _Prompt(number, request, np.zeros(request.tail, np.float32), missing=request.tail)
        first = len(request.ids) - request.tail
        for index, token in enumerate(request.ids[first:].tolist()):
            # Ask for the token's log-prob after the tokens before it; they stay in the prefix cache for the samples.
            handler = self._on_tail, prompt, index, token
            self._submit(
                f"{number}-tail-{index}",
                request.ids[: first + index],
                handler,
                max_tokens=1,
                temperature=0.0,
                logprob_token_ids=[token],
                detokenize=False,
            )
        for sample in request.samples:
            params = drawn(sample, sampling, sampling.room(request, self.context_length))
            self._submit(f"{number}-{sample.key}", request.ids, (self._on_sample, prompt, sample), **params)

    def _on_tail(self, output: Any, prompt: _Prompt, index: int, token: int) -> list[tuple[int, Result]]:
        prompt.tail[index] = output.outputs[0].logprobs[0][token].logprob
        prompt.missing -= 1
        if prompt.missing:
            return []
        finished, prompt.finished = prompt.finished, []
        return [(prompt.number, self._sample(prompt, request, completion)) for request, completion in finished]

    def _on_sample(self, output: Any, prompt: _Prompt, request: SampleRequest) -> list[tuple[int, Result]]:
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

    def _add_text(self, number: int, request: SequenceRequest, temperature: float) -> None:
        """Request the log-probs of a text, and afterwards its measures if they are at another temperature."""
        same = request.measured is not None and request.measured.temperature == temperature
        self._score(number, request, (self._on_text, temperature), ranks=same)

    def _on_text(
        self, scores: _Scores, number: int, request: SequenceRequest, temperature: float
    ) -> list[tuple[int, Result]]:
        logprobs, ranks = scores
        result, measured = SequenceLogprobs(request.key, logprobs), request.measured
        if measured is None:
            return [(number, result)]
        if measured.temperature == temperature:
            return [(number, replace(result, ranks=None if ranks is None else ranks[: measured.tokens]))]
        text = replace(request, positions=request.positions[: measured.tokens], measured=None)
        submit = partial(self._score, number, text, (self._on_measures, result), ranks=True)
        self._waiting.append(_Waiting(measured.temperature, number, [request.key], submit))
        return []

    def _on_measures(
        self, scores: _Scores, number: int, request: SequenceRequest, result: SequenceLogprobs
    ) -> list[tuple[int, Result]]:
        return [(number, replace(result, measured_logprobs=scores[0], ranks=scores[1]))]

    def _score(
        self,
        number: int,
        request: SequenceRequest,
        handler: tuple[Any, ...],
        *,
        ranks: bool,
        reads_cache: bool = True,
    ) -> None:
        """Request the log-probs of a text for a handler, given as a method and its last arguments."""
        ids, start = request.scored_ids, int(request.positions[0]) - 1
        last = int(ids[-1]) if len(ids) == self.context_length else None
        sent = ids if last is None else ids[:-1]
        picks_tokens = self._picks_tokens and not ranks  # a picked token has no rank
        params = scored(sent, start, last, picks_tokens=picks_tokens, reads_cache=reads_cache)
        name = f"{number}{handler[0].__name__}{'' if reads_cache else '_again'}"
        self._submit(name, sent, (self._on_scored, number, request, handler, ranks, reads_cache), **params)

    def _on_scored(
        self,
        output: Any,
        number: int,
        request: SequenceRequest,
        handler: tuple[Any, ...],
        ranks: bool,
        reads_cache: bool,
    ) -> list[tuple[int, Result]]:
        """Pass a text's log-probs to its handler. If there are none, the cached prefix may have been too long."""
        if (scores := self._scores(output, request)) is not None:
            handle, *arguments = handler
            return list(handle(scores, number, request, *arguments))
        if reads_cache:
            self._score(number, request, handler, ranks=ranks, reads_cache=False)
            return []
        return [(number, Failure(request.key, "vLLM returned no log-probs"))]

    def _scores(self, output: Any, request: SequenceRequest) -> _Scores | None:
        """Return log-probs and ranks of a text's scored tokens, both of shape (positions,); None if vLLM has none.

        There are no ranks if vLLM was asked for given tokens, or if the text fills the context, because its last token
        then has none.
        """
        start, values = int(request.positions[0]) - 1, np.zeros(0, np.float32)
        ranks: list[int] | None = None
        fills_context = int(request.positions[-1]) + 1 == self.context_length
        if not fills_context or start < self.context_length - 2:
            picked, flat = output.prompt_token_id_logprobs, output.prompt_logprobs
            if picked is not None:
                values = np.asarray(picked)[:, 0]
            elif flat is not None:
                values, ranks = np.asarray(_flat(flat)[start:]), _flat_ranks(flat)[start:]
            else:
                return None
        if fills_context:
            values = np.append(values, output.outputs[0].logprobs[0][int(request.ids[request.positions[-1]])].logprob)
            ranks = None
        at = request.positions - 1 - start
        if len(values) <= at[-1]:
            return None
        return values[at].astype(np.float32), None if ranks is None else np.asarray(ranks, np.int32)[at]


def drawn(sample: SampleRequest, sampling: Sampling, max_tokens: int) -> dict[str, Any]:
    """Return vLLM's sampling parameters for a sample of at most ``max_tokens`` tokens."""
    return {
        "max_tokens": max_tokens,
        "temperature": 1.0 if sampling.temperature else 0.0,  # the model already divides its logits
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sample.signed_seed,
        "stop": [sampling.stop],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logprobs": 0,
    }


def picks_tokens(version: str, config: Any) -> bool:
    """Return whether this version and configuration of vLLM return the log-probs of one given token per position."""
    return major_minor(version) >= _TOKENS_BY_POSITION and bool(getattr(config, "use_v2_model_runner", False))


def scored(
    ids: Ints, start: int, last: int | None = None, *, picks_tokens: bool, reads_cache: bool = True
) -> dict[str, Any]:
    """Return vLLM's sampling parameters for scoring the tokens of a text after a position.

    Args:
        ids: token ids of the text, shape (tokens,).
        start: index of the token before the first scored one.
        last: a token after ``ids`` to score too. vLLM always samples one token, so a text that fills the context is
            sent without its last token.
        picks_tokens: result of :func:`picks_tokens`.
        reads_cache: where vLLM picks tokens, read the keys and values of a prefix that earlier texts share. vLLM
            returns no log-probs if the cached prefix ends after ``start``.
    """
    common: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
    if last is not None:
        common["logprob_token_ids"] = [last]
    if start + 1 == len(ids):
        return common
    if not picks_tokens:
        return common | {"prompt_logprobs": 0}  # vLLM then does not read the cache
    # vLLM computes logits only from ``start`` on and returns only the log-probs of the text's tokens.
    return common | {
        "prompt_logprob_token_ids": ids[start + 1 :, None],
        "prompt_logprob_start": start,
        "skip_reading_prefix_cache": not reads_cache,
    }


def _flat(logprobs: Any) -> list[float]:
    """Return the first log-prob at each position that has one."""
    return _first_at_each_position(logprobs, logprobs.logprobs)


def _flat_ranks(logprobs: Any) -> list[int]:
    """Return the rank of the text's token at each position that has one."""
    return _first_at_each_position(logprobs, logprobs.ranks)


def _first_at_each_position(logprobs: Any, values: list[T]) -> list[T]:
    starts, ends = logprobs.start_indices, logprobs.end_indices
    return [values[start] for start, end in zip(starts, ends, strict=True) if end > start]


def _divide_logits(model: Any, temperature: float) -> bool:
    """Divide a model's logits by a temperature; vLLM runs this in the process of the model, pickled by name."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    for processor in processors:
        original = processor.rlt_data_scale = getattr(processor, "rlt_data_scale", processor.scale)
        processor.scale = original / temperature
    return bool(processors)
