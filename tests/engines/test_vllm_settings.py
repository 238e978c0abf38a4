"""vLLM settings and messages that need no vLLM."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlt_data.engines import (
    Failure,
    PromptRequest,
    Sample,
    SampleRequest,
    SequenceRequest,
    find_checkpoint,
    memory_shares,
    open_model,
    open_tokenizer,
)
from rlt_data.engines import choose as choosing
from rlt_data.engines.vllm import loading
from rlt_data.engines.vllm.core import VllmCore, _Prompt
from rlt_data.engines.vllm.loading import _environments, open_pool
from rlt_data.engines.vllm.requests import picks_tokens, scored
from rlt_data.engines.vllm.version import SUPPORTED, check_version
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
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-5a,-1,6")
    assert gpus(data_parallel=2) == ["7", "GPU-5a"]
    with pytest.raises(SettingsError, match="takes 4 GPUs; 2"):
        gpus(data_parallel=2, tensor_parallel=2)


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_both_variables_of_rocm_agree(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Otherwise vLLM refuses to start (vllm/platforms/rocm.py)."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "4,6")
    monkeypatch.setattr(torch.version, "hip", "7.14")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    first, second = _environments(ModelSettings(engine="vllm", data_parallel=2))
    assert first["HIP_VISIBLE_DEVICES"] == first["CUDA_VISIBLE_DEVICES"] == "4"
    assert second["HIP_VISIBLE_DEVICES"] == second["CUDA_VISIBLE_DEVICES"] == "6"


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
    assert ("skip_reading_prefix_cache" in parameters) == picks  # without it, vLLM reads no cache for prompt_logprobs
    if picks:
        assert parameters["prompt_logprob_token_ids"].shape == (149, 1) and parameters["prompt_logprob_start"] == 50
        assert parameters["prompt_logprob_token_ids"][0, 0] == 51
    else:
        assert parameters["prompt_logprobs"] == 0 and "prompt_logprob_token_ids" not in parameters


def test_a_model_that_does_not_fit_is_refused_with_the_cause_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """On a GPU vLLM itself says no more than that its engine could not be initialised."""
    monkeypatch.setattr(loading, "_CORE", "tests.engines.cores:too_large")
    checkpoint = find_checkpoint(str(tiny()))
    for share in (1.0, 0.25):
        with pytest.raises(ModelError) as error:
            open_pool(
                checkpoint, ModelSettings(engine="vllm"), scoring=False, logs=tmp_path / "logs", memory_share=share
            )
        first, log, remedy, *shared, last = str(error.value).splitlines()
        assert first.endswith(f"See root cause above.; its log ({tmp_path}/logs/{tiny().name}-0.log) ends with:")
        assert log.split(" at least")[0] == "  (EngineCore pid=7) ValueError: To serve"
        assert "--max-model-len" in remedy and "2048 tokens" in remedy and "--gpu-memory (now 0.9)" in remedy
        assert ["gets 25%. Without --teacher" in line for line in shared] == [True] * (share < 1)
        assert last == "--engine transformers runs the model without vLLM."


def test_the_versions_of_the_extra_and_the_documentation_are_those_that_run() -> None:
    (first, end), root = SUPPORTED, Path(__file__).parents[2]
    last = f"{end[0]}.{end[1] - 1}"
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["vllm"] == [f"vllm>={first[0]}.{first[1]},<{end[0]}.{end[1]}"]
    assert f"vLLM {first[0]}.{first[1]} to {last}" in (root / "docs" / "engines.md").read_text()


@pytest.mark.parametrize("file", ["gpu", "rl"])
def test_the_documented_versions_are_those_of_the_constraints(file: str) -> None:
    root = Path(__file__).parents[2]
    pins = dict(line.split("==") for line in (root / "constraints" / f"{file}.txt").read_text().splitlines())
    cuda = ".".join(pins["cuda-toolkit"].split(".")[:2])
    versions = pins["torch"], cuda, pins["transformers"], pins["vllm"], pins["trl"]
    assert f" | {' | '.join(versions)} |" in (root / "docs" / "engines.md").read_text()


@pytest.fixture
def core(tiny: Callable[..., Path]) -> VllmCore:
    """A core without vLLM."""
    scheduler, model = SimpleNamespace(max_num_seqs=4), SimpleNamespace(max_model_len=100)
    engine = SimpleNamespace(vllm_config=SimpleNamespace(scheduler_config=scheduler, model_config=model))
    tokenizer, _ = open_tokenizer(find_checkpoint(str(tiny())), ModelSettings())
    return VllmCore(SimpleNamespace(llm_engine=engine), tokenizer)


def test_a_log_prob_that_is_no_number_keeps_no_sample_waiting(core: VllmCore) -> None:
    """Samples wait for the log-probs of the prompt's end; a damaged model gives NaN for it."""
    sample = SampleRequest("a", 1)
    prompt = _Prompt(3, PromptRequest(np.arange(9, dtype=np.int32), [sample], tail=1), np.zeros(1, np.float32), 1)
    logprobs = SimpleNamespace(start_indices=[0], end_indices=[1], logprobs=[-1.0])
    completion = SimpleNamespace(finish_reason="length", stop_reason=None, token_ids=[7], logprobs=logprobs)
    assert core._on_sample(SimpleNamespace(outputs=[completion]), prompt, sample) == []
    tail = SimpleNamespace(outputs=[SimpleNamespace(logprobs=[{8: SimpleNamespace(logprob=float("nan"))}])])
    [(number, result)] = core._on_tail(tail, prompt, 0, 8)
    assert number == 3 and isinstance(result, Sample) and np.isnan(result.tail_logprobs).all()  # type: ignore[arg-type]


