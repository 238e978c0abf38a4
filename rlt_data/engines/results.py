"""Check engine results before steps use them: an impossible result becomes a failure of its row.

Servers may send anything, and damaged weights give NaN. Without these checks, both would enter tables and rewards.
Token ids outside the vocabulary are refused before they reach a model, because on a GPU they would end the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

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

#: Rounding may push a log-prob above 0, by less than this.
_HIGHEST = 1e-3
#: Models mask tokens with the lowest number of a dtype. At usable temperatures, no log-prob comes near this.
_LOWEST = -1e9
#: Tokenising a sample's text again gives at most this many times the sampled tokens: a byte that is not UTF-8 becomes
#: a replacement character of three bytes.
_RETOKENISED = 3


def invalid_logprobs(values: Floats, tokens: int) -> str | None:
    """Return why values cannot be the log-probs of that many tokens; None if they can.

    Args:
        values: shape (log-probs,).
        tokens: expected number of log-probs.
    """
    if len(values) != tokens:
        return f"{len(values)} log-probs for {tokens} tokens"
    if not tokens:
        return None
    lowest, highest = values.min(), values.max()
    if lowest > _LOWEST and highest < _HIGHEST:  # false for NaN, which min and max return
        return None
    return f"a log-prob of {highest if lowest > _LOWEST else lowest:g}"


def checked_samples(
    engine: Engine, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling, vocabulary: int
) -> Iterator[Sample | Failure]:
    """Sample completions with :meth:`rlt_data.engines.Engine.generate` and check prompts and results.

    Args:
        engine: the engine that samples.
        blocks: the prompts.
        sampling: the sampling parameters.
        vocabulary: the model's vocabulary size.
    """
    prompt_by_key: dict[str, PromptRequest] = {}
    refused: list[Failure] = []

    def valid_prompts() -> Iterator[list[PromptRequest]]:
        for block in blocks:
            valid = []
            for prompt in block:
                keys = [sample.key for sample in prompt.samples if sample.emit]
                if reason := _invalid_ids(prompt.ids, vocabulary):
                    refused.extend(Failure(key, f"the prompt holds {reason}") for key in keys)
                else:
                    prompt_by_key.update(dict.fromkeys(keys, prompt))
                    valid.append(prompt)
            yield valid

    for result in engine.generate(valid_prompts(), sampling):
        prompt = prompt_by_key.pop(result.key)
        if isinstance(result, Sample):
            max_tokens = sampling.room(prompt, engine.context_length)
            if reason := _invalid_sample(result, prompt.tail, max_tokens, vocabulary):
                result = Failure(result.key, f"the engine returned {reason}")
        yield result
    yield from refused


def checked_logprobs(
    engine: Engine, blocks: Iterable[SequenceBlock], temperature: float, vocabulary: int
) -> Iterator[SequenceLogprobs | Failure]:
    """Score texts with :meth:`rlt_data.engines.Engine.logprobs` and check texts and results.

    Where the second temperature of a text equals ``temperature``, its measured log-probs are filled in.

    Args:
        engine: the engine that scores.
        blocks: the texts.
        temperature: logits are divided by it.
        vocabulary: the model's vocabulary size.
    """
    requests: dict[str, SequenceRequest] = {}
    refused: list[Failure] = []

    def is_valid(request: SequenceRequest) -> bool:
        reason = _invalid_ids(request.ids, vocabulary)
        if request.emit and len(request.positions):
            if reason:
                refused.append(Failure(request.key, f"the text holds {reason}"))
            else:
                requests[request.key] = request
        return reason is None

    def valid_texts() -> Iterator[SequenceBlock]:
        for block in blocks:
            yield [[request for request in group if is_valid(request)] for group in block]

    for result in engine.logprobs(valid_texts(), temperature):
        request = requests.pop(result.key)
        if isinstance(result, SequenceLogprobs):
            if reason := _invalid_result(result, request, vocabulary):
                result = Failure(result.key, f"the engine returned {reason}")
            elif request.measured and request.measured.temperature == temperature:
                result = replace(result, measured_logprobs=result.logprobs[: request.measured.tokens])
        yield result
    yield from refused


def checked_full_kl(
    engine: Engine,
    group: Sequence[SequenceRequest],
    other: Engine,
    other_group: Sequence[SequenceRequest],
    temperature: float,
) -> Iterator[SequenceLogprobs | Failure]:
    """Compare distributions with :class:`~rlt_data.engines.protocol.FullKL` and check the results.

    Raises:
        ModelError: the engines cannot compare distributions.
    """
    if not isinstance(engine, FullKL):
        raise ModelError("the full KL needs an engine that sees complete distributions (--engine transformers)")
    scored_tokens = {request.key: len(request.positions) for request in group}
    for result in engine.full_kl(group, other, other_group, temperature):
        if isinstance(result, SequenceLogprobs):
            values, tokens = result.logprobs, scored_tokens[result.key]
            if len(values) != tokens or not np.isfinite(values).all():
                result = Failure(result.key, f"the engine returned a KL of {tokens} tokens that is not finite")
        yield result


def _invalid_result(result: SequenceLogprobs, request: SequenceRequest, vocabulary: int) -> str | None:
    """Return what is impossible about the values of a text; None if nothing is."""
    if reason := invalid_logprobs(result.logprobs, len(request.positions)):
        return reason
    tokens = request.measured.tokens if request.measured else 0
    if result.measured_logprobs is not None and (reason := invalid_logprobs(result.measured_logprobs, tokens)):
        return f"{reason} at the second temperature"
    if result.ranks is None:
        return None
    if len(result.ranks) != tokens:
        return f"{len(result.ranks)} ranks for {tokens} tokens"
    outside = result.ranks[(result.ranks < 1) | (result.ranks > vocabulary)]
    return f"a rank of {outside[0]} among {vocabulary} tokens" if len(outside) else None


def _invalid_sample(sample: Sample, tail: int, max_tokens: int, vocabulary: int) -> str | None:
    """Return what is impossible about a sample; None if nothing is."""
    ids, tokens = sample.token_ids, sample.completion_tokens
    if tokens > (max_tokens if ids is not None else _RETOKENISED * max_tokens):
        return f"{tokens} tokens where at most {max_tokens} were requested"
    if ids is not None and (reason := _invalid_ids(ids, vocabulary)):
        return reason
    if sample.logprobs is not None and (reason := invalid_logprobs(sample.logprobs, tokens)):
        return reason
    if sample.tail_logprobs is not None and (reason := invalid_logprobs(sample.tail_logprobs, tail)):
        return f"{reason} for the end of the prompt"
    return None


def _invalid_ids(ids: Ints, vocabulary: int) -> str | None:
    """Return which token is not in the vocabulary; None if all are."""
    if not len(ids):
        return None
    lowest, highest = ids.min(), ids.max()
    if lowest >= 0 and highest < vocabulary:
        return None
    return f"token {lowest if lowest < 0 else highest}, which the model does not have"
