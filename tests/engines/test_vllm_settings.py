"""What is said of vLLM before it is started."""

from __future__ import annotations

import pytest
import torch

from rlt_data.engines.vllm import _environments, check_version
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


def test_each_process_gets_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def gpus(**settings: int) -> list[str]:
        found = _environments(ModelSettings(engine="vllm", **settings))  # type: ignore[arg-type]
        return [environment["CUDA_VISIBLE_DEVICES"] for environment in found]

    assert gpus() == ["0"]
    assert gpus(data_parallel=4) == ["0", "1", "2", "3"]
    assert gpus(data_parallel=2, tensor_parallel=2) == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-5a")
    assert gpus(data_parallel=2) == ["7", "GPU-5a"]
    with pytest.raises(SettingsError, match="takes 4 GPUs; 2 can be seen"):
        gpus(data_parallel=2, tensor_parallel=2)


def test_options_of_other_engines_are_refused(rlt: Rlt, tmp_path: object) -> None:
    output = rlt("generate", "--teacher", "nano", "--in", "x.jsonl", "--data-parallel", 2, code=2).output
    assert "data_parallel: goes with --engine vllm, not with transformers" in output
    output = rlt("score", "--student", "nano", "--in", "run", "--kl", "full", "--engine", "vllm", code=2).output
    assert "--engine vllm does not give" in output


def test_samples_of_engines_are_kept_apart() -> None:
    """The same seed gives other samples in vLLM, so a run must not mix them unnoticed."""
    common = {"teacher": "nano", "input": "x.jsonl"}
    assert "engine" not in GenerateSettings(**common).depends_on()  # runs from before there were others go on
    assert GenerateSettings(**common, engine="vllm").depends_on()["engine"] == "vllm"
