"""Scores are the same whether worker processes prepare the traces or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rlt_data.steps import blocks, processes
from rlt_data.steps.blocks import to_rows
from tests.conftest import Rlt, write_jsonl
from tests.killing import table_bytes

Tiny = Callable[..., Path]

MEASURES = ("--measures", "ifd", "--measures", "local", "--measures", "leak")


def use_workers(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Use two workers after the first block; return a list that receives what each of them is sent first."""
    functions: list[bytes] = []
    worker = processes._Worker

    def start(function: bytes) -> Any:
        functions.append(function)
        return worker(function)

    monkeypatch.setattr(processes, "_Worker", start)
    monkeypatch.setattr(processes, "START_SECONDS", 0.0)
    monkeypatch.setattr(processes, "START_SHARE", 0.0)
    monkeypatch.setattr(processes, "cores", lambda: 3)
    return functions


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    rows = [
        {
            "id": f"{number}/{sample}",
            "question": f"What is {number} + 1?",
            "solution": str(number + 1) if number != 3 else "2 <|end_of_solution|> 3",
            "completion": f"Où est l'élève? 🙂 We add {number} and 1 and get {number + 1}. " * (sample + 1)
            + ("<|end_of_explanation|>" if sample else ""),
        }
        for number in range(8)
        for sample in range(3)
    ]
    return write_jsonl(tmp_path / "traces.jsonl", rows)


@pytest.mark.parametrize("teacher", [None, "chat", "base"])
def test_workers_change_no_byte_of_the_scores(
    rlt: Rlt, tiny: Tiny, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str | None
) -> None:
    monkeypatch.setattr(blocks, "_TRACES", 5)
    models = ["--student", tiny("chat"), "--teacher", tiny(teacher, 1) if teacher else "none"]
    command = ["score", "--in", traces, *models, "--format", "rlt", "--per-token", *MEASURES, "--skip-bad-rows"]
    rlt(*command, "--out", "one")
    functions = use_workers(monkeypatch)
    output = rlt(*command, "--out", "several").output
    assert len(functions) == 2
    assert "in this process alone" not in output
    assert table_bytes(tmp_path / "several", "scores") == table_bytes(tmp_path / "one", "scores")
    assert (tmp_path / "several/errors.jsonl").exists() == (tmp_path / "one/errors.jsonl").exists()


def test_workers_open_tokenizers_of_a_models_own_code(
    rlt: Rlt, tiny: Tiny, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "own"
    shutil.copytree(tiny("chat"), model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    monkeypatch.setattr(blocks, "_TRACES", 5)
    functions = use_workers(monkeypatch)
    command = ["score", "--in", traces, "--student", model, "--teacher", "none", "--format", "rlt", "--skip-bad-rows"]
    output = rlt(*command, "--trust-remote-code", "--out", "run").output
    assert len(functions) == 2 and b"OwnTokenizer" in functions[0]
    assert "in this process alone" not in output


def test_rows_have_arrays_for_lists() -> None:
    schema = pa.schema([("id", pa.string()), ("ids", pa.list_(pa.int32())), ("logprobs", pa.list_(pa.float32()))])
    rows = [
        {"id": "a", "ids": [1, 2, 3], "logprobs": [-0.5, -1.0, 0.0]},
        {"id": "b", "ids": None, "logprobs": []},
        {"id": None, "ids": [4], "logprobs": None},
        {"id": "d", "ids": [], "logprobs": [-2.0]},
    ]
    table = pa.concat_tables([pa.Table.from_pylist(rows[:3], schema), pa.Table.from_pylist(rows[3:], schema)])
    for part in (table, table.slice(1), table.slice(2, 1), table.slice(0, 0)):
        found = to_rows(part)
        lists = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in found]
        assert lists == part.to_pylist()
        assert all(row["ids"] is None or row["ids"].dtype == "int32" for row in found)
