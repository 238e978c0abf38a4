"""OpenAI-compatible servers over tiny models, for tests; paths select one of several models and kinds.

python -m tests.engines.completion_server [NAME=FOLDER ...] [--port N] [--seconds S] [--key KEY]

The base URL of a kind is http://127.0.0.1:PORT/NAME/KIND/v1 (see KINDS). Samples depend only on prompt, seed and
settings. The model ``canned`` always exists and answers without a model. GET /seen returns the number of requests, in
total and the most at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What a kind of server accepts and returns."""

    ids: bool = True
    more: bool = True
    #: What happens to the stop text: "requested" keeps it if include_stop_str_in_output is set, "reported" removes it
    #: and returns matched_stop, "removed" removes it.
    stop: str = "requested"
    processed: bool = True
    any_token: bool = True  # logprob_token_ids
    prompt_logprobs: str | None = "prompt_logprobs"
    name: str = "tiny"
    listed: bool = True


KINDS = {
    "vllm": Kind(),
    "raw": Kind(processed=False),
    "older": Kind(any_token=False),
    "hosted": Kind(ids=False, more=False, stop="removed", prompt_logprobs=None, listed=False),
    "reporting": Kind(ids=False, stop="reported", prompt_logprobs="echo"),
    "echo": Kind(prompt_logprobs="echo"),
    "other": Kind(name="another"),
}
KNOWN = {"model", "prompt", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "echo"}


