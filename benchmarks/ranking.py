"""Ranking and distilling a large run: wall time and peak memory of `rlt-data rank` and `rlt-data distill`.

    python -m benchmarks.ranking [--rows 5000000] [--traces 16] [--folder FOLDER]

The run folder is written directly: random rewards, and texts drawn from a pool of random ones. Both commands run as
processes of their own, so their start counts. --folder keeps what was made, in FOLDER/run.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.process import measure
from benchmarks.report import print_table, save
from rlt_data.formats import load_format
from rlt_data.store import Run
from rlt_data.tables import QUESTIONS_PER_PART, SCHEMAS
from tests.killing import command

POOL, WORDS_PER_TEXT = 50_000, 60
SECONDS, MEGABYTES = 90, 6 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--traces", type=int, default=16, help="per question")
    parser.add_argument("--folder", type=Path, help="make the run here, and keep it")
    arguments = parser.parse_args()

    folder = arguments.folder or Path(tempfile.mkdtemp())
    questions = arguments.rows // arguments.traces
    rows = []
    try:
        run = make_run(folder / "run", questions, arguments.traces)
        for step, options in (("rank", ()), ("distill", ("--select", "best"))):
            measured = measure(command(step, "--in", run.path, *options), folder)
            rows.append(
                {
                    "step": step,
                    "seconds": measured.seconds,
                    "rows per second": questions * arguments.traces / measured.seconds,
                    "peak MB": measured.megabytes,
                }
            )
        assert run.count("ranks") == questions * arguments.traces
    finally:
        if not arguments.folder:
            shutil.rmtree(folder)
    print_table(rows)
    seconds = sum(float(row["seconds"]) for row in rows)
    megabytes = max(float(row["peak MB"]) for row in rows)
    print(f"together {seconds:.1f} s of {SECONDS}, at most {megabytes:.0f} MB of {MEGABYTES}")
    settings = {"rows": questions * arguments.traces, "questions": questions, "traces": arguments.traces}
    save("ranking", {"settings": settings, "rows": rows, "seconds": seconds, "peak MB": megabytes})


def make_run(path: Path, questions: int, traces: int) -> Run:
    """Write a run with questions, traces and scores, as if its traces had been imported and scored."""
    run = Run(path)
    random = np.random.default_rng(0)
    words = np.array(["".join(random.choice(list("etaoinshrdlu"), random.integers(2, 10))) for _ in range(2000)])
    pool = pa.array([" ".join(random.choice(words, WORDS_PER_TEXT)) for _ in range(POOL)])
    format = load_format("rlt")
    closed = pa.array([format.completion_of(text) for text in pool.to_pylist()])
    for part, start in enumerate(range(0, questions, QUESTIONS_PER_PART)):
        count = min(QUESTIONS_PER_PART, questions - start)
        ids = _keys(random, count)
        number = np.arange(start, start + count)
        problems = {
            "question_id": ids,
            "source_id": pa.array(number).cast(pa.string()),
            "question": pool.take(pa.array(random.integers(0, POOL, count))),
            "solution": pool.take(pa.array(random.integers(0, POOL, count))),
        }
        run.write_part("questions", part, _table("questions", problems))
        of_question = pa.array(np.repeat(np.arange(count), traces))
        common = {
            "trace_id": _keys(random, count * traces),
            "question_id": ids.take(of_question),
            "source_id": problems["source_id"].take(of_question),
            "sample_index": pa.array(np.tile(np.arange(traces, dtype=np.int32), count)),
        }
        drawn = pa.array(random.integers(0, POOL, count * traces))
        finished = random.random(count * traces) < 0.9
        reason = pa.array(np.where(finished, "stop", "length"))
        texts = pa.array(finished), closed.take(drawn), pool.take(drawn)
        made = {"completion": pc.if_else(*texts), "finish_reason": reason, "made_by": _all("imported", reason)}
        run.write_part("traces", part, _table("traces", common | made))
        run.write_part("scores", part, _table("scores", common | _scores(random, finished, reason)))
    run.record("input", {"traces": True})
    run.record("score", {"format": format.model_dump(mode="json")})
    return run


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


def _keys(random: np.random.Generator, count: int) -> pa.Array:
    """Return random keys as content_hash gives them, 32 hex digits."""
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
