"""Build requests for samples and read the responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlt_data.engines.models import read_json
from rlt_data.engines.protocol import Floats, Ints, PromptRequest, Sample, SampleRequest, Sampling
from rlt_data.engines.server.probing import EXTRA_PARAMETERS, Dialect, stop_reason, token_id, top_logprobs
from rlt_data.engines.server.scoring import read_floats
from rlt_data.engines.server.transport import Refusal, TemporaryError
from rlt_data.formats import Tokenizer
from rlt_data.formats.spans import CONTEXT_TOKENS, decode_after

#: Maximum number of likeliest tokens that vLLM returns, unless it is started with another --max-logprobs.
_TOP_LOGPROBS = 20

#: Finish reasons of servers for samples that ended by themselves. All others, except ``length``, are errors.
_ENDED = ("stop", "eos", "eos_token", "stop_sequence")


@dataclass(frozen=True)
class Completions:
    """Builds requests for samples and reads the responses.

    Attributes:
        tokenizer: the served checkpoint's tokenizer.
        end_tokens: the model's end-of-text tokens.
        context_length: maximum number of tokens of a text.
        sampling: sampling parameters.
        with_logprobs: keep the servers' log-probs, which must be at the sampling temperature.
    """

    tokenizer: Tokenizer
    end_tokens: frozenset[int]
    context_length: int
    sampling: Sampling
    with_logprobs: bool

    def sample_body(self, dialect: Dialect, prompt: PromptRequest, request: SampleRequest) -> dict[str, Any]:
        """Return the body of the request for one sample."""
        sampling = self.sampling
        max_tokens = sampling.room(prompt, self.context_length)
        body = self._body(dialect, prompt.ids) | {"max_tokens": max_tokens, "seed": request.signed_seed}
        if dialect.stop != "removed":
            body["stop"] = [sampling.stop]
        if dialect.accepts_extra and sampling.top_k:
            body["top_k"] = sampling.top_k
        return body | ({"logprobs": 0} if self.with_logprobs else {})

    def read_sample(
        self, dialect: Dialect, prompt: PromptRequest, request: SampleRequest, answer: Mapping[str, Any]
    ) -> Sample:
        """Read the response, without the log-probs of the prompt's last tokens.

        Raises:
            TemporaryError: the server aborted the sample.
            Refusal: the server ended the sample for another reason, such as a content filter.
            LookupError, TypeError, ValueError, OverflowError: the response is malformed.
        """
        choice = answer["choices"][0]
        finish = choice["finish_reason"]
        if finish in (None, "abort", "error"):
            raise TemporaryError(f"the server aborted the sample ({finish})")
        if finish != "length" and finish not in _ENDED:
            raise Refusal(f"the server ended the sample: {finish}", 200)
        if dialect.returns_ids:
            return self._from_ids(prompt, request, choice)
        text, stop = choice["text"], self.sampling.stop
        if not isinstance(text, str):
            raise TypeError("the text is not a string")
        if dialect.stop == "reported" and stop_reason(choice) == stop:
            text += stop
        before, stop_found, _ = text.partition(stop)
        if dialect.stop == "removed":
            text = before + stop_found
        reason: Literal["stop", "eos", "length"] = "stop" if stop_found else "length" if finish == "length" else "eos"
        tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Sample(request.key, text, None, None, None, reason, len(prompt.ids), tokens)

    def _from_ids(self, prompt: PromptRequest, request: SampleRequest, choice: Mapping[str, Any]) -> Sample:
        ids = list(choice["token_ids"])
        if not all(isinstance(token, int) for token in ids):
            raise TypeError("a token is not a number")
        values = self._logprobs(choice, ids) if self.with_logprobs else None
        stop, reported, end = self.sampling.stop, stop_reason(choice), None
        if choice["finish_reason"] != "length" and reported != stop and ids and ids[-1] in {*self.end_tokens, reported}:
            end = ids.pop()
        text = decode_after(self.tokenizer, prompt.ids[-CONTEXT_TOKENS:].tolist(), ids)
        reason: Literal["stop", "eos", "length"] = "eos"
        if choice["finish_reason"] == "length":
            reason = "length"
        elif reported == stop or (end is None and stop in text):
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
        logprobs = choice["logprobs"]
        if [token_id(token) for token in logprobs["tokens"]] != ids:
            raise ValueError("log-probs of other tokens")
        return read_floats(logprobs["token_logprobs"])

    def token_body(self, dialect: Dialect, ids: Ints, token: int) -> dict[str, Any]:
        """Return the body of the request for the log-prob of one token after a prompt.

        vLLM returns the log-prob of any token. Servers that ignore ``logprob_token_ids`` return only the likeliest.
        """
        return self._body(dialect, ids) | {"max_tokens": 1, "logprobs": _TOP_LOGPROBS, "logprob_token_ids": [token]}

    def read_token(self, answer: Mapping[str, Any], token: int) -> float | None:
        """Return the token's log-prob; None if the response does not contain it."""
        return top_logprobs(answer).get(token)

    def _body(self, dialect: Dialect, ids: Ints) -> dict[str, Any]:
        extra = EXTRA_PARAMETERS if dialect.accepts_extra else {}
        sampling = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        return {"prompt": self._prompt(dialect, ids), "n": 1, **sampling, **extra}

    def _prompt(self, dialect: Dialect, ids: Ints) -> list[int] | str:
        """Return a prompt as token ids, or as text without a BOS token that the server would add again."""
        if dialect.accepts_ids:
            prompt: list[int] = ids.tolist()
            return prompt
        if dialect.adds_bos and len(ids) and ids[0] == self.tokenizer.bos_token_id:
            ids = ids[1:]
        return decode_after(self.tokenizer, [], ids.tolist())


def find_end_tokens(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the end-of-text tokens in a checkpoint's files."""
    end_tokens = {tokenizer.eos_token_id}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            value = read_json(folder / name).get("eos_token_id")
            end_tokens |= {token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)}
    return frozenset(end_tokens - {None})
