"""Data sets in other trainers: the scripts and settings beside the rows."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from rlt_data.engines.config import open_tokenizer
from rlt_data.engines.models import Checkpoint
from rlt_data.settings import ModelSettings
from rlt_data.training.examples import IGNORED, read_conversations, tokenize_texts
from tests.conftest import Rlt, write_jsonl

trl = pytest.importorskip("trl", reason="needs the extra train")

Tiny = Callable[..., Path]
ROWS: list[dict[str, Any]] = [
    {"id": f"{number}{letter}", "question": f"What is {number} + 1?", "solution": f"It is {number + 1}.",
     "explanation": text}
    for number in (1, 2)
    for letter, text in (("a", "We add one to it."), ("b", "Another way."), ("c", "And a third way, longer."))
]  # fmt: skip
SHAPES = ("messages", "prompt-completion", "sharegpt", "bespoke")


@pytest.fixture
def run(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> Path:
    file = write_jsonl(tmp_path / "traces.jsonl", ROWS)
    rlt("score", "--in", file, "--student", tiny(), "--teacher", "none", "--out", "run")
    rlt("rank", "run", "--by", "r_ss")
    return Path("run")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the trainers that scripts make; on a CPU and for one step."""
    made: list[Any] = []
    for name in ("SFT", "DPO"):
        config, trainer = getattr(trl, f"{name}Config"), getattr(trl, f"{name}Trainer")

        def settings(config: Any = config, **options: Any) -> Any:
            more = {"max_steps": 1, "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}
            return config(**options, **more)

        class Recording(trainer):  # type: ignore[misc]
            def train(self, *arguments: Any, **options: Any) -> Any:
                made.append(self)
                return super().train(*arguments, **options)

        monkeypatch.setattr(trl, f"{name}Config", settings)
        monkeypatch.setattr(trl, f"{name}Trainer", Recording)
    return made


def run_script(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train_trl.py", str(model), *flags])
        runpy.run_path("train_trl.py", run_name="__main__")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_script_for_trl_trains_the_tokens_of_train_student(
    rlt: Rlt, tiny: Tiny, run: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    rlt("distill", run, "--select", "all", "--shape", shape, "--out", "data")
    tokenizer, template = open_tokenizer(Checkpoint("m", tiny()), ModelSettings())
    ours = list(tokenize_texts(read_conversations("data/train.jsonl", template), tokenizer))
    run_script(Path("data"), tiny(), monkeypatch)
    [trainer] = trained
    theirs = trainer.train_dataset.to_list()
    assert [row["input_ids"] for row in theirs] == [row["input_ids"] for row in ours] and len(ours) == 6
    for row, example in zip(theirs, ours, strict=True):
        learned = [id for id, label in zip(example["input_ids"], example["labels"], strict=True) if label != IGNORED]
        assert [label for label in row["labels"] if label != IGNORED] == learned
    assert trainer.state.global_step == 1


def test_the_script_for_trl_trains_on_preferences(
    rlt: Rlt, tiny: Tiny, run: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rlt("distill", run, "--shape", "preference", "--out", "data")
    run_script(Path("data"), tiny(), monkeypatch)
    [trainer] = trained
    assert trainer.state.global_step == 1 and len(trainer.train_dataset) == 2


def test_the_script_for_trl_distills_a_model_that_knows_the_solution_into_itself(
    rlt: Rlt, tiny: Tiny, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdft = pytest.importorskip("trl.experimental.sdft")
    rlt("distill", run, "--shape", "privileged", "--out", "data")
    row, *more = [json.loads(line) for line in Path("data/train.jsonl").read_text().splitlines()]
    assert len(more) == 1 and [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    [given] = [given for given in ROWS if given["id"] == row["source_id"]]
    assert row["prompt"][1]["content"] == given["question"] and row["privileged_context"] == given["solution"]
    assert not any(given["explanation"] in str(value) for value in row.values())
    made: list[Any] = []

    class Recording(sdft.SDFTTrainer):  # type: ignore[misc]
        def _tokenize_prompts(self, prompts: list[Any]) -> list[list[int]]:
            ids: list[list[int]] = super()._tokenize_prompts(prompts)
            made.append((self, [self._tokenizer.decode(prompt) for prompt in ids]))
            return ids

    monkeypatch.setattr(sdft, "SDFTTrainer", Recording)
    flags = {"max_steps": 1, "per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4}
    flags |= {"use_cpu": True, "bf16": False, "report_to": "none", "learning_rate": 0.01}
    run_script(
        Path("data"), tiny(), monkeypatch, *(text for key, value in flags.items() for text in (f"--{key}", str(value)))
    )
    (trainer, [student, _]), (_, [teacher, _]) = made
    assert trainer.state.global_step == 1 and trainer.args.max_prompt_length is None
    assert len(trainer._tokenizer(student)["input_ids"]) > 100 and "It is" not in student and "It is" in teacher
    assert Path("data/trained/model.safetensors").is_file() and not Path("data/axolotl.yaml").exists()


@pytest.mark.parametrize("shape", [*SHAPES, "preference"])
def test_the_settings_of_other_trainers_name_existing_columns(rlt: Rlt, run: Path, shape: str) -> None:
    rlt("distill", run, "--shape", shape, "--out", f"data-{shape}")
    folder = Path(f"data-{shape}")
    row = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    [(name, info)] = json.loads((folder / "dataset_info.json").read_text()).items()
    assert name == folder.name and (folder / info["file_name"]).is_file()
    assert set(info["columns"].values()) <= row.keys()
    if "tags" in info:
        turns = row[info["columns"]["messages"]]
        roles = {turn[info["tags"]["role_tag"]] for turn in turns}
        assert roles <= {info["tags"][f"{role}_tag"] for role in ("user", "assistant", "system")}
        assert all(info["tags"]["content_tag"] in turn for turn in turns)
    settings = yaml.safe_load((folder / "axolotl.yaml").read_text())
    [data] = settings["datasets"]
    assert (folder / data["path"]).is_file() and ("rl" in settings) == (shape == "preference")
    fields = [*data.items(), *(data["type"].items() if isinstance(data["type"], dict) else ())]
    assert {value for key, value in fields if key.startswith("field_")} <= row.keys()
    if data["type"] == "chat_template":
        mapped = data["message_property_mappings"]
        assert all({mapped["role"], mapped["content"]} <= turn.keys() for turn in row[data["field_messages"]])


def test_thoughts_in_a_field_are_not_given_to_trainers_that_ignore_it(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    template = Path(str(trl.__file__)).parent / "chat_templates" / "qwen3.jinja"
    file = write_jsonl(tmp_path / "traces.jsonl", ROWS)
    rlt("score", "--in", file, "--student", tiny(), "--teacher", "none", "--chat-template", template, "--out", "run")
    rlt("rank", "run", "--by", "r_ss")
    rlt("distill", "run", "--out", "data")
    assert Path("data/train_trl.py").is_file() and not Path("data/dataset_info.json").exists()
    rlt("distill", "run", "--shape", "sharegpt", "--out", "data")
    assert Path("data/dataset_info.json").is_file()


@pytest.mark.parametrize("format", ["rlt", "think", "own"])
@pytest.mark.parametrize("shape", SHAPES)
def test_our_data_sets_can_be_read_again_in_any_format(
    rlt: Rlt, tiny: Tiny, tmp_path: Path, format: str, shape: str
) -> None:
    name = format
    if format == "own":
        name = str(tmp_path / "own.yaml")
        Path(name).write_text(
            "extends: rlt\nname: own\nthought_tags: ['[[', ']]']\nsolution_tags: ['<<<', '>>>']\n"
            'question_template: "Q: {question} (think!)"\n'
        )
    file = write_jsonl(tmp_path / "traces.jsonl", [row | {"answer": row["solution"][-2]} for row in ROWS])
    rlt("score", "--in", file, "--student", tiny(), "--teacher", "none", "--format", name, "--out", "run")
    rlt("rank", "run", "--by", "r_ss")
    rlt("distill", "run", "--select", "all", "--shape", shape, "--out", "data")
    for source in ("data", "data/train.jsonl"):
        report = json.loads(rlt("check", "--in", source, "--json").stdout)
        assert (report["good"], report["traces"], report["bad"]) == (6, 6, 0)
        [row] = [row for row in ROWS if row["explanation"] == report["example"]["explanation"].strip()][:1]
        assert report["example"]["solution"] in {row["solution"] for row in ROWS}
        assert (
            report["example"]["question"] in {row["question"] for row in ROWS} and report["example"]["system"] is None
        )
    rlt("score", "--in", "data", "--student", tiny(), "--teacher", "none", "--format", name, "--out", "again")
    tables = [pl.read_parquet(f"{run}/questions/*.parquet").select("question_id", "answer").sort("question_id")
              for run in ("run", "again")]  # fmt: skip
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("template", ["qwen3", "deepseek_r1_distill"])
@pytest.mark.parametrize("shape", ["prompt-completion", "preference"])
def test_rendered_rows_of_reasoning_models_can_be_read_again(
    rlt: Rlt, tiny: Tiny, tmp_path: Path, template: str, shape: str
) -> None:
    chat_template = Path(str(trl.__file__)).parent / "chat_templates" / f"{template}.jinja"
    file = write_jsonl(tmp_path / "traces.jsonl", [row | {"system": "Be brief."} for row in ROWS])
    options = "--student", tiny(), "--teacher", "none", "--chat-template", chat_template
    rlt("score", "--in", file, *options, "--out", "run")
    rlt("rank", "run", "--by", "r_ss")
    rlt("distill", "run", "--shape", shape, "--out", "data")
    report = json.loads(rlt("check", "--in", "data", "--json").stdout)
    example, problems = report["example"], {(row["question"], row["solution"]) for row in ROWS}
    assert (report["good"], report["traces"]) == (2, 2) and example["system"] == "Be brief."
    assert (example["question"], example["solution"]) in problems
    assert example["explanation"] in {row["explanation"] for row in ROWS}
    rlt("score", "--in", "data", *options, "--out", "again")
    best = pl.read_parquet("run/ranks/*.parquet").filter(pl.col("rank") == 1)["value"].sort().to_list()
    assert pl.read_parquet("again/scores/*.parquet")["r_ss"].sort().to_list() == pytest.approx(best, abs=1e-5)
