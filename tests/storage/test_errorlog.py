from __future__ import annotations

from pathlib import Path

import pytest

from rlt_data.storage.errorlog import ErrorLog, failures
from rlt_data.storage.run import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def test_a_failed_row_is_skipped_until_it_is_retried(run: RunFolder) -> None:
    ErrorLog(run, "score").add("k", "too long", "q1")
    assert ErrorLog(run, "score").settled("k")
    assert not ErrorLog(run, "generate").settled("k")
    retrying = ErrorLog(run, "score", retry=True)
    assert retrying.retries("k") and not retrying.settled("k")
    retrying.add("k", "too long again", "q1")
    assert retrying.settled("k")
    [entry] = failures(run)
    assert entry == {"key": "k", "step": "score", "reason": "too long again", "attempts": 2, "source_id": "q1"}


def test_a_row_that_succeeds_later_is_removed_from_the_file(run: RunFolder) -> None:
    log = ErrorLog(run, "score")
    log.add("k", "reason", None)
    log.add("l", "reason", None)
    log = ErrorLog(run, "score", retry=True)
    log.resolve("k")
    log.close()
    assert [entry["key"] for entry in failures(run)] == ["l"] and len(log) == 1


def test_an_incomplete_last_line_is_ignored(run: RunFolder) -> None:
    ErrorLog(run, "score").add("k", "reason", None)
    with (run.path / "errors.jsonl").open("a") as file:
        file.write('{"key": "l", "st')
    assert [entry["key"] for entry in failures(run)] == ["k"]
    ErrorLog(run, "score").add("m", "reason", None)
    assert [entry["key"] for entry in failures(run)] == ["k", "m"]
