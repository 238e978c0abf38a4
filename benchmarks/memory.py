"""Peak memory of score and generate at 1,000 and 10,000 traces; it must not grow with their number.

    python -m benchmarks.memory [--traces 1000 10000] [--per-question 4]

One part of the tables (256 questions) is in memory at a time. With four traces per question, a part has 1,024 traces,
so both sizes fill it, and a difference means growth with the data. The model has a few hundred kilobytes, so that the
weights do not hide the memory of rlt-data. Each command runs in its own process. Score imports traces from a JSONL
file, with explanations of 200 to 600 characters.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.process import measure
from benchmarks.report import print_table, save
from tests.killing import command
from tests.tiny_models import make_tiny

#: Tokens of a generated trace, about 300 characters with the tiny model's vocabulary.
MAX_TOKENS = 128
SENTENCES = (
    "We look at what is asked, and write down the numbers that we know. ",
    "A sum of two numbers can be taken in either order, so let us begin with the larger one. ",
    "Let us check that: the tens give one more, and the ones add up as before. ",
    "So far so good. ",
    "Is that right? Counting on from the first number leads to the same place, so it is. ",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, nargs=2, default=(1000, 10_000))
    parser.add_argument("--per-question", type=int, default=4)
    arguments = parser.parse_args()

    folder = Path(tempfile.mkdtemp())
    peaks: dict[str, list[float]] = {"score": [], "generate": []}
    try:
        model = make_tiny(folder / "model", "chat")
        options = {
            "score": ("--student", model, "--teacher", model, "--dtype", "float32"),
            "generate": ("--teacher", model, "--n", arguments.per_question, "--max-tokens", MAX_TOKENS),
        }
        for traces in arguments.traces:
            files = _write(folder / str(traces), traces, arguments.per_question)
            for step, peak in peaks.items():
                run = command(step, "--in", files[step], "--out", folder / f"{step}-{traces}", *options[step])
                peak.append(measure(run, folder, threads=1).megabytes)
    finally:
        shutil.rmtree(folder)
    small, large = arguments.traces
    rows = [
        {
            "step": step,
            f"MB at {small:,} traces": peak[0],
            f"MB at {large:,} traces": peak[1],
            "growth, MB": peak[1] - peak[0],
            "growth, %": 100 * (peak[1] / peak[0] - 1),
        }
        for step, peak in peaks.items()
    ]
    print_table(rows)
    save("memory", {"settings": vars(arguments) | {"max_tokens": MAX_TOKENS}, "rows": rows})


def _write(folder: Path, traces: int, per_question: int) -> dict[str, Path]:
    """Write the inputs: questions with traces for score, questions alone for generate."""
    folder.mkdir()
    random = np.random.default_rng(0)
    files = {"score": folder / "traces.jsonl", "generate": folder / "questions.jsonl"}
    with files["score"].open("w") as with_traces, files["generate"].open("w") as alone:
        for number in range(-(-traces // per_question)):
            question = {"question": f"What is {number} + {number % 97}?", "solution": f"It is {number + number % 97}."}
            alone.write(json.dumps({"id": f"q{number}", **question}) + "\n")
            for trace in range(min(per_question, traces - number * per_question)):
                length = int(random.integers(200, 601))
                text = "".join(random.choice(SENTENCES, 40))[:length]
                with_traces.write(json.dumps({"id": f"q{number}-{trace}", **question, "explanation": text}) + "\n")
    return files


if __name__ == "__main__":
    main()
