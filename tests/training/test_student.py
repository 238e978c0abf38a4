"""Where the student of the dense reward runs: rewards are equal on every device and behind a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlt_data.engines.transformers.model import CausalModel
from rlt_data.errors import ModelError, SettingsError
from rlt_data.settings import TrainTeacherSettings
from rlt_data.training import teacher
from rlt_data.training.teacher import open_student, train_teacher
from tests.engines.serving import Process, running, unused_port

pytest.importorskip("trl", reason="needs the extra train")
Tiny = Callable[..., Path]
Settings = Callable[..., TrainTeacherSettings]


@pytest.fixture
def settings(tiny: Tiny, problems: Path) -> Settings:
    def make(out: str = "out", **changes: Any) -> TrainTeacherSettings:
        sizes = {"steps": 2, "questions": 2, "group": 4, "micro_batch_size": 4, "held_out": 0, "max_tokens": 12}
        paths = {"model": str(tiny()), "student": str(tiny("chat", 1)), "in": str(problems), "out": out}
        return TrainTeacherSettings(**(sizes | paths | {"device": "cpu", "temperature": 1.0} | changes))

    return make


@pytest.fixture(scope="module")
def server(tiny: Tiny) -> Iterator[Process]:
    with running("completion_server", f"student={tiny('chat', 1)}") as process:
        yield process


def rewards(out: str) -> list[dict[str, float]]:
    entries = map(json.loads, Path(out, "metrics.jsonl").open())
    names = ("reward", "r_ss", "r_kl", "unrewarded")
    return [{name: entry[name] for name in names} for entry in entries if "reward" in entry]


def test_a_served_student_gives_the_rewards_of_a_local_one(settings: Settings, server: Process) -> None:
    train_teacher(settings("local"))
    train_teacher(settings("served", student_url=server.url(model="student")))
    assert rewards("local")[0] == pytest.approx(rewards("served")[0], abs=1e-4)
    assert rewards("local")[0]["unrewarded"] == 0 and server.seen()["requests"] > 8


def test_an_offloaded_student_is_on_its_device_only_while_it_scores(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []

    def move(self: CausalModel, device: torch.device) -> None:
        moves.append(device.type)

    monkeypatch.setattr(CausalModel, "move", move)
    monkeypatch.setattr(teacher, "pick_device", lambda _: torch.device("cuda"))
    train_teacher(settings("local"))
    assert not moves
    train_teacher(settings("offloaded", student_device="offload"))
    assert len(moves) == 1 + 2 * 2  # after loading, and around each of two steps
    assert rewards("local") == rewards("offloaded")


def test_weights_move(settings: Settings) -> None:
    student = open_student(settings(student_device="cpu"))
    student.load()
    engine: Any = student.engine
    engine.model.move(torch.device("meta"))
    assert engine.model.device.type == "meta" and {p.device.type for p in engine.model._model.parameters()} == {"meta"}


def test_each_process_has_a_gpu_for_its_student(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlt_data.engines.open.pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    assert open_student(settings(student_device="cuda:1")).settings.device == "cuda:1"
    assert open_student(settings(student_device="cpu")).settings.device == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert open_student(settings(student_device="cuda:4")).settings.device == "cuda:6"
    with pytest.raises(SettingsError, match="--student-device cuda:3: .* set cuda:4"):
        open_student(settings(student_device="cuda:3"))
    with pytest.raises(SettingsError, match="--student-device cuda:5: .* GPU 7"):
        open_student(settings(student_device="cuda:5"))


def test_mistakes_are_reported_before_anything_is_loaded(settings: Settings) -> None:
    url = f"http://127.0.0.1:{unused_port()}/v1"
    for options, message in (
        ({"student_device": "gpu"}, "student_device: .*cuda:1"),
        ({"student_url": url, "temperature": 0.7}, "temperature: .*--served-temperature 0.7"),
        ({"student_url": url, "student_device": "cpu"}, "student_device: has no effect"),
        ({"student_url": "host:8000"}, "--student-url: number 1 "),
        ({"served_temperature": 0.7}, "served_temperature: has no effect"),
    ):
        with pytest.raises(SettingsError, match=message):
            settings(**options)
    with pytest.raises(SettingsError, match="--student-device cuda:0"):
        train_teacher(settings(student_device="cuda:0"))
    with pytest.raises(SettingsError, match="--student-device offload"):
        train_teacher(settings(student_device="offload"))
    with pytest.raises(ModelError, match=url):
        train_teacher(settings(student_url=url))
    assert not Path("out/training.json").exists()
    train_teacher(settings(student_url=url, dry_run=True))
