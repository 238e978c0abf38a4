"""Which device a model runs on."""

from __future__ import annotations

import pytest
import torch

from rlt_data.engines.config import pick_device
from rlt_data.errors import SettingsError


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_of_several_processes_uses_its_own_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: touched.append(f"set {device}"))
    monkeypatch.setattr(torch, "empty", lambda *_, device: touched.append(f"opened {device}"))
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device(name) == torch.device("cuda", 3)
    assert touched == ["set cuda:3", "opened cuda:3"]  # no context on GPU 0
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert pick_device(name) == torch.device("cuda")


def test_a_number_without_a_gpu_is_refused_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_device(*_: int, device: torch.device) -> None:
        if (device.index or 0) > 1:
            raise RuntimeError("CUDA error: invalid device ordinal\nand how to debug it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: open_device(device=device))
    monkeypatch.setattr(torch, "empty", open_device)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    seen = r"PyTorch sees 2 GPUs, numbered from 0 \(CUDA error: invalid device ordinal\)$"
    with pytest.raises(SettingsError, match=rf"^--device: 'cuda:3' cannot be used on this machine: {seen}"):
        pick_device("cuda:3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SettingsError, match=rf"'cuda:2' .* started more processes than there are GPUs; {seen}"):
        pick_device("auto")
