"""Publishing a trained model: its files and no others, no local paths, and a correct card."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlt_data.engines import find_checkpoint
from rlt_data.engines.models import weights_fingerprint
from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.formats import model_format
from rlt_data.publish.models import read_model
from rlt_data.publish.push import PushSummary, push
from rlt_data.publish.redact import redact_paths
from rlt_data.settings import (
    EvaluateSettings,
    PushSettings,
    TrainSolverSettings,
    TrainStudentSettings,
    TrainTeacherSettings,
    WarmUpSettings,
)
from rlt_data.steps.evaluate import evaluate
from rlt_data.training.runs import training_provenance
from rlt_data.training.sft import train_student
from rlt_data.training.solver import train_solver
from rlt_data.training.teacher import train_teacher, warm_up
from tests.conftest import Rlt, write_jsonl
from tests.hub_server import HubServer
from tests.publish.test_card import section, tables

pytest.importorskip("trl", reason="needs the extra train")
NAME = "tester/model"
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
TOKENIZER = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
RECORDS = {"training.json", "metrics.jsonl"}
#: Files that are not in the folder of the training.
ADDED = {"README.md", "rlt-data.json", "plots/training.png", ".gitattributes"}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> dict[str, Any]:
    """Settings of a training of each kind, by their folders; the student is adapters for a model in the Hub's cache."""
    folder = tmp_path_factory.mktemp("trained")
    cached = shutil.copytree(tiny(), folder / "hub" / "models--org--tiny" / "snapshots" / "0123abc")
    asked = [{"question": f"What is {i} + 1?", "solution": f"It is {i + 1}.", "why": "One."} for i in range(6)]
    turns = [
        {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["solution"]}]}
        for row in asked
    ]
    rows, questions = write_jsonl(folder / "rows.jsonl", turns), write_jsonl(folder / "q.jsonl", asked)
    problems = write_jsonl(folder / "countdown.jsonl", [{"numbers": [3, 4, n], "target": 12 + n} for n in range(5, 11)])
    small = {"device": "cpu", "save_steps": 1, "micro_batch_size": 2, "model": str(tiny())}
    tuned = small | {"epochs": 1, "batch_size": 2, "packing": False}
    by_grpo = small | {"steps": 2, "questions": 2, "group": 2, "held_out": 1, "max_tokens": 8}
    by_name: dict[str, tuple[Any, dict[str, Any]]] = {
        "warm": (WarmUpSettings, tuned | {"explanation_column": "why", "activation_checkpointing": False}),
        "teacher": (TrainTeacherSettings, by_grpo | {"student": str(tiny("chat", 1)), "alpha": 0}),
        "student": (TrainStudentSettings, tuned | {"model": str(cached), "lora_rank": 2, "preset": "7b-1k"}),
        "solver": (TrainSolverSettings, by_grpo | {"benchmark": "countdown", "recipe": "trl", "vllm_url": None}),
    }
    inputs = {"warm": questions, "teacher": questions, "student": rows, "solver": problems}
    return {
        name: kind(input=str(inputs[name]), out=str(folder / name), **settings)
        for name, (kind, settings) in by_name.items()
    }


@pytest.fixture(scope="module")
def trained(trainings: dict[str, Any]) -> Path:
    """The parent folder of the finished trainings."""
    for settings, train in zip(trainings.values(), (warm_up, train_teacher, train_student, train_solver), strict=True):
        train(settings)
    return Path(trainings["warm"].out).parent


def pushed(folder: Path, **settings: Any) -> PushSummary:
    return push(PushSettings(input=str(folder), repo_id=NAME, **settings))


