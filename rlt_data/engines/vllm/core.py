"""Run the requests of one process in vLLM.

The temperature is applied inside the model: its logits processor multiplies logits by 1 / temperature, and vLLM samples
at 1. So vLLM's raw log-probs are at that temperature and over the complete vocabulary, with any top-p and top-k. This
also covers the log-probs of prompts, for which vLLM has no temperature setting.

All running requests share that temperature. Requests at another one wait until none runs. A text with tokens that are
measured at a second temperature is therefore read twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

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
from rlt_data.engines.vllm.requests import drawn, picks_tokens, scored
from rlt_data.engines.vllm.version import installed_version
from rlt_data.engines.worker import Job
from rlt_data.errors import ModelError, one_line
from rlt_data.formats import Tokenizer
from rlt_data.formats.spans import CONTEXT_TOKENS, decode_after

T = TypeVar("T")

#: Log-probs and ranks of a text's scored tokens.
_Scores = tuple[Floats, Ints | None]


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
                failures += [(request.number, Failure(key, str(error))) for key in request.keys]
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
            raise ValueError(one_line(error)) from error
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
