"""Kill and restart steps: the tables equal those of uninterrupted runs (60 kills: python -m benchmarks.kill)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.killing import assert_same_table, command, run_and_kill, run_to_end, write_questions

QUESTIONS, SAMPLES, KILLS = 520, 2, 3  # three parts


def test_generate_and_score_survive_kills(tiny: Callable[..., Path], tmp_path: Path) -> None:
    questions = write_questions(tmp_path / "questions.jsonl", QUESTIONS)
    generate = command("generate", "--in", questions, "--teacher", tiny(), "--n", SAMPLES, "--max-tokens", 40)
    straight, torn = tmp_path / "straight", tmp_path / "torn"
    seconds = run_to_end([*generate, "--out", str(straight)])
    assert run_and_kill([*generate, "--out", str(torn)], KILLS, seconds, seed=3) > 0
    assert_same_table(torn, straight, "traces", QUESTIONS * SAMPLES)
    score = command("score", "--student", tiny("chat", 1))
    seconds = run_to_end([*score, "--in", str(straight)])
    assert run_and_kill([*score, "--in", str(torn)], KILLS, seconds, seed=4) > 0
    assert_same_table(torn, straight, "scores", QUESTIONS * SAMPLES)
