"""The server engine: an :class:`~rlt_data.engines.Engine` for one model behind one or more URLs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from rlt_data.engines.config import context_length_of, load_config
from rlt_data.engines.models import Checkpoint
from rlt_data.engines.protocol import (
    Failure,
    Floats,
    Ints,
    PromptRequest,
    Sample,
    SampleRequest,
    Sampling,
    SequenceBlock,
    SequenceLogprobs,
    SequenceRequest,
    groups_to_emit,
    prompts_to_emit,
)
from rlt_data.engines.retries import pause
from rlt_data.engines.server.background import EventLoopThread, SharedJob
from rlt_data.engines.server.completions import Completions, find_end_tokens
from rlt_data.engines.server.probing import Probe, refuse_different_models
from rlt_data.engines.server.routing import Endpoint, RetriesExhausted, Router
from rlt_data.engines.server.scoring import read_floats, read_prompt_logprobs, read_prompt_ranks
from rlt_data.engines.server.transport import Refusal, Transport
from rlt_data.engines.watchdog import Heartbeat
from rlt_data.errors import ModelError
from rlt_data.formats import Tokenizer
from rlt_data.settings import ModelSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NO_LOGPROBS = "samples are stored without log-probs, and scoring them needs the teacher's checkpoint"


class ServerEngine:
    """Generates and scores with servers, which are probed when the engine is opened.

    Args:
        checkpoint: the served model; only its tokenizer and configuration are used.
        tokenizer: the checkpoint's tokenizer.
        settings: the URLs and their limits.
        scoring: score texts; otherwise sample.
        served_temperature: temperature of the servers' log-probs of texts.

    Raises:
        ModelError: a URL cannot be used, serves another model, or cannot sample or score as required.
        SettingsError: the API key holds characters that no key has.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        settings: ModelSettings,
        *,
        scoring: bool = False,
        served_temperature: float = 1.0,
    ) -> None:
        self.heartbeat = Heartbeat()
        self._tokenizer = tokenizer
        self._settings = settings
        self._warned_about_tails = False
        self._end_tokens = find_end_tokens(checkpoint.folder, tokenizer)
        self._served_temperature = served_temperature
        # One waiting request per running one, so that no slot is ever empty.
        self._window = 2 * settings.concurrency * len(settings.url)
        model_context = context_length_of(load_config(checkpoint, settings))
        self._transport = Transport(settings)
        self._loop = EventLoopThread()
        try:
            self._probes = [
                Probe(self._transport, url, checkpoint.name, tokenizer, settings, pause) for url in settings.url
            ]
            models = self._probe_all([probe.served_model for probe in self._probes])
            refuse_different_models(dict(zip(settings.url, models, strict=True)))
            endpoints = [Endpoint(url, model) for url, model in zip(settings.url, models, strict=True)]
            self._router = Router(self._transport, endpoints, settings.concurrency, settings.retries)
            self.context_length = min(
                [model_context, *(model.context_length for model in models if model.context_length)]
            )
            if scoring:
                self._probe_scoring()
            else:
                self._probe_dialects()
        except BaseException:
            self.close()
            raise

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Sample completions; see :class:`~rlt_data.engines.Engine`.

        Raises:
            ModelError: a server does not support these sampling parameters.
        """
        self._probe_dialects()
        if sampling.top_k and not all(endpoint.known_dialect.accepts_extra for endpoint in self._router.endpoints):
            raise ModelError("--top-k: a server refuses this parameter; leave it out")
        reason = _unusable_logprobs(self._router.endpoints, sampling)
        if reason:
            logger.warning("%s; %s", reason, _NO_LOGPROBS)
        completions = Completions(self._tokenizer, self._end_tokens, self.context_length, sampling, reason is None)
        return self._loop.stream(self._samples(blocks, completions), self._window, self.heartbeat)

    def logprobs(self, blocks: Iterable[SequenceBlock], temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score texts; see :class:`~rlt_data.engines.Engine`.

        Raises:
            ModelError: the servers return no log-probs of prompts, or at another temperature.
        """
        if temperature != self._served_temperature:
            raise ModelError(f"the servers' log-probs of prompts are at temperature {self._served_temperature:g}")
        self._probe_scoring()
        jobs = map(self._score, chain.from_iterable(groups_to_emit(blocks)))
        return self._loop.stream(jobs, self._window, self.heartbeat)

    def log_tail(self) -> str:
        """Return the recent errors of each URL."""
        return self._router.recent_errors()

    def close(self) -> None:
        """Cancel running requests and close all connections."""
        self._loop.close(self._transport.close)

    def _probe_dialects(self) -> None:
        if any(endpoint.dialect is None for endpoint in self._router.endpoints):
            dialects = self._probe_all([probe.dialect for probe in self._probes])
            for endpoint, dialect in zip(self._router.endpoints, dialects, strict=True):
                endpoint.dialect = dialect

    def _probe_scoring(self) -> None:
        if any(endpoint.scoring is None for endpoint in self._router.endpoints):
            parameters = self._probe_all([probe.scoring_parameters for probe in self._probes])
            for endpoint, scoring in zip(self._router.endpoints, parameters, strict=True):
                endpoint.scoring = scoring

    def _probe_all(self, probes: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """Run one probe per URL, all at the same time."""

        async def run() -> list[T]:
            async with asyncio.timeout(self._settings.stall_timeout):
                return await asyncio.gather(*(probe() for probe in probes))

        try:
            return self._loop.run(run())
        except TimeoutError:
            urls, limit = ", ".join(self._settings.url), self._settings.stall_timeout
            raise ModelError(f"{urls}: no answer to the first requests within {limit:g} s (--stall-timeout)") from None

    def _samples(
        self, blocks: Iterable[Sequence[PromptRequest]], completions: Completions
    ) -> Iterator[Coroutine[Any, Any, Sample | Failure]]:
        for prompt in prompts_to_emit(blocks):
            tail = SharedJob(partial(self._tail_logprobs, prompt, completions))
            for request in prompt.samples:
                yield self._sample(prompt, request, tail, completions)

    async def _sample(
        self,
        prompt: PromptRequest,
        request: SampleRequest,
        tail: SharedJob[Floats | None],
        completions: Completions,
    ) -> Sample | Failure:
        sending = self._router.send(
            lambda endpoint: completions.sample_body(endpoint.known_dialect, prompt, request),
            lambda endpoint, answer: completions.read_sample(endpoint.known_dialect, prompt, request, answer),
        )
        try:
            if not completions.with_logprobs:
                return await sending
            # Wait for both, so that neither keeps running when the other fails.
            sample, tail_logprobs = await asyncio.gather(sending, tail.start(), return_exceptions=True)
            if isinstance(sample, BaseException):
                raise sample
            if isinstance(tail_logprobs, BaseException):
                raise tail_logprobs
        except (Refusal, RetriesExhausted) as error:
            return Failure(request.key, str(error))
        # Without the tail's log-probs scoring needs a second pass anyway, so the others are of no use.
        logprobs = None if tail_logprobs is None else sample.logprobs
        return replace(sample, tail_logprobs=tail_logprobs, logprobs=logprobs)

    async def _tail_logprobs(self, prompt: PromptRequest, completions: Completions) -> Floats | None:
        """Return the log-probs of a prompt's last tokens; None if the servers do not return all of them."""
        indices = range(len(prompt.ids) - prompt.tail, len(prompt.ids))
        values = [
            await self._token_logprob(prompt.ids[:index], int(prompt.ids[index]), completions) for index in indices
        ]
        if None in values:
            if not self._warned_about_tails:
                logger.warning("the servers do not return the log-prob of a prompt's last token; %s", _NO_LOGPROBS)
            self._warned_about_tails = True
            return None
        return read_floats(values)

    async def _token_logprob(self, before: Ints, token: int, completions: Completions) -> float | None:
        try:
            return await self._router.send(
                lambda endpoint: completions.token_body(endpoint.known_dialect, before, token),
                lambda _, answer: completions.read_token(answer, token),
            )
        except Refusal:  # the prompt is empty, or the server returns fewer likeliest tokens than vLLM
            return None

    async def _score(self, request: SequenceRequest) -> SequenceLogprobs | Failure:
        ids, measured = request.scored_ids.tolist(), request.measured
        try:
            values, ranks = await self._router.send(
                lambda endpoint: {"prompt": ids, **endpoint.known_scoring},
                lambda _, answer: (
                    read_prompt_logprobs(answer, ids),
                    read_prompt_ranks(answer, ids) if measured else None,
                ),
            )
        except (Refusal, RetriesExhausted) as error:
            return Failure(request.key, str(error))
        if measured and ranks is not None:
            ranks = ranks[request.positions[: measured.tokens]]
        return SequenceLogprobs(request.key, values[request.positions], ranks=ranks)


def _unusable_logprobs(endpoints: Sequence[Endpoint], sampling: Sampling) -> str | None:
    """Return why log-probs are not over the complete vocabulary at the sampling temperature; None if they are."""
    for endpoint in endpoints:
        kind = endpoint.known_dialect.logprobs
        if kind is None:
            return f"{endpoint.url}: returns no log-probs of token ids"
        if kind == "raw" and sampling.temperature not in (0.0, 1.0):
            return (
                f"{endpoint.url}: returns log-probs at temperature 1, not {sampling.temperature:g} (start vLLM with "
                f"--logprobs-mode processed_logprobs to get them at {sampling.temperature:g})"
            )
        if kind == "processed" and (sampling.top_k or sampling.top_p < 1):
            return (
                f"{endpoint.url}: returns log-probs over the tokens that --top-k and --top-p keep, not over the "
                "complete vocabulary"
            )
    return None
