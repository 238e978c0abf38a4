"""The server engine: one model behind one or more URLs, as an :class:`~rlt_data.engines.Engine`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from rlt_data.engines.config import load_config, longest_text
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
from rlt_data.engines.server.background import Background, Once
from rlt_data.engines.server.completions import Completions, find_end_tokens
from rlt_data.engines.server.probing import Probe, refuse_different_models
from rlt_data.engines.server.routing import Endpoint, GaveUp, Router
from rlt_data.engines.server.scoring import read_floats, read_prompt_logprobs
from rlt_data.engines.server.transport import Refusal, Transport
from rlt_data.engines.watchdog import Heartbeat
from rlt_data.errors import ModelError
from rlt_data.formats import Tokenizer
from rlt_data.settings import ModelSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WITHOUT = "samples are kept without log-probs, and scoring them needs the teacher's checkpoint"


class ServerEngine:
    """Generation and scoring by servers; opening it finds out what they can do.

    Args:
        checkpoint: the model that they serve; its weights need not be there.
        tokenizer: its tokenizer.
        settings: the URLs, and how they are to be used.
        scoring: whether texts are to be scored; else samples are to be made.
        served_temperature: temperature of the servers' log-probs of texts.

    Raises:
        ModelError: a URL cannot be used, serves another model, or cannot do what it is for.
        SettingsError: the key cannot be one.
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
        self._noted_tails = False
        self._end_tokens = find_end_tokens(checkpoint.folder, tokenizer)
        self._served_temperature = served_temperature
        # As many requests as there are places, and a successor for each, so that none stands empty.
        self._window = 2 * settings.concurrency * len(settings.url)
        longest = longest_text(load_config(checkpoint, settings))
        self._transport = Transport(settings)
        self._background = Background()
        try:
            self._probes = [
                Probe(self._transport, url, checkpoint.name, tokenizer, settings, pause) for url in settings.url
            ]
            served = self._ask_all([probe.served for probe in self._probes])
            refuse_different_models(dict(zip(settings.url, served, strict=True)))
            endpoints = [Endpoint(url, each) for url, each in zip(settings.url, served, strict=True)]
            self._router = Router(self._transport, endpoints, settings.concurrency, settings.retries)
            self.context_length = min([longest, *(each.context for each in served if each.context)])
            if scoring:
                self._learn_scoring()
            else:
                self._learn_dialects()
        except BaseException:
            self.close()
            raise

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Sample completions; see :class:`~rlt_data.engines.Engine`.

        Raises:
            ModelError: a server cannot sample so.
        """
        self._learn_dialects()
        if sampling.top_k and not all(each.known_dialect.takes_more for each in self._router.endpoints):
            raise ModelError("--top-k: a server refuses this parameter; leave it out")
        problem = _problem_with_logprobs(self._router.endpoints, sampling)
        if problem:
            logger.warning("%s; %s", problem, _WITHOUT)
        asked = Completions(self._tokenizer, self._end_tokens, self.context_length, sampling, problem is None)
        return self._background.stream(self._samples(blocks, asked), self._window, self.heartbeat)

    def logprobs(self, blocks: Iterable[SequenceBlock], temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score texts; see :class:`~rlt_data.engines.Engine`.

        Raises:
            ModelError: the servers' log-probs are at another temperature, or they tell none.
        """
        if temperature != self._served_temperature:
            raise ModelError(f"the servers' log-probs of prompts are at temperature {self._served_temperature:g}")
        self._learn_scoring()
        jobs = map(self._score, chain.from_iterable(groups_to_emit(blocks)))
        return self._background.stream(jobs, self._window, self.heartbeat)

    def log_tail(self) -> str:
        """Return what went wrong lately at each URL."""
        return self._router.recent_errors()

    def close(self) -> None:
        """Cancel what is in flight and close all connections."""
        self._background.close(self._transport.close)

    def _learn_dialects(self) -> None:
        if any(endpoint.dialect is None for endpoint in self._router.endpoints):
            found = self._ask_all([probe.dialect for probe in self._probes])
            for endpoint, dialect in zip(self._router.endpoints, found, strict=True):
                endpoint.dialect = dialect

    def _learn_scoring(self) -> None:
        if any(endpoint.scoring is None for endpoint in self._router.endpoints):
            found = self._ask_all([probe.scoring for probe in self._probes])
            for endpoint, scoring in zip(self._router.endpoints, found, strict=True):
                endpoint.scoring = scoring

    def _ask_all(self, questions: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """Ask all servers at the same time."""

        async def ask() -> list[T]:
            async with asyncio.timeout(self._settings.stall_timeout):
                return await asyncio.gather(*(question() for question in questions))

        try:
            return self._background.run(ask())
        except TimeoutError:
            urls, limit = ", ".join(self._settings.url), self._settings.stall_timeout
            raise ModelError(f"{urls}: no answer to the first questions within {limit:g} s (--stall-timeout)") from None

    def _samples(
        self, blocks: Iterable[Sequence[PromptRequest]], asked: Completions
    ) -> Iterator[Coroutine[Any, Any, Sample | Failure]]:
        for prompt in prompts_to_emit(blocks):
            tail = Once(partial(self._tail, prompt, asked))
            for request in prompt.samples:
                yield self._sample(prompt, request, tail, asked)

    async def _sample(
        self, prompt: PromptRequest, request: SampleRequest, tail: Once[Floats | None], asked: Completions
    ) -> Sample | Failure:
        sent = self._router.send(
            lambda at: asked.sample_body(at.known_dialect, prompt, request),
            lambda at, answer: asked.read_sample(at.known_dialect, prompt, request, answer),
        )
        try:
            if not asked.with_logprobs:
                return await sent
            # Both are waited for, so that neither is left behind where the other fails.
            sample, values = await asyncio.gather(sent, tail.start(), return_exceptions=True)
            if isinstance(sample, BaseException):
                raise sample
            if isinstance(values, BaseException):
                raise values
        except (Refusal, GaveUp) as error:
            return Failure(request.key, str(error))
        # Without the tail's log-probs the others are of no use: a second pass would be needed anyway.
        return replace(sample, tail_logprobs=values, logprobs=None if values is None else sample.logprobs)

    async def _tail(self, prompt: PromptRequest, asked: Completions) -> Floats | None:
        """Return the log-probs of a prompt's last tokens; None where the servers do not tell one of them."""
        places = range(len(prompt.ids) - prompt.tail, len(prompt.ids))
        values = [await self._token(prompt.ids[:place], int(prompt.ids[place]), asked) for place in places]
        if None in values:
            if not self._noted_tails:
                logger.warning("the servers do not tell the log-prob of a prompt's last token; %s", _WITHOUT)
            self._noted_tails = True
            return None
        return read_floats(values)

    async def _token(self, before: Ints, token: int, asked: Completions) -> float | None:
        try:
            return await self._router.send(
                lambda at: asked.token_body(at.known_dialect, before, token),
                lambda _, answer: asked.read_token(answer, token),
            )
        except Refusal:  # there is nothing before it, or the server tells fewer tokens than vLLM does
            return None

    async def _score(self, request: SequenceRequest) -> SequenceLogprobs | Failure:
        ids = request.scored_ids.tolist()
        try:
            values = await self._router.send(
                lambda at: {"prompt": ids, **at.known_scoring}, lambda _, answer: read_prompt_logprobs(answer, ids)
            )
        except (Refusal, GaveUp) as error:
            return Failure(request.key, str(error))
        return SequenceLogprobs(request.key, values[request.positions])


def _problem_with_logprobs(endpoints: Sequence[Endpoint], sampling: Sampling) -> str | None:
    """Say why the servers' log-probs are not those of the whole vocabulary at the sampling temperature, or None."""
    for endpoint in endpoints:
        kind = endpoint.known_dialect.logprobs
        if kind is None:
            return f"{endpoint.url}: tells no log-probs of token ids"
        if kind == "raw" and sampling.temperature not in (0.0, 1.0):
            return (
                f"{endpoint.url}: tells log-probs at temperature 1, not {sampling.temperature:g} (vLLM tells the "
                "latter if it is started with --logprobs-mode processed_logprobs)"
            )
        if kind == "processed" and (sampling.top_k or sampling.top_p < 1):
            return f"{endpoint.url}: tells log-probs among what --top-k and --top-p leave, not of the whole vocabulary"
    return None
