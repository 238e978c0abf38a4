"""The live page in a real browser, while a run grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.browser.conftest import Shown
from tests.reporting.test_view import Viewed

Show = Callable[..., Shown]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "growing")
    questions = [{"question_id": f"q{i}", "question": f"What is {i}?", "solution": f"{i}"} for i in range(10)]
    run.write_part("questions", 0, to_table("questions", questions))
    run.record("generate", {"settings": {"n": 2}})
    add(run, 0, 1)
    return run


def add(run: RunFolder, *numbers: int) -> None:
    rows = [
        {"trace_id": f"t{k}", "question_id": f"q{k // 2}", "sample_index": k % 2, "made_by": "m",
         "completion": f"<b>text</b> {k}", "completion_tokens": 100}
        for k in numbers
    ]  # fmt: skip
    run.add_segment("traces", 0, to_table("traces", rows))


@pytest.fixture
def server(run: RunFolder) -> Iterator[Viewed]:
    server = Viewed(run.path)
    yield server
    server.process.kill()
    server.process.wait()


def test_the_page_follows_the_run(shown: Show, server: Viewed, run: RunFolder) -> None:
    window = shown(server.address)
    value = "document.querySelector('#live progress')?.value"
    window.wait(value, 2)
    add(run, *range(2, 12))
    window.wait(value, 12)
    assert "12 of 20" in window.texts("#live .step")[0] and "running" in window.texts("#live .step")[0]
    cards = "[...document.querySelectorAll('.cards div')].map((e) => e.textContent)"
    window.wait(f"{cards}.includes('traces12')")
    window.press("t")
    window.wait_for_count("12 of 12")
    add(run, *range(12, 18))
    window.wait_for_count("18 of 18")
    assert window.texts("#live li a")[0] == "<b>text</b> 17"
    window.page.click("#live li a >> nth=0")
    window.page.wait_for_selector(".trace.chosen")
    assert window.texts(".trace .body .text") == ["<b>text</b> 16", "<b>text</b> 17"]
    assert window.complaints == [] and all(each.startswith(server.address) for each in window.requests)


def test_a_server_that_ends_may_come_back(shown: Show, server: Viewed, run: RunFolder) -> None:
    window = shown(server.address)
    window.wait("document.querySelector('#live progress') !== null")
    server.process.kill()
    server.process.wait()
    window.wait("document.querySelector('#live .warn') !== null")
    again = Viewed(run.path, "--port", server.port)
    try:
        window.wait("document.querySelector('#live progress') !== null")
    finally:
        again.process.kill()
        again.process.wait()
