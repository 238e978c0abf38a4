"""Engine processes that die, hang or refuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from rlt_data.engines import Failure, SequenceRequest
from rlt_data.engines.pool import Pool
from rlt_data.engines.watchdog import describe_missing, watched
from rlt_data.errors import EngineError, ModelError

MakePool = Callable[..., Pool]

TEXT = np.arange(4, dtype=np.int32), np.array([1], np.int32)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakePool]:
    pools = []

    def pool(processes: int = 1, trouble: str = "", load_timeout: float = 60.0) -> Pool:
        pools.append(
            Pool(
                "tests.engines.cores:troubled",
                (trouble,),
                [{"NUMBER": str(number)} for number in range(processes)],
                name="model",
                logs=tmp_path / "logs",
                load_timeout=load_timeout,
            )
        )
        return pools[-1]

    yield pool
    for opened in pools:
        opened.close()


def ask(pool: Pool, keys: Sequence[str]) -> dict[str, float | str]:
    """Return each key's answer: the process that answered, or the reason of its failure."""
    requests = [SequenceRequest(key, *TEXT) for key in keys]
    blocks = ([requests[start : start + 5]] for start in range(0, len(requests), 5))
    results = list(pool.logprobs(blocks, 1.0))
    assert Counter(result.key for result in results) == Counter(keys)
    return {
        result.key: result.reason if isinstance(result, Failure) else float(result.logprobs[0]) for result in results
    }


def test_two_iterators_share_a_pool(make: MakePool) -> None:
    """At some points, one has all of the pool's capacity while the other waits for nothing."""
    pool = make()

    def stream(name: str) -> Iterator[str]:
        blocks = ([[SequenceRequest(f"{name}{number}", *TEXT)]] for number in range(30))
        return (result.key for result in pool.logprobs(blocks, 1.0))

    a, b = stream("a"), stream("b")
    first, second = [next(a)], [next(b)]
    first.append(next(a))  # requests more, and returns what has arrived
    second += b
    first += a
    assert sorted(first) == sorted(f"a{number}" for number in range(30))
    assert sorted(second) == sorted(f"b{number}" for number in range(30))


def test_all_processes_work(make: MakePool) -> None:
    answers = ask(make(2), [str(key) for key in range(60)])
    assert sorted(Counter(answers.values()).values())[0] > 20
    assert len(set(answers.values())) == 2


def test_blocks_are_taken_only_as_far_ahead_as_keeps_the_processes_busy(make: MakePool) -> None:
    read_ahead = count()
    blocks = (
        [[SequenceRequest(str(next(read_ahead)), np.arange(4, dtype=np.int32), np.array([1], np.int32))]]
        for _ in range(200)
    )
    results = make(2).logprobs(blocks, 1.0)
    for done in range(1, 30):
        next(results)
        assert next(read_ahead) - 2 * done < 2 * 8 + done  # each next() counts too
    results.close()  # type: ignore[attr-defined]


def test_a_text_that_fails_leaves_others_alone(make: MakePool) -> None:
    answers = ask(make(), ["a", "refuse", "fail", "b"])
    assert answers["refuse"] == "this one will not do" and answers["fail"] == "no"
    assert answers["a"] == answers["b"]


def test_a_process_that_dies_is_started_again_and_nothing_is_lost(make: MakePool, tmp_path: Path) -> None:
    keys = [str(key) for key in range(40)] + [f"die-once:{tmp_path / 'died'}"]
    answers = ask(make(), keys)
    assert len(set(answers.values())) == 2  # the process before and the one after


@pytest.mark.parametrize(
    ("processes", "deadly"),
    [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(2, 2, marks=pytest.mark.slow)],
)
def test_a_text_that_kills_engines_fails_alone(make: MakePool, tmp_path: Path, processes: int, deadly: int) -> None:
    texts = [f"die:{tmp_path / str(number)}" for number in range(deadly)]
    plain = [str(key) for key in range(30)]
    answers = ask(make(processes), [*plain[:10], texts[0], *plain[10:], *texts[1:]])
    assert all(isinstance(answers[key], float) for key in plain)
    for key in texts:
        assert "the last words" in str(answers[key])


def test_an_engine_that_never_answers_is_not_restarted_forever(make: MakePool, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"(?s)died 3 times in a row.*the last words"):
        ask(make(), [f"die:{tmp_path / str(number)}" for number in range(64)])


def test_a_core_that_cannot_run_is_refused_immediately(make: MakePool) -> None:
    with pytest.raises(ModelError, match=r"^model: cannot be run$"):
        make(trouble="refuse")
    with pytest.raises(ModelError, match=r"(?s)^model: cannot be run; its log \(.*logs/model-0.log\) ends with:\n"
                                         r"  INFO loading\n  ValueError: the cause$"):  # fmt: skip
        make(trouble="refuse after words")
    with pytest.raises(ModelError, match=r"  5\n(  \d+\n){14}The first error in it:\n  RuntimeError: the cause$"):
        make(trouble="refuse after many words")
    with pytest.raises(ModelError, match=r"^model: cannot be run$"):  # skips the log of the pool before
        make(trouble="refuse")
    with pytest.raises(ModelError, match=r"(?s)no such thing as this model"):
        make(trouble="die")
    with pytest.raises(EngineError, match=r"loading made no progress for 2 s \(--stall-timeout\)"):
        make(trouble="hang", load_timeout=2)


def test_a_hanging_engine_ends_the_work_and_names_the_missing_rows(make: MakePool) -> None:
    pool = make()
    with pytest.raises(EngineError, match=r"2 s \(--stall-timeout\); 2 rows .*\(hang, b;"):
        with watched([pool.heartbeat], 2.0, lambda: describe_missing(["hang", "b"], pool.log_tail())):
            ask(pool, ["a", "hang", "b"])


def test_a_slow_engine_is_not_stopped(make: MakePool) -> None:
    pool = make()
    with watched([pool.heartbeat], 2.5, lambda: ""):
        assert len(ask(pool, [str(key) for key in range(300)])) == 300


def test_processes_end_with_the_pool_and_with_its_process(make: MakePool, tmp_path: Path) -> None:
    pool = make(2)
    numbers = [worker._process.pid for worker in pool._workers if worker._process]
    pool.close()
    assert not any(_lives(number) for number in numbers)

    script = (
        "import time\nfrom pathlib import Path\nfrom rlt_data.engines.pool import Pool\n"
        "pool = Pool('tests.engines.cores:troubled', (), [{}], name='model')\n"
        "print(pool._workers[0]._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout
    number = int(parent.stdout.readline())
    assert _lives(number)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while _lives(number) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(number)


def _lives(number: int) -> bool:
    try:
        os.kill(number, signal.SIG_DFL)
        return not Path(f"/proc/{number}/stat").read_text().split(") ")[1].startswith("Z")
    except (ProcessLookupError, FileNotFoundError):
        return False
