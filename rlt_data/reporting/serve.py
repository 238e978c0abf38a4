"""Serve the report of a running step over HTTP, to this machine only.

Anyone who can reach the port can read the run. The server therefore listens on 127.0.0.1, and refuses requests with
another host name: otherwise a web page could point its host name at 127.0.0.1 and read the run (DNS rebinding).
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
from rlt_data.reporting.collect import ListedTraces, source_name
from rlt_data.reporting.live import Watch
from rlt_data.reporting.overview import overview
from rlt_data.storage.run import RunFolder

T = TypeVar("T")

HOST = "127.0.0.1"
_HOSTS = {"127.0.0.1", "localhost", "[::1]"}
#: Maximum share of the time spent on recomputing costly values, so that the run is not slowed down.
_MAX_LOAD = 0.05
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Cached(Generic[T]):
    """A costly value that is recomputed when the run has changed, but not too often.

    Args:
        compute: computes the value.
    """

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._value: tuple[str, T] | None = None
        self._not_before = 0.0

    def at(self, stamp: str) -> tuple[str, T]:
        """Return the value, with the stamp of the run that it was computed from.

        Args:
            stamp: the current stamp of the run.
        """
        if self._value is None or (self._value[0] != stamp and time.monotonic() >= self._not_before):
            began = time.monotonic()
            self._value = stamp, self._compute()
            now = time.monotonic()
            self._not_before = now + (now - began) * (1 / _MAX_LOAD - 1)
        return self._value


class Viewer:
    """Computes the answers of the server.

    Args:
        path: path or URL of the run folder.
        limit: maximum number of listed traces.
    """

    def __init__(self, path: str, limit: int) -> None:
        self._path, self._limit = path, limit
        self._name = source_name(RunFolder.existing(path))
        self._watch = Watch(path)
        self._overview = Cached(lambda: overview(self._runs()))
        self._index = Cached(self._select)

    def _runs(self) -> dict[str, RunFolder]:
        return {self._name: RunFolder.existing(self._path)}

    def _select(self) -> tuple[ListedTraces, dict[str, Any]]:
        selection = ListedTraces(self._runs(), self._limit)
        return selection, selection.index()

    def page(self) -> str:
        """Return the page, which requests its data later."""
        stamp, overview_html = self.overview()
        return page(self._name, overview_html, [self._name], {"live": True, "stamp": stamp})

    def overview(self) -> tuple[str, str]:
        """Return the stamp and the HTML of the overview."""
        return self._overview.at(self._watch.now()["stamp"])

    def live(self) -> dict[str, Any]:
        """Return the progress of the run."""
        return self._watch.now()

    def index(self) -> dict[str, Any]:
        """Return the numbers of the listed traces, and their stamp."""
        stamp, (_, index) = self._index.at(self._watch.now()["stamp"])
        return {"stamp": stamp, **index}

    def question(self, key: str) -> dict[str, Any] | None:
        """Return a listed question with its traces; None if no listed question has this id."""
        _, (selection, _) = self._index.at(self._watch.now()["stamp"])
        questions = (question for question in selection.selected if question.question_id == key)
        return next(map(selection.texts, questions), None)

    def trace(self, key: str) -> dict[str, Any] | None:
        """Return the question of any trace of the run, with all its traces; None if no trace has this id."""
        run = RunFolder.existing(self._path)
        for part in run.parts("traces"):
            rows = pl.DataFrame(run.read("traces", part, ["trace_id", "question_id"])).filter(trace_id=key)
            if len(rows):
                selection = ListedTraces({self._name: run}, 1, only=rows["question_id"][0])
                columns = selection.index()["columns"]
                question = selection.texts(selection.selected[0])
                for trace in question["traces"]:
                    row = columns["trace_id"].index(trace["trace_id"])
                    trace["figures"] = {name: values[row] for name, values in columns.items()}
                return question
        return None


def serve(path: str, limit: int, port: int, started: Callable[[str], None]) -> None:
    """Serve the report of a run until interrupted.

    Args:
        path: path or URL of the run folder.
        limit: maximum number of listed traces.
        port: the port to listen on; 0 picks a free one.
        started: called with the URL of the page.

    Raises:
        SettingsError: the port is in use, or this user may not listen on it.
        RunFolderError: the run does not exist.
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
        reason = "is in use" if error.errno == errno.EADDRINUSE else "requires more permissions"
        raise SettingsError(f"--port: {port} {reason}; --port 0 picks a free port") from None


def _app(viewer: Viewer) -> web.Application:
    thread = ThreadPoolExecutor(1, "view")

    async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        host = (
            request.host.rpartition(":")[0] if not request.host.endswith("]") and ":" in request.host else request.host
        )
        if host not in _HOSTS:
            raise web.HTTPForbidden(text="this server only answers requests to localhost")
        try:
            response = await handler(request)
        except (RltDataError, OSError) as error:  # a file may have been merged into another meanwhile
            response = web.Response(status=503, text=str(error))
        response.headers.update(_HEADERS)
        return response

    async def get_page(_: web.Request) -> web.Response:
        return web.Response(text=await in_thread(viewer.page), content_type="text/html")

    async def get_overview(_: web.Request) -> web.Response:
        stamp, text = await in_thread(viewer.overview)
        return web.Response(text=text, content_type="text/html", headers={"X-Stamp": stamp})

    async def get_live(_: web.Request) -> web.Response:
        return web.json_response(await in_thread(viewer.live))

    async def get_index(_: web.Request) -> web.Response:
        return web.json_response(await in_thread(viewer.index))

    async def get_question(request: web.Request) -> web.Response:
        return _json_or_404(await in_thread(viewer.question, request.match_info["key"]))

    async def get_trace(request: web.Request) -> web.Response:
        return _json_or_404(await in_thread(viewer.trace, request.match_info["key"]))

    app = web.Application(middlewares=[guard])
    app.add_routes(
        [
            web.get("/", get_page),
            web.get("/overview", get_overview),
            web.get("/live", get_live),
            web.get("/index", get_index),
            web.get("/question/{key}", get_question),
            web.get("/trace/{key}", get_trace),
        ]
    )
    return app


def _json_or_404(content: dict[str, Any] | None) -> web.Response:
    if content is None:
        raise web.HTTPNotFound(text="no question or trace has this key")
    return web.json_response(content)
