"""CPU seconds and peak memory of merge, rank and distill on large runs, next to polars, by number of rows.

    python -m benchmarks.ranking [--rows 5000000 50000000] [--words 10] [--shares 4] [--traces 16] [--folder FOLDER]

For each number of rows, the benchmark writes several runs with random texts and rewards, merges them, ranks the result
(by rank and by quantile) and distills it. No text repeats. A polars script (benchmarks/others/polars_run.py) reads the
same files, ranks and selects the same traces, which the benchmark checks, and writes the data set as Parquet and JSONL.
It does no more: no resume, locks, checks, manifest, statistics or card. Each command runs in its own process, and its
start counts. 50 million rows with texts of 10 words take an hour and 20 GB of disk. --folder sets the folder and keeps
the merged runs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.process import measure
from benchmarks.report import print_table, print_values, save, save_markdown
from rlt_data.formats import load_format
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import QUESTIONS_PER_PART, SCHEMAS
from tests.killing import command

POLARS = Path(__file__).parent / "others" / "polars_run.py"
#: Goals for rank and distill: seconds for 5 million rows, and memory for any number.
SECONDS, MEGABYTES = 90, 8 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[5_000_000], help="numbers of rows; the first is the baseline"
    )
    parser.add_argument("--words", type=int, default=60, help="words per text")
    parser.add_argument("--shares", type=int, default=4, help="number of runs to merge, at least 2")
    parser.add_argument("--traces", type=int, default=16, help="traces per question")
    parser.add_argument("--folder", type=Path, help="folder for the runs; merged runs are kept")
    arguments = parser.parse_args()

    folder = arguments.folder or Path(tempfile.mkdtemp())
    rows: list[dict[str, Any]] = []
    try:
        for size in arguments.rows:
            rows += measure_steps(folder / str(size), size, arguments)
            if not arguments.folder:
                shutil.rmtree(folder / str(size))
    finally:
        if not arguments.folder:
            shutil.rmtree(folder)
    first = {row["step"]: row["CPU seconds"] / row["rows"] for row in reversed(rows)}
    for row in rows:
        row["CPU per row, to the first"] = row["CPU seconds"] / row["rows"] / first[row["step"]]
    print_table(rows)
    for size in arguments.rows:
        seconds = sum(row["seconds"] for row in rows if row["rows"] == size and row["step"] in ("rank", "distill"))
        megabytes = max(row["peak MB"] for row in rows if row["rows"] == size)
        print(
            f"{size:,} rows ranked and distilled in {seconds:.1f} s of {SECONDS * size / 5_000_000:.1f}, "
            f"at most {megabytes:.0f} MB of {MEGABYTES}"
        )
    settings = {name: value for name, value in vars(arguments).items() if name != "folder"}
    save("ranking", {"settings": settings, "rows": rows})
    save_markdown("ranking", rows)


def measure_steps(folder: Path, size: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Write runs with ``size`` rows in total, merge, rank and distill them; return the measurements of each step."""
    questions = size // arguments.traces
    names = [folder / f"share-{share}" for share in range(arguments.shares)]
    for share, name in enumerate(names):
        share_questions = questions // arguments.shares + (share < questions % arguments.shares)
        make_run(name, share_questions, arguments.traces, arguments.words, seed=share)
    run = folder / "run"
    steps = {
        "merge": command("merge", *(word for name in names for word in ("--in", name)), "--out", run),
        "rank": command("rank", "--in", run),
        "rank --buckets 4": command("rank", "--in", run, "--buckets", "4"),
        "distill": command("distill", "--in", run, "--select", "best"),
        "polars: rank": [sys.executable, str(POLARS), "rank", str(run), str(folder)],
        "polars: distill": [sys.executable, str(POLARS), "distill", str(run), str(folder)],
    }
    rows = []
    for step, words in steps.items():
        measured = measure(words, folder)
        rows.append(
            {
                "rows": size,
                "step": step,
                "seconds": measured.seconds,
                "rows per second": size / measured.seconds,
                "CPU seconds": measured.cpu_seconds,
                "peak MB": measured.megabytes,
            }
        )
        print_values(rows[-1])
        if step == "merge":
            for name in names:
                shutil.rmtree(name)
    assert RunFolder(run).count("ranks") == questions * arguments.traces
    assert _selected(run / "dataset" / "data" / "*.parquet") == _selected(folder / "best.parquet")
    return rows


