"""Kill generate and score at random moments, resume them, and compare their tables with uninterrupted runs.

python -m benchmarks.kill [--kills 30]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from benchmarks.report import print_table, save
from tests.killing import QUESTIONS, SAMPLES, assert_same_table, command, run_and_kill, run_to_end, write_questions
from tests.tiny_models import make_tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    kills = parser.parse_args().kills
    folder = Path(tempfile.mkdtemp())
    questions = write_questions(folder / "questions.jsonl")
    model = make_tiny(folder / "model", "chat")
    student = make_tiny(folder / "student", "chat", seed=1)
    options = ("--in", questions, "--teacher", model, "--n", SAMPLES, "--max-tokens", 40)
    rows = []
    try:
        straight = folder / "straight"
        generate = command("generate", *options, "--out")
        seconds = run_to_end([*generate, str(straight)])
        runs = _kill_runs(generate, folder / "generate", kills, seconds, straight, "traces")
        rows.append({"step": "generate", "kills": kills, "runs": runs, "seconds of a straight run": seconds})
        score = command("score", "--student", student, "--in", straight, "--out")
        seconds = run_to_end([*score, str(folder / "scored")])
        runs = _kill_runs(score, folder / "score", kills, seconds, folder / "scored", "scores")
        rows.append({"step": "score", "kills": kills, "runs": runs, "seconds of a straight run": seconds})
    finally:
        shutil.rmtree(folder)
    print_table(rows)
    print("all tables are byte-identical to those of the uninterrupted runs")
    save("kill", {"kills": kills, "rows": rows})


def _kill_runs(start: list[str], folder: Path, kills: int, seconds: float, straight: Path, table: str) -> int:
    """Run in new folders with kills until the total is reached; compare every run with the uninterrupted one."""
    killed = runs = 0
    while killed < kills:
        out = folder / str(runs)
        killed += run_and_kill([*start, str(out)], kills - killed, seconds, seed=runs)
        assert_same_table(out, straight, table, QUESTIONS * SAMPLES)
        runs += 1
    return runs


if __name__ == "__main__":
    main()
