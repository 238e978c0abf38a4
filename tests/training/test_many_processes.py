"""Two processes that train together come to the weights of one, sharded or not; if one fails, all end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Rlt, write_jsonl
from tests.training.processes import SHIPPED, finished, forked, launched, shard_on_cpu, variables_of

pytest.importorskip("trl", reason="needs the extra train")
Tiny = Callable[..., Path]

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", 2]
SHARDED = pytest.mark.parametrize("kind", ["fsdp2", "zero3"])


def assert_alike(one: str, other: str, atol: float = 2e-4, file: str = "model.safetensors") -> None:
    first, second = load_file(Path(one, file)), load_file(Path(other, file))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=atol, rtol=0)


def skip_without(kind: str) -> None:
    if kind == "zero3":
        pytest.importorskip("deepspeed", reason="needs pip install deepspeed")


def cut(straight: str, out: str, step: int) -> None:
    """Copy a training as it was after a step."""
    shutil.copytree(f"{straight}/checkpoint-{step}", f"{out}/checkpoint-{step}")
    recorded = json.loads(Path(straight, "training.json").read_text())
    unfinished = {key: recorded[key] for key in ("depends_on", "plan")}
    Path(out, "training.json").write_text(json.dumps(unfinished))


@pytest.fixture
def student(tiny: Tiny, tmp_path: Path) -> list[Any]:
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}."}] for n in range(16)]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages} for messages in turns])
    options: list[Any] = ["train-student", "--model", tiny(), "--in", rows, "--device", "cpu", "--batch-size", 4]
    return [*options, "--epochs", 1, "--micro-batch-size", 2, "--learning-rate", 1e-3, "--save-steps", 2]


@pytest.fixture
def teacher(tiny: Tiny, problems: Path) -> list[Any]:
    options: list[Any] = ["train-teacher", "rl", "--model", tiny(), "--student", tiny("chat", 1), "--in", problems]
    options += ["--device", "cpu", "--steps", 2, "--questions", 2, "--group", 4, "--micro-batch-size", 2]
    return [
        *options,
        "--held-out",
        2,
        "--save-steps",
        1,
        "--sync-steps",
        1,
        "--max-tokens",
        12,
        "--learning-rate",
        1e-3,
    ]


@pytest.mark.slow
@SHARDED
def test_accelerate_launch_trains_a_sharded_student_and_continues(rlt: Rlt, student: list[Any], kind: str) -> None:
    skip_without(kind)
    launcher: list[Any] = ["accelerate.commands.accelerate_cli", "launch", "--config_file", SHIPPED / f"{kind}.yaml"]
    launcher += ["--num_processes", 2, "--mixed_precision", "no", "--main_process_port", 0]
    result = launched(launcher, *student, "--out", "two", module="tests.training.processes")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 processes" in result.stdout and result.stdout.count(" in two") == 1  # one of them prints
    rlt(*student, "--out", "one")
    assert_alike("one", "two")
    cut("two", "cut", 2)
    result = launched(launcher, *student, "--out", "cut", module="tests.training.processes")
    assert result.returncode == 0, result.stderr[-3000:]
    assert_alike("two", "cut", atol=0)


@pytest.mark.slow
@SHARDED
def test_a_sharded_teacher_samples_and_continues_with_its_reference(
    rlt: Rlt, teacher: list[Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    skip_without(kind)
    sharded: dict[str, Any] = {"variables": variables_of(kind), "prepare": shard_on_cpu}
    finished(forked(monkeypatch, *teacher, "--out", "two", **sharded))
    rlt(*teacher, "--out", "one")
    for folder in ("", "/best", "/checkpoint-2/reference"):
        assert_alike(f"one{folder}", f"two{folder}")
    assert list(Path("two/checkpoint-1").glob("pytorch_model_fsdp*" if kind == "fsdp2" else "global_step1"))
    assert not list(Path("two/best").glob("*.py"))  # DeepSpeed puts a script into checkpoints
    cut("two", "cut", 1)
    finished(forked(monkeypatch, *teacher, "--out", "cut", **sharded))
    for folder in ("", "/checkpoint-2/reference"):
        assert_alike(f"two{folder}", f"cut{folder}", atol=0)


@pytest.mark.slow
def test_zero3_trains_adapters_over_4bit_weights(
    rlt: Rlt, student: list[Any], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without("zero3")
    pytest.importorskip("bitsandbytes", reason="needs the extra bitsandbytes")
    options = [*student, "--model", tiny("wide"), "--lora-rank", 4, "--load-in-4bit"]
    finished(forked(monkeypatch, *options, "--out", "two", variables=variables_of("zero3"), prepare=shard_on_cpu))
    rlt(*options, "--out", "one")
    assert_alike("one", "two", atol=5e-4, file="adapter_model.safetensors")


@pytest.mark.parametrize("launch", ["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_train_a_teacher_on_the_same_samples(
    rlt: Rlt, teacher: list[Any], monkeypatch: pytest.MonkeyPatch, launch: str
) -> None:
    if launch == "torchrun":
        result = launched(TORCHRUN, *teacher, "--out", "two")
        assert result.returncode == 0 and result.stdout.count("two/best") == 1, result.stderr[-3000:]
    else:
        assert "2 processes" in finished(forked(monkeypatch, *teacher, "--out", "two"))
    rlt(*teacher, "--out", "one")
    assert_alike("one", "two")
    assert_alike("one/checkpoint-2/reference", "two/checkpoint-2/reference")


def fail_in_the_second_process() -> None:
    from rlt_data.errors import ModelError
    from rlt_data.training.rewards import Reward

    def fail(*_: Any, **__: Any) -> None:
        logging.getLogger("rlt_data").warning("a warning of both")
        if os.environ["RANK"] == "1":
            raise ModelError("the second GPU is too small")

    changed: Any = Reward
    changed.__call__ = fail


def test_an_error_of_one_process_is_printed(teacher: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = forked(monkeypatch, *teacher, "--out", "out", prepare=fail_in_the_second_process)
    assert second.wait() == 6 and second.stderr.strip() == "error: the second GPU is too small"
    assert first.wait() and "a warning of both" in first.stderr  # its next operation on both processes fails


def exit_in_the_second_process() -> None:
    if os.environ["RANK"] == "1":
        os._exit(1)


def test_a_process_that_waits_for_another_one_can_be_ended(teacher: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, _ = forked(monkeypatch, *teacher, "--out", "out", prepare=exit_in_the_second_process)
    waiting.wait_for(lambda: list(Path().glob("out/.*")))
    waiting.send_signal(signal.SIGTERM)  # as launchers do
    assert waiting.wait() == -signal.SIGTERM


@pytest.mark.slow
def test_an_error_of_all_processes_is_printed_once(teacher: list[Any]) -> None:
    result = launched(TORCHRUN, *teacher, "--out", "two", "--micro-batch-size", 3)
    assert result.returncode and result.stderr.count("error: ") == 1, result.stderr


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2-offload", "zero3"])
def test_the_shipped_files_are_what_accelerate_reads(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(SHIPPED / f"{name}.yaml"))
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
    if name == "zero3":
        assert config.deepspeed_config["zero_stage"] == 3
        assert "gradient_clipping" not in config.deepspeed_config  # it would have to equal --max-grad-norm
    else:
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"  # else no model would be saved
