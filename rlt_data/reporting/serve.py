"""The page over HTTP, on loopback alone, while the run goes on.

Whoever can reach the port can read the run, so it is bound to 127.0.0.1, and requests that name another host are
refused: a web page elsewhere could otherwise point a name of its own at this machine and read along.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import polars as pl
from aiohttp import web

from rlt_data.errors import RltDataError, SettingsError
from rlt_data.reporting.build import page
from rlt_data.reporting.collect import TraceSelection, source_name
from rlt_data.reporting.live import Watch
from rlt_data.reporting.overview import overview
from rlt_data.storage.run import RunFolder

T = TypeVar("T")

HOST = "127.0.0.1"
_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
#: What is costly is made again at most in this share of the time, so that the run is not slowed down.
_SHARE = 0.05
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Kept(Generic[T]):
    """Something costly that is made of a run, and made again when the run has changed, but not too often.

    Args:
        make: makes it.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._value: tuple[str, T] | None = None
        self._again = 0.0

    def at(self, stamp: str) -> tuple[str, T]:
        """Return it with the stamp of the run that it was made of."""
        if self._value is None or (self._value[0] != stamp and time.monotonic() >= self._again):
            began = time.monotonic()
            self._value = stamp, self._make()
            now = time.monotonic()
            self._again = now + (now - began) * (1 / _SHARE - 1)
        return self._value


class Viewer:
    """What the server answers, made in a thread of its own.

    Args:
        path: the run folder, or its URL.
        limit: traces to read, at most.
    """

    def __init__(self, path: str, limit: int) -> None:
        self._path, self._limit = path, limit
        self._name = source_name(RunFolder.existing(path))
        self._watch = Watch(path)
        self._overview = Kept(lambda: overview(self._runs()))
        self._index = Kept(self._collected)

    def _runs(self) -> dict[str, RunFolder]:
        return {self._name: RunFolder.existing(self._path)}

    def _collected(self) -> tuple[TraceSelection, dict[str, Any]]:
        collection = TraceSelection(self._runs(), self._limit)
        return collection, collection.index()

    def page(self) -> str:
        """Return the page, which asks for the rest."""
        stamp, above = self._overview.at(self._watch.now()["stamp"])
        return page(self._name, above, [self._name], {"live": True, "stamp": stamp})

    def overview(self) -> tuple[str, str]:
        """Return the upper part of the page, and the stamp of what it shows."""
        return self._overview.at(self._watch.now()["stamp"])

    def live(self) -> dict[str, Any]:
        """Return how far the run is."""
        return self._watch.now()

    def index(self) -> dict[str, Any]:
        """Return the figures of the traces, and their stamp."""
        stamp, (_, index) = self._index.at(self._watch.now()["stamp"])
        return {"stamp": stamp, **index}

    def question(self, key: str) -> dict[str, Any] | None:
        """Return a question of the index with its traces."""
        _, (collection, _) = self._index.at(self._watch.now()["stamp"])
        return next((collection.texts(each) for each in collection.chosen if each.question_id == key), None)

    def trace(self, key: str) -> dict[str, Any] | None:
        """Return the question of any trace of the run, with the figures of its traces."""
        run = RunFolder.existing(self._path)
        for part in run.parts("traces"):
            found = pl.DataFrame(run.read("traces", part, ["trace_id", "question_id"])).filter(trace_id=key)
            if len(found):
                collection = TraceSelection({self._name: run}, 1, only=found["question_id"][0])
                columns = collection.index()["columns"]
                shown = collection.texts(collection.chosen[0])
                for trace in shown["traces"]:
                    place = columns["trace_id"].index(trace["trace_id"])
                    trace["figures"] = {name: values[place] for name, values in columns.items()}
                return shown
        return None


def serve(path: str, limit: int, port: int, started: Callable[[str], None]) -> None:
    """Serve a run's page until interrupted.

    Args:
        path: the run folder, or its URL.
        limit: traces to read, at most.
        port: to listen at; 0 takes a free one.
        started: told the page's address.

    Raises:
        SettingsError: the port is taken.
        RunFolderError: there is no such run.
    """
    app = _app(Viewer(path, limit))

    async def run() -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, port).start()
            started(f"http://{HOST}:{runner.addresses[0][1]}/")
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    try:
        asyncio.run(run())
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise SettingsError(f"--port: {port} is taken; --port 0 takes a free one") from None


def _app(viewer: Viewer) -> web.Application:
    thread = ThreadPoolExecutor(1, "view")

    async def made(work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, work, *arguments)

    @web.middleware
    async def guarded(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        name = (
            request.host.rpartition(":")[0] if not request.host.endswith("]") and ":" in request.host else request.host
        )
        if name not in _HOSTS:
            raise web.HTTPForbidden(text="this page is for this machine alone")
        try:
            response = await handler(request)
        except (RltDataError, OSError) as error:  # a file may have been merged into another one meanwhile
            response = web.Response(status=503, text=str(error))
        response.headers.update(_HEADERS)
        return response

    async def of_page(_: web.Request) -> web.Response:
        return web.Response(text=await made(viewer.page), content_type="text/html")

    async def of_overview(_: web.Request) -> web.Response:
        stamp, text = await made(viewer.overview)
        return web.Response(text=text, content_type="text/html", headers={"X-Stamp": stamp})

    async def of_live(_: web.Request) -> web.Response:
        return web.json_response(await made(viewer.live))

    async def of_index(_: web.Request) -> web.Response:
        return web.json_response(await made(viewer.index))

    async def of_question(request: web.Request) -> web.Response:
        return _found(await made(viewer.question, request.match_info["key"]))

    async def of_trace(request: web.Request) -> web.Response:
        return _found(await made(viewer.trace, request.match_info["key"]))

    app = web.Application(middlewares=[guarded])
    app.add_routes(
        [
            web.get("/", of_page),
            web.get("/overview", of_overview),
            web.get("/live", of_live),
            web.get("/index", of_index),
            web.get("/question/{key}", of_question),
            web.get("/trace/{key}", of_trace),
        ]
    )
    return app


def _found(content: dict[str, Any] | None) -> web.Response:
    if content is None:
        raise web.HTTPNotFound(text="nothing has this key")
    return web.json_response(content)
