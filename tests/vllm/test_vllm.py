"""The vllm engine against the transformers engine, through real vLLM; `make test-vllm` installs it for the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlt_data.engines import (
    Failure,
    Measured,
    PromptRequest,
    Sample,
    SampleRequest,
    Sampling,
    SequenceLogprobs,
    SequenceRequest,
    open_model,
)
from rlt_data.engines.protocol import Engine
from rlt_data.settings import ModelSettings

pytest.importorskip("vllm.exceptions")

PROMPTS = [
    "The number 17 times 23 is",
    "We count the rolls, the pages and the apples; there are",
    "Où est l'élève? L'équation x² − 5x + 6 = 0 a deux solutions,",
    "def add(a, b):\n    return",
]
STOP = "3"


@pytest.fixture(scope="module", params=["tiny", "gemma"])
def name(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> str:
    return str(tiny("wide")) if request.param == "tiny" else "gemma-3-270m"


@pytest.fixture
def atol(name: str) -> float:
    """Largest difference of a log-prob. With gemma, vLLM and PyTorch differ by 3e-5 or 3.3e-4, by the processor."""
    return 4e-4 if name == "gemma-3-270m" else 1e-4


@pytest.fixture(scope="module")
def engines(name: str) -> Iterator[dict[str, Engine]]:
    """The same model three times: transformers, vLLM for samples, vLLM for scores (gemma does both with one)."""
    vllm = ModelSettings(engine="vllm", max_model_len=512, dtype="float32")
    models = {
        "transformers": open_model(name, ModelSettings(dtype="float32")),
        "sampling": open_model(name, vllm),
    }
    models["scoring"] = models["sampling"] if name == "gemma-3-270m" else open_model(name, vllm, scoring=True)
    yield {role: model.engine for role, model in models.items()}
    for model in models.values():
        model.close()


@pytest.fixture(scope="module")
def prompts(name: str) -> list[np.ndarray]:
    tokenizer = open_model(name, ModelSettings()).tokenizer
    return [np.asarray(tokenizer(text)["input_ids"], np.int32) for text in PROMPTS]  # type: ignore[operator]


def sample(engine: Engine, prompts: list[np.ndarray], seeds: range, **options: Any) -> dict[str, Sample]:
    sampling = Sampling(**{"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_tokens": 24, "stop": STOP} | options)
    requests = [
        PromptRequest(ids, [SampleRequest(f"{index}/{seed}", 2**63 + seed) for seed in seeds], tail=2)
        for index, ids in enumerate(prompts)
    ]
    results = list(engine.generate([requests[:2], requests[2:]], sampling))
    assert not [result for result in results if isinstance(result, Failure)]
    return {result.key: result for result in results if isinstance(result, Sample)}


def logprobs(engine: Engine, requests: list[SequenceRequest], temperature: float) -> dict[str, np.ndarray]:
    results = list(engine.logprobs([[[request] for request in requests]], temperature))
    assert len(results) == len(requests)
    return {result.key: result.logprobs for result in results}  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"top_p": 0.8, "top_k": 20}, {"temperature": 0.0}])
def test_logprobs_of_samples_are_those_of_a_second_pass(
    engines: dict[str, Engine], prompts: list[np.ndarray], options: dict[str, float], atol: float
) -> None:
    samples = sample(engines["sampling"], prompts, range(4), **options)
    assert len(samples) == 16
    requests = []
    for key, result in samples.items():
        prompt = prompts[int(key.split("/")[0])]
        ids = np.concatenate([prompt, result.token_ids])  # type: ignore[list-item]
        positions = np.arange(len(prompt) - 2, len(ids), dtype=np.int32)
        requests.append(SequenceRequest(key, ids, positions))
    second = logprobs(engines["transformers"], requests, options.get("temperature", 0.7) or 1.0)
    for key, result in samples.items():
        first = np.concatenate([result.tail_logprobs, result.logprobs])  # type: ignore[list-item]
        np.testing.assert_allclose(first, second[key], atol=atol)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_scores_are_those_of_transformers(
    engines: dict[str, Engine], prompts: list[np.ndarray], temperature: float
) -> None:
    text = np.concatenate(prompts)
    requests = [
        SequenceRequest("all", text, np.arange(1, len(text), dtype=np.int32)),
        SequenceRequest("end", text, np.array([len(text) - 1], np.int32)),
        SequenceRequest("some", text[:30], np.array([3, 4, 9, 17], np.int32)),
    ]
    expected = logprobs(engines["transformers"], requests, temperature)
    scores = logprobs(engines["scoring"], requests, temperature)
    for request in requests:
        np.testing.assert_allclose(scores[request.key], expected[request.key], atol=1e-4)


@pytest.mark.parametrize("temperatures", [(0.7, 1.0), (1.0, 1.0)])
def test_measures_are_those_of_transformers(
    engines: dict[str, Engine], prompts: list[np.ndarray], temperatures: tuple[float, float], atol: float
) -> None:
    """Texts with and without measures, and at two temperatures, run through one engine at the same time."""
    text = np.resize(np.concatenate(prompts), 300)
    requests = [
        SequenceRequest(str(end), text[:end], np.arange(1, end, 2, dtype=np.int32), measured=Measured(tokens, second))
        for end, tokens, second in [(300, 149, temperatures[1]), (200, 20, temperatures[1]), (90, 44, 1.3)]
    ]
    requests.append(SequenceRequest("none", text, np.array([5, 6], np.int32)))

    def results(engine: Engine) -> dict[str, SequenceLogprobs]:
        found = list(engine.logprobs([[[request] for request in requests]], temperatures[0]))
        assert all(isinstance(result, SequenceLogprobs) for result in found), found
        return {result.key: result for result in found if isinstance(result, SequenceLogprobs)}

    expected, computed = results(engines["transformers"]), results(engines["scoring"])
    assert computed["none"].ranks is None and computed["none"].measured_logprobs is None
    for request in requests[:3]:
        ours, theirs = computed[request.key], expected[request.key]
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=atol)
        assert (ours.measured_logprobs is None) == (theirs.measured_logprobs is None)
        if ours.measured_logprobs is not None and theirs.measured_logprobs is not None:
            np.testing.assert_allclose(ours.measured_logprobs, theirs.measured_logprobs, atol=atol)
        assert ours.ranks is not None and theirs.ranks is not None
        assert len(ours.ranks) == request.measured.tokens and theirs.ranks.max() > 20  # type: ignore[union-attr]
        assert (ours.ranks != theirs.ranks).mean() < 0.02 and np.abs(ours.ranks - theirs.ranks).max() <= 2


@pytest.mark.parametrize("first", [1, 100, 511])
def test_a_text_that_fills_the_context_is_scored(
    engines: dict[str, Engine], prompts: list[np.ndarray], first: int
) -> None:
    """Score a sample that fills the context, which leaves vLLM no room for the token that it always samples."""
    text = np.resize(np.concatenate(prompts), 512)
    requests = [SequenceRequest("full", text, np.arange(first, 512, dtype=np.int32))]
    scores = logprobs(engines["scoring"], requests, 0.7)
    np.testing.assert_allclose(scores["full"], logprobs(engines["transformers"], requests, 0.7)["full"], atol=1e-4)


def test_samples_end_like_those_of_transformers(engines: dict[str, Engine], prompts: list[np.ndarray]) -> None:
    """At temperature 0 both engines draw the same tokens and must return the same text, end and length."""
    for tokens in (1, 24):
        expected = sample(engines["transformers"], prompts, range(1), temperature=0.0, max_tokens=tokens)
        samples = sample(engines["sampling"], prompts, range(1), temperature=0.0, max_tokens=tokens)
        assert samples.keys() == expected.keys()
        for key, result in samples.items():
            assert result.text == expected[key].text
            assert result.token_ids.tolist() == expected[key].token_ids.tolist()  # type: ignore[union-attr]
            assert (result.finish_reason, result.end_token) == (expected[key].finish_reason, expected[key].end_token)


def test_a_sample_depends_on_its_seed_alone(engines: dict[str, Engine], prompts: list[np.ndarray]) -> None:
    together = sample(engines["sampling"], prompts, range(4))
    alone = sample(engines["sampling"], prompts[:1], range(1, 2))
    assert together["0/1"].text == alone["0/1"].text
    assert len({result.text for result in together.values()}) > 8
