"""What an engine is: token ids in, token ids and log-probs out. Steps know engines only by this."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rlt_data.engines.watchdog import Heartbeat

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelIdentity:
    """Which model it is, whatever it is called.

    Attributes:
        name: what the user called it.
        revision: commit on the Hub, if it came from there.
        weights: hash of the weights and the architecture.
        tokenizer: hash of vocabulary, merges and special tokens.
        chat_template: hash of the template in use.
        dtype: arithmetic of the forward pass, such as ``float32``.
    """

    name: str
    revision: str | None
    weights: str
    tokenizer: str
    chat_template: str
    dtype: str

    @property
    def fingerprint(self) -> str:
        """Weights and tokenizer: two models with the same fingerprint give the same log-probs up to rounding."""
        return f"{self.weights}-{self.tokenizer}"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; a sample ends at ``stop``, at the model's own end, or after ``max_tokens``."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int | None
    stop: str

    def room(self, prompt: Ints, context_length: int) -> int:
        """Return the most tokens that a sample of a prompt may have in a model's context."""
        left = context_length - len(prompt)
        return min(left, self.max_tokens or left)


@dataclass(frozen=True)
class SampleRequest:
    """One sample of a prompt.

    Attributes:
        key: the caller's name for it.
        seed: everything random about it, 64 bits.
        emit: whether the caller wants it; a sample that is not owed is there so that an engine whose results depend
            on the batch in their last bits can rebuild the batch it ran before an interruption.
    """

    key: str
    seed: int
    emit: bool = True

    @property
    def signed_seed(self) -> int:
        """The seed for those who take signed 64-bit numbers: without its highest bit."""
        return self.seed % 2**63


@dataclass(frozen=True)
class PromptRequest:
    """A prompt and the samples wanted of it.

    Attributes:
        ids: token ids of the prompt, shape (tokens,).
        samples: the samples.
        tail: also return the log-probs of the prompt's last ``tail`` tokens.
    """

    ids: Ints
    samples: Sequence[SampleRequest]
    tail: int = 0


@dataclass(frozen=True)
class Sample:
    """A finished sample.

    Attributes:
        key: the request's.
        text: what the tokens add to the prompt, special tokens included, the end-of-text token not.
        token_ids: the sampled tokens, without an end-of-text token; None where a server gives text alone.
        logprobs: their log-probs at the sampling temperature (at 1 when that is 0), over the whole vocabulary; None
            where a server gives none, or others.
        tail_logprobs: log-probs of the prompt's last tokens, at the same temperature; None likewise.
        finish_reason: ``stop``: the stop text is there; ``eos``: the model ended; ``length``: out of tokens.
        prompt_tokens: length of the prompt.
        completion_tokens: number of sampled tokens, without an end-of-text token.
        end_token: the end-of-text token with which the model ended, for ``eos``.
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
    """A sample or a text that could not be worked on, and why; the others are not affected."""

    key: str
    reason: str


@dataclass(frozen=True)
class SequenceRequest:
    """A text whose tokens are to be scored.

    Attributes:
        key: the caller's name for it.
        ids: token ids of the whole text, shape (tokens,).
        positions: ascending positions, from 1, of the tokens whose log-probs are wanted.
        emit: see :class:`SampleRequest`.
    """

    key: str
    ids: Ints
    positions: Ints
    emit: bool = True

    @property
    def scored_ids(self) -> Ints:
        """The tokens up to the last wanted one; those after it play no part in any log-prob."""
        return self.ids[: int(self.positions[-1]) + 1]


@dataclass(frozen=True)
class SequenceLogprobs:
    """Log-probs of the wanted tokens of one text, shape (wanted,), float32."""

    key: str
    logprobs: Floats


Result = Sample | SequenceLogprobs | Failure

#: Groups of texts that share a beginning, which is computed once.
SequenceBlock = Sequence[Sequence[SequenceRequest]]


def prompts_to_emit(blocks: Iterable[Sequence[PromptRequest]]) -> Iterator[PromptRequest]:
    """Yield the prompts with owed samples, with those alone: for engines whose results know no block."""
    for prompt in chain.from_iterable(blocks):
        if owed := [sample for sample in prompt.samples if sample.emit]:
            yield replace(prompt, samples=owed)


def groups_to_emit(blocks: Iterable[SequenceBlock]) -> Iterator[list[SequenceRequest]]:
    """Yield the texts of each group that are owed and have a wanted token, likewise."""
    for group in chain.from_iterable(blocks):
        if owed := [request for request in group if request.emit and len(request.positions)]:
            yield owed


class Engine(Protocol):
    """Runs one model.

    Blocks are taken in the thread that asks for results, and only as far ahead as keeps the engine busy.

    Attributes:
        context_length: the most tokens of a text.
        heartbeat: signs of life, for the watchdog.
    """

    context_length: int
    heartbeat: Heartbeat

    def generate(self, blocks: Iterable[Sequence[PromptRequest]], sampling: Sampling) -> Iterator[Sample | Failure]:
        """Sample completions, each returned as soon as it is finished.

        A sample depends on its prompt, its seed and the sampling settings only. In its last bits it may depend on the
        other requests of its block, which is planned as a whole, but on nothing else.
        """
        ...

    def logprobs(self, blocks: Iterable[SequenceBlock], temperature: float) -> Iterator[SequenceLogprobs | Failure]:
        """Score texts, each returned as soon as it is done. Texts without a wanted token give no result.

        Last bits as in :meth:`generate`.
        """
        ...

    def log_tail(self) -> str:
        """Return the last lines that the engine's processes wrote, for messages; empty where it has none."""
        ...

    def close(self) -> None:
        """Give back what the engine holds: processes, connections."""
        ...


@runtime_checkable
class FullKL(Protocol):
    """What engines can do beyond :class:`Engine` that see the whole distribution of each token."""

    def full_kl(
        self,
        group: Sequence[SequenceRequest],
        other: Engine,
        other_group: Sequence[SequenceRequest],
        temperature: float,
    ) -> Iterator[SequenceLogprobs | Failure]:
        """Return KL(this model || other) over the whole vocabulary at the wanted tokens, in nats.

        The two groups hold the same keys, and as many wanted tokens under each.

        Raises:
            ModelError: the two engines cannot compare distributions.
        """
        ...
