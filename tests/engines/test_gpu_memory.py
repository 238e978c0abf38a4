"""What a batch that does not fit, and an engine that is closed, leave in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.memory import memory_of_generation, memory_of_scoring
from benchmarks.gpu.models import TINY, LimitedModel, main_config, random_model
from rlt_data.engines import (
    Checkpoint,
    PromptRequest,
    Sample,
    SampleRequest,
    Sampling,
    SequenceRequest,
    open_model,
)
from rlt_data.engines.transformers.model import CausalModel
from rlt_data.errors import ModelError
from rlt_data.settings import ModelSettings
from tests.conftest import Rlt

CPU = torch.device("cpu")


@pytest.mark.parametrize("section", [memory_of_scoring, memory_of_generation])
def test_a_retry_begins_after_the_failed_pass_is_freed(
    section: Callable[[Bench], list[dict[str, Any]]], tmp_path: Path
) -> None:
    assert [row["passes held at a later one"] for row in section(Bench(TINY, CPU, tmp_path))] == [0]


def test_a_sample_that_was_not_requested_cannot_fail(tmp_path: Path) -> None:
    bench = Bench(TINY, CPU, tmp_path)
    engine = bench.load(bench.small_checkpoint(150), batch_tokens=200)
    draw = np.random.default_rng(0)
    prompts = [
        PromptRequest(draw.integers(5, 500, length).astype("i4"), [SampleRequest(str(length), 1, emit)])
        for length, emit in ((60, True), (400, False))
    ]
    results = list(engine.generate([prompts], Sampling(0.7, 1.0, 0, 4, "</x>")))
    assert [(type(result), result.key) for result in results] == [(Sample, "60")]


def test_a_closed_model_is_freed_although_its_engine_is_still_referred_to(
    tiny: Callable[..., Path], given_back: list[int]
) -> None:
    model = open_model(str(tiny()), ModelSettings())
    engine, weights = model.engine, weakref.ref(model.engine.model)  # type: ignore[attr-defined]
    results = engine.logprobs([[[SequenceRequest("a", np.arange(9, dtype=np.int32), np.arange(1, 9))]]], 1.0)
    assert len(next(results).logprobs) == 8  # type: ignore[union-attr] # an iterator that nobody ends
    del results
    model.close()
    assert weights() is None and given_back == [0]
    model.close()
    assert given_back == [0]


def test_steps_give_memory_back_before_another_process_starts(
    rlt: Rlt, tiny: Callable[..., Path], problems: Path, given_back: list[int]
) -> None:
    rlt("generate", "--teacher", tiny(), "--in", problems, "--n", 1, "--max-tokens", 4, "--out", "r")
    rlt("score", "r", "--student", tiny("chat", 1), "--teacher", tiny(), "--teacher-logprobs", "compute")
    columns = "--question-column", "question", "--answer-column", "solution"
    rlt("evaluate", "--model", tiny(), "--benchmark", "math", "--in", problems, *columns, "--max-tokens", 4)
    assert given_back == [0, 1, 0, 0]  # score has two models


def test_the_error_of_a_model_that_does_not_fit_does_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model(main_config(TINY, layers=1, pass_limit=2), CPU).save_pretrained(tmp_path)
    made: list[weakref.ref[torch.nn.Module]] = []
    init = LimitedModel.__init__

    def remember(model: LimitedModel, config: PretrainedConfig) -> None:
        init(model, config)
        made.append(weakref.ref(model))

    monkeypatch.setattr(LimitedModel, "__init__", remember)
    with pytest.raises(ModelError) as kept:
        CausalModel.load(Checkpoint("random", tmp_path), ModelSettings(device="cpu"))
    gc.collect()
    assert "cannot be run on cpu" in str(kept.value) and made[-1]() is None
