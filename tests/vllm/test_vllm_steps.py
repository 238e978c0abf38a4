"""Steps through real vLLM, from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rlt_data import CountdownSettings, make_countdown
from tests.conftest import Rlt
from tests.killing import command, environment, run_to_end

pytest.importorskip("vllm")

Read = Callable[[Path, str], pl.DataFrame]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    make_countdown(CountdownSettings(out=str(file), rows=300))
    return file


@pytest.fixture(scope="module")
def run(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one engine, without interruptions."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    run_to_end(generate(questions, folder))
    return folder


def generate(questions: Path, run: Path, *more: Any) -> list[str]:
    options = ("--engine", "vllm", "--dtype", "float32", "--n", "8", "--max-tokens", "120", *map(str, more))
    return command("generate", "--teacher", "nano", "--in", questions, "--out", run, *options)


def texts(read: Read, run: Path) -> list[Any]:
    traces = read(run, "traces")
    assert traces["trace_id"].n_unique() == len(traces)
    return traces.select("trace_id", "completion", "finish_reason", "seed").sort("trace_id").rows()


def test_killed_engines_and_a_killed_run_cost_no_sample(questions: Path, run: Path, tmp_path: Path, read: Read) -> None:
    """Kill one of two engines, then the run; one engine then makes the missing samples."""
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        generate(questions, killed, "--data-parallel", 2), env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not list(killed.glob("journal/traces/*/*.parquet")):
        assert process.poll() is None
        time.sleep(0.05)
    engines = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(engines) == 2
    os.killpg(engines[0], signal.SIGKILL)
    time.sleep(1)
    process.kill()
    _, errors = process.communicate()
    assert "an engine process died" in errors
    assert 0 < len(read(killed / "journal" / "traces", "*")) < 300 * 8
    run_to_end(generate(questions, killed))
    assert texts(read, killed) == texts(read, run)
    assert not (killed / "errors.jsonl").exists()


def test_scores_equal_those_of_the_transformers_engine(run: Path, tmp_path: Path, rlt: Rlt, read: Read) -> None:
    score = ("score", "--in", run, "--student", "nano", "--dtype", "float32", "--per-token")
    score += ("--measures", "ifd", "--measures", "local", "--measures", "leak")
    rlt(*score, "--engine", "vllm", "--out", tmp_path / "vllm")
    assert "vLLM reads each text twice" in (tmp_path / "vllm" / "run.log").read_text()
    rlt(*score, "--out", tmp_path / "transformers")
    both = read(tmp_path / "vllm", "scores").join(read(tmp_path / "transformers", "scores"), on="trace_id")
    assert len(both) == 300 * 8
    for column in ("reward", "r_ss", "r_kl", "solution_logprob_min", "kl_max"):
        assert (both[column] - both[f"{column}_right"]).abs().max() < 1e-4  # type: ignore[operator]
    for column in ("thought_logprob_mean", "local_logprob_mean", "leak_drop", "surprising_share"):
        assert (both[column] - both[f"{column}_right"]).abs().max() < 1e-4  # type: ignore[operator]
    for column, bound in (("perplexity", 1e-4), ("ifd", 1e-4), ("rsr", 0.01), ("token_rank_mean", 0.01)):
        assert (both[column] / both[f"{column}_right"] - 1).abs().max() < bound  # type: ignore[operator]
    for column in ("solution_logprobs", "thought_logprobs"):
        expected, computed = (both[name].explode().to_numpy() for name in (f"{column}_right", column))
        # The miniature is so confident that some log-probs are below -20, of which float32 keeps 7 digits.
        np.testing.assert_allclose(computed, expected, atol=1e-4, rtol=1e-5)


def test_a_text_longer_than_the_engine_takes_fails_alone(questions: Path, tmp_path: Path, rlt: Rlt) -> None:
    run = tmp_path / "run"
    lines = questions.read_text().splitlines()[:4]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(lines))
    options = ("--engine", "vllm", "--n", 1, "--max-model-len", 24, "--out", run)
    assert "the context is 24" in (
        rlt("generate", "--teacher", "nano", "--in", rows, *options, code=4).output + (run / "errors.jsonl").read_text()
    )


def test_budget_forcing_gives_the_texts_of_the_transformers_engine(
    questions: Path, tmp_path: Path, rlt: Rlt, read: Read
) -> None:
    flags = ("evaluate", "--model", "nano-student", "--benchmark", "countdown", "--in", questions, "--limit", 40)
    flags += ("--dtype", "float32", "--max-tokens", 150, "--max-thought", 50, "--waits", 1, "--wait-text", " no")
    for engine in ("vllm", "transformers"):
        rlt(*flags, "--engine", engine, "--out", tmp_path / engine)
    columns = ["question_id", "completion", "completion_tokens"]
    vllm, transformers = (read(tmp_path / name, "answers").select(columns) for name in ("vllm", "transformers"))
    assert len(vllm) == 40 and len(vllm.join(transformers, on=columns)) >= 38  # a tie may be rounded differently
    assert (read(tmp_path / "vllm", "thoughts")["extension"] == 1).any()


def test_what_vllm_refuses_is_in_the_error(questions: Path, tmp_path: Path, rlt: Rlt) -> None:
    """The first line of vLLM's error names no cause."""
    options = ("--engine", "vllm", "--n", 1, "--tensor-parallel", 2, "--out", tmp_path / "run")
    printed = rlt("generate", "--teacher", "nano", "--in", questions, *options, code=6).stderr
    assert "vLLM cannot run it: " in printed and "heads (3) must be divisible by tensor parallel size (2)" in printed