class Refused(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TinyModel:
    """Answers by the transformers engine."""

    def __init__(self, folder: Path) -> None:
        from rlt_data.engines import open_model
        from rlt_data.settings import ModelSettings

        model = open_model(str(folder), ModelSettings(dtype="float32"))
        self.tokenizer: Any = model.tokenizer
        self.engine: Any = model.engine
        self._lock = threading.Lock()
        self.context_length: int = self.engine.context_length
        self.vocabulary: int = self.engine.model.vocabulary

    def read(self, prompt: str | list[int]) -> list[int]:
        return self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt

    def sample(self, ids: list[int], body: dict[str, Any], stops: list[str]) -> tuple[list[int], str | None, bool]:
        """Return sampled tokens, the stop text that ended them, and whether they ended by themselves."""
        import numpy as np

        from rlt_data.engines import PromptRequest, SampleRequest, Sampling

        top_k = max(body.get("top_k", -1), 0)
        how = Sampling(body.get("temperature", 1.0), body.get("top_p", 1.0), top_k, body["max_tokens"], "\0 never")
        request = PromptRequest(np.asarray(ids, np.int32), [SampleRequest("", body.get("seed", 0))])
        with self._lock:
            [sample] = self.engine.generate([[request]], how)
        tokens = sample.token_ids.tolist()
        for length in range(1, len(tokens) + 1):
            for stop in stops:
                if stop in self.text(tokens[:length]):
                    return tokens[:length], stop, True
        return tokens + [sample.end_token] * (sample.end_token is not None), None, sample.finish_reason == "eos"

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def logprobs(self, ids: list[int], temperature: float) -> Any:
        """Return the log-probs of every next token, shape (tokens, vocabulary)."""
        import torch

        with self._lock:
            logits = self.engine.model.logits(self.engine.model.hidden(torch.tensor([ids]))[0])
        return (logits / temperature).log_softmax(-1)


class Canned:
    """Answers without a model: a text that depends on prompt and seed, and ends with the stop text."""

    context_length = 2048
    vocabulary = 2**31

    def read(self, prompt: str | list[int]) -> list[int]:
        return list(range(len(prompt.split()))) if isinstance(prompt, str) else prompt

    def sample(self, ids: list[int], body: dict[str, Any], stops: list[str]) -> tuple[list[int], str | None, bool]:
        digest = hashlib.blake2b(repr((ids, body.get("seed"))).encode(), digest_size=8).digest()
        return [10 + byte % 90 for byte in digest][: body["max_tokens"]], stops[0] if stops else None, True

    def text(self, ids: list[int]) -> str:
        return "".join(chr(97 + token % 26) for token in ids)


class RequestCounter:
    """Counts requests, in total and at a time."""

    def __init__(self) -> None:
        self.requests = self.most = 0
        self.lock = threading.Lock()
        self._open: set[socket.socket] = set()

    @contextmanager
    def counting(self, connection: socket.socket) -> Iterator[None]:
        with self.lock:
            # A disconnected client does not count, even if its thread has not noticed yet.
            gone, _, _ = select.select(list(self._open), [], [], 0)
            self._open -= set(gone)
            self._open.add(connection)
            self.requests += 1
            self.most = max(self.most, len(self._open))
        try:
            yield
        finally:
            with self.lock:
                self._open.discard(connection)


class Server:
    """Serves all kinds over all models."""

    def __init__(self, models: dict[str, Any], seconds: float, key: str | None) -> None:
        self.models = models
        self.seconds = seconds
        self.key = key
        self.counter = RequestCounter()

    def get(self, path: str) -> dict[str, Any]:
        if path == "/seen":
            return {"requests": self.counter.requests, "most": self.counter.most}
        model, kind = self._served(path, "/v1/models")
        if not kind.listed:
            raise Refused(404, "there is no such page")
        root, length = f"/models/{kind.name}", model.context_length
        return {"data": [{"id": kind.name, "root": root, "max_model_len": length}]}

    def post(
        self, path: str, body: dict[str, Any], authorization: str | None, connection: socket.socket
    ) -> dict[str, Any]:
        if self.key and authorization != f"Bearer {self.key}":
            raise Refused(401, f"Incorrect API key provided: {authorization}\nsecond line")
        model, kind = self._served(path, "/v1/completions")
        with self.counter.counting(connection):
            time.sleep(self.seconds)
            return self.complete(model, kind, body)

    def _served(self, path: str, end: str) -> tuple[Any, Kind]:
        name, _, kind = path.removesuffix(end).removeprefix("/").partition("/")
        if not path.endswith(end) or name not in self.models or kind not in KINDS:
            raise Refused(404, f"nothing at {path}")
        return self.models[name], KINDS[kind]

    def complete(self, model: Any, kind: Kind, body: dict[str, Any]) -> dict[str, Any]:
        if kind.listed and body["model"] != kind.name:
            raise Refused(404, f"The model `{body['model']}` does not exist.")
        if not kind.more and (unknown := set(body) - KNOWN):
            raise Refused(400, f"Unrecognized request argument supplied: {', '.join(sorted(unknown))}")
        if not kind.ids and not isinstance(body["prompt"], str):
            raise Refused(400, "prompt: a text is needed")
        ids = model.read(body["prompt"])
        if unknown := [id for id in ids if id >= model.vocabulary]:
            raise Refused(400, f"no such token: {unknown[0]}")
        if not ids or len(ids) + body["max_tokens"] > model.context_length:
            raise Refused(400, f"{len(ids)} tokens and {body['max_tokens']} more do not fit")
        stops = body.get("stop", [])
        answer: dict[str, Any] = {} if isinstance(model, Canned) else {"usage": {"prompt_tokens": len(ids)}}
        if body["max_tokens"]:
            tokens, stop, ended = model.sample(ids, body, stops)
        else:
            tokens, stop, ended = [], None, False
        text = model.text(tokens)
        if isinstance(model, Canned):
            text += stop or ""
        elif stop is None and ended:
            text = model.text(tokens[:-1])
        if stop and not (kind.stop == "requested" and body.get("include_stop_str_in_output")):
            text = text.partition(stop)[0]
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": "stop" if ended else "length"}
        if kind.stop == "requested":
            choice["stop_reason"] = stop
        elif kind.stop == "reported":
            choice["matched_stop"] = stop
        if kind.ids and body.get("return_token_ids") and not isinstance(model, Canned):
            choice["token_ids"] = tokens
        if body.get("logprobs") is not None and not isinstance(model, Canned):
            choice["logprobs"] = self._logprobs(model, kind, body, ids, tokens)
        if body.get("prompt_logprobs") is not None and kind.prompt_logprobs == "prompt_logprobs":
            values = model.logprobs(ids, 1.0)
            logprobs = [
                {str(id): {"logprob": values[at, id].item(), "rank": 1 + int((values[at] > values[at, id]).sum())}}
                for at, id in enumerate(ids[1:])
            ]
            choice["prompt_logprobs"] = [None, *logprobs]
        return answer | {"choices": [choice]}

    def _logprobs(
        self, model: Any, kind: Kind, body: dict[str, Any], ids: list[int], tokens: list[int]
    ) -> dict[str, Any]:
        if body.get("echo") and kind.prompt_logprobs != "echo":
            raise Refused(400, "echo: not with logprobs")
        temperature = (body["temperature"] or 1.0) if kind.processed else 1.0
        values = model.logprobs([*ids, *tokens], temperature)
        shown = list(enumerate([*ids, *tokens])) if body.get("echo") else list(enumerate(tokens, len(ids)))
        named = "token_id:{}".format if body.get("return_tokens_as_token_ids") else str
        logprobs: dict[str, Any] = {"tokens": [named(token) for _, token in shown]}
        logprobs["token_logprobs"] = [values[at - 1, token].item() if at else None for at, token in shown]
        chosen = body.get("logprob_token_ids", []) if kind.any_token else []
        likeliest = values.topk(min(body["logprobs"], 20)).indices.tolist()
        logprobs["top_logprobs"] = [
            {named(id): values[at - 1, id].item() for id in (chosen or likeliest[at - 1])} for at, _ in shown if at
        ]
        return logprobs


def serve(server: Server, port: int) -> None:
    """Serve until the process ends; print the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.answer(lambda: server.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(lambda: server.post(self.path, body, self.headers["Authorization"], self.connection))

        def answer(self, make: Any) -> None:
            try:
                status, content = 200, make()
            except Refused as error:
                status, content = error.status, {"error": {"message": str(error), "code": error.status}}
            send(self, status, json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            pass

    listening = Listening(("127.0.0.1", port), Handler)
    print(listening.server_address[1], flush=True)
    listening.serve_forever()


class Listening(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that disconnected."""


def send(handler: BaseHTTPRequestHandler, status: int, content: bytes, **headers: str) -> None:
    """Answer in one piece."""
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    handler.wfile.write("\r\n".join([*lines, "", ""]).encode() + content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--key")
    options = parser.parse_args()
    answering: dict[str, Any] = {"canned": Canned()}
    for argument in options.models:
        name, _, folder = argument.partition("=")
        answering[name] = TinyModel(Path(folder))
    serve(Server(answering, options.seconds, options.key), options.port)