Sent = list[tuple[str, int, dict[str, Any], Any]]


@pytest.fixture
def sent(core: VllmCore, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """The core's requests: name, tokens, parameters and a function for the output."""
    requests: Sent = []

    def submit(name: str, ids: np.ndarray, handler: tuple[Any, ...], **params: Any) -> None:
        requests.append((name, len(ids), params, lambda output: handler[0](output, *handler[1:])))

    monkeypatch.setattr(core, "_submit", submit)
    return requests


@pytest.mark.parametrize("tokens", [10, 100])
def test_log_probs_that_vllm_does_not_return_fail_only_their_text(core: VllmCore, sent: Sent, tokens: int) -> None:
    """An exception would end the process."""
    request = SequenceRequest("a", np.arange(tokens, dtype=np.int32), np.arange(4, tokens))
    last = [SimpleNamespace(logprobs=[{tokens - 1: SimpleNamespace(logprob=-1.0)}])]
    empty = SimpleNamespace(start_indices=[0], end_indices=[0], logprobs=[], ranks=[])
    half = np.zeros((3, 1), np.float32)
    for picked, flat in ((None, None), (None, empty), (half, None), (half[:0], None)):
        output = SimpleNamespace(prompt_token_id_logprobs=picked, prompt_logprobs=flat, outputs=last)
        core._add_text(3, request, 0.7)
        *_, handle = sent.pop()
        assert handle(output) == []
        *_, handle = sent.pop()
        assert handle(output) == [(3, Failure("a", "vLLM returned no log-probs"))] and not sent


def test_a_text_whose_cached_prefix_is_too_long_is_read_again(core: VllmCore, sent: Sent) -> None:
    """vLLM has no log-probs of cached tokens, and then returns none at all."""
    core._picks_tokens = True
    request = SequenceRequest("a", np.arange(40, dtype=np.int32), np.arange(10, 40))
    core._add_text(3, request, 0.7)
    first, tokens, params, handle = sent.pop()
    assert params["prompt_logprob_start"] == 9 and not params["skip_reading_prefix_cache"]
    nothing = SimpleNamespace(prompt_token_id_logprobs=None, prompt_logprobs=None, outputs=[])
    assert handle(nothing) == []
    second, tokens_again, params_again, handle = sent.pop()
    assert second != first and tokens_again == tokens and params_again["skip_reading_prefix_cache"]
    values = -np.arange(30, dtype=np.float32)
    [(number, result)] = handle(SimpleNamespace(prompt_token_id_logprobs=values[:, None], prompt_logprobs=None))
    assert number == 3 and result.key == "a" and result.logprobs.tolist() == values.tolist()


@pytest.mark.parametrize("tokens", [99, 100])
def test_a_text_of_exactly_the_context_leaves_room_for_the_token_that_vllm_samples(
    core: VllmCore, sent: Sent, tokens: int
) -> None:
    request = SequenceRequest("a", np.arange(tokens, dtype=np.int32), np.arange(4, tokens))
    core._add_text(0, request, 0.7)
    [(_, prompt, params, _)] = sent
    assert prompt == 99 and prompt + params["max_tokens"] <= core.context_length
    assert params.get("logprob_token_ids") == ([99] if tokens == 100 else None)


def test_two_models_share_the_memory_by_their_weights(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal shares would leave a large student too little next to a small teacher."""
    monkeypatch.setattr(choosing, "installed_version", lambda: "0.33.0")
    monkeypatch.setattr(choosing, "is_for_cpus", lambda: True)
    small, large = (shutil.copytree(tiny(), tmp_path / name) for name in ("small", "large"))
    weights = (small / "model.safetensors").stat().st_size
    (large / "model-2.safetensors").write_bytes(bytes(3 * weights))

    def shares(gpu: float, **settings: Any) -> list[float]:
        properties = SimpleNamespace(total_memory=gpu * weights)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        how = ModelSettings(dtype="float32", **settings)
        with monkeypatch.context() as patch:  # not while models are opened
            models = [open_model(str(path), how, scoring=True) for path in (small, large)]
            patch.setattr(torch.cuda, "is_available", lambda: True)
            return memory_shares(models)

    assert shares(10, engine="vllm", gpu_memory=0.8) == pytest.approx([2.5 / 8, 5.5 / 8])
    assert shares(10, engine="vllm", gpu_memory=0.8, tensor_parallel=4) == pytest.approx([3.625 / 8, 4.375 / 8])
    assert shares(2, engine="vllm") == pytest.approx([1 / 5, 4 / 5])  # too little: vLLM says so
    assert shares(10, engine="transformers") == shares(10, engine="vllm", ray="auto") == [0.5, 0.5]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = open_model(str(small), ModelSettings(engine="vllm"))
    assert memory_shares([model]) == [1.0] and memory_shares([model, model]) == [0.5, 0.5]
