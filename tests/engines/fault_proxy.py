"""A proxy before a completion server that injects faults in turn.

python -m tests.engines.fault_proxy http://127.0.0.1:PORT [--after N] TURN [TURN ...]

The first N completions pass; from then on each takes the next turn: ok, 500, 503, 418, 429 (with Retry-After: 1),
busy (429 without), hang (until the client goes away), cut (in the middle of the body), torn (half of the JSON), deep
(JSON that is nested too deeply), large (more than is read), and those of LIES, which change a correct answer.
POST /turns with a list of turns replaces the turns. GET /seen returns the turns taken so far and the most
requests at a time; everything else passes through.
"""

from __future__ import annotations

import argparse
import itertools
import json
import select
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.engines.completion_server import Listening, RequestCounter, send

ERROR = b'{"error": {"message": "it is a bad day"}}'

Choice = dict[str, Any]


def first_logprob(value: Any) -> Callable[[Choice], None]:
    """Replace the log-prob of the first sampled token, and of the last token of a text that is scored."""

    def lie(choice: Choice) -> None:
        if "token_logprobs" in choice.get("logprobs", {}):
            choice["logprobs"]["token_logprobs"][0] = value
        if "prompt_logprobs" in choice:
            [entry] = choice["prompt_logprobs"][-1].values()
            entry["logprob"] = value

    return lie


def last_rank(value: Any) -> Callable[[Choice], None]:
    """Change the rank of a prompt's last token."""

    def lie(choice: Choice) -> None:
        if "prompt_logprobs" in choice:
            [entry] = choice["prompt_logprobs"][-1].values()
            entry["rank"] = value

    return lie


def tokens(change: Callable[[list[int]], list[int]]) -> Callable[[Choice], None]:
    """Change the sampled tokens, with a log-prob of -1 for each."""

    def lie(choice: Choice) -> None:
        if "token_ids" in choice and "logprobs" in choice:
            ids = choice["token_ids"] = change(choice["token_ids"])
            choice["logprobs"] |= {"tokens": [f"token_id:{id}" for id in ids], "token_logprobs": [-1.0] * len(ids)}

    return lie


def too_few(choice: Choice) -> None:
    for name in ("token_logprobs", "prompt_logprobs"):
        for choice_or_logprobs in (choice, choice.get("logprobs", {})):
            if name in choice_or_logprobs:
                choice_or_logprobs[name] = choice_or_logprobs[name][:2]


LIES: dict[str, Callable[[Choice], None]] = {
    "nan": first_logprob(float("nan")),
    "infinite": first_logprob(float("inf")),
    "null": first_logprob(None),
    "lowest": first_logprob(-1e300),
    "positive": first_logprob(0.5),
    "word": first_logprob("much"),
    "rank of nothing": last_rank(0),
    "rank of words": last_rank("first"),
    "rank of memory": last_rank(-1049081441),
    "few": too_few,
    "many": tokens(lambda ids: ids * 1000),
    "unknown": tokens(lambda ids: [10**6, *ids[1:]]),
    "negative": tokens(lambda ids: [-5, *ids[1:]]),
    "fraction": tokens(lambda ids: [1.5, *ids[1:]]),  # type: ignore[list-item]
    "surrogate": lambda choice: choice.update(text="half \ud83d a face"),
    "no text": lambda choice: choice.update(text=None),
}


class Faults:
    """The next fault, and counts of past ones."""

    def __init__(self, turns: list[str], after: int) -> None:
        self.turns = itertools.chain(["ok"] * after, itertools.cycle(turns))
        self.taken: Counter[str] = Counter()
        self.counter = RequestCounter()

    def next(self) -> str:
        with self.counter.lock:
            turn = next(self.turns)
            self.taken[turn] += 1
            return turn


def serve(target: str, turns: list[str], after: int, port: int) -> None:
    """Serve until the process ends; print the port."""
    faults = Faults(turns, after)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path == "/seen":
                send(self, 200, json.dumps({"taken": faults.taken, "most": faults.counter.most}).encode())
            else:
                self.forward(None)()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/turns":
                with faults.counter.lock:
                    faults.turns = itertools.cycle(json.loads(body))
                send(self, 200, b"{}")
                return
            with faults.counter.counting(self.connection):
                answer = self.answer(faults.next(), body)
            answer()

        def answer(self, turn: str, body: bytes) -> Callable[[], None]:
            """Do everything but send, so that the request is no longer counted when the client gets the answer."""
            if turn == "ok":
                return self.forward(body)
            if turn == "hang":
                select.select([self.connection], [], [])
                return self.close
            if turn == "cut":
                return self.cut
            if turn == "deep":
                return lambda: send(self, 200, b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
            if turn == "large":
                return lambda: send(self, 200, b'{"choices": "' + b"x" * 70 * 2**20 + b'"}')
            if turn in LIES:
                return self.forward(body, LIES[turn])
            if turn == "torn":
                return lambda: send(self, 200, b'{"choices": [{"text": "half an ans')
            if turn == "429":
                return lambda: send(self, 429, ERROR, Retry_After="1")
            return lambda: send(self, 429 if turn == "busy" else int(turn), ERROR)

        def close(self) -> None:
            self.close_connection = True

        def cut(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b'{"choices": [')
            self.close()

        def forward(self, body: bytes | None, lie: Callable[[Choice], None] | None = None) -> Callable[[], None]:
            headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if self.headers[name]}
            request = urllib.request.Request(target + self.path, body, headers)
            try:
                with urllib.request.urlopen(request) as answer:
                    status, content = answer.status, answer.read()
                if lie:
                    document = json.loads(content)
                    lie(document["choices"][0])
                    content = json.dumps(document).encode()
            except urllib.error.HTTPError as error:
                status, content = error.code, error.read()
            return lambda: send(self, status, content)

        def log_message(self, *_: Any) -> None:
            pass

    listening = Listening(("127.0.0.1", port), Handler)
    print(listening.server_address[1], flush=True)
    listening.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("turns", nargs="+")
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    serve(options.target, options.turns, options.after, options.port)
