"""LLaMA-Factory reads our data sets as its own loader says; ``make test-llamafactory`` installs it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlt_data.engines.config import open_tokenizer
from rlt_data.engines.models import Checkpoint
from rlt_data.settings import ModelSettings
from rlt_data.training.examples import IGNORED, read_conversations, tokenize_texts
from tests.conftest import Rlt, write_jsonl

PYTHON = os.environ.get("RLT_DATA_LLAMAFACTORY", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="make test-llamafactory sets RLT_DATA_LLAMAFACTORY")

ROWS: list[dict[str, Any]] = [
    {"id": f"{number}{letter}", "question": f"What is {number} + 1?", "solution": f"It is {number + 1}.",
     "explanation": text}
    for number in (1, 2)
    for letter, text in (("a", "We add one to it."), ("b", "Another way, longer."))
]  # fmt: skip


@pytest.fixture
def load(rlt: Rlt, tiny: Callable[..., Path], tmp_path: Path) -> Callable[[str, str, str], list[dict[str, Any]]]:
    file = write_jsonl(tmp_path / "traces.jsonl", ROWS)
    rlt("score", "--in", file, "--student", tiny(), "--teacher", "none", "--out", "run")
    rlt("rank", "run", "--by", "r_ss")

    def loaded(shape: str, template: str, stage: str) -> list[dict[str, Any]]:
        rlt("distill", "run", "--select", "best" if stage == "rm" else "all", "--shape", shape, "--out", "data")
        script = Path(__file__).with_name("load.py")
        command = [PYTHON, str(script), str(tiny()), "data", "data", template, stage]
        return list(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))

    return loaded


@pytest.mark.parametrize(
    ("shape", "template", "after"),
    [
        ("messages", "qwen", "\n"),
        ("sharegpt", "qwen", "\n"),
        ("bespoke", "qwen", "\n"),
        ("prompt-completion", "empty", ""),
    ],
)
def test_rows_have_the_tokens_and_labels_of_train_student(
    load: Callable[..., list[dict[str, Any]]], tiny: Callable[..., Path], shape: str, template: str, after: str
) -> None:
    """LLaMA-Factory's own chat templates add the line break after the end of the turn."""
    rows = load(shape, template, "sft")
    tokenizer, own = open_tokenizer(Checkpoint("m", tiny()), ModelSettings())
    ours = list(tokenize_texts(read_conversations("data/train.jsonl", own), tokenizer))
    assert len(rows) == len(ours) == 4
    for row, example in zip(rows, ours, strict=True):
        extra = tokenizer(after, add_special_tokens=False)["input_ids"]
        assert row["input_ids"] == example["input_ids"] + extra and row["labels"] == example["labels"] + extra
        assert row["labels"].count(IGNORED) > 20


def test_preferences_are_pairs(load: Callable[..., list[dict[str, Any]]]) -> None:
    rows = load("preference", "qwen", "rm")
    assert len(rows) == 2 and all(row["chosen_input_ids"] != row["rejected_input_ids"] for row in rows)
