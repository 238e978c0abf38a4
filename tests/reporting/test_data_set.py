"""Which traces are in the data set of a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlt_data.errors import RunFolderError
from rlt_data.reporting.report import report
from rlt_data.settings import ReportSettings, parse_settings
from rlt_data.storage import data_set as storage
from rlt_data.storage.backends import open_folder
from rlt_data.storage.data_set import data_set_state, read_data_set
from rlt_data.storage.run import RunFolder
from tests.made_runs import distilled, make_run, ranked, trace


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = make_run(tmp_path / "run", [trace(q, i, i - 0.5) for q in "ab" for i in range(3)])
    ranked(run)
    return run


def test_a_data_set_is_read_from_the_run(run: RunFolder) -> None:
    assert read_data_set(run) is None and data_set_state(run) is None
    distilled(run, select="top:2")
    data_set = read_data_set(run)
    assert data_set is not None and data_set.is_current and data_set.settings["select"] == "top:2"
    assert sorted(data_set.keys["trace_id"]) == ["a/1", "a/2", "b/1", "b/2"]
    state = data_set_state(run)
    distilled(run, select="best")
    assert state != data_set_state(run) is not None


def test_a_data_set_may_be_older_than_the_ranks(run: RunFolder) -> None:
    distilled(run)
    ranked(run, by="r_ss")
    data_set = read_data_set(RunFolder.existing(str(run.path)))
    assert data_set is not None and not data_set.is_current


@pytest.mark.parametrize("content", ["", "[]", '{"made_from": {}}'])
def test_a_damaged_data_set_is_one_line(run: RunFolder, content: str) -> None:
    distilled(run)
    (run.path / "dataset" / "distill.json").write_text(content)
    with pytest.raises(RunFolderError, match="dataset: is incomplete or damaged; run rlt-data distill again"):
        read_data_set(run)


def test_a_report_reads_the_data_set_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    distilled(run, select="top:2")
    opened = []
    monkeypatch.setattr(storage, "open_folder", lambda path: opened.append(path) or open_folder(path))
    summary = report(parse_settings(ReportSettings, {"in": str(run.path), "out": "report.html"}))
    assert opened == [run.path / "dataset"]
    assert re.search(r"<dt>[^\n]*in the data set[^\n]*</dt><dd>4</dd>", summary.out.read_text())
