"""What a server serves, understands and tells, found out by asking it before any work is done.

"OpenAI-compatible" says little: prompts may be token ids or text only, parameters that one server needs make another
refuse, a stop text stays in the output or is taken away with or without a word, and log-probs are at the sampling
temperature or at 1. Each is seen from answers, never guessed from a server's name.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from rlt_data.engines.server.scoring import SCORING_WAYS, read_prompt_logprobs
from rlt_data.engines.server.transport import Refusal, Transport, Trouble, Unreachable, reading
from rlt_data.errors import ModelError
from rlt_data.formats import Tokenizer
from rlt_data.formats.spans import decode_after
from rlt_data.settings import ModelSettings

T = TypeVar("T")

#: Parameters that OpenAI's own server does not know. The first three are given because vLLM and SGLang take what is
#: not given from the model's generation_config.json, which would sample from another distribution.
MORE_PARAMETERS: Mapping[str, Any] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,  # vLLM
    "no_stop_trim": True,  # SGLang
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}

#: Statuses with which a server refuses all requests, not this one.
DENIED = frozenset({401, 403, 404})

#: Seconds for the answer to a question of one or a few tokens.
PROBE_SECONDS = 60.0

_STORY = "Once upon a time, there was a little"
#: Letters of several bytes, digits, white space, and a special token: tokenizers differ on it.
_PUZZLE = "In 1897 there were 17 * 23 = 391 houses.\n\nOù ça? 你好{special}def double(x):\n\treturn 2 * x"
#: OpenAI's server takes four; nearly every text holds one of them early.
_STOPS = [" ", "\n", "e", "a"]
_STOP_TRIES = 3
#: Twice the temperature moves the likeliest token's log-prob by more than this, and rounding by less.
_MOVED = 0.2


@dataclass(frozen=True)
class Served:
    """What a URL serves: the model's name there, where its weights come from, and the longest text, if it tells."""

    name: str
    root: str | None = None
    context: int | None = None


@dataclass(frozen=True)
class Dialect:
    """How a server is asked for samples, and what its answers hold.

    Attributes:
        takes_ids: prompts may be token ids.
        takes_more: it does not refuse :data:`MORE_PARAMETERS`.
        adds_bos: it puts a BOS token before a text.
        returns_ids: answers hold the sampled tokens.
        stop: the stop text stays in the output (``kept``), is taken away with a word (``told``), or without
            (``silent``).
        logprobs: answers hold log-probs, of the model's own distribution (``raw``) or of the one that was sampled
            from (``processed``).
    """

    takes_ids: bool
    takes_more: bool
    adds_bos: bool
    returns_ids: bool
    stop: Literal["kept", "told", "silent"]
    logprobs: Literal["raw", "processed"] | None


