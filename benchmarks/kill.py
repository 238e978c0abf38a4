"""Kill a generate run and a score run at random moments, and compare what comes of them with uninterrupted runs.

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
        straight, torn = folder / "straight", folder / "torn"
        seconds = run_to_end(command("generate", *options, "--out", straight))
        killed = run_and_kill(command("generate", *options, "--out", torn), kills, seconds, seed=1)
        assert_same_table(torn, straight, "traces", QUESTIONS * SAMPLES)
        rows.append({"step": "generate", "starts killed": killed, "seconds of a straight run": seconds})
        seconds = run_to_end(command("score", "--in", straight, "--student", student))
        killed = run_and_kill(command("score", "--in", torn, "--student", student), kills, seconds, seed=2)
        assert_same_table(torn, straight, "scores", QUESTIONS * SAMPLES)
        rows.append({"step": "score", "starts killed": killed, "seconds of a straight run": seconds})
    finally:
        shutil.rmtree(folder)
    print_table(rows)
    print("every table is byte for byte the one of the uninterrupted run")
    save("kill", {"kills": kills, "rows": rows})


if __name__ == "__main__":
    main()