def test_a_published_teacher_downloads_unchanged(hub: HubServer, trained: Path, tmp_path: Path) -> None:
    summary = pushed(trained / "teacher", license="mit", base_model="org/base", trained_on=("org/rows",))
    repo = hub.model(NAME)
    files = repo.heads["main"].files
    assert set(files) == MODEL | TOKENIZER | RECORDS | ADDED | {"format.yaml"} and repo.private
    card = ModelCard(files["README.md"].content.decode())
    card.validate()
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert card.data.base_model == "org/base" and card.data.datasets == ["org/rows"] and card.data.license == "mit"
    assert "teacher" in card.data.tags and f"rlt-data generate --in questions.jsonl --teacher {NAME}" in card.text

    recorded = json.loads((trained / "teacher" / "training.json").read_text())
    given, _, settings = tables(section(card.text, "How it was trained"))
    assert {row["setting"]: row["value"] for row in settings}["learning_rate"] == "1e-06"
    hashes = {key: recorded["depends_on"][key] for key in ("model", "student", "data", "format")}
    assert [row["hash"] for row in given] == list(hashes.values())
    assert [row["name"] for row in given] == ["org/base", "chat-1", "org/rows", ""]
    figures = section(card.text, "Results")
    assert (
        "2 steps" in figures and f"{recorded['reward']:.4f}" in figures and f"{recorded['best_reward']:.4f}" in figures
    )
    entries = [json.loads(line) for line in (trained / "teacher" / "metrics.jsonl").read_text().splitlines()]
    [last] = [entry for entry in entries if "reward" in entry and entry["step"] == 2]
    [row] = [row for row in tables(figures)[0] if row["metric"] == "reward"]
    assert float(row["last logged"]) == round(last["reward"], 3) and row["at step"] == "2"

    folder = Path(snapshot_download(NAME, local_dir=tmp_path / "back"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer("What is 1 + 1?", return_tensors="pt")
    before, after = (
        AutoModelForCausalLM.from_pretrained(path)(**text).logits for path in (trained / "teacher", folder)
    )
    assert before.equal(after) and model_format(folder) == model_format(trained / "teacher")

    again = pushed(trained / "teacher", license="mit", base_model="org/base", trained_on=("org/rows",))
    assert again.plan.nothing and again.head == summary.commit and set(hub.uploaded.values()) == {1}


def test_the_best_checkpoint_is_a_model_too(hub: HubServer, trained: Path, tmp_path: Path) -> None:
    summary = pushed(trained / "teacher" / "best", dry_run=True)
    assert not hub.repos and set(summary.sizes) == (MODEL | TOKENIZER | RECORDS | ADDED | {"format.yaml"}) - {
        ".gitattributes"
    }
    best_step = json.loads((trained / "teacher" / "training.json").read_text())["best_step"]
    assert re.findall(r"step (\d+)\.", section(summary.card, "Results")) == [str(best_step)] * 2
    teacher = shutil.copytree(trained / "teacher", tmp_path / "teacher")
    recorded = json.loads((teacher / "training.json").read_text())
    (teacher / "training.json").write_text(json.dumps(recorded | {"best_step": 1}))
    card = pushed(teacher, dry_run=True).card
    assert re.findall(r"step (\d+)\.", section(card, "Results")) == ["1", "2"]


def test_no_local_path_is_published(hub: HubServer, trained: Path, tmp_path: Path) -> None:
    student = shutil.copytree(trained / "student", tmp_path / "student")
    recorded = json.loads((student / "training.json").read_text())
    recorded["depends_on"] |= {"vllm_url": "http://10.0.0.1:8000", "chat_template": "/home/me/chat.jinja"}
    (student / "training.json").write_text(json.dumps(recorded))
    (student / "run.log").write_text("/home/me")
    before = {file.name: file.read_bytes() for file in student.glob("*.*") if file.is_file()}
    pushed(student)
    files = hub.model(NAME).heads["main"].files
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"} | TOKENIZER | RECORDS | ADDED
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
    edited = type(files["README.md"])(f"{card}\nBelow.\n".encode(), lfs=False)
    repo.add("main", "edited", files | {"README.md": edited, "notes.txt": edited})
    pushed(trained / "student")
    merged = ModelCard(repo.heads["main"].files["README.md"].content.decode())
    assert merged.data.library_name == "theirs" and merged.data.to_dict()["extra"] == "kept"
    assert "Below." in merged.text and "# Mine\n" in merged.text and merged.data.license == "mit"
    assert "notes.txt" in repo.heads["main"].files


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Path:
    """An evaluation of the solver, and the one of another model in ``other``, beside it."""
    problems = write_jsonl(trained / "test.jsonl", [{"numbers": [3, 4, n], "target": 7 + n} for n in range(5, 9)])
    for model, name in (("solver", "evaluation"), ("teacher", "other")):
        settings = {"benchmark": "countdown", "input": str(problems), "out": str(trained / name), "max_tokens": 8}
        evaluate(EvaluateSettings(model=str(trained / model), n=2, temperature=0.7, **settings))
    return trained / "evaluation"


def test_evaluations_are_results_of_the_model(hub: HubServer, trained: Path, evaluated: Path) -> None:
    card = ModelCard(pushed(trained / "solver", evaluation=(str(evaluated),)).card)
    card.validate()
    figures = json.loads((evaluated / "evaluation.json").read_text())
    first, second = card.data.eval_results
    assert (first.metric_type, first.metric_value) == ("pass@1", round(figures["accuracy"], 4))
    assert (second.metric_type, second.metric_value) == ("pass@2", round(figures["pass_at"]["2"], 4))
    assert first.dataset_name == "countdown" and first.task_type == "text-generation"
    assert first.metric_args["n"] == 2 and first.metric_args["confidence_interval_95"] == [
        round(figures["low"], 4),
        round(figures["high"], 4),
    ]
    [row] = tables(section(card.text, "Evaluation"))[0]
    assert row["benchmark"] == "countdown" and row["data"] == "test.jsonl" and row["questions"] == "4"
    assert row["pass@1"] == f"{figures['accuracy']:.1%}" and "n 2, temperature 0.7" in row["sampling"]
    assert card.data.model_name == "model" and "not from a benchmark" not in card.text
    assert first.metric_args["prompts"] == row["prompts"] == "format rlt" and "waits" not in first.metric_args
    evaluation = section(card.text, "Evaluation")
    assert "```text\n{question}\n```" in evaluation and figures["prompts"]["solver_system"] in evaluation
    assert str(trained) not in str(card)


def test_results_of_others_stay_and_those_of_earlier_pushes_do_not(
    hub: HubServer, trained: Path, evaluated: Path
) -> None:
    pushed(trained / "solver", evaluation=(str(evaluated),))
    repo = hub.model(NAME)
    files = repo.heads["main"].files
    card = ModelCard(files["README.md"].content.decode())
    theirs = EvalResult("text-generation", "org/test", "Test", "accuracy", 0.5)
    card.data.eval_results = [*card.data.eval_results, theirs]
    edited = type(files["README.md"])(str(card).encode(), lfs=False)
    repo.add("main", "edited", files | {"README.md": edited})
    for evaluations in ((str(evaluated),), ()):
        pushed(trained / "solver", evaluation=evaluations)
        results = ModelCard(repo.heads["main"].files["README.md"].content.decode()).data.eval_results
        assert theirs in results and len(results) == 1 + 2 * len(evaluations)


def test_an_evaluation_of_other_weights_is_refused(rlt: Rlt, hub: HubServer, trained: Path, evaluated: Path) -> None:
    command = "push", trained / "solver", "--repo-id", NAME, "--evaluation"
    other = rlt(*command, evaluated.parent / "other", code=2).output
    assert re.search("error: --evaluation: .*other evaluated .*teacher, whose weights are not those of", other)
    missing = rlt(*command, trained, code=5).output
    assert "not a run folder" in missing
    (evaluated / "evaluation.json").rename(evaluated / "kept")
    assert "is not a finished evaluation" in rlt(*command, evaluated, code=5).output
    (evaluated / "kept").rename(evaluated / "evaluation.json")
    assert not hub.repos


def test_an_unfinished_training_is_refused(rlt: Rlt, hub: HubServer, trained: Path, tmp_path: Path) -> None:
    begun = shutil.copytree(trained / "student", tmp_path / "begun")
    recorded = json.loads((begun / "training.json").read_text())
    (begun / "training.json").write_text(json.dumps({key: recorded[key] for key in ("depends_on", "plan")}))
    assert str(begun) in rlt("push", "--in", begun, "--repo-id", NAME, code=5).output
    empty = shutil.copytree(trained / "student", tmp_path / "empty")
    (empty / "adapter_model.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"no weights \(\*\.safetensors\)"):
        pushed(empty)
    torn = shutil.copytree(trained / "student", tmp_path / "torn")
    (torn / "metrics.jsonl").write_text('{"step": 1}\n{"step"')
    with pytest.raises(RunFolderError, match="metrics.jsonl: "):
        pushed(torn)
    (torn / "training.json").write_text("[]")
    with pytest.raises(RunFolderError, match="training.json: "):
        pushed(torn)
    assert not hub.requests


@pytest.mark.parametrize(
    ("name", "kind", "module", "function"),
    [
        ("warm", "warmed-up-teacher", "teacher", "warm_up"),
        ("teacher", "teacher", "teacher", "train_teacher"),
        ("student", "student", "sft", "train_student"),
        ("solver", "solver", "solver", "train_solver"),
    ],
)
def test_the_command_on_the_card_is_the_one_that_trained_it(
    rlt: Rlt,
    hub: HubServer,
    trained: Path,
    trainings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
    module: str,
    function: str,
) -> None:
    card = pushed(trained / name, dry_run=True).card
    assert f"- {kind}\n" in card and read_model(trained / name).kind == kind
    command = section(card, "How it was trained").split("```sh\n")[1].split("\n```")[0]
    seen = []

    def train(settings: Any, _: Any) -> None:
        seen.append(settings.model_dump())
        raise SettingsError("seen")

    monkeypatch.setattr(f"rlt_data.training.{module}.{function}", train)
    rlt(*shlex.split(command)[1:], code=2)
    assert json.loads(json.dumps(seen)) == [redact_paths(trainings[name].model_dump(mode="json"))]


def test_what_is_known_of_models_and_data_is_recorded(hub: HubServer, trained: Path, trainings: dict[str, Any]) -> None:
    recorded = json.loads((trained / "teacher" / "training.json").read_text())
    given = trainings["teacher"]
    assert recorded["models"] == {
        "model": {"name": given.model, "revision": None},
        "student": {"name": given.student, "revision": None},
    }
    assert recorded["data"] == {"name": given.input, "on_hub": False}
    assert not set(recorded["depends_on"]) & {"command", "settings", "models", "versions", "in", "input", "out"}
    assert {"trl", "torch"} < recorded["versions"].keys()
    of_the_hub = TrainStudentSettings(model="nano-student", input="org/rows", out="out")
    assert training_provenance(of_the_hub)["data"] == {"name": "org/rows", "on_hub": True}


def test_a_published_teacher_is_trained_and_used_by_its_name(
    hub: HubServer, trained: Path, trainings: dict[str, Any], tmp_path: Path
) -> None:
    teacher = shutil.copytree(trained / "teacher", tmp_path / "teacher")
    own = (teacher / "format.yaml").read_text().replace("name: rlt", "name: mine")
    (teacher / "format.yaml").write_text(own)
    commit = pushed(teacher).commit
    for tokenizer_only in (True, False):
        checkpoint = find_checkpoint(NAME, tokenizer_only=tokenizer_only)
        format = model_format(checkpoint.folder)
        assert checkpoint.revision == commit and format and format.name == "mine"
    out = tmp_path / "more"
    warm_up(trainings["warm"].model_copy(update={"model": NAME, "out": str(out)}))
    recorded = json.loads((out / "training.json").read_text())
    assert recorded["models"]["model"] == {"name": NAME, "revision": commit} and recorded["command"]
    (out / "training.json").write_text(json.dumps(recorded | {"data": {"name": "org/rows", "on_hub": True}}))
    card = push(PushSettings(input=str(out), repo_id="tester/more", dry_run=True)).card
    data = ModelCard(card).data
    assert data.base_model == NAME and data.datasets == ["org/rows"]
    model, rows = tables(section(card, "How it was trained"))[0]
    assert model["name"] == NAME and model["revision"] == commit and rows["name"] == "org/rows"
    card = push(PushSettings(input=str(out), repo_id="tester/more", dry_run=True, base_model="org/first")).card
    assert ModelCard(card).data.base_model == "org/first" and commit not in card


def test_a_published_adapter_is_used_by_its_name(hub: HubServer, trained: Path, tmp_path: Path) -> None:
    base = pushed(trained / "teacher").commit
    turns = [{"role": "user", "content": "3?"}, {"role": "assistant", "content": "It is 3."}]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns}] * 2)
    adapter = tmp_path / "adapter"
    options: dict[str, Any] = {"lora_rank": 2, "max_steps": 1, "batch_size": 2, "device": "cpu"}
    train_student(TrainStudentSettings(model=NAME, input=str(rows), out=str(adapter), **options))
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (NAME, base)
    commit = push(PushSettings(input=str(adapter), repo_id="tester/adapter")).commit
    own = find_checkpoint(str(adapter))
    for tokenizer_only in (True, False):
        checkpoint = find_checkpoint("tester/adapter", tokenizer_only=tokenizer_only)
        assert checkpoint.revision == commit and weights_fingerprint(checkpoint) == weights_fingerprint(own)