class Probe:
    """Questions to one URL.

    Args:
        transport: how it is reached.
        url: its base URL.
        name: the checkpoint that the user named for it.
        tokenizer: of that checkpoint.
        settings: the model's name there, and the number of tries.
        pause: seconds to wait after a number of tries.
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
        self._served = Served(name)

    async def served(self) -> Served:
        """Find out which model is served.

        Raises:
            ModelError: the URL cannot be used, or it does not serve the model that was named.
        """
        try:
            listing = await self._patiently(lambda: self._transport.get(f"{self._url}/models", PROBE_SECONDS))
        except Refusal as refusal:
            if refusal.status in (401, 403):
                raise self._denied(refusal) from None
            await self._refuse_missing_version()
            self._served = Served(self._settings.served_model or self._name)
        else:
            try:
                with reading():
                    cards = {str(card["id"]): dict(card) for card in listing["data"]}
            except Trouble:
                raise ModelError(
                    f"{self._url}: its list of models cannot be read; is it an OpenAI-compatible server?"
                ) from None
            name = self._choose(list(cards))
            card = cards.get(name, {})
            root, context = card.get("root"), card.get("max_model_len")
            self._served = Served(
                name, root if isinstance(root, str) else None, context if isinstance(context, int) else None
            )
        return self._served

    def _choose(self, names: list[str]) -> str:
        given = self._settings.served_model
        wanted = given or self._name
        if not names or wanted in names:
            return wanted
        if given is None and len(names) == 1:
            return names[0]
        near = difflib.get_close_matches(wanted, names, 5, 0.0)
        shown = ", ".join(near) + (f" and {len(names) - len(near)} more" if len(names) > len(near) else "")
        problem = f", not {given} (--served-model)" if given else "; say which with --served-model"
        raise ModelError(f"{self._url}: serves {shown}{problem}")

    async def _refuse_missing_version(self) -> None:
        """Raise ModelError if the server's models are one folder below the given URL."""
        try:
            await self._transport.get(f"{self._url}/v1/models", PROBE_SECONDS)
        except (Refusal, Trouble):
            return
        raise ModelError(f"{self._url}: nothing is served there, but at {self._url}/v1; give --url {self._url}/v1")

    async def dialect(self) -> Dialect:
        """Find out how samples are asked for.

        Raises:
            ModelError: the server refuses, or reads text otherwise than the checkpoint's tokenizer.
        """
        adds_bos = await self._check_tokenizer()
        refusals: list[Exception] = []
        for takes_more, takes_ids in ((True, True), (True, False), (False, True), (False, False)):
            ways: dict[str, Any] = dict(MORE_PARAMETERS) if takes_more else {}
            story = self._ids(_STORY) if takes_ids else _STORY
            try:
                answer = await self._complete(story, **ways)
            except (Refusal, ModelError) as refusal:  # some servers answer 500 to what they do not know
                refusals.append(refusal)
                continue
            if not takes_ids or _prompt_tokens(answer) in (None, len(story)):
                break
        else:
            raise ModelError(f"{self._url}: refuses requests ({refusals[-1]})")
        try:
            returns_ids, stop = await self._stopping(story, ways)
        except Trouble as trouble:
            raise ModelError(f"{self._url}: {trouble}") from None
        logprobs = await self._logprobs(story, ways) if returns_ids else None
        return Dialect(takes_ids, takes_more, adds_bos, returns_ids, stop, logprobs)

    async def scoring(self) -> Mapping[str, Any]:
        """Find out with which parameters the server tells log-probs of a prompt.

        Raises:
            ModelError: with none, or it reads text otherwise than the checkpoint's tokenizer.
        """
        await self._check_tokenizer()
        ids = self._ids(self._puzzle)
        found: list[str] = []
        for ways in SCORING_WAYS:
            try:
                answer = await self._complete(ids, **ways)
                with reading():
                    read_prompt_logprobs(answer, ids)
            except (Refusal, Trouble) as error:
                found.append(str(error))
            else:
                return ways
        raise ModelError(
            f"{self._url}: tells no log-probs of a prompt's tokens ({found[0]}); scoring needs them, and vLLM's server "
            "tells them"
        )

    async def _check_tokenizer(self) -> bool:
        """Refuse a server that splits text otherwise; return whether it puts a BOS token before it."""
        ours = len(self._ids(self._puzzle))
        try:
            theirs = _prompt_tokens(await self._complete(self._puzzle))
        except Refusal as refusal:
            raise self._denied(refusal) from None
        if theirs is None:
            return len(self._tokenizer(self._puzzle)["input_ids"]) > ours
        if theirs not in (ours, ours + 1):
            raise ModelError(
                f"{self._url}: reads as {theirs} tokens what the tokenizer of {self._name} reads as {ours}: "
                "it serves another model than the one that was named"
            )
        return theirs > ours

    async def _stopping(
        self, story: str | list[int], ways: dict[str, Any]
    ) -> tuple[bool, Literal["kept", "told", "silent"]]:
        """Find out whether sampled tokens come back, and what becomes of a stop text."""
        for seed in range(_STOP_TRIES):
            answer = await self._complete(story, max_tokens=32, stop=_STOPS, seed=seed, **ways)
            with reading():
                choice = answer["choices"][0]
                ids = choice.get("token_ids")
                whole = decode_after(self._tokenizer, self._ids(_STORY), ids) if ids else ""
                returns_ids = any(stop in whole for stop in _STOPS)
                if any(stop in choice["text"] for stop in _STOPS):
                    return returns_ids, "kept"
                if told_stop(choice) in _STOPS:
                    return returns_ids, "told"
        return False, "silent"

    async def _logprobs(self, story: str | list[int], ways: dict[str, Any]) -> Literal["raw", "processed"] | None:
        """Find out at which temperature log-probs are, by that of the likeliest token at two temperatures."""
        tops = []
        for temperature in (1.0, 2.0):
            asked = ways | {"logprobs": 1, "temperature": temperature}
            try:
                answer = await self._complete(story, **asked)
                with reading():
                    tops.append(max(top_logprobs(answer).values()))
            except (Refusal, Trouble):
                return None
        return "processed" if abs(tops[0] - tops[1]) > _MOVED else "raw"

    async def _complete(self, prompt: str | list[int], **more: Any) -> dict[str, Any]:
        drawn = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
        body = {"model": self._served.name, "prompt": prompt, **drawn, **more}

        async def ask() -> dict[str, Any]:
            answer: dict[str, Any] = await self._transport.post(f"{self._url}/completions", body, PROBE_SECONDS)
            with reading():
                _ = answer["choices"][0]["text"] + ""  # it is a text
            return answer

        return await self._patiently(ask)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again after what may pass."""
        for tries in range(self._settings.retries + 1):
            try:
                return await ask()
            except Unreachable as trouble:
                raise ModelError(f"{self._url}: cannot be reached: {trouble}") from None
            except Trouble as trouble:
                last = trouble
                await asyncio.sleep(trouble.retry_after or self._pause(tries + 1))
        raise ModelError(f"{self._url}: does not answer: {last}")

    def _denied(self, refusal: Refusal) -> ModelError:
        hint = ""
        if refusal.status == 404:
            hint = (
                "; --url takes the base URL of a server with /completions, such as http://host:8000/v1, and "
                "--served-model the model's name there"
            )
        elif refusal.status in DENIED:
            hint = f"; {self._transport.about_the_key}"
        return ModelError(f"{self._url}: refuses requests ({refusal}){hint}")

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def _puzzle(self) -> str:
        return _PUZZLE.format(special=self._tokenizer.eos_token or "")


def refuse_different_models(found: Mapping[str, Served]) -> None:
    """Raise ModelError unless all URLs serve one model, by its name or by where its weights come from."""
    [(first, one), *others] = found.items()
    for url, other in others:
        if one.name != other.name and (one.root is None or one.root != other.root):
            raise ModelError(f"{first} serves {one.name}, {url} serves {other.name}: --url takes servers of one model")


def told_stop(choice: Mapping[str, Any]) -> Any:
    """Return what a server says that ended a sample: a text, a token id, or nothing (vLLM, SGLang)."""
    return choice.get("stop_reason", choice.get("matched_stop"))


def top_logprobs(answer: Mapping[str, Any]) -> dict[int, float]:
    """Return the log-probs of the likeliest first tokens by token id.

    Raises:
        KeyError, TypeError, IndexError, ValueError: the answer holds none, or not by id.
    """
    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return {token_id(token): float(value) for token, value in top.items()}


def token_id(token: str) -> int:
    """Read ``token_id:123``, as vLLM writes tokens when asked for ids."""
    return int(token.removeprefix("token_id:"))


def _prompt_tokens(answer: Mapping[str, Any]) -> int | None:
    usage = answer.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count else None
