"""Fine-tuning a student: what counts in the loss, what is refused, and continuing after a kill."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlt_data.errors import InputError, RunFolderError, SettingsError
from rlt_data.formats import ChatTemplate
from rlt_data.settings import TrainStudentSettings, parse_settings
from rlt_data.training.checkpoints import last_complete_checkpoint
from rlt_data.training.examples import IGNORED, read_conversations, tokenize_texts
from rlt_data.training.sft import train_student
from tests.children import Child, run_child
from tests.conftest import Rlt, write_jsonl

pytest.importorskip("trl", reason="needs the extra train")
Tiny = Callable[..., Path]


def turns(number: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Think first."},
        {"role": "user", "content": f"What is {number} squared?"},
        {"role": "assistant", "content": f"It is {number} times {number}, so {number * number}."},
    ]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns(number)} for number in range(24)])


def settings(model: Path, rows: Path, out: str = "out", **changes: Any) -> TrainStudentSettings:
    small = {"batch_size": 4, "micro_batch_size": 2, "epochs": 1, "learning_rate": 1e-3, "device": "cpu"}
    return TrainStudentSettings(model=str(model), input=str(rows), out=out, **(small | changes))


def shapes(messages: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    system, user, assistant = messages
    named = {"system": "system", "user": "human", "assistant": "gpt"}
    return {
        "messages": {"messages": messages},
        "prompt-completion lists": {"prompt": [system, user], "completion": [assistant]},
        "sharegpt": {"conversations": [{"from": named[turn["role"]], "value": turn["content"]} for turn in messages]},
        "bespoke": {
            "system": system["content"],
            "conversations": [{"from": turn["role"], "value": turn["content"]} for turn in (user, assistant)],
        },
    }


@pytest.mark.parametrize("shape", ["messages", "prompt-completion lists", "sharegpt", "bespoke"])
def test_the_assistants_text_and_its_end_count_in_every_shape(tiny: Tiny, tmp_path: Path, shape: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny())
    file = write_jsonl(tmp_path / "one.jsonl", [shapes(turns(7))[shape]])
    [example] = tokenize_texts(read_conversations(str(file), ChatTemplate(tokenizer)), tokenizer)
    assert tokenizer.decode(example["input_ids"]) + "\n" == tokenizer.apply_chat_template(turns(7), tokenize=False)
    learned = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(learned) == "It is 7 times 7, so 49.<|im_end|>"
    assert all(label in (IGNORED, token) for token, label in zip(example["input_ids"], example["labels"], strict=True))


def test_training_lowers_the_loss_and_the_model_loads(rlt: Rlt, tiny: Tiny, rows: Path) -> None:
    options = "--model", tiny(), "--in", rows, "--device", "cpu", "--batch-size", 4, "--learning-rate", 1e-2
    result = rlt("train-student", *options, "--epochs", 4, "--out", "out")
    assert "24 steps done" in result.stdout
    losses = [
        entry["loss"]
        for entry in map(json.loads, Path("out/metrics.jsonl").read_text().splitlines())
        if "loss" in entry
    ]
    assert losses[-1] < losses[0] - 2
    rlt("train-student", *options, "--epochs", 4, "--out", "out")  # done already: nothing is trained again
    assert json.loads(Path("out/training.json").read_text())["steps"] == 24
    written = Path("out/model.safetensors").stat().st_mtime_ns
    again = rlt("train-student", *options, "--epochs", 4, "--out", "out")  # there is nothing left to do
    assert "24 steps done" in again.stdout and Path("out/model.safetensors").stat().st_mtime_ns == written
    scored = write_jsonl(Path("traces.jsonl"), [{"question": "q", "solution": "s", "explanation": "e"}])
    rlt("score", "--in", scored, "--student", "out", "--teacher", "none", "--out", "run")


def test_a_killed_training_ends_with_the_same_weights(tiny: Tiny, rows: Path) -> None:
    options = "--model", tiny(), "--in", rows, "--device", "cpu", "--batch-size", 4, "--save-steps", 4
    train = "train-student", *options, "--epochs", 4, "--learning-rate", 1e-3, "--out"
    run_child(*train, "straight")
    process = Child(*train, "killed")
    process.wait_for(lambda: list(Path("killed").glob("checkpoint-8/trainer_state.json")))
    process.kill()
    torn = Path("killed/checkpoint-99")
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half a file")
    run_child(*train, "killed")
    straight, resumed = (load_file(f"{out}/model.safetensors") for out in ("straight", "killed"))
    assert all(straight[name].equal(resumed[name]) for name in straight) and not torn.exists()


def test_a_finished_training_continues_to_more_steps_or_epochs(tiny: Tiny, rows: Path) -> None:
    constant: dict[str, Any] = {"schedule": "constant", "warmup": 0.0, "save_steps": 5}
    train_student(settings(tiny(), rows, "straight", **constant, epochs=2))
    train_student(settings(tiny(), rows, "longer", **constant, max_steps=5))
    train_student(settings(tiny(), rows, "longer", **constant, max_steps=8))  # 6 are an epoch
    assert train_student(settings(tiny(), rows, "longer", **constant, epochs=2)).steps == 12
    straight, longer = (load_file(f"{out}/model.safetensors") for out in ("straight", "longer"))
    assert all(straight[name].equal(longer[name]) for name in straight)
    assert json.loads(Path("longer/training.json").read_text())["previous_steps"] == [5, 8]


def test_a_training_whose_continuation_would_differ_is_not_continued(tiny: Tiny, rows: Path) -> None:
    steps = [
        ({"schedule": "cosine"}, "with --schedule cosine, the learning rate depends on .*--model cosine"),
        ({"schedule": "constant", "warmup": 0.5}, "with --warmup-ratio, .*--model constant"),
        ({"schedule": "constant", "warmup": 0.0, "save_steps": 10}, "no checkpoint .*--model constant"),
    ]
    for number, (changes, message) in enumerate(steps):
        out = f"{changes['schedule']}{number}"
        options: dict[str, Any] = {"save_steps": 1, **changes}
        train_student(settings(tiny(), rows, out, **options, max_steps=1))
        with pytest.raises(RunFolderError, match=f"contains a training of 1 steps.*{message}"):
            train_student(settings(tiny(), rows, out, **options, max_steps=2))


def test_a_constant_rate_is_warmed_up(tiny: Tiny, rows: Path) -> None:
    train_student(settings(tiny(), rows, schedule="constant", warmup=0.5, max_steps=4))
    logged = map(json.loads, Path("out/metrics.jsonl").read_text().splitlines())
    assert [entry["learning_rate"] for entry in logged if "loss" in entry] == [0.0, 5e-4, 1e-3, 1e-3]


def test_lora_and_packing_train_too(tiny: Tiny, rows: Path) -> None:
    summary = train_student(settings(tiny(), rows, "lora", lora_rank=4, max_steps=2))
    assert Path("lora/adapter_model.safetensors").exists() and summary.steps == 2
    summary = train_student(settings(tiny(), rows, "packed", packing=True, max_length=256, max_steps=2))
    assert summary.steps == 2 and summary.plan.rows == 24
    summary = train_student(settings(tiny(), rows, "planned", packing=True, max_length=100, batch_size=2))
    assert 0 < summary.plan.steps == summary.steps


def test_a_dry_run_tells_the_plan_and_loads_nothing(rlt: Rlt, tiny: Tiny, rows: Path) -> None:
    options = "--model", tiny(), "--in", rows, "--out", "out", "--dry-run"
    result = rlt("train-student", *options, "--batch-size", 8, "--micro-batch-size", 2, "--epochs", 3)
    assert re.search(r"\b9 steps.*\b4 ", result.stdout) and "learning_rate: 1e-05" in result.stdout
    assert not Path("out").exists()
    assert "max_length: 16384" in rlt("train-student", *options, "--preset", "7b-17k").stdout
    chosen = rlt("train-student", *options, "--preset", "7b-1k", "--epochs", 3).stdout
    assert "epochs: 3" in chosen and "adam_beta2: 0.95" in chosen


def test_long_rows_are_refused_before_anything_is_cut(tiny: Tiny, rows: Path) -> None:
    with pytest.raises(InputError, match="24 of 24 rows .*--max-length 20"):
        train_student(settings(tiny(), rows, max_length=20))
    with pytest.raises(InputError, match="every row is longer"):
        train_student(settings(tiny(), rows, max_length=20, leave_out_long=True))
    lengths = sorted(len(row) for row in _ids(tiny(), rows))
    plan = train_student(settings(tiny(), rows, max_length=lengths[11], leave_out_long=True, dry_run=True)).plan
    assert plan.longest == lengths[11] and plan.rows + plan.left_out == 24


def _ids(model: Path, rows: Path) -> list[list[int]]:
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    return [
        row["input_ids"] for row in tokenize_texts(read_conversations(str(rows), ChatTemplate(tokenizer)), tokenizer)
    ]


def test_another_training_is_not_continued(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    train_student(settings(tiny(), rows, max_steps=1))
    with pytest.raises(RunFolderError, match="learning_rate differ"):
        train_student(settings(tiny(), rows, max_steps=1, learning_rate=1e-4))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="notes"):
        train_student(settings(tiny(), rows, str(tmp_path / "notes")))
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_a_training_continues_in_another_folder(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    train_student(settings(tiny(), rows, max_steps=2, save_steps=1))
    model, data = shutil.copytree(tiny(), tmp_path / "model"), shutil.copy(rows, tmp_path / "data.jsonl")
    Path("out").rename("moved")
    recorded = json.loads(Path("moved/training.json").read_text())
    unfinished = {key: value for key, value in recorded.items() if key not in ("steps", "loss")}
    earlier_version = {key: unfinished[key] for key in ("depends_on", "plan")}
    for content in (unfinished, earlier_version):
        Path("moved/training.json").write_text(json.dumps(content))
        shutil.rmtree("moved/checkpoint-2", ignore_errors=True)
        assert train_student(settings(model, Path(data), "moved", max_steps=2, save_steps=1)).steps == 2
        rewritten = json.loads(Path("moved/training.json").read_text())
        assert rewritten == recorded | {key: rewritten[key] for key in ("settings", "models", "data")}
        assert rewritten["models"]["model"]["name"] == str(model) and rewritten["settings"]["out"] == "moved"


@pytest.mark.parametrize("package", ["tensorboard", "trackio", "wandb"])
def test_a_missing_logger_is_refused_immediately(
    rlt: Rlt, tiny: Tiny, rows: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it was not installed
    options = "--model", tiny(), "--in", rows, "--out", "out", "--log-to", package
    for more in ((), ("--dry-run",)):
        output = rlt("train-student", *options, *more, code=2).output
        assert f"error: --log-to: {package} " in output and f"pip install {package}" in output
    assert not Path("out").exists()


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_that_is_configured_must_be_installed(
    tiny: Tiny, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(SettingsError, match="DeepSpeed, which is not installed"):
        train_student(TrainStudentSettings(model=str(tiny()), input=str(rows), out="out"))
    assert not Path("out").exists()


def test_mistakes_are_reported_before_training(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(InputError, match="question, answer"):
        train_student(settings(tiny(), other))
    with pytest.raises(SettingsError, match="--micro-batch-size"):
        train_student(settings(tiny(), rows, batch_size=3))
    with pytest.raises(SettingsError, match="'epochs'"):
        parse_settings(TrainStudentSettings, {"model": "m", "in": "x", "out": "o", "epoch": 1})
    assert last_complete_checkpoint(tmp_path / "nothing") is None
