"""Find out what a server serves and supports, by a few small requests before the work begins.

"OpenAI-compatible" servers differ: some take token ids, others only text; some refuse parameters that others need; the
stop text is kept, or removed with or without notice; log-probs are at the sampling temperature or at 1. Probes detect
each property from responses, never from a server's name.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from rlt_data.engines.server.scoring import SCORING_PARAMETERS, read_prompt_logprobs
from rlt_data.engines.server.transport import Refusal, TemporaryError, Transport, Unreachable, unreadable_is_temporary
from rlt_data.errors import ModelError
from rlt_data.formats import Tokenizer
from rlt_data.formats.spans import decode_after
from rlt_data.settings import ModelSettings

T = TypeVar("T")

#: Parameters that OpenAI's servers do not know. The first three are needed because vLLM and SGLang otherwise take them
#: from the model's generation_config.json, which would change the sampling distribution.
EXTRA_PARAMETERS: Mapping[str, Any] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,  # vLLM
    "no_stop_trim": True,  # SGLang
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}

#: Statuses that usually mean that a server refuses all requests, not only this one.
DENIED = frozenset({401, 403, 404})

#: Seconds for the response to a small request.
PROBE_SECONDS = 60.0

_STORY = "Once upon a time, there was a little"
#: A text that tokenizers split differently: letters of several bytes, digits, white space and a special token.
_TOKENIZER_TEST = "In 1897 there were 17 * 23 = 391 houses.\n\nOù ça? 你好{special}def double(x):\n\treturn 2 * x"
#: OpenAI's servers take at most four stop texts. Nearly every text soon contains one of these.
_STOPS = [" ", "\n", "e", "a"]
_STOP_TRIES = 3
#: Doubling the temperature changes the likeliest token's log-prob by more than this; rounding changes it by less.
_LOGPROB_CHANGE = 0.2


@dataclass(frozen=True)
class ServedModel:
    """The model behind a URL.

    Attributes:
        name: the model's name on the server.
        root: the checkpoint that the server loaded, if it says so.
        context_length: maximum number of tokens of a text, if the server says so.
    """

    name: str
    root: str | None = None
    context_length: int | None = None


@dataclass(frozen=True)
class Dialect:
    """How a server takes requests for samples, and what its responses contain.

    Attributes:
        accepts_ids: prompts may be token ids.
        accepts_extra: the server accepts :data:`EXTRA_PARAMETERS`.
        adds_bos: the server puts a BOS token before a text.
        returns_ids: responses contain the sampled token ids.
        stop: the stop text is ``kept`` in the output, removed and ``reported``, or ``removed`` without notice.
        logprobs: responses contain log-probs of the model's distribution at temperature 1 (``raw``) or of the sampling
            distribution (``processed``); None without log-probs.
    """

    accepts_ids: bool
    accepts_extra: bool
    adds_bos: bool
    returns_ids: bool
    stop: Literal["kept", "reported", "removed"]
    logprobs: Literal["raw", "processed"] | None


class Probe:
    """Probes one URL.

    Args:
        transport: sends the requests.
        url: the base URL.
        name: the checkpoint that the user named.
        tokenizer: the checkpoint's tokenizer.
        settings: the served model's name, and the number of retries.
        pause: returns the seconds to wait after a number of failed tries.
    """

    def __init__(
        self,
        transport: Transport,
        url: str,
        name: str,
        tokenizer: Tokenizer,
        settings: ModelSettings,
        pause: Callable[[int], float],
    ) -> None:
        self._transport = transport
        self._url = url
        self._name = name
        self._tokenizer = tokenizer
        self._settings = settings
        self._pause = pause
        self._served = ServedModel(name)

    async def served_model(self) -> ServedModel:
        """Find out which model is served.

        Raises:
            ModelError: the URL cannot be used, or serves another model than the user named.
        """
        try:
            listing = await self._with_retries(lambda: self._transport.get(f"{self._url}/models", PROBE_SECONDS))
        except Refusal as refusal:
            if refusal.status in (401, 403):
                raise self._refused(refusal) from None
            await self._check_version_suffix()
            self._served = ServedModel(self._settings.served_model or self._name)
        else:
            try:
                with unreadable_is_temporary():
                    cards = {str(card["id"]): dict(card) for card in listing["data"]}
            except TemporaryError:
                raise ModelError(
                    f"{self._url}: the list of models cannot be read; is this an OpenAI-compatible server?"
                ) from None
            name = self._choose_name(list(cards))
            card = cards.get(name, {})
            root, context = card.get("root"), card.get("max_model_len")
            self._served = ServedModel(
                name, root if isinstance(root, str) else None, context if isinstance(context, int) else None
            )
        return self._served

    def _choose_name(self, names: list[str]) -> str:
        requested = self._settings.served_model
        name = requested or self._name
        if not names or name in names:
            return name
        if requested is None and len(names) == 1:
            return names[0]
        similar = difflib.get_close_matches(name, names, 5, 0.0)
        shown = ", ".join(similar) + (f" and {len(names) - len(similar)} more" if len(names) > len(similar) else "")
        hint = f", not {requested} (--served-model)" if requested else "; choose one with --served-model"
        raise ModelError(f"{self._url}: serves {shown}{hint}")

    async def _check_version_suffix(self) -> None:
        """Raise ModelError if the URL lacks the suffix /v1."""
        try:
            await self._transport.get(f"{self._url}/v1/models", PROBE_SECONDS)
        except (Refusal, TemporaryError):
            return
        raise ModelError(f"{self._url}: serves nothing, but {self._url}/v1 does; use --url {self._url}/v1")

    async def dialect(self) -> Dialect:
        """Find out how the server takes requests for samples.

        Raises:
            ModelError: the server refuses them, or tokenises text differently from the checkpoint's tokenizer.
        """
        adds_bos = await self._check_tokenizer()
        refusals: list[Exception] = []
        for accepts_extra, accepts_ids in ((True, True), (True, False), (False, True), (False, False)):
            extra: dict[str, Any] = dict(EXTRA_PARAMETERS) if accepts_extra else {}
            prompt = self._ids(_STORY) if accepts_ids else _STORY
            try:
                answer = await self._complete(prompt, **extra)
            except (Refusal, ModelError) as refusal:  # some servers send status 500 for parameters they do not know
                refusals.append(refusal)
                continue
            if not accepts_ids or _prompt_tokens(answer) in (None, len(prompt)):
                break
        else:
            raise ModelError(f"{self._url}: refuses requests ({refusals[-1]})")
        try:
            returns_ids, stop = await self._probe_stop(prompt, extra)
        except TemporaryError as error:
            raise ModelError(f"{self._url}: {error}") from None
        logprobs = await self._probe_logprobs(prompt, extra) if returns_ids else None
        return Dialect(accepts_ids, accepts_extra, adds_bos, returns_ids, stop, logprobs)

    async def scoring_parameters(self) -> Mapping[str, Any]:
        """Find the parameters that make the server return the log-probs of a prompt.

        Raises:
            ModelError: none do, or the server tokenises text differently from the checkpoint's tokenizer.
        """
        await self._check_tokenizer()
        ids = self._ids(self._tokenizer_test)
        reasons: list[str] = []
        for parameters in SCORING_PARAMETERS:
            try:
                answer = await self._complete(ids, **parameters)
                with unreadable_is_temporary():
                    read_prompt_logprobs(answer, ids)
            except (Refusal, TemporaryError) as error:
                reasons.append(str(error))
            else:
                return parameters
        raise ModelError(
            f"{self._url}: returns no log-probs of a prompt's tokens ({reasons[0]}); scoring needs them, and vLLM's "
            "server returns them"
        )

    async def _check_tokenizer(self) -> bool:
        """Refuse a server that tokenises text differently; return whether it adds a BOS token."""
        expected = len(self._ids(self._tokenizer_test))
        try:
            counted = _prompt_tokens(await self._complete(self._tokenizer_test))
        except Refusal as refusal:
            raise self._refused(refusal) from None
        if counted is None:
            return len(self._tokenizer(self._tokenizer_test)["input_ids"]) > expected
        if counted not in (expected, expected + 1):
            raise ModelError(
                f"{self._url}: serves another model than {self._name}: it splits a test text into {counted} tokens, "
                f"the tokenizer of {self._name} into {expected}"
            )
        return counted > expected

    async def _probe_stop(
        self, prompt: str | list[int], extra: dict[str, Any]
    ) -> tuple[bool, Literal["kept", "reported", "removed"]]:
        """Find out whether the server returns the sampled token ids, and what it does with a stop text."""
        for seed in range(_STOP_TRIES):
            answer = await self._complete(prompt, max_tokens=32, stop=_STOPS, seed=seed, **extra)
            with unreadable_is_temporary():
                choice = answer["choices"][0]
                ids = choice.get("token_ids")
                decoded = decode_after(self._tokenizer, self._ids(_STORY), ids) if ids else ""
                returns_ids = any(stop in decoded for stop in _STOPS)
                if any(stop in choice["text"] for stop in _STOPS):
                    return returns_ids, "kept"
                if stop_reason(choice) in _STOPS:
                    return returns_ids, "reported"
        return False, "removed"

    async def _probe_logprobs(
        self, prompt: str | list[int], extra: dict[str, Any]
    ) -> Literal["raw", "processed"] | None:
        """Find out whether log-probs depend on the temperature, by the likeliest token's at two temperatures."""
        highest = []
        for temperature in (1.0, 2.0):
            parameters = extra | {"logprobs": 1, "temperature": temperature}
            try:
                answer = await self._complete(prompt, **parameters)
                with unreadable_is_temporary():
                    highest.append(max(top_logprobs(answer).values()))
            except (Refusal, TemporaryError):
                return None
        return "processed" if abs(highest[0] - highest[1]) > _LOGPROB_CHANGE else "raw"

    async def _complete(self, prompt: str | list[int], **parameters: Any) -> dict[str, Any]:
        defaults = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
        body = {"model": self._served.name, "prompt": prompt, **defaults, **parameters}

        async def post() -> dict[str, Any]:
            answer: dict[str, Any] = await self._transport.post(f"{self._url}/completions", body, PROBE_SECONDS)
            with unreadable_is_temporary():
                _ = answer["choices"][0]["text"] + ""  # raises unless it is a string
            return answer

        return await self._with_retries(post)

    async def _with_retries(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send a request, and again after temporary errors."""
        for tries in range(self._settings.retries + 1):
            try:
                return await send()
            except Unreachable as error:
                raise ModelError(f"{self._url}: cannot be reached: {error}") from None
            except TemporaryError as error:
                last = error
                await asyncio.sleep(error.retry_after or self._pause(tries + 1))
        raise ModelError(f"{self._url}: does not answer: {last}")

    def _refused(self, refusal: Refusal) -> ModelError:
        hint = ""
        if refusal.status == 404:
            hint = (
                "; --url takes the base URL of a server with /completions, such as http://host:8000/v1, and "
                "--served-model the model's name on that server"
            )
        elif refusal.status in DENIED:
            hint = f"; {self._transport.key_hint}"
        return ModelError(f"{self._url}: refuses requests ({refusal}){hint}")

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def _tokenizer_test(self) -> str:
        return _TOKENIZER_TEST.format(special=self._tokenizer.eos_token or "")


def refuse_different_models(served: Mapping[str, ServedModel]) -> None:
    """Raise ModelError unless all URLs serve models of the same name or the same root."""
    [(first_url, first), *others] = served.items()
    for url, other in others:
        if first.name != other.name and (first.root is None or first.root != other.root):
            raise ModelError(
                f"{first_url} serves {first.name}, {url} serves {other.name}: --url takes servers of one model"
            )


def stop_reason(choice: Mapping[str, Any]) -> Any:
    """Return what ended a sample, a text or a token id, as vLLM and SGLang report it; None from other servers."""
    return choice.get("stop_reason", choice.get("matched_stop"))


def top_logprobs(answer: Mapping[str, Any]) -> dict[int, float]:
    """Return the log-probs of the likeliest first tokens by token id.

    Raises:
        KeyError, TypeError, IndexError, ValueError: the response has none, or none by token id.
    """
    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return {token_id(token): float(value) for token, value in top.items()}


def token_id(token: str) -> int:
    """Parse ``token_id:123``, vLLM's form of tokens with ``return_tokens_as_token_ids``."""
    return int(token.removeprefix("token_id:"))


def _prompt_tokens(answer: Mapping[str, Any]) -> int | None:
    usage = answer.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count else None
