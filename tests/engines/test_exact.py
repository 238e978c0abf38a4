"""float32 on a CPU: numbers that do not depend on what else is in the batch, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rlt_data.engines import PromptRequest, SampleRequest, Sampling, SequenceRequest, open_model
from rlt_data.engines.protocol import SequenceLogprobs
from rlt_data.engines.transformers import TransformersEngine, model
from rlt_data.engines.transformers.exact import linear, min_rows
from rlt_data.settings import ModelSettings

Tiny = Callable[..., Path]
KINDS = pytest.mark.parametrize("kind", ["chat", "base", "sliding"])


def engine_of(path: Path, **settings: int) -> TransformersEngine:
    engine = open_model(str(path), ModelSettings(dtype="float32", **settings)).engine  # type: ignore[arg-type]
    assert isinstance(engine, TransformersEngine)
    return engine


def texts(count: int, seed: int = 0) -> list[SequenceRequest]:
    """Texts that share their first 30 tokens; the rest is of all lengths."""
    draw = np.random.default_rng(seed)
    shared = draw.integers(5, 300, 30)
    requests = []
    for number in range(count):
        ids = np.concatenate([shared, draw.integers(5, 300, draw.integers(3, 90))]).astype(np.int32)
        requests.append(SequenceRequest(str(number), ids, np.arange(31, len(ids), dtype=np.int32)))
    return requests


def logprobs(engine: TransformersEngine, groups: list[list[SequenceRequest]]) -> dict[str, np.ndarray]:
    results = engine.logprobs([groups], 0.7)
    return {result.key: result.logprobs for result in results if isinstance(result, SequenceLogprobs)}


@KINDS
def test_a_text_has_the_same_logprobs_alone_and_in_any_batch(
    tiny: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_BLOCK_VOCABULARY_CPU", 8)  # as many blocks as a large vocabulary has
    requests = texts(12)
    engine = engine_of(tiny(kind))
    together = logprobs(engine, [requests])
    alone = logprobs(engine, [[request] for request in requests])
    small = logprobs(engine_of(tiny(kind), batch_tokens=64), [requests[::-1]])
    for key, values in together.items():
        assert np.array_equal(values, small[key])
        assert np.array_equal(values, alone[key])


@KINDS
def test_a_sampled_token_has_the_logprob_of_a_second_pass(tiny: Tiny, kind: str) -> None:
    engine = engine_of(tiny(kind))
    prompts = [request.ids[:40] for request in texts(6)]
    block = [
        PromptRequest(ids, [SampleRequest(f"{row}/{i}", 10 * row + i) for i in range(3)])
        for row, ids in enumerate(prompts)
    ]
    sampling = Sampling(temperature=0.7, top_p=1.0, top_k=0, max_tokens=30, stop="never")
    for sample in engine.generate([block], sampling):
        prompt = prompts[int(sample.key.split("/")[0])]
        ids = np.concatenate([prompt, sample.token_ids])  # type: ignore[union-attr]
        positions = np.arange(len(prompt), len(ids), dtype=np.int32)
        second = logprobs(engine, [[SequenceRequest("again", ids, positions)]])["again"]
        assert sample.logprobs == pytest.approx(second, abs=1e-6)  # type: ignore[union-attr]


def test_rows_of_a_product_do_not_depend_on_their_number() -> None:
    torch.manual_seed(0)
    for inner, outer in [(48, 64), (640, 2048), (1024, 37)]:
        weight, rows = torch.randn(outer, inner), torch.randn(64, inner)
        complete = linear(rows, weight, None)
        for count in range(1, min_rows() + 3):
            assert torch.equal(linear(rows[:count], weight, None), complete[:count])
        assert torch.equal(linear(rows[:6].reshape(2, 3, inner), weight, None), complete[:6].reshape(2, 3, outer))
