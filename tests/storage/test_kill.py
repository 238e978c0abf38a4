"""Kill and restart steps: the tables equal those of uninterrupted runs (60 kills: python -m benchmarks.kill)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import Child, run_child, write_slowly
from tests.killing import assert_same_table, command, run_and_kill, run_to_end, write_questions

QUESTIONS, SAMPLES, KILLS = 520, 2, 3  # three parts


def test_a_killed_command_continues_with_the_rows_on_disk(tiny: Callable[..., Path], tmp_path: Path) -> None:
    questions, straight, killed = write_questions(tmp_path / "questions.jsonl", 260), "straight", "killed"
    generate = "generate", "--in", questions, "--teacher", tiny(), "--n", 1, "--max-tokens", 8, "--out"
    score = "score", "--student", tiny("chat", 1), "--teacher", "none", "--in"
    for step, table in ((generate, "traces"), (score, "scores")):
        run_child(*step, straight)
        for segments in (1, 3):
            child = Child(*step, killed, prepare=write_slowly)
            child.wait_for(lambda: len(list(Path(killed, "journal", table).rglob("*.parquet"))) >= segments)  # noqa: B023
            child.kill()
        last = run_child(*step, killed)
        assert f"260 {table} (" in last.stdout and f"260 {table} (260 new)" not in last.stdout
        assert_same_table(Path(killed), Path(straight), table, 260)


@pytest.mark.slow
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
