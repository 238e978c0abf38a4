"""The loop under generate, evaluate and score, with rows that no model made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from rlt_data.engines import Engine, Failure
from rlt_data.engines.watchdog import Heartbeat
from rlt_data.errors import EngineError
from rlt_data.progress import SILENT
from rlt_data.settings import CountdownSettings, EvaluateSettings, GenerateSettings
from rlt_data.steps.countdown import make_countdown
from rlt_data.steps.evaluate import evaluate
from rlt_data.steps.generate import generate
from rlt_data.steps.resumable import FinishedRow, ResumableTable
from rlt_data.storage.errorlog import ErrorLog, failures
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.conftest import write_jsonl

PARTS, QUESTIONS = 2, 3


@dataclass
class Requested:
    """A requested row."""

    part: int
    source_id: str


class IdleEngine:
    """An engine without a model."""

    context_length = 1

    def __init__(self) -> None:
        self.heartbeat = Heartbeat()

    def log_tail(self) -> str:
        return "the engine's last words"


class Recorder:
    """Records progress."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, task: str, total: int, done: int = 0) -> None:
        self.total, self.done = total, done

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        self.done += rows
        assert self.done <= self.total

    def finish(self) -> None:
        pass


def key(part: int, question: int) -> str:
    return f"t{part}{question}"


def finished(name: str) -> FinishedRow:
    row = {"trace_id": name, "question_id": f"q{name[1:]}", "sample_index": 0, "completion": "", "made_by": "test"}
    return FinishedRow(name, row, tokens=5)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    for part in range(PARTS):
        rows = [{"question_id": f"q{part}{i}", "question": "q", "solution": "s"} for i in range(QUESTIONS)]
        run.write_part("questions", part, to_table("questions", rows))
    return run


def opened(run: RunFolder, **settings: Any) -> ResumableTable[Requested]:
    options = {"retry_errors": False, "stall_timeout": 60.0} | settings
    return ResumableTable(run, "generate", "traces", [cast(Engine, IdleEngine())], **options)


def request(table: ResumableTable[Requested], part: int, stored: set[str]) -> list[str]:
    names = [name for i in range(QUESTIONS) if table.is_pending(name := key(part, i), stored)]
    for name in names:
        table.add(name, Requested(part, f"source of {name}"))
    return names


def test_a_part_is_merged_when_its_last_row_arrives(run: RunFolder) -> None:
    table = opened(run)
    merged: list[list[int]] = []

    def results() -> Iterator[FinishedRow | Failure]:
        names = [name for part, stored in table.parts("questions") for name in request(table, part, stored)]
        for name in reversed(names):  # part 1 is finished first
            yield finished(name)
            merged.append([part for part in range(PARTS) if (run.path / f"traces/part-{part:05d}.parquet").exists()])

    summary = table.fill(results(), SILENT, total=6)
    assert merged == [[], [], [1], [1], [1], [0, 1]]
    assert (summary.rows, summary.new, summary.failed, summary.tokens) == (6, 6, 0, 30)


def test_a_part_is_not_merged_while_more_of_it_is_being_read(run: RunFolder) -> None:
    """Rows are requested block by block, so a finished first block does not complete the part."""
    table = opened(run)

    def results() -> Iterator[FinishedRow | Failure]:
        for part, stored in table.parts("questions"):
            for i in range(QUESTIONS):
                assert table.is_pending(key(part, i), stored)
                table.add(key(part, i), Requested(part, ""))
                yield finished(key(part, i))
                assert not (run.path / f"traces/part-{part:05d}.parquet").exists()
            if part:
                assert (run.path / "traces/part-00000.parquet").exists()

    assert table.fill(results(), SILENT, total=6).new == 6
    assert not (run.path / "journal").exists()


def test_a_part_is_not_merged_while_rows_of_it_are_being_prepared(run: RunFolder) -> None:
    """Worker processes prepare rows while later parts are already being read."""
    table = opened(run)

    def results() -> Iterator[FinishedRow | Failure]:
        names = []
        for part, _ in table.parts("questions"):
            for i in range(QUESTIONS):
                table.hold(part)
                names.append((part, key(part, i)))
        for number, (part, name) in enumerate(names):
            table.add(name, Requested(part, ""))
            table.release(part)
            yield finished(name)
            complete = [(run.path / f"traces/part-{part:05d}.parquet").exists() for part in range(PARTS)]
            assert complete == [number >= QUESTIONS - 1, number == 2 * QUESTIONS - 1]

    assert table.fill(results(), SILENT, total=6).new == 6