@pytest.mark.parametrize(
    ("settings", "has_format", "kind", "said"),
    [
        ({"benchmark": "math"}, True, "solver", f"rlt-data evaluate --model {NAME}"),
        ({"lambda_": 3.0}, True, "teacher", "rlt-data generate"),
        ({}, True, "fine-tuned", "`format.yaml`"),
        ({}, False, "student", "AutoModelForCausalLM"),
    ],
)
def test_a_training_that_recorded_no_command_is_told_by_its_settings(
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


def test_an_adapter_for_a_local_model_needs_its_name_on_the_hub(hub: HubServer, trained: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "3?"}, {"role": "assistant", "content": "It is 3."}]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns}] * 2)
    options: dict[str, Any] = {"lora_rank": 2, "max_steps": 1, "batch_size": 2, "device": "cpu", "input": str(rows)}
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    train_student(TrainStudentSettings(model=str(trained / "teacher"), out=first, **options))
    train_student(TrainStudentSettings(model=first, out=second, **options))
    for adapter in (first, second):
        with pytest.raises(RunFolderError, match="is an adapter for .* not on the Hub; .*--base-model"):
            push(PushSettings(input=adapter, repo_id="tester/adapter", dry_run=True))
    card = push(PushSettings(input=second, repo_id="tester/adapter", dry_run=True, base_model="org/first")).card
    assert ModelCard(card).data.base_model == "org/first"
