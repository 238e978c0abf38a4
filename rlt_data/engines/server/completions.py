"""Samples: what a server is asked, and how its answer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlt_data.engines.models import read_json
from rlt_data.engines.protocol import Floats, Ints, PromptRequest, Sample, SampleRequest, Sampling
from rlt_data.engines.server.probing import MORE_PARAMETERS, Dialect, token_id, told_stop, top_logprobs
from rlt_data.engines.server.scoring import read_floats
from rlt_data.engines.server.transport import Refusal, Trouble
from rlt_data.formats import Tokenizer
from rlt_data.formats.spans import CONTEXT_TOKENS, decode_after

#: The most likeliest tokens that vLLM tells, unless it is started with another --max-logprobs.
_TOP_LOGPROBS = 20

#: What servers write where a sample ended by itself; anything else but ``length`` is a failure of theirs.
_ENDED = ("stop", "eos", "eos_token", "stop_sequence")


@dataclass(frozen=True)
class Completions:
    """How samples are asked for and read.

    Attributes:
        tokenizer: of the checkpoint that is served.
        end_tokens: tokens with which the model ends a text.
        context_length: the most tokens of a text.
        sampling: how tokens are drawn.
        with_logprobs: whether the servers' log-probs are the ones that samples are to have.
    """

    tokenizer: Tokenizer
    end_tokens: frozenset[int]
    context_length: int
    sampling: Sampling
    with_logprobs: bool

    def sample_body(self, dialect: Dialect, prompt: PromptRequest, request: SampleRequest) -> dict[str, Any]:
        """Return the parameters of one sample."""
        sampling = self.sampling
        room = sampling.room(prompt.ids, self.context_length)
        body = self._body(dialect, prompt.ids) | {"max_tokens": room, "seed": request.signed_seed}
        if dialect.stop != "silent":
            body["stop"] = [sampling.stop]
        if dialect.takes_more and sampling.top_k:
            body["top_k"] = sampling.top_k
        return body | ({"logprobs": 0} if self.with_logprobs else {})

    def read_sample(
        self, dialect: Dialect, prompt: PromptRequest, request: SampleRequest, answer: Mapping[str, Any]
    ) -> Sample:
        """Read the answer; the prompt's own log-probs are not in it.

        Raises:
            Trouble: the server gave up on the sample.
            Refusal: it ended it for a reason of its own.
            LookupError, TypeError, ValueError, OverflowError: the answer is not as it should be.
        """
        choice = answer["choices"][0]
        finish = choice["finish_reason"]
        if finish in (None, "abort", "error"):
            raise Trouble(f"the server gave the sample up ({finish})")
        if finish != "length" and finish not in _ENDED:
            raise Refusal(f"the server ended the sample: {finish}", 200)
        if dialect.returns_ids:
            return self._from_ids(prompt, request, choice)
        text, stop = choice["text"], self.sampling.stop
        if not isinstance(text, str):
            raise TypeError("the text is none")
        if dialect.stop == "told" and told_stop(choice) == stop:
            text += stop
        before, found, _ = text.partition(stop)
        if dialect.stop == "silent":
            text = before + found
        reason: Literal["stop", "eos", "length"] = "stop" if found else "length" if finish == "length" else "eos"
        tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Sample(request.key, text, None, None, None, reason, len(prompt.ids), tokens)

    def _from_ids(self, prompt: PromptRequest, request: SampleRequest, choice: Mapping[str, Any]) -> Sample:
        ids = list(choice["token_ids"])
        if not all(isinstance(token, int) for token in ids):
            raise TypeError("a token is no number")
        values = self._logprobs(choice, ids) if self.with_logprobs else None
        stop, told, end = self.sampling.stop, told_stop(choice), None
        if choice["finish_reason"] != "length" and told != stop and ids and ids[-1] in {*self.end_tokens, told}:
            end = ids.pop()
        text = decode_after(self.tokenizer, prompt.ids[-CONTEXT_TOKENS:].tolist(), ids)
        reason: Literal["stop", "eos", "length"] = "eos"
        if choice["finish_reason"] == "length":
            reason = "length"
        elif told == stop or (end is None and stop in text):
            reason = "stop"
        return Sample(
            key=request.key,
            text=text,
            token_ids=np.asarray(ids, np.int32),
            logprobs=None if values is None else values[: len(ids)],
            tail_logprobs=None,
            finish_reason=reason,
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(ids),
            end_token=end,
        )

    def _logprobs(self, choice: Mapping[str, Any], ids: Sequence[int]) -> Floats:
        told = choice["logprobs"]
        if [token_id(token) for token in told["tokens"]] != ids:
            raise ValueError("log-probs of other tokens")
        return read_floats(told["token_logprobs"])

    def token_body(self, dialect: Dialect, ids: Ints, token: int) -> dict[str, Any]:
        """Return the parameters that ask for the log-prob of a token after others.

        vLLM tells that of any token; servers that do not know this parameter tell those of the likeliest ones.
        """
        return self._body(dialect, ids) | {"max_tokens": 1, "logprobs": _TOP_LOGPROBS, "logprob_token_ids": [token]}

    def read_token(self, answer: Mapping[str, Any], token: int) -> float | None:
        """Return the log-prob of the token; None if it is not among those that were told."""
        return top_logprobs(answer).get(token)

    def _body(self, dialect: Dialect, ids: Ints) -> dict[str, Any]:
        more = MORE_PARAMETERS if dialect.takes_more else {}
        sampled = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        return {"prompt": self._prompt(dialect, ids), "n": 1, **sampled, **more}

    def _prompt(self, dialect: Dialect, ids: Ints) -> list[int] | str:
        """Return a prompt as the server takes it; as text without the BOS token that the server adds."""
        if dialect.takes_ids:
            prompt: list[int] = ids.tolist()
            return prompt
        if dialect.adds_bos and len(ids) and ids[0] == self.tokenizer.bos_token_id:
            ids = ids[1:]
        return decode_after(self.tokenizer, [], ids.tolist())


def find_end_tokens(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens with which a checkpoint's model ends a text, by its files."""
    ends = {tokenizer.eos_token_id}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name).get("eos_token_id")
            ends |= {token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int)}
    return frozenset(ends - {None})