def _selected(files: Path) -> set[str]:
    """Return the traces of a data set."""
    return set(pl.scan_parquet(files).select("trace_id").collect().to_series())


def make_run(path: Path, questions: int, traces: int, words: int, seed: int) -> None:
    """Write a run with questions and random imported traces and scores."""
    run = RunFolder(path)
    random = np.random.default_rng(seed)
    vocabulary = pa.array(
        ["".join(random.choice(list("etaoinshrdlu"), random.integers(2, 10))) for _ in range(2000)], pa.string()
    )
    format = load_format("rlt")
    ending = format.completion_of("")
    for part, start in enumerate(range(0, questions, QUESTIONS_PER_PART)):
        count = min(QUESTIONS_PER_PART, questions - start)
        ids = _keys(random, count)
        number = np.arange(start, start + count)
        problems = {
            "question_id": ids,
            "source_id": pa.array(number).cast(pa.string()),
            "question": _texts(random, vocabulary, count, words),
            "solution": _texts(random, vocabulary, count, words),
        }
        run.write_part("questions", part, _table("questions", problems))
        of_question = pa.array(np.repeat(np.arange(count), traces))
        common = {
            "trace_id": _keys(random, count * traces),
            "question_id": ids.take(of_question),
            "source_id": problems["source_id"].take(of_question),
            "sample_index": pa.array(np.tile(np.arange(traces, dtype=np.int32), count)),
        }
        explanations = _texts(random, vocabulary, count * traces, words)
        finished = random.random(count * traces) < 0.9
        reason = pa.array(np.where(finished, "stop", "length"))
        texts = pa.array(finished), pc.binary_join_element_wise(explanations, ending, ""), explanations
        columns = {"completion": pc.if_else(*texts), "finish_reason": reason, "made_by": _all("imported", reason)}
        run.write_part("traces", part, _table("traces", common | columns))
        run.write_part("scores", part, _table("scores", common | _scores(random, finished, reason)))
    run.record("input", {"traces": True})
    run.record("score", {"format": format.model_dump(mode="json")})


def _scores(random: np.random.Generator, finished: np.ndarray, reason: pa.Array) -> dict[str, pa.Array]:
    size = len(finished)
    terms = random.normal(-1, 1, (9, size))
    terms[0, random.random(size) < 0.001] = np.nan
    holds_tag = random.random(size) < 0.01
    names = ("reward", "reward_without_entropy", "r_ss", "r_kl", "solution_logprob_mean", "solution_logprob_min")
    counts = ("thought_tokens", "solution_tokens", "kl_tokens", "student_tokens", "uncovered_chars")
    return {
        **dict(zip((*names, "kl_mean", "kl_max", "penalty"), map(pa.array, terms), strict=True)),
        **{name: pa.array(random.integers(1, 2000, size, dtype=np.int32)) for name in counts},
        "finish_reason": reason,
        "closed": pa.array(finished),
        "truncated": pa.array(~finished),
        "empty": pa.array(np.zeros(size, bool)),
        "holds_tag": pa.array(holds_tag),
        "well_formed": pa.array(finished & ~holds_tag),
        "teacher_logprobs": _all("none", reason),
        "scored_by": _all("benchmark", reason),
    }


def _texts(random: np.random.Generator, vocabulary: pa.Array, count: int, words: int) -> pa.Array:
    """Return texts of random words, all different."""
    drawn = vocabulary.take(pa.array(random.integers(0, len(vocabulary), count * words)))
    return pc.binary_join(pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * words, drawn), " ")


def _keys(random: np.random.Generator, count: int) -> pa.Array:
    """Return random keys of 32 hex digits, like those of content_hash."""
    digits = random.bytes(16 * count).hex()
    return pa.array([digits[start : start + 32] for start in range(0, len(digits), 32)])


def _all(text: str, like: pa.Array) -> pa.Array:
    return pa.repeat(pa.scalar(text), len(like))


def _table(name: str, columns: dict[str, pa.Array]) -> pa.Table:
    schema = SCHEMAS[name]
    rows = len(next(iter(columns.values())))
    return pa.table([columns.get(field.name, pa.nulls(rows, field.type)) for field in schema], schema=schema)


if __name__ == "__main__":
    main()
