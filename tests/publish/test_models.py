"""Publishing what a training made: the model's files and no others, nothing of the machine, and a card that is true."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlt_data.errors import RunFolderError
from rlt_data.formats import own_format
from rlt_data.publish.models import read_model
from rlt_data.settings import PushSettings
from rlt_data.steps.push import PushSummary, push
from tests.conftest import Rlt, write_jsonl
from tests.hub_server import HubServer
from tests.publish.test_card import section, tables

pytest.importorskip("trl", reason="needs the extra train")
NAME = "tester/model"
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
TOKENIZER = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
RECORDS = {"training.json", "metrics.jsonl"}
OURS = {"README.md", "rlt-data.json", "plots/training.png", ".gitattributes"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    """A folder with a teacher, and a student that is adapters for a model in the Hub's cache."""
    from rlt_data.settings import TrainStudentSettings, TrainTeacherSettings
    from rlt_data.training.sft import train_student
    from rlt_data.training.teacher import train_teacher

    folder = tmp_path_factory.mktemp("trained")
    cached = shutil.copytree(tiny(), folder / "hub" / "models--org--tiny" / "snapshots" / "0123abc")
    asked = [{"question": f"What is {i} + 1?", "solution": f"It is {i + 1}."} for i in range(6)]
    turns = [
        {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["solution"]}]}
        for row in asked
    ]
    small: dict[str, Any] = {"device": "cpu", "save_steps": 1, "micro_batch_size": 2}
    train_teacher(
        TrainTeacherSettings(
            model=str(tiny()), student=str(tiny("chat", 1)), input=str(write_jsonl(folder / "q.jsonl", asked)),
            out=str(folder / "teacher"), steps=2, questions=2, group=2, held_out=1, max_tokens=8, **small,
        )
    )  # fmt: skip
    small |= {"out": str(folder / "student"), "epochs": 1, "batch_size": 2, "lora_rank": 2}
    train_student(
        TrainStudentSettings(model=str(cached), input=str(write_jsonl(folder / "rows.jsonl", turns)), **small)
    )
    return folder


def pushed(folder: Path, **settings: Any) -> PushSummary:
    return push(PushSettings(input=str(folder), repo_id=NAME, **settings))


