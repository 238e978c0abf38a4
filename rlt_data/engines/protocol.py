"""The engine protocol: token ids in, token ids and log-probs out. Steps use engines only through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rlt_data.engines.watchdog import Heartbeat
from rlt_data.errors import ModelError

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelIdentity:
    """Identifies a model by its content, whatever its name.

    Attributes:
        name: the name that the user gave.
        revision: the commit, for a model from the Hub.
        weights: hash of the weights and the architecture.
        tokenizer: hash of vocabulary, merges and special tokens.
        chat_template: hash of the template in use.
        dtype: dtype of the forward pass, such as ``float32``.
    """

    name: str
    revision: str | None
    weights: str
    tokenizer: str
    chat_template: str
    dtype: str

    @property
    def fingerprint(self) -> str:
        """Hash of weights and tokenizer. Models with the same fingerprint give the same log-probs up to rounding."""
        return f"{self.weights}-{self.tokenizer}"


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. A sample ends with ``stop``, with the model's end-of-text token or after ``max_tokens``."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int | None
    stop: str

    def room(self, prompt: PromptRequest, context_length: int) -> int:
        """Return the maximum number of tokens that a prompt's sample may have in a model's context."""
        left = context_length - len(prompt.ids)
        return min(left, self.max_tokens or left, prompt.max_tokens or left)


@dataclass(frozen=True)
class SampleRequest:
    """One sample of a prompt.

    Attributes:
        key: the caller's name for it.
        seed: 64-bit seed, the only source of randomness.
        emit: return the sample. Requests that are not emitted let an engine whose results depend on the batch in
            their last bits rebuild the batch that it ran before an interruption.
    """

    key: str
    seed: int
    emit: bool = True

    @property
    def signed_seed(self) -> int:
        """The seed without its highest bit, for libraries that take signed 64-bit numbers."""
        return self.seed % 2**63


@dataclass(frozen=True)
class PromptRequest:
    """A prompt and the samples to draw from it.

    Attributes:
        ids: token ids of the prompt, shape (tokens,).
        samples: the samples.
        tail: number of last tokens of the prompt whose log-probs are returned too.
        max_tokens: maximum new tokens of these samples, if it is less than that of the sampling parameters.
    """

    ids: Ints
    samples: Sequence[SampleRequest]
    tail: int = 0
    max_tokens: int | None = None


@dataclass(frozen=True)
class Sample:
    """A finished sample.

    Attributes:
        key: the request's key.
        text: the sampled text, with special tokens but without the end-of-text token.
        token_ids: the sampled tokens, without the end-of-text token; None if a server returns only text.
        logprobs: log-probs of the sampled tokens at the sampling temperature (at 1 if that is 0), over the complete
            vocabulary; None if a server does not return exactly these.
        tail_logprobs: log-probs of the prompt's last tokens, at the same temperature; None as for ``logprobs``.
        finish_reason: ``stop`` at the stop text, ``eos`` at the model's end-of-text token, ``length`` at the maximum.
        prompt_tokens: number of tokens of the prompt.
        completion_tokens: number of sampled tokens, without the end-of-text token.
        end_token: the end-of-text token, for ``eos``.
    """

    key: str
    text: str
    token_ids: Ints | None
    logprobs: Floats | None
    tail_logprobs: Floats | None
    finish_reason: Literal["stop", "eos", "length"]
    prompt_tokens: int
    completion_tokens: int
    end_token: int | None = None


@dataclass(frozen=True)
class Failure:
    """A sample or a text that failed, and the reason; other requests are not affected."""

    key: str
    reason: str


@dataclass(frozen=True)
class Measured:
    """The tokens of a text that are also ranked, and scored at a second temperature.

    Attributes:
        tokens: their number; they are the first of the scored tokens.
        temperature: logits are divided by it.
    """

    tokens: int
    temperature: float


@dataclass(frozen=True)
class SequenceRequest:
    """A text whose tokens are scored.

    Attributes:
        key: the caller's name for it.
        ids: token ids of the complete text, shape (tokens,).
        positions: ascending indices of the tokens to score, at least 1.
        emit: return the result; see :class:`SampleRequest`.
        measured: the tokens whose ranks and log-probs at a second temperature are returned too; None for none.
    """

    key: str
    ids: Ints
    positions: Ints
    emit: bool = True
    measured: Measured | None = None

    @property
    def scored_ids(self) -> Ints:
        """The tokens up to the last scored one; later tokens affect no log-prob."""
        return self.ids[: int(self.positions[-1]) + 1]


@dataclass(frozen=True)
class SequenceLogprobs:
    """Log-probs of one text's scored tokens.

    Attributes:
        key: the request's key.
        logprobs: float32, shape (positions,).
        measured_logprobs: log-probs of the measured tokens at their temperature, float32, shape (measured,); None if
            the engine does not return them. At equal temperatures an engine may omit them, because they are the first
            of ``logprobs``.
        ranks: one plus the number of likelier tokens for each measured token, shape (measured,); None if the engine
            does not return them.
    """

    key: str
    logprobs: Floats
    measured_logprobs: Floats | None = None
    ranks: Ints | None = None


Result = Sample | SequenceLogprobs | Failure

#: Groups of texts. The texts of a group share a prefix, which is computed once.
SequenceBlock = Sequence[Sequence[SequenceRequest]]


def prompts_to_emit(blocks: Iterable[Sequence[PromptRequest]]) -> Iterator[PromptRequest]:
    """Yield each prompt with only its emitted samples, for engines whose results do not depend on the block."""
    for prompt in chain.from_iterable(blocks):
        if samples := [sample for sample in prompt.samples if sample.emit]:
            yield replace(prompt, samples=samples)


def groups_to_emit(blocks: Iterable[SequenceBlock]) -> Iterator[list[SequenceRequest]]:
    """Yield each group with only its emitted texts that have a token to score; see :func:`prompts_to_emit`."""
    for group in chain.from_iterable(blocks):
        if requests := [request for request in group if request.emit and len(request.positions)]:
            yield requests


class Engine(Protocol):
    """Runs one model.

    Blocks are read in the thread that iterates over the results, only as far ahead as keeps the engine busy.

    Attributes:
        context_length: maximum number of tokens of a text.
        heartbeat: progress, for the watchdog.
    """

    context_length: int
    heartbeat: Heartbeat

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Sample completions and yield each as soon as it is finished.

        A sample depends only on its prompt, its seed and the sampling parameters. Its last bits may also depend on the
        other requests of its block, because batches are planned from the block, but on nothing else.
        """
        raise ModelError(f"{type(self).__name__}: this engine does not generate samples")

    def logprobs(self, blocks: Iterable[SequenceBlock], temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score texts and yield each as soon as it is finished; skip texts without a token to score.

        The last bits may depend on the block, as in :meth:`generate`.
        """
        raise ModelError(f"{type(self).__name__}: this engine does not score texts")

    def log_tail(self) -> str:
        """Return the last lines of the engine processes' logs, for messages; empty without processes."""
        return ""

    def close(self) -> None:
        """Stop the engine's processes and close its connections, if it has any."""


@runtime_checkable
class FullKL(Protocol):
    """An engine that also sees the complete distribution of each token."""

    def full_kl(
        self,
        group: Sequence[SequenceRequest],
        other: Engine,
        other_group: Sequence[SequenceRequest],
        temperature: float,
    ) -> Iterator[SequenceLogprobs | Failure]:
        """Yield KL(this model || other) over the complete vocabulary at the scored tokens, in nats.

        Args:
            group: texts for this model.
            other: engine of the other model.
            other_group: texts for the other model, with the same keys and the same number of scored tokens per key.
            temperature: both models' logits are divided by it.

        Raises:
            ModelError: the two engines cannot compare distributions.
        """
        ...
