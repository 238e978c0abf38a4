"""Checkpoints that lost something: noticed before a training continues, and never continued from silently."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlt_data.settings import TrainStudentSettings
from rlt_data.training.checkpoints import RECORD, checkpoints, last_complete_checkpoint
from rlt_data.training.sft import train_student
from tests.conftest import Rlt, write_jsonl

pytest.importorskip("trl", reason="needs the extra train")
Tiny = Callable[..., Path]
Train = Callable[..., str]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}."}] for n in range(12)]
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", [{"messages": messages} for messages in turns])


@pytest.fixture(scope="module")
def finished(tiny: Tiny, rows: Path) -> Path:
    """A training of six steps that was not interrupted."""
    sizes: dict[str, Any] = {"batch_size": 2, "micro_batch_size": 2, "epochs": 1, "save_steps": 2, "device": "cpu"}
    sizes |= {"keep_checkpoints": 3, "learning_rate": 1e-3}
    out = rows.parent / "straight"
    train_student(TrainStudentSettings(model=str(tiny()), input=str(rows), out=str(out), **sizes))
    return out


@pytest.fixture
def train(rlt: Rlt, tiny: Tiny, rows: Path) -> Train:
    """Train for six steps with a checkpoint every two; return what is printed."""

    def train(out: str, code: int = 0, **changes: Any) -> str:
        flags = {"batch-size": 2, "micro-batch-size": 2, "epochs": 1, "learning-rate": 1e-3, "save-steps": 2} | changes
        options = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
        fixed = "--model", tiny(), "--in", rows, "--device", "cpu", "--keep-checkpoints", 3, "--out", out
        return rlt("train-student", *fixed, *options, code=code).output

    return train


@pytest.fixture
def interrupted(finished: Path) -> Path:
    """A training that was stopped after step 4."""
    shutil.copytree(finished, "straight")
    shutil.copytree(finished, "cut")
    shutil.rmtree("cut/checkpoint-6")
    for file in Path("cut").glob("*.safetensors"):
        file.unlink()
    recorded = json.loads(Path("cut/training.json").read_text())
    Path("cut/training.json").write_text(json.dumps({key: recorded[key] for key in ("depends_on", "plan")}))
    return Path("cut")


def same_model(one: str, other: str) -> bool:
    return Path(one, "model.safetensors").read_bytes() == Path(other, "model.safetensors").read_bytes()


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "model.safetensors cut off": lambda path: (path / "model.safetensors").write_bytes(b"\0" * 1000),
    "model.safetensors empty": lambda path: (path / "model.safetensors").write_bytes(b""),
    "optimizer.pt gone": lambda path: (path / "optimizer.pt").unlink(),
    "optimizer.pt cut off": lambda path: (path / "optimizer.pt").write_bytes(
        (path / "optimizer.pt").read_bytes()[:-2000]
    ),
    "scheduler.pt gone": lambda path: (path / "scheduler.pt").unlink(),
    "rng_state.pth gone": lambda path: (path / "rng_state.pth").unlink(),
}


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        pytest.param(kind, record, marks=[] if record or kind.endswith("cut off") else pytest.mark.slow)
        for kind in DAMAGES
        for record in (True, False)
    ],
)
def test_a_damaged_checkpoint_is_left_for_the_one_before(
    train: Train, interrupted: Path, kind: str, record: bool
) -> None:
    if not record:
        for checkpoint in checkpoints(interrupted):
            (checkpoint / RECORD).unlink()
    DAMAGES[kind](interrupted / "checkpoint-4")
    output = " ".join(train("cut").split())
    assert "damaged checkpoint cut/checkpoint-4 (" in output
    assert kind.split()[0].removesuffix(".pth") in output and "continuing from cut/checkpoint-2" in output
    assert same_model("cut", "straight")


def test_one_changed_bit_is_noticed(train: Train, interrupted: Path) -> None:
    flipped(interrupted / "checkpoint-4" / "optimizer.pt")
    assert "optimizer.pt" in train("cut") and same_model("cut", "straight")
    (interrupted / "checkpoint-6" / RECORD).write_text("{")
    assert last_complete_checkpoint(interrupted) == interrupted / "checkpoint-4"


def test_without_a_complete_checkpoint_a_training_is_refused_and_nothing_removed(
    train: Train, interrupted: Path
) -> None:
    for checkpoint in checkpoints(interrupted):
        (checkpoint / "model.safetensors").write_bytes(b"")
    output = " ".join(train("cut", code=5).split())
    assert (
        "error: cut: " in output
        and "checkpoint-4: model.safetensors" in output
        and "checkpoint-2: model.safetensors" in output
    )
    assert [path.name for path in checkpoints(interrupted)] == ["checkpoint-4", "checkpoint-2"]


def test_what_was_never_finished_does_not_count(train: Train, interrupted: Path) -> None:
    (interrupted / "checkpoint-4" / RECORD).unlink()
    (interrupted / "checkpoint-4" / "trainer_state.json").write_text('{"epo')
    foreign = interrupted / "checkpoint-old"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    train("cut")
    assert same_model("cut", "straight") and (foreign / "mine.txt").read_text() == "mine"
    only = Path("only")
    (only / "checkpoint-2").mkdir(parents=True)
    (only / "checkpoint-2" / "model.safetensors").write_bytes(b"half")
    assert last_complete_checkpoint(only) is None and not (only / "checkpoint-2").exists()


def test_every_checkpoint_that_is_kept_has_a_record(train: Train) -> None:
    train("out", keep_checkpoints=1)
    assert [path.name for path in checkpoints(Path("out"))] == ["checkpoint-6"]
    record = json.loads((Path("out/checkpoint-6") / RECORD).read_text())["files"]
    names = {path.name for path in Path("out/checkpoint-6").iterdir()}
    assert set(record) == names - {RECORD} and record["model.safetensors"]["bytes"] > 1000


@pytest.mark.parametrize("old", [False, True], ids=["with a record", "of an earlier version"])
def test_a_finished_training_whose_model_is_gone_makes_it_again(train: Train, old: bool) -> None:
    length = {"max_steps": 4}  # within an epoch
    train("out", **length)
    shutil.copytree("out", "straight")
    if old:
        recorded = json.loads(Path("out/training.json").read_text())
        del recorded["weights"]
        Path("out/training.json").write_text(json.dumps(recorded))
    Path("out/model.safetensors").unlink()
    output = train("out", **length)
    assert ("no *.safetensors" if old else "model.safetensors is missing") in output and same_model("out", "straight")
    assert json.loads(Path("out/training.json").read_text()) == json.loads(Path("straight/training.json").read_text())
    if not old:
        flipped(Path("out/model.safetensors"))
        assert "out: model.safetensors has changed" in train("out", **length) and same_model("out", "straight")
    Path("out/model.safetensors").unlink()
    for checkpoint in checkpoints(Path("out")):
        shutil.rmtree(checkpoint)
    output = " ".join(train("out", code=5, **length).split())
    assert "error: out: " in output and "model.safetensors is missing" in output


@pytest.mark.parametrize("content", ["{", "[]", '{"depends_on": 3}', '{"depends_on": {}, "weights": []}', "\x00"])
def test_a_damaged_record_of_the_training_is_one_line(train: Train, content: str) -> None:
    Path("out").mkdir()
    Path("out/training.json").write_text(content)
    output = train("out", code=5)
    assert "training.json" in output and "choose another --out" in " ".join(output.split())
