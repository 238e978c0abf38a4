"""A GPU that PyTorch cannot use is reported, and nothing runs on the CPU instead without being asked to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from rlt_data.engines import choose, config, gpus
from rlt_data.engines.config import pick_device
from rlt_data.engines.gpus import unusable_gpu
from rlt_data.errors import SettingsError
from tests.conftest import Rlt

Machine = Callable[..., Path]

#: Contents of /proc/driver/nvidia/version.
DRIVERS = {
    "535.161.07": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.07  Sat Feb 17 22:55:48 UTC 2024\n"
    "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n",
    "580.65": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build  (root@host)\n",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a function that pretends to be another machine, and returns the root of its files."""

    def be(
        *devices: str,
        driver: str | None = None,
        version: str = "2.15.0",
        cuda: str | None = None,
        hip: str | None = None,
        error: str = "no CUDA-capable device is detected",
    ) -> Path:
        for device in devices:
            (tmp_path / "dev").mkdir(exist_ok=True)
            (tmp_path / "dev" / device).touch()
        if driver:
            (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
            (tmp_path / "proc/driver/nvidia/version").write_text(DRIVERS[driver])

        def fail() -> None:
            raise RuntimeError(f"{error}\nand more")

        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(torch, "__version__", version)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "init", fail)
        for module in (choose, config):
            monkeypatch.setattr(module, "unusable_gpu", partial(unusable_gpu, tmp_path))
        return tmp_path

    return be


def test_an_old_driver_is_named_with_the_one_that_pytorch_needs(machine: Machine) -> None:
    machine("nvidia0", "nvidiactl", driver="535.161.07", version="2.15.0+cu132", cuda="13.2")
    with pytest.raises(SettingsError) as refused:
        pick_device("auto")
    assert str(refused.value) == (
        "--device: this machine has an NVIDIA GPU (driver 535.161.07), but PyTorch 2.15.0+cu132 is built for CUDA "
        "13.2, which needs driver 580 or newer; update the driver, or install a build for an older CUDA "
        "(docs/engines.md, Versions and drivers); --device cpu or CUDA_VISIBLE_DEVICES= runs on the CPU"
    )
    with pytest.raises(SettingsError, match=r"^--device: 'cuda' cannot be used .* \(driver 535.161.07\)"):
        pick_device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


def test_a_build_of_pytorch_for_cpus_is_named(machine: Machine) -> None:
    root = machine("nvidia0", driver="580.65", version="2.15.0+cpu")
    assert "(driver 580.65), but PyTorch 2.15.0+cpu is a build for CPUs; install" in str(unusable_gpu(root))


@pytest.mark.parametrize("driver", ["580.65", None])
def test_other_causes_are_those_that_cuda_reports(
    machine: Machine, driver: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = machine("nvidia3", driver=driver, cuda="13.2", error="CUDA error 802: system not yet initialized")
    problem = str(unusable_gpu(root))
    assert problem.endswith("(CUDA 13.2) cannot use it: CUDA error 802: system not yet initialized")
    assert f"(driver {driver or 'of unknown version'})" in problem
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "cannot use it with CUDA_VISIBLE_DEVICES=7: " in str(unusable_gpu(root))


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_a_gpu_that_the_user_hides_is_none(machine: Machine, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine("nvidia0", driver="535.161.07", cuda="13.2")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", value)
    assert unusable_gpu(root)  # this variable hides no GPU of NVIDIA
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("value", ["0", "0,1", " 2", "GPU-8932f937-d72c", "MIG-GPU-8932f937/1/0", "mig-8932f937"])
def test_a_gpu_that_the_user_names_is_not_hidden(machine: Machine, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("nvidia0", driver="535.161.07", cuda="13.2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(SettingsError, match="needs driver 580 or newer"):
        pick_device("auto")


def test_a_machine_without_a_gpu_runs_on_the_cpu(machine: Machine) -> None:
    """Containers see the driver of their host; without device files they have no GPU."""
    machine("nvidiactl", "kfd", driver="580.65", cuda="13.2")  # /dev/kfd is there on most machines with an AMD CPU
    assert pick_device("auto") == torch.device("cpu")


def test_an_amd_gpu_counts_for_a_build_of_pytorch_for_rocm(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine("kfd", hip="7.14", error="No HIP GPUs are available")
    assert str(unusable_gpu(root)).endswith("(ROCm 7.14) cannot use it: No HIP GPUs are available")
    with monkeypatch.context() as hidden:
        hidden.setenv("ROCR_VISIBLE_DEVICES", "")
        assert unusable_gpu(root) is None
    (root / "dev" / "kfd").unlink()
    assert unusable_gpu(root) is None


def test_the_required_drivers_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
    for cuda, driver in gpus.OLDEST_DRIVER.items():
        assert f"| CUDA {cuda} | {driver} or newer |" in text


@pytest.mark.parametrize("engine", ["auto", "transformers", "vllm"])
def test_no_command_uses_the_cpu_of_a_machine_with_a_gpu_unasked(
    rlt: Rlt, tiny: Callable[..., Path], problems: Path, machine: Machine, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused in one line, before vLLM loads for a minute."""
    machine("nvidia0", driver="535.161.07", cuda="13.2")
    monkeypatch.setattr(choose, "installed_version", lambda: "0.33.0")
    monkeypatch.setattr(choose, "is_for_cpus", lambda: False)
    options = "--teacher", tiny(), "--in", problems, "--n", 1, "--max-tokens", 4, "--engine", engine
    *_, line = rlt("generate", *options, code=6 if engine == "vllm" else 2).stderr.splitlines()
    assert line.startswith(
        f"error: --{'engine vllm' if engine == 'vllm' else 'device'}: this machine has an NVIDIA GPU"
    )
    if engine == "transformers":
        assert "on cpu, float32" in rlt("generate", *options, "--device", "cpu").stderr
