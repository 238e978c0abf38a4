"""How trainings open models, plan their memory, save what was trained, and are sharded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer

from rlt_data.engines import open_model
from rlt_data.engines.config import pick_dtype
from rlt_data.errors import ModelError, RunFolderError, SettingsError
from rlt_data.settings import ModelSettings, TrainStudentSettings, TrainTeacherSettings
from rlt_data.storage.outputs import lock_folder
from rlt_data.training.checkpoints import checkpoints
from rlt_data.training.sft import train_student
from rlt_data.training.sharding import check_sharding
from rlt_data.training.teacher import train_teacher
from tests.conftest import write_jsonl

pytest.importorskip("trl", reason="needs the extra train")
Tiny = Callable[..., Path]


@pytest.fixture
def half(tiny: Tiny, tmp_path: Path) -> Path:
    """A model in bfloat16, as most are published."""
    folder = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny()).save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}."}] for n in range(8)]
    return write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages} for messages in turns])


def student(model: Path, rows: Path, out: str = "out", **changes: Any) -> TrainStudentSettings:
    small = {"batch_size": 2, "max_steps": 2, "save_steps": 1, "learning_rate": 1e-3, "device": "cpu"}
    return TrainStudentSettings(model=str(model), input=str(rows), out=out, **(small | changes))


def dtypes(folder: Path | str) -> set[torch.dtype]:
    return {messages.dtype for messages in load_file(Path(folder, "model.safetensors")).values()}


def test_a_model_is_saved_in_the_type_it_began_in(tiny: Tiny, half: Path, rows: Path) -> None:
    train_student(student(half, rows))
    assert dtypes("out") == {torch.bfloat16} and dtypes(checkpoints(Path("out"))[0]) == {torch.float32}
    assert pick_dtype("auto", AutoConfig.from_pretrained("out"), torch.device("cuda")) == torch.bfloat16
    trained = load_file(checkpoints(Path("out"))[0] / "model.safetensors")
    saved = load_file("out/model.safetensors")
    assert all(torch.equal(saved[name], trained[name].bfloat16()) for name in trained)
    open_model("out", ModelSettings()).load()
    train_student(student(tiny(), rows, "full"))
    assert dtypes("full") == {torch.float32} and json.loads(Path("full/config.json").read_text())["dtype"] == "float32"
    train_student(student(tiny(), rows, "chosen", dtype="bfloat16"))
    assert dtypes("chosen") == {torch.bfloat16}


def test_the_best_policy_is_saved_in_the_type_it_began_in(tiny: Tiny, half: Path, problems: Path) -> None:
    sizes = {"steps": 2, "questions": 2, "group": 2, "held_out": 2, "save_steps": 1, "max_tokens": 8, "device": "cpu"}
    paths: dict[str, Any] = {"model": str(half), "student": str(tiny("chat", 1)), "in": str(problems), "out": "out"}
    train_teacher(TrainTeacherSettings(**(sizes | paths)))
    assert dtypes("out") == dtypes("out/best") == {torch.bfloat16}
    assert AutoConfig.from_pretrained("out/best").dtype == torch.bfloat16
    assert dtypes(checkpoints(Path("out"))[0]) == {torch.float32}
    assert set(json.loads(Path("out/training.json").read_text())["weights"]) == {
        "model.safetensors",
        "best/model.safetensors",
    }


def test_plans_count_frozen_weights_in_their_type(tiny: Tiny, half: Path, rows: Path, problems: Path) -> None:
    def frozen(model: Path) -> int:
        without = train_student(student(model, rows, dry_run=True, lora_rank=1)).plan.memory[0].weights
        more = train_student(student(model, rows, dry_run=True, lora_rank=2)).plan.memory[0].weights
        return without - (more - without)  # the part that does not grow with the rank

    parameters = sum(tensor.numel() for tensor in load_file(tiny() / "model.safetensors").values())
    assert frozen(half) == 2 * parameters and frozen(tiny()) == 4 * parameters

    def plan(rewarding: Path, dtype: str = "auto") -> int:
        sizes = {"questions": 2, "group": 2, "held_out": 2, "max_tokens": 8, "device": "cpu", "dry_run": True}
        paths: dict[str, Any] = {"model": str(tiny()), "student": str(rewarding), "in": str(problems), "out": "out"}
        return train_teacher(TrainTeacherSettings(**(sizes | paths), student_dtype=dtype)).plan.memory[0].student

    assert plan(tiny("chat", 1)) == pytest.approx(4 * parameters, rel=0.05)
    assert plan(tiny("chat", 1), "bfloat16") == pytest.approx(plan(tiny("chat", 1)) / 2)


def test_adapters_are_trained_over_weights_in_their_first_type(half: Path, rows: Path) -> None:
    train_student(student(half, rows, lora_rank=2))
    assert {tensor.dtype for tensor in load_file("out/adapter_model.safetensors").values()} == {torch.float32}
    assert set(json.loads(Path("out/training.json").read_text())["weights"]) == {"adapter_model.safetensors"}
    merged = open_model("out", ModelSettings(dtype="bfloat16"))
    assert dtypes(merged.checkpoint.folder) == {torch.bfloat16}
    assert merged.identity.weights != open_model(str(half), ModelSettings()).identity.weights


def test_a_model_with_code_is_trained_if_that_is_allowed(
    tiny: Tiny, rows: Path, problems: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny(), tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "coded.CodedConfig", "AutoModelForCausalLM": "coded.CodedModel"}
    config |= {"model_type": "coded", "architectures": ["CodedModel"], "auto_map": code}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "coded.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "class CodedConfig(Qwen2Config):\n    model_type = 'coded'\n"
        "class CodedModel(Qwen2ForCausalLM):\n    config_class = CodedConfig\n"
    )
    with pytest.raises(ModelError, match="coded"):
        train_student(student(folder, rows))
    train_student(student(folder, rows, trust_remote_code=True))
    sizes = {"steps": 1, "questions": 2, "group": 2, "held_out": 2, "save_steps": 1, "max_tokens": 8, "device": "cpu"}
    paths: dict[str, Any] = {"model": "out", "student": str(folder), "in": str(problems), "out": "teacher"}
    with pytest.raises(ModelError, match="code"):
        train_teacher(TrainTeacherSettings(**(sizes | paths)))
    train_teacher(TrainTeacherSettings(**(sizes | paths), trust_remote_code=True))
    for trained in ("out", "teacher", "teacher/best"):
        open_model(trained, ModelSettings(trust_remote_code=True)).load()


def test_sharding_that_would_save_no_model_is_refused() -> None:
    from accelerate import FullyShardedDataParallelPlugin

    def trainer(fsdp: Any = None, zero: Any = None) -> Any:
        return SimpleNamespace(
            accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=fsdp, deepspeed_plugin=zero))
        )

    def sharded(kind: str, version: int = 2) -> Any:
        return FullyShardedDataParallelPlugin(fsdp_version=version, state_dict_type=kind)

    check_sharding(trainer(fsdp=sharded("FULL_STATE_DICT")))
    with pytest.raises(SettingsError, match="set FULL_STATE_DICT"):
        check_sharding(trainer(fsdp=sharded("SHARDED_STATE_DICT")))
    with pytest.raises(SettingsError, match="fsdp_version: set 2"):
        check_sharding(trainer(fsdp=sharded("FULL_STATE_DICT", version=1)))
    check_sharding(trainer(zero=SimpleNamespace(zero_stage=3, zero3_save_16bit_model=True)))
    check_sharding(trainer(zero=SimpleNamespace(zero_stage=2, zero3_save_16bit_model=False)))
    with pytest.raises(SettingsError, match="zero3_save_16bit_model: .* set true"):
        check_sharding(trainer(zero=SimpleNamespace(zero_stage=3, zero3_save_16bit_model=False)))


def test_one_training_at_a_time_writes_to_a_folder(tiny: Tiny, rows: Path) -> None:
    settings = student(tiny(), rows)
    with (
        lock_folder(Path("out")),
        pytest.raises(RunFolderError, match="out: "),
    ):
        train_student(settings)
    assert train_student(settings).steps == 2


def test_a_full_gpu_is_one_line_and_keeps_checkpoints(
    tiny: Tiny, rows: Path, problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *inputs: Any, **options: Any) -> Any:
        if self.state.global_step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")
        return step(self, *inputs, **options)

    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", full)
    sizes = {"questions": 1, "group": 2, "held_out": 1, "max_tokens": 4}
    paths = {"model": str(tiny()), "student": str(tiny("chat", 1)), "in": str(problems), "device": "cpu"}
    teacher = TrainTeacherSettings(**sizes, **paths, out="teacher", steps=2, save_steps=1)
    trainings: list[tuple[str, Callable[[], Any]]] = [
        ("out", lambda: train_student(student(tiny(), rows))),
        ("teacher", lambda: train_teacher(teacher)),
    ]
    for out, train in trainings:
        with pytest.raises(ModelError) as error:
            train()
        assert "\n" not in str(error.value) and "this launch, 1 x cpu: about" in str(error.value)
        assert "docs/gpus.md" in str(error.value) and "Tried to allocate 2.00 GiB" in str(error.value)
        assert len(checkpoints(Path(out))) == 1
    monkeypatch.setattr(Trainer, "training_step", step)
    assert train_student(student(tiny(), rows)).steps == 2


def test_a_training_uses_the_first_gpu(tiny: Tiny, rows: Path) -> None:
    with pytest.raises(SettingsError, match="device: .*CUDA_VISIBLE_DEVICES=1"):
        student(tiny(), rows, device="cuda:1")
    assert student(tiny(), rows, device="cuda:0").device == "cuda:0"
