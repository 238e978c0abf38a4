"""Two processes that train together come to the weights of one; accelerate does not shard on a CPU, so unsharded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.children import Child
from tests.conftest import Rlt, write_jsonl
from tests.engines.serving import unused_port
from tests.killing import environment

pytest.importorskip("trl", reason="needs the extra train")
Tiny = Callable[..., Path]

SHIPPED = Path(__file__).parents[2] / "recipes" / "accelerate"


ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "--config_file"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", 2]


def launched(launcher: list[Any], *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, "-m", "rlt_data.cli.main", *arguments]
    result = subprocess.run(
        list(map(str, command)), env=environment(), capture_output=True, text=True, check=False, timeout=240
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def forked(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> str:
    """Run a command in two processes with the environment that torchrun gives them, and return what they print."""
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": unused_port()}
    children = []
    with monkeypatch.context() as patch:
        for rank in range(2):
            for name, value in {**variables, "RANK": rank, "LOCAL_RANK": rank}.items():
                patch.setenv(name, str(value))
            children.append(Child(*arguments))
    assert [child.wait() for child in children] == [0, 0], [child.stderr for child in children]
    return "".join(child.stdout for child in children)


def alike(one: str, other: str) -> None:
    first, second = load_file(Path(one, "model.safetensors")), load_file(Path(other, "model.safetensors"))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-4, rtol=0)


@pytest.mark.slow
def test_two_launched_processes_train_a_student(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}."}] for n in range(16)]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages} for messages in turns])
    options: list[Any] = ["train-student", "--model", tiny(), "--in", rows, "--device", "cpu", "--batch-size", 4]
    options += ["--epochs", 1, "--micro-batch-size", 2, "--learning-rate", 1e-3]
    config = yaml.safe_load((SHIPPED / "fsdp2.yaml").read_text())
    file = tmp_path / "accelerate.yaml"
    config |= {"num_processes": 2, "use_cpu": True, "mixed_precision": "no", "main_process_port": 0}
    file.write_text(yaml.safe_dump(config))
    result = launched([*ACCELERATE, file], *options, "--out", "two")
    assert "2 processes" in result.stdout and result.stdout.count(" in two") == 1  # one of them prints
    rlt(*options, "--out", "one")
    alike("one", "two")


@pytest.mark.parametrize("launch", ["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_train_a_teacher_on_the_same_samples(
    rlt: Rlt, tiny: Tiny, problems: Path, monkeypatch: pytest.MonkeyPatch, launch: str
) -> None:
    options: list[Any] = ["train-teacher", "rl", "--model", tiny(), "--student", tiny("chat", 1), "--in", problems]
    options += ["--device", "cpu", "--steps", 2, "--questions", 2, "--group", 4, "--micro-batch-size", 2]
    options += ["--held-out", 2, "--save-steps", 1, "--sync-steps", 1, "--max-tokens", 12, "--learning-rate", 1e-3]
    if launch == "torchrun":
        assert launched(TORCHRUN, *options, "--out", "two").stdout.count("two/best") == 1  # one of them prints
    else:
        assert "2 processes" in forked(monkeypatch, *options, "--out", "two")
    rlt(*options, "--out", "one")
    alike("one", "two")
    alike("one/checkpoint-2/reference", "two/checkpoint-2/reference")


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_the_shipped_files_are_what_accelerate_reads(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(SHIPPED / f"{name}.yaml"))
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
    if name == "zero3":
        assert config.deepspeed_config["zero_stage"] == 3
    else:
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"  # else no model would be saved
