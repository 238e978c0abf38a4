"""Progress: the display that fits, and no more than all rows."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rlt_data import progress
from rlt_data.errors import SettingsError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(shown: progress.Progress, total: int, rows: int) -> None:
    shown.start("score", total, 1)
    for _ in range(rows):
        shown.advance(1, 10)
    shown.finish()


def test_the_display_fits_where_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress.choose_progress(False) is progress.SILENT
    assert type(progress.choose_progress(True)) is progress.LogLines
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(progress.choose_progress(True)) is progress.TerminalBar
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    assert type(progress.choose_progress(True)) is progress.NotebookBar
    monkeypatch.setenv("RANK", "1")
    assert progress.choose_progress(True) is progress.SILENT
    lines = progress.LogLines()
    assert progress.choose_progress(lines) is lines
    with pytest.raises(SettingsError, match="progress"):
        progress.choose_progress("yes")  # type: ignore[arg-type]


def test_no_display_passes_100_percent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    work(progress.LogLines(), total=2, rows=5)
    assert "6/6 (100 %)" in capsys.readouterr().err
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(progress.TerminalBar(), total=2, rows=5)
    assert "6/6" in terminal.getvalue()


def test_a_notebook_gets_one_output_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    handle = SimpleNamespace(update=pages.append)

    def display(page: str, display_id: bool) -> Any:
        assert display_id
        pages.append(page)
        return handle

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))  # type: ignore[arg-type]
    monkeypatch.setattr(progress, "NOTEBOOK_SECONDS", 0.0)
    work(progress.NotebookBar(), total=4, rows=3)
    assert len(pages) == 5 and pages[0].startswith('<progress value="1" max="4">') and "4/4 (100 %)" in pages[-1]
