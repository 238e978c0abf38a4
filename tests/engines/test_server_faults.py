"""Servers that fail in every way: the server engine loses and doubles nothing, overruns nobody, tells no secrets."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rlt_data.engines import Failure, PromptRequest, SampleRequest, Sampling, open_model, retries
from rlt_data.engines.server import ServerEngine
from rlt_data.engines.watchdog import Heartbeat, watched
from rlt_data.errors import EngineError, ModelError
from rlt_data.settings import ModelSettings
from tests.conftest import Rlt
from tests.engines.serving import Process, running, wait_until
from tests.killing import assert_same_table, write_questions

Tiny = Callable[..., Path]
Open = Callable[..., ServerEngine]

FAULTS = ("500", "429", "hang", "cut", "busy", "torn", "503")
SAMPLING = Sampling(0.7, 1.0, 0, 16, "<|end|>")
KEY = "sk-very-secret-0123456789"


@pytest.fixture
def opened(tiny: Tiny) -> Iterator[Open]:
    """Open the server engine for URLs: opened(url, ..., **settings)."""
    engines: list[Any] = []

    def open_engine(*urls: str, **settings: Any) -> ServerEngine:
        engine = open_model(str(tiny()), ModelSettings(engine="server", url=urls, **settings)).engine
        assert isinstance(engine, ServerEngine)
        engines.append(engine)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def canned() -> Iterator[Process]:
    """Start a server without a model that takes 0.05 seconds per answer."""
    with running("completion_server", "--seconds", 0.05) as process:
        yield process


def prompts(count: int) -> list[list[PromptRequest]]:
    """Return blocks of prompts with one sample per prompt."""
    ids = np.arange(10, 20, dtype=np.int32)
    requests = [PromptRequest(ids, [SampleRequest(str(number), seed=number)]) for number in range(count)]
    return [requests[start : start + 64] for start in range(0, count, 64)]


def texts(engine: ServerEngine, count: int) -> dict[str, str]:
    """Return the sampled text of each of ``count`` prompts."""
    text_by_key = {}
    for sample in engine.generate(prompts(count), SAMPLING):
        assert not isinstance(sample, Failure) and sample.key not in text_by_key, sample
        text_by_key[sample.key] = sample.text
    assert len(text_by_key) == count
    return text_by_key


def bad_day(good: int) -> list[str]:
    """All faults in turn, with correct answers before each."""
    return [turn for fault in FAULTS for turn in ["ok"] * good + [fault]]


# A bad day


def test_a_bad_day_changes_no_table(
    rlt: Rlt, server: Process, second_server: Process, tiny: Tiny, tmp_path: Path
) -> None:
    questions = write_questions(tmp_path / "questions.jsonl", 20)
    options = "--in", questions, "--teacher", tiny(), "--n", 2, "--max-tokens", 8, "--engine", "server"
    rlt("generate", *options, "--url", server.url(), "--out", "quiet")
    with running("fault_proxy", second_server.at, *bad_day(2)) as proxy:
        urls = "--url", server.url(), "--url", f"{proxy.at}/chat/vllm/v1"
        rlt("generate", *options, *urls, "--concurrency", 3, "--read-timeout", 1.5, "--out", "bad")
        seen = proxy.seen()
    assert_same_table(Path("bad"), Path("quiet"), "traces", 40)
    assert set(pl.read_parquet("bad/traces/*.parquet")["logprob_temperature"]) == {0.7}
    assert set(seen["taken"]) == {"ok", *FAULTS} and seen["most"] <= 3
    assert server.seen()["most"] <= 64


@pytest.mark.slow
def test_faults_cost_less_than_half_of_the_throughput(opened: Open) -> None:
    with (
        running("completion_server", "--seconds", 0.08) as slow,
        running("completion_server", "--seconds", 0.08) as second,
        running("fault_proxy", second.at, *bad_day(18)) as proxy,
    ):
        seconds, results = [], []
        for urls in ([slow, second], [slow, proxy]):
            engine = opened(*(process.url(model="canned") for process in urls), concurrency=8, read_timeout=1)
            began = time.monotonic()
            results.append(texts(engine, 720))
            seconds.append(time.monotonic() - began)
        assert results[0] == results[1]
        assert set(proxy.seen()["taken"]) == {"ok", *FAULTS}
        assert max(process.seen()["most"] for process in (slow, proxy)) <= 8
    print(f"throughput with faults: {seconds[0] / seconds[1]:.2f} of that without ({seconds})")
    assert seconds[1] < 2 * seconds[0]


def test_a_url_whose_server_dies_gets_no_requests_until_it_is_back(opened: Open, canned: Process) -> None:
    with running("completion_server", "--seconds", 0.05) as second:
        engine = opened(canned.url(model="canned"), second.url(model="canned"), concurrency=4, retries=0)
        ends = time.monotonic() + 300
        back, requested, keys = False, 0, set()

        def until_used_again() -> Iterator[list[PromptRequest]]:
            nonlocal requested
            for block in prompts(12_000):
                if (back and second.seen()["requests"] > 20) or time.monotonic() > ends:
                    return
                requested += len(block)
                yield block

        for sample in engine.generate(until_used_again(), SAMPLING):
            assert not isinstance(sample, Failure), sample
            keys.add(sample.key)
            if len(keys) == 100:
                assert second.seen()["requests"] > 20
                second.kill()
            if len(keys) == 250:
                second.restart()
                back = True
        assert len(keys) == requested
        assert back and second.seen()["requests"] > 20
    assert "Connection refused" in engine.log_tail()


def test_an_outage_costs_no_row(opened: Open) -> None:
    with running("completion_server") as only:
        engine = opened(only.url(model="canned"), concurrency=4, retries=1)
        results = engine.generate(prompts(200), SAMPLING)
        keys = [next(results).key for _ in range(50)]
        only.kill()
        with pytest.raises(EngineError, match="no progress for 2 s"), watched([engine.heartbeat], 2.0, engine.log_tail):
            keys += [result.key for result in results]
        assert len(set(keys)) == len(keys) < 200
        engine.heartbeat = Heartbeat()
        results = engine.generate(prompts(200), SAMPLING)
        threading.Timer(1.0, only.restart).start()
        assert {result.key for result in results if not isinstance(result, Failure)} == set(map(str, range(200)))


# Retrying


def test_retry_after_is_honoured(opened: Open, canned: Process) -> None:
    with running("fault_proxy", canned.at, "ok") as proxy:
        engine = opened(proxy.url(model="canned"))
        proxy.turns("429", *["ok"] * 100)
        began = time.monotonic()
        texts(engine, 1)
        assert time.monotonic() - began > 1.0
    assert "HTTP 429: it is a bad day" in engine.log_tail()


@pytest.mark.parametrize(
    ("header", "seconds"),
    {"3": 3.0, "0": 0.0, "99999": 600.0, "Wed, 21 Oct 2015 07:28:00 GMT": 0.0, "soon": None, "-1": None}.items(),
)
def test_what_retry_after_says(header: str, seconds: float | None) -> None:
    assert retries.retry_after(header) == seconds


def test_a_date_to_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries.time, "time", lambda: 1445412480.0 - 90)
    assert retries.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 90.0


def test_pauses_grow_and_differ() -> None:
    for tries, longest in [(1, 0.5), (2, 1.0), (5, 8.0), (50, 30.0)]:
        pauses = [retries.pause(tries) for _ in range(300)]
        assert 0 <= min(pauses) < 0.2 * longest and 0.8 * longest < max(pauses) <= longest


def test_only_listed_statuses_are_tried_again(opened: Open, canned: Process) -> None:
    with running("fault_proxy", canned.at, "ok") as proxy:
        engine = opened(proxy.url(model="canned"))
        for turn, failed in [("418", True), ("500", False), ("503", False), ("torn", False), ("cut", False)]:
            proxy.turns(turn, *["ok"] * 100)
            [result] = engine.generate(prompts(1), SAMPLING)
            assert isinstance(result, Failure) == failed
            if failed:
                assert result.reason == "HTTP 418: it is a bad day"


def test_a_row_whose_server_always_fails_on_it_alone_fails_alone(opened: Open, canned: Process) -> None:
    """The server answers a small request between two failures, so it is the row that fails."""
    with running("fault_proxy", canned.at, "ok") as proxy:
        engine = opened(proxy.url(model="canned"), retries=2)
        proxy.turns("500", "500", "500", *["ok", "500"] * 20)
        [result] = engine.generate(prompts(1), SAMPLING)
    assert isinstance(result, Failure)
    assert result.reason.endswith("tries failed, the last one at " + proxy.url(model="canned") + ": HTTP 500: it is a "
                                  "bad day")  # fmt: skip


def test_a_rate_limit_costs_no_row(opened: Open, canned: Process) -> None:
    with running("fault_proxy", canned.at, "ok") as proxy:
        engine = opened(proxy.url(model="canned"), retries=0, concurrency=8)
        proxy.turns(*["ok"] * 10, "busy", "busy")
        texts(engine, 60)


# Keys


@pytest.mark.parametrize("key", [None, "sk-wrong-but-secret-too", KEY])
def test_keys_are_sent_and_never_shown(
    rlt: Rlt, tiny: Tiny, problems: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    if key:
        monkeypatch.setenv("OTHER_KEY", key)
    with running("completion_server", "--key", KEY) as process:
        arguments = "--in", problems, "--teacher", tiny(), "--n", 1, "--max-tokens", 5, "--out", "run"
        served = "--engine", "server", "--url", process.url(model="canned"), "--api-key-env", "OTHER_KEY"
        result = rlt("generate", *arguments, *served, code=0 if key == KEY else 6)
    if key is None:
        assert "HTTP 401" in result.stderr and "put it into OTHER_KEY" in result.stderr
    elif key != KEY:
        assert "Incorrect API key provided: Bearer ***" in result.stderr and "second line" not in result.stderr
        assert "the key in OTHER_KEY (--api-key-env" in result.stderr
    everything = result.output.encode() + b"".join(
        file.read_bytes() for file in Path("run").rglob("*") if file.is_file()
    )
    assert b"OTHER_KEY" in everything or key == KEY
    assert key is None or key.encode() not in everything
    assert b"secret" not in everything


def test_an_invalid_key_is_refused(opened: Open, canned: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sécret")
    with pytest.raises(Exception, match="--api-key-env: OPENAI_API_KEY holds characters that no key has") as error:
        opened(canned.url(model="canned"))
    assert "cret" not in str(error.value)


def test_a_server_that_refuses_everything_from_some_moment_on_ends_the_run(opened: Open, canned: Process) -> None:
    with running("fault_proxy", canned.at, "ok") as proxy:
        engine = opened(proxy.url(model="canned"))
        proxy.turns("403")
        with pytest.raises(EngineError, match="refuses all requests \\(HTTP 403: it is a bad day\\); .*OPENAI_API_KEY"):
            list(engine.generate(prompts(20), SAMPLING))


def test_a_server_that_forbids_one_text_fails_one_row(opened: Open, canned: Process) -> None:
    with running("fault_proxy", canned.at, "ok") as proxy:
        engine = opened(proxy.url(model="canned"))
        proxy.turns("403", *["ok"] * 100)
        results = list(engine.generate(prompts(5), SAMPLING))
    assert [result.reason for result in results if isinstance(result, Failure)] == ["HTTP 403: it is a bad day"]


# Hanging and continuing


def test_servers_that_hang_end_the_run_and_the_same_command_finishes_it(
    rlt: Rlt, server: Process, tiny: Tiny, tmp_path: Path
) -> None:
    questions = write_questions(tmp_path / "questions.jsonl", 10)
    options = "--in", questions, "--teacher", tiny(), "--n", 2, "--max-tokens", 6, "--engine", "server"
    rlt("generate", *options, "--url", server.url(), "--out", "quiet")
    with running("fault_proxy", server.at, "hang", "--after", 20) as proxy:
        arguments = *options, "--url", proxy.url(), "--stall-timeout", 2, "--concurrency", 4, "--out", "run"
        errors = rlt("generate", *arguments, code=8).stderr
        assert "2 s (--stall-timeout)" in errors and "all keys in run.log" in errors
        assert "Traceback" not in errors
        assert "missing rows: " in Path("run/run.log").read_text()
        finished = len(pl.read_parquet("run/journal/traces/*/*.parquet"))
        assert 0 < finished < 20
        proxy.turns("ok")
        assert f"20 traces ({20 - finished} new)" in rlt("generate", *arguments, "--stall-timeout", 60).stdout
    assert_same_table(Path("run"), Path("quiet"), "traces", 20)


def test_a_server_that_hangs_from_the_start(opened: Open, canned: Process) -> None:
    with running("fault_proxy", canned.at, "hang") as proxy:
        with pytest.raises(ModelError, match="does not answer: no answer within 0.3 s"):
            opened(proxy.url(model="canned"), read_timeout=0.3, retries=1)
        with pytest.raises(ModelError, match="no answer .* within 0.5 s"):
            opened(proxy.url(model="canned"), stall_timeout=0.5)


def test_an_interrupted_run_continues(rlt: Rlt, canned: Process, tiny: Tiny, tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions.jsonl", 300)
    arguments = "--in", questions, "--teacher", tiny(), "--n", 1, "--max-tokens", 6, "--concurrency", 4, "--out", "run"
    arguments += "--engine", "server", "--url", canned.url(model="canned")

    def interrupt() -> None:
        wait_until(lambda: list(Path("run").glob("journal/traces/*/*.parquet")))
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    errors = rlt("generate", *arguments, code=130).stderr
    assert "interrupted" in errors and "Traceback" not in errors
    interrupting.join()
    finished = len(pl.read_parquet("run/journal/traces/*/*.parquet"))
    assert 0 < finished < 300
    assert f"300 traces ({300 - finished} new)" in rlt("generate", *arguments).stdout
    rlt("generate", *arguments[:-4], "--concurrency", 40, *arguments[-4:], "--out", "straight")
    assert_same_table(Path("run"), Path("straight"), "traces", 300)


def test_results_that_nobody_reads_are_cancelled(opened: Open, canned: Process) -> None:
    with running("fault_proxy", canned.at, "ok") as proxy:
        engine = opened(proxy.url(model="canned"), concurrency=4)
        proxy.turns(*["ok"] * 8, *["hang"] * 100)
        stream = engine.generate(prompts(100), SAMPLING)
        for _ in range(4):
            next(stream)
        before = proxy.seen()["taken"]["ok"]
        stream.close()  # type: ignore[attr-defined]
        time.sleep(0.3)
        assert proxy.seen()["taken"]["ok"] <= before + 8
        proxy.turns("ok")
        texts(engine, 10)
