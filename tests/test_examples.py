"""The examples run as a user runs them, and the stored notebook has the outputs of its code."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.killing import environment, table_bytes

Run = Callable[[str], str]

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example as a script, in the test's folder, and return what it prints."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(name: str) -> str:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return "".join(capsys.readouterr())

    return run


def test_the_quickstart_makes_a_data_set_whose_best_trace_is_right(run: Run) -> None:
    printed = run("quickstart.py")
    assert "6 rows" in printed and "= 30 yes" in printed


def test_existing_traces_are_ranked_by_what_they_explain(run: Run) -> None:
    printed = run("score_existing_traces.py")
    assert printed.index("solves it") < printed.index("gives up")


def test_two_teachers_are_compared(run: Run) -> None:
    printed = run("compare_teachers.py")
    assert "nano-teacher-warm" in printed and "shape: (2, 6)" in printed


def test_a_reward_of_ones_own_chooses_other_traces(run: Run) -> None:
    run("custom_reward.py")
    scores = pl.read_parquet("runs/custom_reward-brief/scores/*.parquet").drop_nulls("reward")
    assert (scores["reward"] - (scores["r_ss"] - 0.01 * scores["thought_tokens"])).abs().max() < 1e-9  # type: ignore[operator]
    assert not scores.equals(pl.read_parquet("runs/rlt/scores/*.parquet"))


def test_a_student_is_trained_on_the_best_explanations(run: Run) -> None:
    pytest.importorskip("trl", reason="needs the extra train")
    printed = run("train_student_on_best.py")
    assert "student: accuracy" in printed and Path("student/model.safetensors").is_file()


def test_the_notebook_holds_the_outputs_of_its_cells() -> None:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    cells: list[dict[str, Any]] = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] and cell["execution_count"] for cell in cells)
    assert not any(output["output_type"] in ("error", "stream") for cell in cells for output in cell["outputs"])
    shutil.copy(EXAMPLES / "questions.jsonl", "questions.jsonl")
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert names["dataset"][0]["messages"][-1]["content"] in "".join(cells[-1]["outputs"][0]["data"]["text/plain"])


@pytest.mark.slow
def test_the_jobs_of_a_slurm_array_make_the_tables_of_one_job(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "rlt-data"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m rlt_data.cli.main "$@"\n')
    command.chmod(0o755)
    paths = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(EXAMPLES.parent)}
    names = {"QUESTIONS": str(EXAMPLES / "questions.jsonl"), "TRACES": "2"}

    def job(runs: str, shares: int, task: int | None = None) -> None:
        array = {"SLURM_ARRAY_TASK_ID": str(task)} if task else {}
        variables = {**environment(), **paths, **names, **array, "RUNS": runs, "SHARES": str(shares)}
        subprocess.run(["bash", str(EXAMPLES / "slurm" / "pipeline.sh")], env=variables, check=True)

    for task in (1, 2):
        job("shares", 2, task)
    job("shares", 2)
    job("shares", 2)  # submitted again
    job("one", 1, 1)
    for name in ("questions", "traces", "scores"):
        assert table_bytes(Path("shares/merged"), name) == table_bytes(Path("one/share-1"), name) != {}, name
    assert Path("shares/merged/dataset").is_dir()


def test_the_task_for_lm_eval_grades_as_evaluate_does() -> None:
    process_results = runpy.run_path(str(EXAMPLES / "lm_eval" / "rlt_countdown.py"))["process_results"]
    problem = {"numbers": [8, 11, 1], "target": 4}
    text = "<thought> 8 + 1 = 9 no </thought> <solution> {} "
    assert process_results(problem, [text.format("11 + 1 - 8")]) == {"accuracy": 1.0}
    assert process_results(problem, [text.format("11 - 8")]) == {"accuracy": 0.0}