def test_a_teacher_comes_back_as_it_is(hub: HubServer, trained: Path, tmp_path: Path) -> None:
    summary = pushed(trained / "teacher", license="mit", base_model="org/base", trained_on=("org/rows",))
    repo = hub.model(NAME)
    files = repo.heads["main"].files
    assert set(files) == MODEL | TOKENIZER | RECORDS | OURS | {"format.yaml"} and repo.private
    card = ModelCard(files["README.md"].content.decode())
    card.validate()
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert card.data.base_model == "org/base" and card.data.datasets == ["org/rows"] and card.data.license == "mit"
    assert "teacher" in card.data.tags and "rlt-data generate --in questions.jsonl --teacher" in card.text

    recorded = json.loads((trained / "teacher" / "training.json").read_text())
    _, hashes, settings = tables(section(card.text, "How it was made"))
    assert {row["setting"]: row["value"] for row in settings}["learning_rate"] == "1e-06"
    assert {row["hash"] for row in hashes} == {
        recorded["depends_on"][key] for key in ("model", "student", "data", "format")
    }
    figures = section(card.text, "Figures")
    assert f"2 steps; mean reward {recorded['reward']:.4f}" in figures and f"{recorded['best_reward']:.4f}" in figures
    entries = [json.loads(line) for line in (trained / "teacher" / "metrics.jsonl").read_text().splitlines()]
    [last] = [entry for entry in entries if "reward" in entry and entry["step"] == 2]
    [row] = [row for row in tables(figures)[0] if row["figure"] == "reward"]
    assert float(row["last logged"]) == round(last["reward"], 3) and row["at step"] == "2"

    folder = Path(snapshot_download(NAME, local_dir=tmp_path / "back"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer("What is 1 + 1?", return_tensors="pt")
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(place)(**text).logits for place in (trained / "teacher", folder)
    )
    assert ours.equal(theirs) and own_format(folder) == own_format(trained / "teacher")

    again = pushed(trained / "teacher", license="mit", base_model="org/base", trained_on=("org/rows",))
    assert again.plan.nothing and again.head == summary.commit and set(hub.uploaded.values()) == {1}


def test_the_best_checkpoint_is_a_model_too(hub: HubServer, trained: Path, tmp_path: Path) -> None:
    summary = pushed(trained / "teacher" / "best", dry_run=True)
    assert not hub.repos and set(summary.sizes) == (MODEL | TOKENIZER | RECORDS | OURS | {"format.yaml"}) - {
        ".gitattributes"
    }
    assert "these weights." in summary.card and "not of these weights" not in summary.card
    teacher = shutil.copytree(trained / "teacher", tmp_path / "teacher")
    recorded = json.loads((teacher / "training.json").read_text())
    (teacher / "training.json").write_text(json.dumps(recorded | {"best_step": 1}))
    assert "is that of step 1, not of these weights." in pushed(teacher, dry_run=True).card


def test_nothing_of_the_makers_machine_goes_with_it(hub: HubServer, trained: Path, tmp_path: Path) -> None:
    student = shutil.copytree(trained / "student", tmp_path / "student")
    recorded = json.loads((student / "training.json").read_text())
    recorded["depends_on"] |= {"vllm_url": "http://10.0.0.1:8000", "chat_template": "/home/me/chat.jinja"}
    (student / "training.json").write_text(json.dumps(recorded))
    (student / "run.log").write_text("/home/me")
    before = {file.name: file.read_bytes() for file in student.glob("*.*") if file.is_file()}
    pushed(student)
    files = hub.model(NAME).heads["main"].files
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"} | TOKENIZER | RECORDS | OURS
    everything = b"".join(file.content for path, file in files.items() if not path.endswith("safetensors"))
    assert not any(place in everything for place in (b"/home/me", b"10.0.0.1", str(trained).encode(), b"snapshots"))
    assert json.loads(files["adapter_config.json"].content)["base_model_name_or_path"] == "org/tiny"
    public = json.loads(files["training.json"].content)["depends_on"]
    assert public["chat_template"] == "chat.jinja" and public["learning_rate"] == 1e-5
    card = ModelCard(files["README.md"].content.decode())
    assert card.data.base_model == "org/tiny" and card.data.library_name == "peft" and "student" in card.data.tags
    assert {file.name: file.read_bytes() for file in student.glob("*.*") if file.is_file()} == before


def test_others_text_stays_in_a_models_card(hub: HubServer, trained: Path) -> None:
    pushed(trained / "student", title="Mine", license="mit")
    repo = hub.model(NAME)
    files = repo.heads["main"].files
    card = files["README.md"].content.decode().replace("library_name: peft", "library_name: theirs\nextra: kept")
    theirs = type(files["README.md"])(f"{card}\nBelow.\n".encode(), lfs=False)
    repo.add("main", "edited", files | {"README.md": theirs, "notes.txt": theirs})
    pushed(trained / "student")
    merged = ModelCard(repo.heads["main"].files["README.md"].content.decode())
    assert merged.data.library_name == "theirs" and merged.data.to_dict()["extra"] == "kept"
    assert "Below." in merged.text and "# Mine\n" in merged.text and merged.data.license == "mit"
    assert "notes.txt" in repo.heads["main"].files


def test_what_is_not_finished_is_refused(rlt: Rlt, hub: HubServer, trained: Path, tmp_path: Path) -> None:
    begun = shutil.copytree(trained / "student", tmp_path / "begun")
    recorded = json.loads((begun / "training.json").read_text())
    (begun / "training.json").write_text(json.dumps({key: recorded[key] for key in ("depends_on", "plan")}))
    assert "the training is not finished" in rlt("push", "--in", begun, "--repo-id", NAME, code=5).output
    empty = shutil.copytree(trained / "student", tmp_path / "empty")
    (empty / "adapter_model.safetensors").unlink()
    with pytest.raises(RunFolderError, match="there are no weights"):
        pushed(empty)
    assert not hub.requests


@pytest.mark.parametrize(
    ("settings", "has_format", "kind", "said"),
    [
        ({"benchmark": "math"}, True, "solver", "rlt-data evaluate --model model"),
        ({"lambda_": 3.0}, True, "teacher", "rlt-data generate"),
        ({}, True, "fine-tuned", "a warmed-up teacher"),
        ({}, False, "student", "A student"),
    ],
)
def test_the_card_says_what_it_is(
    hub: HubServer, tmp_path: Path, settings: dict[str, Any], has_format: bool, kind: str, said: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    (folder / "training.json").write_text(json.dumps({"depends_on": settings, "steps": 3}))
    if has_format:
        (folder / "format.yaml").write_text("name: rlt\n")
    assert read_model(folder).kind == kind
    card = pushed(folder, dry_run=True).card
    assert said in card and f"- {kind}\n" in card and "base_model" not in card
