"""vLLM settings and messages that need no vLLM."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlt_data.engines import PromptRequest, Sample, SampleRequest, find_checkpoint, open_tokenizer, vllm
from rlt_data.engines.vllm import _environments, open_pool, picks_tokens, scored
from rlt_data.engines.vllm_version import SUPPORTED, check_version
from rlt_data.errors import ModelError, SettingsError
from rlt_data.settings import GenerateSettings, ModelSettings
from tests.conftest import Rlt


@pytest.mark.parametrize("version", ["0.31.0", "0.32.1", "0.33.0rc2", "0.33.5+cpu"])
def test_supported_versions(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "pip install 'rlt-data\\[vllm\\]'"), ("0.30.2", "0.30.2 is installed"), ("0.34.0", "0.31 to below 0.34")],
)
def test_other_versions_are_refused_plainly(version: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_version(version)


def test_each_process_gets_separate_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def gpus(**settings: int) -> list[str]:
        environments = _environments(ModelSettings(engine="vllm", **settings))  # type: ignore[arg-type]
        return [environment["CUDA_VISIBLE_DEVICES"] for environment in environments]

    assert gpus() == ["0"]
    assert gpus(data_parallel=4) == ["0", "1", "2", "3"]
    assert gpus(data_parallel=2, tensor_parallel=2) == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-5a")
    assert gpus(data_parallel=2) == ["7", "GPU-5a"]
    with pytest.raises(SettingsError, match="takes 4 GPUs; 2"):
        gpus(data_parallel=2, tensor_parallel=2)


def test_options_of_other_engines_are_refused(rlt: Rlt, tmp_path: object) -> None:
    output = rlt("generate", "--teacher", "nano", "--in", "x.jsonl", "--data-parallel", 2, code=2).output
    assert "data-parallel: " in output
    output = rlt("score", "--student", "nano", "--in", "run", "--kl", "full", "--engine", "vllm", code=2).output
    assert "error: --kl: " in output


def test_samples_of_engines_are_kept_apart() -> None:
    """The same seed gives other samples in vLLM, so a run must not mix them unnoticed."""
    common = {"teacher": "nano", "input": "x.jsonl"}
    old = GenerateSettings(**common, engine="transformers")
    assert "engine" not in old.depends_on()  # runs made before there were other engines continue
    assert GenerateSettings(**common, engine="vllm").depends_on()["engine"] == "vllm"


@pytest.mark.parametrize(
    ("version", "v2", "picks"),
    [("0.31.0", True, False), ("0.32.0", True, True), ("0.33.1", True, True), ("0.33.1", False, False)],
)
def test_texts_are_scored_in_the_form_that_a_version_takes(version: str, v2: bool, picks: bool) -> None:
    """vLLM 0.31 takes one list of at most 20 tokens for all positions and refuses one token per position."""
    picked = picks_tokens(version, SimpleNamespace(use_v2_model_runner=v2))
    assert picked == picks
    parameters = scored(np.arange(200, dtype=np.int32), 50, picks_tokens=picked)
    if picks:
        assert parameters["prompt_logprob_token_ids"].shape == (149, 1) and parameters["prompt_logprob_start"] == 50
        assert parameters["prompt_logprob_token_ids"][0, 0] == 51
    else:
        assert parameters["prompt_logprobs"] == 0 and "prompt_logprob_token_ids" not in parameters


def test_a_model_that_does_not_fit_is_refused_with_the_cause_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """On a GPU vLLM itself says no more than that its engine could not be initialised."""
    monkeypatch.setattr(vllm, "_CORE", "tests.engines.cores:too_large")
    monkeypatch.setattr(vllm, "installed_version", lambda: "0.33.0")
    checkpoint = find_checkpoint(str(tiny()))
    with pytest.raises(ModelError) as error:
        open_pool(checkpoint, ModelSettings(engine="vllm"), scoring=False, logs=tmp_path / "logs")
    first, *log, remedy = str(error.value).splitlines()
    assert first.endswith(f"See root cause above.; its log ({tmp_path}/logs/{tiny().name}-0.log) ends with:")
    assert [line.split(" at least")[0] for line in log] == ["  (EngineCore pid=7) ValueError: To serve"]
    assert "--max-model-len" in remedy and "2048 tokens" in remedy and "--gpu-memory (now 0.9)" in remedy


def test_the_versions_of_the_extra_and_the_documentation_are_those_that_run() -> None:
    (first, end), root = SUPPORTED, Path(__file__).parents[2]
    last = f"{end[0]}.{end[1] - 1}"
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["vllm"] == [f"vllm>={first[0]}.{first[1]},<{end[0]}.{end[1]}"]
    assert f"vLLM {first[0]}.{first[1]} to {last}" in (root / "docs" / "engines.md").read_text()


def test_a_log_prob_that_is_no_number_keeps_no_sample_waiting(tiny: Callable[..., Path]) -> None:
    """Samples wait for the log-probs of the prompt's end; a damaged model gives NaN for it."""
    scheduler, model = SimpleNamespace(max_num_seqs=4), SimpleNamespace(max_model_len=100)
    engine = SimpleNamespace(vllm_config=SimpleNamespace(scheduler_config=scheduler, model_config=model))
    tokenizer, _ = open_tokenizer(find_checkpoint(str(tiny())), ModelSettings())
    core = vllm.VllmCore(SimpleNamespace(llm_engine=engine), tokenizer)
    sample = SampleRequest("a", 1)
    prompt = vllm._Prompt(3, PromptRequest(np.arange(9, dtype=np.int32), [sample], tail=1), np.zeros(1, np.float32), 1)
    logprobs = SimpleNamespace(start_indices=[0], end_indices=[1], logprobs=[-1.0])
    completion = SimpleNamespace(finish_reason="length", stop_reason=None, token_ids=[7], logprobs=logprobs)
    assert core._on_sample(SimpleNamespace(outputs=[completion]), prompt, sample) == []
    tail = SimpleNamespace(outputs=[SimpleNamespace(logprobs=[{8: SimpleNamespace(logprob=float("nan"))}])])
    [(number, result)] = core._on_tail(tail, prompt, 0, 8)
    assert number == 3 and isinstance(result, Sample) and np.isnan(result.tail_logprobs).all()  # type: ignore[arg-type]
