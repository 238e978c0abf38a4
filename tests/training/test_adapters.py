"""LoRA and QLoRA in RL: exact continuing, the reference adapter, and models that open."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlt_data.engines import open_model
from rlt_data.errors import SettingsError
from rlt_data.formats import ChatTemplate, Problem, Views, load_format
from rlt_data.settings import ModelSettings, TrainSolverSettings, TrainStudentSettings, TrainTeacherSettings
from rlt_data.training.grpo import grpo_arguments
from rlt_data.training.models import lora_config
from rlt_data.training.plan import PolicyPlan
from rlt_data.training.rollouts import Rollouts
from rlt_data.training.sft import train_student
from rlt_data.training.solver import train_solver
from rlt_data.training.teacher import train_teacher
from tests.conftest import Rlt, write_jsonl
from tests.training.processes import finished, forked, shard_on_cpu, variables_of

pytest.importorskip("trl", reason="needs the extra train")
Tiny = Callable[..., Path]
needs_bitsandbytes = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs the extra bitsandbytes")

SMALL: dict[str, Any] = {
    "steps": 4,
    "questions": 2,
    "group": 4,
    "micro_batch_size": 4,
    "held_out": 2,
    "save_steps": 2,
    "max_tokens": 12,
    "learning_rate": 3e-2,
    "device": "cpu",
    "sync_steps": 2,
    "lora_rank": 4,
}


@pytest.fixture
def settings(tiny: Tiny, problems: Path) -> Callable[..., TrainTeacherSettings]:
    def make(out: str = "out", **changes: Any) -> TrainTeacherSettings:
        fixed = {"model": str(tiny()), "student": str(tiny("chat", 1)), "in": str(problems), "out": out}
        return TrainTeacherSettings(**(SMALL | fixed | changes))

    return make


Settings = Callable[..., TrainTeacherSettings]


def equal(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def cut(straight: Path, out: Path, step: int) -> None:
    """Make the folder of a training that stopped after a checkpoint of a finished one."""
    recorded = json.loads((straight / "training.json").read_text())
    out.mkdir()
    unfinished = {key: value for key, value in recorded.items() if key in ("depends_on", "plan")}
    (out / "training.json").write_text(json.dumps(unfinished))
    shutil.copytree(straight / f"checkpoint-{step}", out / f"checkpoint-{step}")


def kl(out: str) -> list[float]:
    return [entry["kl"] for entry in map(json.loads, Path(out, "metrics.jsonl").open()) if "kl" in entry]


@pytest.mark.parametrize("four_bit", [False, pytest.param(True, marks=needs_bitsandbytes)])
def test_continued_adapters_end_in_the_same_weights(settings: Settings, four_bit: bool) -> None:
    straight = Path("straight")
    train_teacher(settings("straight", load_in_4bit=four_bit))
    cut(straight, Path("cut"), 2)
    train_teacher(settings("cut", load_in_4bit=four_bit))
    assert equal(straight / "adapter_model.safetensors", Path("cut/adapter_model.safetensors"))
    reference = Path("checkpoint-4/reference/model.safetensors")
    assert equal(straight / reference, Path("cut") / reference)
    assert kl("cut") == kl("straight")
    assert not equal(straight / "checkpoint-2/reference/model.safetensors", straight / reference)
    assert not list(straight.rglob("ref/adapter_model.safetensors"))


def test_the_reference_is_the_base_model_or_an_average_of_adapters(settings: Settings) -> None:
    train_teacher(settings("fixed", sync_steps=0))
    assert not list(Path("fixed").rglob("reference"))
    train_teacher(settings("copied", sync_mixup=1.0))
    assert kl("fixed")[:2] == pytest.approx(kl("copied")[:2], abs=1e-6)
    assert kl("copied")[0] == 0.0 < kl("copied")[1] and kl("copied")[2] < kl("fixed")[2]
    trained = load_file("copied/checkpoint-2/adapter_model.safetensors")
    copied = load_file("copied/checkpoint-2/reference/model.safetensors")
    assert {name.replace(".ref.", "."): value for name, value in copied.items()}.keys() == trained.keys()
    assert all(torch.equal(trained[name.replace(".ref.", ".")], value) for name, value in copied.items())
    train_teacher(settings("mixed", sync_mixup=0.25, save_steps=1, steps=2))
    first, second, mixed = (
        load_file(f"mixed/checkpoint-{step}/{file}")
        for step, file in (
            (1, "reference/model.safetensors"),
            (2, "adapter_model.safetensors"),
            (2, "reference/model.safetensors"),
        )
    )
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * second[name.replace(".ref.", ".")])


def test_trained_adapters_are_models(rlt: Rlt, tiny: Tiny, settings: Settings, problems: Path) -> None:
    train_teacher(settings())
    for folder in ("out", "out/best"):
        config = json.loads(Path(folder, "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(tiny()) and Path(folder, "format.yaml").is_file()
        assert not Path(folder, "model.safetensors").exists()
    rlt("generate", "--teacher", "out/best", "--in", problems, "--max-tokens", 8, "--out", "run", "--device", "cpu")
    base = open_model(str(tiny()), ModelSettings(device="cpu")).identity.weights
    assert open_model("out/best", ModelSettings(device="cpu")).identity.weights != base
    recorded = json.loads(Path("out/training.json").read_text())["weights"]
    assert set(recorded) == {"adapter_model.safetensors", "best/adapter_model.safetensors"}


def test_a_solver_trains_adapters(tiny: Tiny, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"numbers": [3, 4, n], "target": 12 + n} for n in range(5, 15)])
    options = SMALL | {"model": str(tiny()), "in": str(rows), "out": "solver", "benchmark": "countdown", "steps": 2}
    assert train_solver(TrainSolverSettings(**options)).steps == 2
    assert Path("solver/best/adapter_model.safetensors").is_file()


def test_sampled_logprobs_are_those_of_the_adapted_policy(tiny: Tiny, settings: Settings) -> None:
    from trl import GRPOConfig

    from rlt_data.training.trl_patches import policy_trainer

    chosen = settings(beta=0.0)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny())
    views = Views(load_format("rlt"), ChatTemplate(tokenizer))
    prompts = [views.teacher_prompt(Problem("What is 1 + 1?", "It is 2."))] * 4
    rollouts = Rollouts(chosen, stop="<|end_of_explanation|>", tail_characters=2)
    plan = PolicyPlan(1, 0, 0, 40, 1, 1.0, 4, 0, 1, 1, 0)
    trainer = policy_trainer(
        rollout_func=rollouts,
        model=str(tiny()),
        reward_funcs=[lambda prompts, **_: [0.0] * len(prompts)],
        args=GRPOConfig(**grpo_arguments(chosen, plan, stop="<|end_of_explanation|>")),
        train_dataset=Dataset.from_list([{"prompt": prompts[0]}]),
        processing_class=tokenizer,
        peft_config=lora_config(chosen),
    )
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    output = rollouts(prompts, trainer)

    def plain(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([ids])).logits[0, :-1] / chosen.temperature
        return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    for prompt, ids, sample in zip(output["prompt_ids"], output["completion_ids"], output["rollout"], strict=True):
        expected = plain([*prompt, *ids])[len(prompt) - 1 :][: len(sample.logprobs)]
        torch.testing.assert_close(torch.from_numpy(sample.logprobs), expected, atol=1e-4, rtol=0)
        with trainer.model.disable_adapter():
            assert (plain([*prompt, *ids])[len(prompt) - 1 :][: len(expected)] - expected).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_train_the_same_adapter(
    rlt: Rlt, tiny: Tiny, problems: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    options: list[Any] = ["train-teacher", "rl", "--model", tiny(), "--student", tiny("chat", 1), "--in", problems]
    options += ["--device", "cpu", "--steps", 2, "--questions", 2, "--group", 4, "--micro-batch-size", 2]
    options += ["--held-out", 2, "--save-steps", 1, "--sync-steps", 1, "--max-tokens", 12, "--learning-rate", 1e-3]
    options += ["--lora-rank", 4]
    fsdp: dict[str, Any] = {"variables": variables_of("fsdp2"), "prepare": shard_on_cpu} if sharded else {}
    finished(forked(monkeypatch, *options, "--out", "two", **fsdp))
    rlt(*options, "--out", "one")
    for file in ("adapter_model.safetensors", "checkpoint-2/reference/model.safetensors"):
        one, two = load_file(f"one/{file}"), load_file(f"two/{file}")
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=2e-4, rtol=0)


@needs_bitsandbytes
def test_quantized_bases_and_optimizers_train_a_student(tiny: Tiny, tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}."}] for n in range(8)]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages} for messages in turns])
    paths = {
        "model": str(tiny("wide")),
        "in": str(rows),
        "device": "cpu",
        "batch_size": 4,
        "save_steps": 1,
        "epochs": 1,
    }
    for out, options in {
        "quantized": {"lora_rank": 2, "load_in_4bit": True},
        "8bit": {"optimizer": "adamw_8bit"},
    }.items():
        train_student(TrainStudentSettings(**paths, **options, out=out, learning_rate=1e-2))
        cut(Path(out), Path(f"cut {out}"), 1)
        train_student(TrainStudentSettings(**paths, **options, out=f"cut {out}", learning_rate=1e-2))
        [file] = Path(out).glob("*model.safetensors")
        assert equal(file, Path(f"cut {out}", file.name))
        open_model(out, ModelSettings(device="cpu")).load()
    state = torch.utils._pytree.tree_leaves(torch.load("8bit/checkpoint-1/optimizer.pt", weights_only=False))
    assert any(torch.is_tensor(value) and value.dtype == torch.uint8 for value in state)


def test_what_adapters_and_optimizers_need_is_checked_first(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SettingsError, match="load_in_4bit: .*--lora-rank"):
        settings(load_in_4bit=True, lora_rank=0)
    with pytest.raises(SettingsError, match="load_in_4bit: .*--vllm"):
        settings(load_in_4bit=True, vllm="colocate")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(SettingsError, match="--ref-sync-steps"):
        train_teacher(settings(dry_run=True))  # DeepSpeed itself need not be installed
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it was not installed
    for changes, flag in (({"load_in_4bit": True}, "--load-in-4bit"), ({"optimizer": "adamw_8bit"}, "--optimizer")):
        with pytest.raises(SettingsError, match=rf"{flag}.*pip install 'rlt-data\[bitsandbytes\]'"):
            train_teacher(settings(**changes))
    train_teacher(settings(optimizer="adamw_8bit", dry_run=True))  # may plan for another machine
    assert "bitsandbytes is not installed" in caplog.text
    monkeypatch.undo()
    if find_spec("bitsandbytes"):
        with pytest.raises(SettingsError, match="paged_adamw_8bit: paging needs CUDA; use adamw_8bit"):
            train_teacher(settings(optimizer="paged_adamw_8bit"))
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(SettingsError, match="--load-in-4bit: FSDP"):
            train_teacher(settings(load_in_4bit=True))
    assert not Path("out").exists()