def test_a_failure_is_logged_skipped_and_tried_again_on_request(run: RunFolder) -> None:
    def attempt(reason: str | None, **settings: Any) -> tuple[list[str], int, int]:
        table, requested = opened(run, **settings), list[str]()

        def results() -> Iterator[FinishedRow | Failure]:
            for part, stored in table.parts("questions"):
                for name in request(table, part, stored):
                    requested.append(name)
                    yield Failure(name, reason) if reason and name == "t01" else finished(name)

        summary = table.fill(results(), SILENT, total=6)
        return requested, summary.new, summary.failed

    assert attempt("too long") == (["t00", "t01", "t02", "t10", "t11", "t12"], 5, 1)
    [entry] = failures(run)
    assert (entry["key"], entry["reason"], entry["source_id"]) == ("t01", "too long", "source of t01")
    assert attempt(None) == ([], 0, 1)
    assert attempt("again", retry_errors=True) == (["t01"], 0, 1)
    assert failures(run)[0]["attempts"] == 2
    assert attempt(None, retry_errors=True) == (["t01"], 1, 0)
    assert failures(run) == []


def test_rows_that_arrived_are_kept_if_an_engine_stops_early(run: RunFolder) -> None:
    table, progress = opened(run), Recorder()

    def results() -> Iterator[FinishedRow | Failure]:
        for part, stored in table.parts("questions"):
            names = request(table, part, stored)
            yield finished(names[0])

    with pytest.raises(EngineError, match=r"4 rows .*t01, t02, t11, t12.*\n  the engine's last words"):
        table.fill(results(), progress, total=6)
    assert (progress.done, progress.total) == (2, 6)
    assert [run.keys("traces", part) for part in range(PARTS)] == [{"t00"}, {"t10"}]
    again, left = opened(run), list[str]()

    def rest() -> Iterator[FinishedRow | Failure]:
        for part, stored in again.parts("questions"):
            for name in request(again, part, stored):
                left.append(name)
                yield finished(name)

    assert again.fill(rest(), progress, total=6).rows == 6
    assert left == ["t01", "t02", "t11", "t12"] and progress.done == progress.total == 6


def test_progress_never_exceeds_its_total_and_ends_there(tiny: Callable[..., Path], tmp_path: Path) -> None:
    def sample(questions: int, n: int) -> Recorder:
        rows = [{"question": f"What is {i} + 1?", "solution": str(i + 1)} for i in range(questions)]
        path, progress = write_jsonl(tmp_path / "questions.jsonl", rows), Recorder()
        settings = {"teacher": str(tiny()), "in": str(path), "out": "run", "n": n, "max_tokens": 4, "device": "cpu"}
        generate(GenerateSettings.model_validate(settings), progress)
        return progress

    for questions, n in [(2, 3), (4, 1), (4, 2), (4, 1)]:
        progress = sample(questions, n)
        assert progress.done == progress.total == questions * n


def test_progress_of_an_evaluation_never_exceeds_its_total(tiny: Callable[..., Path]) -> None:
    for rows, n in [(2, 3), (4, 1)]:
        make_countdown(CountdownSettings(out="problems.jsonl", rows=rows, split="test"))
        settings = {"model": str(tiny()), "benchmark": "countdown", "in": "problems.jsonl", "out": "run", "n": n,
                    "temperature": 1, "max_tokens": 4, "device": "cpu"}  # fmt: skip
        progress = Recorder()
        evaluate(EvaluateSettings.model_validate(settings), progress)
        assert progress.done == progress.total


def test_retrying_a_failed_question_makes_its_samples(tiny: Callable[..., Path], problems: Path) -> None:
    """If a prompt is too long, errors.jsonl has the key of the question, not those of its samples."""
    settings = {"teacher": str(tiny()), "in": str(problems), "out": "run", "n": 2, "max_tokens": 4, "device": "cpu"}
    generate(GenerateSettings.model_validate(settings))
    run = RunFolder("run")
    traces = run.read("traces", 0)
    failed = traces["question_id"][0].as_py()
    run.write_part("traces", 0, traces.slice(2))
    log = ErrorLog(run, "generate")
    log.add(failed, "the prompt is too long", None)
    assert generate(GenerateSettings.model_validate(settings)).new == 0
    summary = generate(GenerateSettings.model_validate({**settings, "retry_errors": True}))
    assert (summary.new, summary.rows, summary.failed) == (2, 12, 0)
    assert run.read("traces", 0).equals(traces)
