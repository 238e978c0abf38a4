"""Checks between engines and steps: a result that cannot be true becomes a failure of its row.

Servers send whatever they like, and a damaged model computes NaN. Without these checks both would enter tables and
rewards. Tokens that a model does not have are caught before they reach it: on a GPU they would end the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from rlt_data.engines.protocol import (
    Engine,
    Failure,
    Floats,
    FullKL,
    Ints,
    PromptRequest,
    Sample,
    Sampling,
    SequenceBlock,
    SequenceLogprobs,
    SequenceRequest,
)
from rlt_data.errors import ModelError

#: Log-probs exceed 0 by rounding errors only, which are smaller than this.
_HIGHEST = 1e-3
#: Models mask tokens with the lowest number of a type; no log-prob at a usable temperature comes near this.
_LOWEST = -1e9
#: A text of sampled tokens has at most this many times as many tokens of its own: a byte that is no UTF-8 becomes a
#: replacement character, which has three bytes.
_RETOKENISED = 3


def problem_with_logprobs(values: Floats, tokens: int) -> str | None:
    """Say why numbers cannot be the log-probs of so many tokens; None if they can.

    Args:
        values: shape (log-probs,).
        tokens: how many there should be.
    """
    if len(values) != tokens:
        return f"{len(values)} log-probs for {tokens} tokens"
    if not tokens:
        return None
    lowest, highest = values.min(), values.max()
    if lowest > _LOWEST and highest < _HIGHEST:  # false for NaN, which min and max pass on
        return None
    return f"a log-prob of {highest if lowest > _LOWEST else lowest:g}"


def checked_samples(
    engine: Engine, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling, vocabulary: int
) -> Iterator[Sample | Failure]:
    """Sample completions; see :meth:`rlt_data.engines.Engine.generate`.

    Args:
        engine: what samples.
        blocks: prompts.
        sampling: how tokens are drawn.
        vocabulary: tokens that the model has.
    """
    asked: dict[str, PromptRequest] = {}
    refused: list[Failure] = []

    def passed() -> Iterator[list[PromptRequest]]:
        for block in blocks:
            fitting = []
            for prompt in block:
                owed = [sample.key for sample in prompt.samples if sample.emit]
                if reason := _problem_with_ids(prompt.ids, vocabulary):
                    refused.extend(Failure(key, f"the prompt holds {reason}") for key in owed)
                else:
                    asked.update(dict.fromkeys(owed, prompt))
                    fitting.append(prompt)
            yield fitting

    for result in engine.generate(passed(), sampling):
        prompt = asked.pop(result.key)
        if isinstance(result, Sample):
            room = sampling.room(prompt.ids, engine.context_length)
            if reason := _problem_with_sample(result, prompt.tail, room, vocabulary):
                result = Failure(result.key, f"the engine returned {reason}")
        yield result
    yield from refused


def checked_logprobs(
    engine: Engine, blocks: Iterable[SequenceBlock], temperature: float, vocabulary: int
) -> Iterator[SequenceLogprobs | Failure]:
    """Score texts; see :meth:`rlt_data.engines.Engine.logprobs`.

    Args:
        engine: what scores.
        blocks: texts.
        temperature: logits are divided by it.
        vocabulary: tokens that the model has.
    """
    wanted: dict[str, int] = {}
    refused: list[Failure] = []

    def fits(request: SequenceRequest) -> bool:
        reason = _problem_with_ids(request.ids, vocabulary)
        if request.emit and len(request.positions):
            if reason:
                refused.append(Failure(request.key, f"the text holds {reason}"))
            else:
                wanted[request.key] = len(request.positions)
        return reason is None

    def passed() -> Iterator[SequenceBlock]:
        for block in blocks:
            yield [[request for request in group if fits(request)] for group in block]

    for result in engine.logprobs(passed(), temperature):
        tokens = wanted.pop(result.key)
        if isinstance(result, SequenceLogprobs) and (reason := problem_with_logprobs(result.logprobs, tokens)):
            result = Failure(result.key, f"the engine returned {reason}")
        yield result
    yield from refused


def checked_full_kl(
    engine: Engine,
    group: Sequence[SequenceRequest],
    other: Engine,
    other_group: Sequence[SequenceRequest],
    temperature: float,
) -> Iterator[SequenceLogprobs | Failure]:
    """Compare distributions; see :class:`~rlt_data.engines.protocol.FullKL`.

    Raises:
        ModelError: the engines cannot compare distributions.
    """
    if not isinstance(engine, FullKL):
        raise ModelError("the full KL needs an engine that sees whole distributions (--engine transformers)")
    wanted = {request.key: len(request.positions) for request in group}
    for result in engine.full_kl(group, other, other_group, temperature):
        if isinstance(result, SequenceLogprobs):
            values, tokens = result.logprobs, wanted[result.key]
            if len(values) != tokens or not np.isfinite(values).all():
                result = Failure(result.key, f"the engine returned a KL of {tokens} tokens that is not finite")
        yield result


def _problem_with_sample(sample: Sample, tail: int, room: int, vocabulary: int) -> str | None:
    ids, tokens = sample.token_ids, sample.completion_tokens
    longest = room if ids is not None else _RETOKENISED * room
    if tokens > longest:
        return f"{tokens} tokens where {room} were asked for"
    if ids is not None and (reason := _problem_with_ids(ids, vocabulary)):
        return reason
    if sample.logprobs is not None and (reason := problem_with_logprobs(sample.logprobs, tokens)):
        return reason
    if sample.tail_logprobs is not None and (reason := problem_with_logprobs(sample.tail_logprobs, tail)):
        return f"{reason} for the end of the prompt"
    return None


def _problem_with_ids(ids: Ints, vocabulary: int) -> str | None:
    if not len(ids):
        return None
    lowest, highest = ids.min(), ids.max()
    if lowest >= 0 and highest < vocabulary:
        return None
    return f"token {lowest if lowest < 0 else highest}, which the model does not have"
