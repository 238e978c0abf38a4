from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlt_data.steps import processes
from rlt_data.steps.processes import compute


@pytest.fixture(params=[1, 3])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Workers start after the first job."""
    monkeypatch.setattr(processes, "START_SECONDS", 0.0)
    monkeypatch.setattr(processes, "START_SHARE", 0.0)
    monkeypatch.setattr(processes, "cores", lambda: 1 + request.param)
    return int(request.param)


def process_of(job: float) -> tuple[float, int]:
    time.sleep(job)
    return job, os.getpid()


def busy(seconds: float) -> int:
    """Use CPU time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    return os.getpid()


def end_at_three(job: int) -> int:
    if job == 3 and os.environ["TEST_PROCESS"] != str(os.getpid()):  # in a worker
        os.kill(os.getpid(), signal.SIGKILL)
    return job * 2


def refuse_three(job: int) -> int:
    if job == 3:
        raise OSError("three")
    return job * 2


def test_results_come_in_order_from_as_many_processes_as_there_are_workers(workers: int) -> None:
    jobs = [0.0, 0.3, 0.0, 0.2, 0.1, 0.0, 0.1]
    results = list(compute(process_of, jobs))
    assert [job for job, _ in results] == jobs
    first, *others = [process for _, process in results]
    assert first == os.getpid() and os.getpid() not in others
    assert len(set(others)) == workers


def test_workers_do_not_import_from_the_working_directory(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    assert [job for job, _ in compute(process_of, [0.0] * 3)] == [0.0] * 3
    assert not caplog.messages


@pytest.mark.parametrize(
    ("seconds", "share", "processes_used"),
    [(100.0, 0.001, 1), (0.05, 0.9, 1), (0.05, 0.001, 2)],
    ids=["small", "slow reader", "large"],
)
def test_workers_start_only_for_much_work_that_the_reader_waits_for(
    monkeypatch: pytest.MonkeyPatch, seconds: float, share: float, processes_used: int
) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 2)
    monkeypatch.setattr(processes, "START_SECONDS", seconds)
    monkeypatch.setattr(processes, "START_SHARE", share)
    used = set()
    for process in compute(busy, [0.02] * 8):
        used.add(process)
        time.sleep(0.02)
    assert len(used) == processes_used


def test_jobs_are_read_only_as_far_ahead_as_there_are_workers(workers: int) -> None:
    taken = []

    def jobs() -> Iterator[float]:
        for number in range(20):
            taken.append(number)
            yield 0.0

    for index, _ in enumerate(compute(process_of, jobs())):
        assert len(taken) <= index + workers + 1


def test_the_results_of_a_worker_that_dies_are_computed_here(
    workers: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PROCESS", str(os.getpid()))
    with caplog.at_level(logging.WARNING):
        assert list(compute(end_at_three, range(8))) == [0, 2, 4, 6, 8, 10, 12, 14]
    [message] = caplog.messages
    assert message == "the rest is prepared in this process alone: a worker process ended with exit status -9"


def test_a_function_that_no_process_can_receive_runs_here(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert list(compute(lambda job: job * 2, range(5))) == [0, 2, 4, 6, 8]
    [message] = caplog.messages
    assert message.startswith("the rest is prepared in this process alone: ") and "lambda" in message


def test_an_error_is_raised_as_without_workers(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    results = compute(refuse_three, range(5))
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="three"):
        next(results)
    assert caplog.messages == ["the rest is prepared in this process alone: a worker process failed: OSError: three"]


def test_an_error_of_the_jobs_is_raised(workers: int) -> None:
    def jobs() -> Iterator[float]:
        yield from (0.0, 0.0, 0.0)
        raise TypeError("no more jobs")

    with pytest.raises(TypeError, match="no more jobs"):
        list(compute(process_of, jobs()))


def test_workers_end_with_the_generator(workers: int) -> None:
    results = compute(process_of, [0.0, 0.0, *[60.0] * 10])
    assert [next(results)[0], next(results)[0]] == [0.0, 0.0]
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 20


def test_a_script_without_a_main_guard_and_ctrl_c(tmp_path: Path) -> None:
    """The script runs once, not again in each worker, and an interrupt ends everything within seconds."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            from rlt_data.steps import processes
            from tests.steps.test_processes import process_of

            print("started", flush=True)
            processes.START_SECONDS = processes.START_SHARE = 0.0
            processes.cores = lambda: 3
            for job, process in processes.compute(process_of, [0.0, 0.0, 0.0, 60.0, 60.0, 60.0]):
                print(process, flush=True)
            """)
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        lines = [process.stdout.readline().strip() for _ in range(4)]
        assert lines[:2] == ["started", str(process.pid)]
        process.send_signal(signal.SIGINT)
        assert "started" not in process.stdout.read()
        assert "KeyboardInterrupt" in process.stderr.read()
        assert process.wait(30) != 0
    for worker in set(lines[2:]):
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker), 0)
