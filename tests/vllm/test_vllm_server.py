"""The server engine against vLLM's own server: its log-probs, its stop texts, its defaults."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlt_data.engines import Engine, PromptRequest, Sample, SampleRequest, Sampling, SequenceRequest, open_model
from rlt_data.settings import ModelSettings
from tests.engines.conftest import divided
from tests.engines.serving import unused_port, wait_until
from tests.killing import environment

pytest.importorskip("vllm")

PROMPTS = ["The number 17 times 23 is", "Où est l'élève? 🙂 你好\n\n", "def add(a, b):\n    return"]

Served = Callable[..., Engine]


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with sampling defaults, which vLLM applies unless a request overrides them."""
    folder = tmp_path_factory.mktemp("vllm") / "model"
    shutil.copytree(tiny("wide"), folder)
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"do_sample": True, "top_k": 3, "top_p": 0.5, "temperature": 0.3, "repetition_penalty": 1.5}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def vllm_server(folder: Path, log: Path, *flags: str) -> Iterator[Callable[[], str]]:
    """Run vLLM's server; yields a function that waits for it and returns its URL."""
    port = unused_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--port", port]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", 512, *flags]
    settings = environment() | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, env=settings)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def url() -> str:
        wait_until(answers, 300)
        return f"http://127.0.0.1:{port}/v1"

    try:
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Open an engine over one of two servers: of the model, and of a copy with a divided head."""
    logs = tmp_path_factory.mktemp("logs")
    copy = divided(model, logs / "copy")
    engines = []
    with (
        vllm_server(model, logs / "model.log", "--logprobs-mode", "processed_logprobs") as model_url,
        vllm_server(copy, logs / "copy.log") as copy_url,
    ):

        def open_engine(which: str = "model", scoring: bool = False, served_temperature: float = 1.0) -> Engine:
            url = {"model": model_url, "copy": copy_url}[which]
            settings = ModelSettings(engine="server", url=(url(),))
            opened = open_model(str(model), settings, scoring=scoring, served_temperature=served_temperature)
            engines.append(opened.engine)
            return engines[-1]

        yield open_engine
        for engine in engines:
            engine.close()


@pytest.fixture(scope="module")
def local(model: Path) -> Engine:
    return open_model(str(model), ModelSettings(dtype="float32")).engine


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[PromptRequest]:
    tokenizer = open_model(str(model), ModelSettings()).tokenizer
    ids = [np.asarray(tokenizer(text)["input_ids"], np.int32) for text in PROMPTS]
    return [
        PromptRequest(prompt, [SampleRequest(f"{index}-{seed}", 2**63 + seed) for seed in range(8)], tail=2)
        for index, prompt in enumerate(ids)
    ]


def samples(engine: Engine, prompts: list[PromptRequest], sampling: Sampling) -> dict[str, Sample]:
    results = list(engine.generate([prompts], sampling))
    assert all(isinstance(result, Sample) for result in results), results
    return {result.key: result for result in results if isinstance(result, Sample)}


def logprobs(engine: Engine, requests: list[SequenceRequest], temperature: float) -> dict[str, Any]:
    return {result.key: getattr(result, "logprobs", result) for result in engine.logprobs([[requests]], temperature)}


def second_pass(engine: Engine, prompts: list[PromptRequest], results: dict[str, Sample], temperature: float) -> Any:
    requests = []
    for key, sample in results.items():
        prompt = prompts[int(key[0])].ids
        ids = np.concatenate([prompt, sample.token_ids])  # type: ignore[list-item]
        requests.append(SequenceRequest(key, ids, np.arange(len(prompt) - 2, len(ids), dtype=np.int32)))
    return logprobs(engine, requests, temperature)


@pytest.mark.parametrize("temperature", [0.7, 0.0, 1.0])
def test_samples_carry_the_log_probs_of_a_second_pass(
    served: Served, local: Engine, prompts: list[PromptRequest], temperature: float
) -> None:
    engine = served()
    assert engine.context_length == 512
    results = samples(engine, prompts, Sampling(temperature, 1.0, 0, 24, "<|nothing|>"))
    assert len(results) == 24
    for key, values in second_pass(local, prompts, results, temperature or 1.0).items():
        sample = results[key]
        assert np.allclose(np.concatenate([sample.tail_logprobs, sample.logprobs]), values, atol=1e-4), key
        assert len(sample.token_ids) == sample.completion_tokens <= 24
    if temperature:  # the model's defaults, which allow three tokens, were overridden
        assert len({sample.token_ids[0] for sample in results.values()}) > 9
        again = samples(engine, prompts[::-1], Sampling(temperature, 1.0, 0, 24, "<|nothing|>"))
        assert {key: s.token_ids.tolist() for key, s in again.items()} == {
            key: s.token_ids.tolist() for key, s in results.items()
        }


def test_samples_end_as_those_of_the_transformers_engine(served: Served, prompts: list[PromptRequest]) -> None:
    results = samples(served(), prompts, Sampling(1.5, 1.0, 0, 200, "e"))
    for sample in results.values():
        assert ("e" in sample.text) == (sample.finish_reason == "stop")
    reasons = [sample.finish_reason for sample in results.values()]
    assert reasons.count("stop") > 12
    ends = samples(served(), prompts, Sampling(2.0, 1.0, 0, 400, "<|nothing|>"))
    ended = [sample for sample in ends.values() if sample.finish_reason == "eos"]
    assert ended and all(sample.end_token is not None for sample in ended)
    assert all(len(sample.logprobs) == len(sample.token_ids) for sample in ended)


def test_raw_log_probs_are_left_out_unless_the_temperature_is_1(
    served: Served, prompts: list[PromptRequest], model: Path, tmp_path: Path
) -> None:
    assert all(s.logprobs is None for s in samples(served("copy"), prompts, Sampling(0.7, 1.0, 0, 8, "e")).values())
    results = samples(served("copy"), prompts, Sampling(1.0, 1.0, 0, 8, "e"))
    copy = open_model(str(divided(model, tmp_path / "copy")), ModelSettings(dtype="float32")).engine
    for key, values in second_pass(copy, prompts, results, 1.0).items():
        sample = results[key]
        assert np.allclose(np.concatenate([sample.tail_logprobs, sample.logprobs]), values, atol=1e-4)


def texts() -> list[SequenceRequest]:
    random = np.random.default_rng(0)
    requests = []
    for number, length in enumerate((20, 90, 300, 505)):
        ids = random.integers(5, 390, length).astype(np.int32)
        requests.append(SequenceRequest(str(number), ids, np.arange(10, length - 1, 3, dtype=np.int32)))
    return requests


def test_scoring_gives_the_log_probs_of_the_transformers_engine(served: Served, local: Engine) -> None:
    of_model = logprobs(served(scoring=True), texts(), 1.0)
    of_copy = logprobs(served("copy", scoring=True, served_temperature=0.7), texts(), 0.7)
    for temperature, scores in ((1.0, of_model), (0.7, of_copy)):
        expected = logprobs(local, texts(), temperature)
        assert scores.keys() == expected.keys()
        for key, values in expected.items():
            assert np.allclose(scores[key], values, atol=1e-4), (temperature, key)
