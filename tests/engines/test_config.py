"""Which device a model runs on."""

from __future__ import annotations

import pytest
import torch

from rlt_data.engines.config import pick_device


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
