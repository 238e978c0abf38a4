"""Chromium, driven by Playwright. Without it these tests are skipped; make test-browser installs Playwright."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlt_data.reporting.report import report
from rlt_data.settings import ReportSettings, parse_settings

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")  # while Playwright runs, nothing else in its thread may use asyncio
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser (make test-browser)")
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("Chromium is not installed (CHROMIUM can name its executable)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


_COUNT = "document.getElementById('count').textContent"


class Shown:
    """A page in the browser, with a record of its events.

    Attributes:
        page: Playwright's page.
        requests: requested URLs, including that of the page.
        complaints: console messages, errors and dialogs.
    """

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._refuse)
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]")

    def _refuse(self, dialog: Any) -> None:
        self.complaints.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)

    def wait(self, script: str, value: Any = True, seconds: float = 20.0) -> None:
        """Wait until a script returns a value, without wait_for_function, which the page's security policy forbids."""
        ends = time.monotonic() + seconds
        while (current := self.run(script)) != value:
            assert time.monotonic() < ends, f"{script} is {current!r} and not {value!r}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_text_contents()]

    @property
    def count(self) -> str:
        """The counter of the list, such as "3 of 32"."""
        return str(self.run(_COUNT))

    def wait_for_count(self, count: str) -> None:
        self.wait(_COUNT, count)


@pytest.fixture
def shown(chromium: Any) -> Iterator[Any]:
    """Return a function that opens a URL in a new window: shown(address, **context)."""
    opened: list[Shown] = []

    def show(address: str | Path, **context: Any) -> Shown:
        opened.append(Shown(chromium, address.as_uri() if isinstance(address, Path) else address, **context))
        return opened[-1]

    yield show
    for window in opened:
        window.context.close()


def reported(run: str | Path, out: Path, **keys: Any) -> Path:
    """Write the report of a run."""
    return report(parse_settings(ReportSettings, {"in": str(run), "out": str(out), **keys})).out
