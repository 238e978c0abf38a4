"""Impossible results become failures of their rows, with any engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from rlt_data.engines import (
    Failure,
    Measured,
    Model,
    PromptRequest,
    Sample,
    SampleRequest,
    Sampling,
    SequenceLogprobs,
    SequenceRequest,
    open_model,
)
from rlt_data.engines.results import checked_logprobs, invalid_logprobs
from rlt_data.settings import ModelSettings
from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt
from tests.engines.serving import Process, running

Tiny = Callable[..., Path]

SAMPLING = Sampling(0.7, 1.0, 0, 16, "<|end|>")


@pytest.fixture(scope="module")
def proxy(server: Process) -> Iterator[Process]:
    with running("fault_proxy", server.at, "ok") as process:
        yield process


@pytest.fixture
def opened(tiny: Tiny, proxy: Process) -> Iterator[Callable[..., Model]]:
    """Open the chat model behind the proxy: opened(kind="vllm", scoring=False)."""
    models = []

    def open_served(kind: str = "vllm", scoring: bool = False) -> Model:
        proxy.turns("ok")
        settings: dict[str, Any] = {"engine": "server", "url": (proxy.url(kind),), "retries": 0}
        models.append(open_model(str(tiny()), ModelSettings(**settings), scoring=scoring))
        models[-1].load()
        return models[-1]

    yield open_served
    for model in models:
        model.close()


def sample(model: Model) -> Sample | Failure:
    request = PromptRequest(np.arange(10, 20, dtype=np.int32), [SampleRequest("a", seed=1)], tail=1)
    [result] = model.generate([[request]], SAMPLING)
    return result


@pytest.mark.parametrize(
    ("lie", "reason"),
    {
        "nan": "the engine returned a log-prob of nan",
        "infinite": "the engine returned a log-prob of inf",
        "null": "the engine returned a log-prob of nan",
        "lowest": "the engine returned a log-prob of -inf",
        "positive": "the engine returned a log-prob of 0.5",
        "few": "the engine returned 2 log-probs for 16 tokens",
        "many": "the engine returned 16000 tokens where at most 16",
        "unknown": "the engine returned token 1000000, which the model does not have",
        "large": "an answer of more than 64 MiB",
        "word": "an answer that cannot be read (TypeError)",
        "negative": "an answer that cannot be read (OverflowError)",
        "fraction": "an answer that cannot be read (TypeError)",
    }.items(),
)
def test_lies_about_samples(opened: Callable[..., Model], proxy: Process, lie: str, reason: str) -> None:
    model = opened()
    assert isinstance(sample(model), Sample)
    proxy.turns(lie)
    result = sample(model)
    assert isinstance(result, Failure) and reason in result.reason and "\n" not in result.reason


@pytest.mark.parametrize("lie", ["deep", "surrogate", "no text", "word"])
def test_requests_with_unreadable_answers_are_sent_again(
    opened: Callable[..., Model], proxy: Process, lie: str
) -> None:
    model = opened("vllm" if lie == "word" else "hosted")
    straight = sample(model)
    proxy.turns(lie, *["ok"] * 20)
    assert isinstance(straight, Sample) and sample(model).text == straight.text  # type: ignore[union-attr]
    assert proxy.seen()["taken"][lie] >= 1


@pytest.mark.parametrize(
    ("lie", "reason"),
    {
        "nan": "the engine returned a log-prob of nan",
        "infinite": "the engine returned a log-prob of inf",
        "null": "log-probs of other tokens",
        "lowest": "the engine returned a log-prob of -inf",
        "positive": "the engine returned a log-prob of 0.5",
        "few": "log-probs of other tokens",
        "word": "an answer that cannot be read (TypeError)",
    }.items(),
)
def test_lies_about_scores(opened: Callable[..., Model], proxy: Process, lie: str, reason: str) -> None:
    model = opened(scoring=True)
    request = SequenceRequest("a", np.arange(10, 30, dtype=np.int32), np.array([1, 5, 9], np.int32))
    proxy.turns(lie)
    [result] = model.logprobs([[[request]]], 1.0)
    assert isinstance(result, Failure) and reason in result.reason


@pytest.mark.parametrize(
    ("lie", "reason"),
    {
        "rank of nothing": "the engine returned a rank of 0 among",
        "rank of memory": "the engine returned a rank of -1049081441 among",
        "rank of words": "an answer that cannot be read (TypeError)",
    }.items(),
)
def test_lies_about_ranks(opened: Callable[..., Model], proxy: Process, lie: str, reason: str) -> None:
    """Ranks fail the row only where they are requested."""
    model = opened(scoring=True)
    ids, positions = np.arange(10, 30, dtype=np.int32), np.array([1, 19], np.int32)
    proxy.turns(lie)
    [result] = model.logprobs([[[SequenceRequest("a", ids, positions, measured=Measured(2, 1.0))]]], 1.0)
    assert isinstance(result, Failure) and reason in result.reason
    proxy.turns(lie)
    [result] = model.logprobs([[[SequenceRequest("a", ids, positions)]]], 1.0)
    assert isinstance(result, SequenceLogprobs) and result.ranks is None


class OlderEngine:
    """An engine from before the measures, as plug-ins may have: it returns only log-probs."""

    def __init__(self, values: list[SequenceLogprobs]) -> None:
        self.values = values

    def logprobs(self, blocks: Any, temperature: float) -> Iterator[SequenceLogprobs]:
        list(blocks)
        return iter(self.values)


def checked(result: SequenceLogprobs, measured: Measured | None) -> SequenceLogprobs | Failure:
    request = SequenceRequest("a", np.arange(9, dtype=np.int32), np.array([3, 4, 7], np.int32), measured=measured)
    [value] = checked_logprobs(OlderEngine([result]), [[[request]]], 0.7, vocabulary=50)  # type: ignore[arg-type]
    return value


def test_an_engine_without_measures_gives_those_of_its_own_temperature() -> None:
    result = SequenceLogprobs("a", np.array([-1, -2, -3], np.float32))
    same, other, none = (checked(result, measured) for measured in (Measured(2, 0.7), Measured(2, 1.0), None))
    assert isinstance(same, SequenceLogprobs) and same.measured_logprobs is not None and same.ranks is None
    assert same.measured_logprobs.tolist() == [-1, -2]
    assert other == none == result


@pytest.mark.parametrize(
    ("measured", "ranks", "reason"),
    [
        ([-1.0, 0.5], [1, 1], "a log-prob of 0.5 at the second temperature"),
        ([-1.0], [1, 1], "1 log-probs for 2 tokens at the second temperature"),
        ([-1.0, -1.0], [1], "1 ranks for 2 tokens"),
        ([-1.0, -1.0], [1, 51], "a rank of 51 among 50 tokens"),
    ],
)
def test_impossible_measures(measured: list[float], ranks: list[int], reason: str) -> None:
    logprobs = np.full(3, -1, np.float32)
    result = SequenceLogprobs("a", logprobs, np.array(measured, np.float32), np.array(ranks, np.int32))
    assert checked(result, Measured(2, 1.0)) == Failure("a", f"the engine returned {reason}")


@pytest.mark.parametrize("token", [-1, 400_000])
def test_tokens_that_a_model_lacks_never_reach_it(tiny: Tiny, token: int) -> None:
    model = open_model(str(tiny()), ModelSettings())
    texts = {"bad": np.array([5, 6, token, 7], np.int32), "good": np.array([5, 6, 8, 7], np.int32)}
    group = [SequenceRequest(key, ids, np.array([1, 3], np.int32)) for key, ids in texts.items()]
    results = list(model.logprobs([[group]], 0.7))
    failed = {result.key: result.reason for result in results if isinstance(result, Failure)}
    assert failed == {"bad": f"the text holds token {token}, which the model does not have"} and len(results) == 2
    prompts = [PromptRequest(ids, [SampleRequest(key, 1)]) for key, ids in texts.items()]
    samples = list(model.generate([prompts], SAMPLING))
    assert [sample.key for sample in samples if isinstance(sample, Failure)] == ["bad"] and len(samples) == 2


def test_a_model_that_computes_nan(tiny: Tiny) -> None:
    """Damaged weights, or an overflow in half precision; a checkpoint with NaN is refused when it is loaded."""
    model = open_model(str(tiny()), ModelSettings())
    model.engine.model._head.weight.data[7] = float("nan")  # type: ignore[attr-defined]
    request = SequenceRequest("a", np.arange(10, 20, dtype=np.int32), np.array([1, 5], np.int32))
    [result] = model.logprobs([[[request]]], 0.7)
    assert result == Failure("a", "the engine returned a log-prob of nan")
    [result] = model.full_kl([request], model, [request], 0.7)
    assert result == Failure("a", "the engine returned a KL of 2 tokens that is not finite")


def test_rounding_is_no_lie() -> None:
    values = np.array([0.0, -1e-9, 1e-6, -3e4], np.float32)
    assert invalid_logprobs(values, 4) is None
    assert invalid_logprobs(values[:0], 0) is None


def test_lies_end_in_the_error_log_and_never_in_a_table(rlt: Rlt, tiny: Tiny, server: Process, problems: Path) -> None:
    arguments = "--in", problems, "--teacher", tiny(), "--n", 4, "--max-tokens", 8, "--out", "run"
    lies = ["nan", "ok", "few", "ok", "lowest", "ok", "many", "unknown", "ok", "positive", "infinite"]
    with running("fault_proxy", server.at, *lies) as liar:
        served = "--temperature", 1, "--engine", "server", "--url", liar.url(), "--retries", 0
        rlt("generate", *arguments, *served, code=4)
        traces = pl.read_parquet("run/traces/*.parquet")
        errors = _errors()
        assert len(traces) + len(errors) == 24 and len(traces) > 1
        assert errors and all(reason.startswith("the engine returned ") for reason in errors)
        for row in traces.iter_rows(named=True):
            assert len(row["token_ids"]) == len(row["logprobs"]) == row["completion_tokens"] <= 8
            assert np.isfinite(row["logprobs"]).all() and max(row["logprobs"]) <= 0

        liar.turns("ok", "nan", "ok", "positive", "ok", "infinite", "ok", "lowest")
        rlt("score", "--in", "run", "--student", tiny(), *served, code=4)
        scores = pl.read_parquet("run/scores/*.parquet")
        assert len(scores) + len(_errors()) - len(errors) == len(traces) > len(scores) > 0
        assert scores["reward"].is_finite().all()


def test_log_probs_that_an_earlier_version_stored(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 1, "--max-tokens", 8, "--out", "run")
    run = RunFolder("run")
    table = run.read("traces", 0)
    logprobs = table["logprobs"].to_pylist()
    logprobs[0] = logprobs[0][:2]
    logprobs[1][0] = float("nan")
    column = table.schema.get_field_index("logprobs")
    stored = pa.array(logprobs, table["logprobs"].type)
    run.write_part("traces", 0, table.set_column(column, table.schema.field(column), stored))
    rlt("score", "--in", "run", "--student", tiny(), code=4)
    assert pl.read_parquet("run/scores/*.parquet")["reward"].is_finite().all()
    few, nan = sorted(_errors())
    assert few.startswith("the trace was stored with") and "log-probs for" in few
    assert nan.startswith("the trace was stored with a log-prob of nan; --teacher-logprobs compute")
    rlt(
        "score",
        "--in",
        "run",
        "--student",
        tiny(),
        "--teacher",
        tiny(),
        "--teacher-logprobs",
        "compute",
        "--out",
        "again",
    )
    assert len(pl.read_parquet("again/scores/*.parquet")) == 6


def _errors() -> list[str]:
    return [json.loads(line)["reason"] for line in Path("run/errors.jsonl").read_text().splitlines()]
