"""Speed and memory of the default signals, and recall of duplicates and contamination, on generated texts.

    python -m benchmarks.curation --questions train.jsonl --solutions solutions.jsonl --benchmark test.jsonl \
        [--traces 100000 --traces 1000000] [--compare]

A run has four traces per question. Questions are sentences of the given questions with other numbers, and traces are
sentences of the given solutions. Known shares are planted: 5 % of the questions repeat an earlier one with other
spelling, names or words, 5 % of the traces repeat another trace of their question with a few other words, and 1 % of
the questions contain one of the benchmark. Each explanation ends with an answer: the known number in 80 % of the
traces, another number in 15 %, and an expression, which only math-verify can judge, in 5 %. The jobs ``curate NAME``
measure the step with its tables, the other jobs the functions alone. ``--compare`` measures datatrove on the same
questions and on the same traces, and datasketch on the same questions, of the first size; both must be installed. Each
measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.report import print_table, save
from rlt_data.formats import load_format
from rlt_data.progress import SILENT
from rlt_data.settings import CurateSettings
from rlt_data.signals import contamination, duplicates
from rlt_data.steps.curate import curate
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table

_PER_QUESTION, _PART = 4, 256
_OTHERS = ("datatrove", "datasketch")
_NAMES = ("Olga", "Peter", "Mina", "Rashid", "Yuki", "Bjorn", "Carla", "Dmitri", "Ines", "Tariq", "Wanda", "Leo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", required=True, help="JSONL with the column question")
    parser.add_argument("--solutions", required=True, help="JSONL with the column solution")
    parser.add_argument("--benchmark", required=True, help="JSONL with the column question")
    parser.add_argument("--traces", type=int, action="append", help="size of the run; repeatable; default 100,000")
    parser.add_argument("--compare", action="store_true", help="measure datatrove and datasketch at the first size")
    arguments = parser.parse_args()
    others = [_datatrove_questions, _datatrove_traces, _datasketch, _datatrove_ngrams] if arguments.compare else []
    sizes = arguments.traces or [100_000]
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _in_process(_generate, arguments, size, Path(folder))
            _in_process(_write_run, arguments, size, Path(folder))
            steps = [partial(_curate, name) for name in ("text", "leak", "answer", "duplicates", "contamination")]
            for job in [*steps, _duplicates, _contamination, *(others if size == sizes[0] else [])]:
                name = f"curate {job.args[0]}" if isinstance(job, partial) else job.__name__.strip("_")
                rows.append({"job": name, "traces": size} | _in_process(job, arguments, size, Path(folder)))
                print(rows[-1], flush=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print_table([{column: row.get(column, "") for column in columns} for row in rows])
    save("curation", {"settings": vars(arguments), "rows": rows}, *(_OTHERS if arguments.compare else ()))


def _in_process(job: Callable[..., dict[str, Any] | None], *arguments: Any) -> dict[str, Any]:
    """Return the result of a job with its seconds and its peak memory, measured in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (job, *arguments))


def _measured(job: Callable[..., dict[str, Any] | None], *arguments: Any) -> dict[str, Any]:
    before = _peak()
    began, cpu = time.perf_counter(), time.process_time()
    result = job(*arguments) or {}
    seconds = time.perf_counter() - began
    figures = {"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "peak_gb": _peak(), "start_gb": before}
    return {**result, **{name: round(value, 2) for name, value in figures.items()}}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# Texts


def _read(path: str, column: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)[column] for line in file]


def _generate(arguments: argparse.Namespace, size: int, folder: Path) -> None:
    """Write parts of 256 questions with their traces; the columns ``*_of`` have what was planted."""
    random_ = random.Random(size)
    pattern = re.compile(r"(?<=[.?!])\s+")
    asked = [s for text in _read(arguments.questions, "question") for s in pattern.split(text) if 20 < len(s) < 300]
    told = [s for text in _read(arguments.solutions, "solution") for s in pattern.split(text) if 20 < len(s) < 400]
    told = [sentence for sentence in told if "boxed" not in sentence and "answer" not in sentence.lower()]
    hidden = _read(arguments.benchmark, "question")
    questions: list[str] = []
    for part in range(-(-size // _PER_QUESTION // _PART)):
        rows = []
        for number in range(part * _PART, min((part + 1) * _PART, size // _PER_QUESTION)):
            question, question_of, item = _question(random_, asked), None, None
            chance = random_.random()
            if chance < 0.05 and number > 100:
                question_of = random_.randrange(number)
                question = _changed(random_, questions[question_of])
            elif chance < 0.06:
                item = random_.randrange(len(hidden))
                question = f"{random_.choice(asked)}\n\n{_spelled(random_, hidden[item])}"
            questions.append(question)
            traces: list[str] = []
            for index in range(_PER_QUESTION):
                trace_of = random_.randrange(index) if index and random_.random() < 0.05 else None
                if trace_of is None:
                    traces.append(_numbered(random_, " ".join(random_.choices(told, k=random_.randrange(4, 24)))))
                else:
                    traces.append(_changed(random_, traces[trace_of]))
                rows.append(
                    (f"{number:08d}", f"{number:08d}-{index}", question, traces[-1], question_of, trace_of, item)
                )
        columns = ["question_id", "trace_id", "question", "explanation", "question_of", "trace_of", "item"]
        schema = dict(zip(columns, [pl.String] * 4 + [pl.Int64] * 3, strict=True))
        pl.DataFrame(rows, schema, orient="row").write_parquet(folder / f"{part:06d}.parquet", compression="lz4")


def _question(random_: random.Random, sentences: list[str]) -> str:
    return _numbered(random_, " ".join(random_.choices(sentences, k=random_.randrange(2, 6))))


def _numbered(random_: random.Random, text: str) -> str:
    return re.sub(r"\d+", lambda match: str(random_.randrange(10 ** min(len(match[0]), 4))), text)


def _spelled(random_: random.Random, text: str) -> str:
    text = text.upper() if random_.random() < 0.3 else text
    return re.sub(" ", lambda _: random_.choice([" ", "  ", "\n"]), text)


def _changed(random_: random.Random, text: str) -> str:
    """Return a text with another spelling, and half of the time with two other words or another name."""
    if random_.random() < 0.5:
        parts = text.split(" ")
        plain = [index for index, word in enumerate(parts) if word.isalpha()]
        for index in random_.sample(plain, min(2, len(plain))):
            parts[index] = random_.choice(_NAMES)
        text = " ".join(parts)
    return _spelled(random_, text)


def _frames(folder: Path, columns: list[str]) -> Iterator[pl.DataFrame]:
    for path in sorted(folder.glob("*.parquet")):
        yield pl.read_parquet(path, columns=columns)


def _planted(folder: Path) -> pl.DataFrame:
    return pl.concat(_frames(folder, ["question_id", "trace_id", "question_of", "trace_of", "item"]))


# rlt-data


def _write_run(arguments: argparse.Namespace, size: int, folder: Path) -> None:
    """Write the texts as a run whose traces state answers."""
    random_ = random.Random(size)
    run, format = RunFolder(folder / "run"), load_format("rlt")
    with run.locked():
        for part, frame in enumerate(_frames(folder, ["question_id", "trace_id", "question", "explanation"])):
            asked, traces = [], []
            for (key, question), group in frame.group_by("question_id", "question", maintain_order=True):
                answer = random_.randrange(1000)
                asked.append(
                    {"question_id": key, "source_id": key, "question": question, "solution": f"It is {answer}.",
                     "answer": str(answer)}
                )  # fmt: skip
                for index, row in enumerate(group.iter_rows(named=True)):
                    fraction = f"\\frac{{{random_.randrange(1000)}x + 1}}{{{random_.randrange(2, 1000)}}}"
                    others = [str(answer), str(random_.randrange(1000)), f"${fraction}$"]
                    [stated] = random_.choices(others, (80, 15, 5))
                    completion = format.completion_of(f"{row['explanation']} So the answer is {stated}.")
                    traces.append(
                        {"trace_id": row["trace_id"], "question_id": key, "source_id": key, "sample_index": index,
                         "completion": completion, "finish_reason": "stop", "made_by": "imported"}
                    )  # fmt: skip
            run.write_part("questions", part, to_table("questions", asked))
            run.write_part("traces", part, to_table("traces", traces))
        run.record("score", {"format": format.model_dump(mode="json")})


def _curate(name: str, arguments: argparse.Namespace, size: int, folder: Path) -> dict[str, Any]:
    against = [arguments.benchmark] if name == "contamination" else []
    settings = CurateSettings.model_validate({"in": str(folder / "run"), "signals": [name], "against": against})
    [signal] = curate(settings).signals
    return {"rows_per_second": round(signal.rows / signal.seconds)}


def _settings(arguments: argparse.Namespace) -> CurateSettings:
    return CurateSettings.model_validate({"in": "run", "against": (arguments.benchmark,)})


def _duplicates(arguments: argparse.Namespace, size: int, folder: Path) -> dict[str, Any]:
    frames = _frames(folder, ["trace_id", "question_id", "question", "explanation"])
    found = pl.concat(duplicates.SIGNAL.compute(frames, _settings(arguments), SILENT))
    merged = _planted(folder).join(found, on="trace_id")
    asked = merged.unique("question_id")
    traces = merged.filter(pl.col("question_duplicate_of").is_null())
    return {
        "question_recall": _recall(asked, "question_of", "question_duplicate_of"),
        "question_extra": _extra(asked, "question_of", "question_duplicate_of"),
        "trace_recall": _recall(traces, "trace_of", "trace_duplicate_of"),
        "trace_extra": _extra(traces, "trace_of", "trace_duplicate_of"),
    }


def _contamination(arguments: argparse.Namespace, size: int, folder: Path) -> dict[str, Any]:
    frames = (frame.unique("question_id") for frame in _frames(folder, ["question_id", "question"]))
    found = pl.concat(contamination.SIGNAL.compute(frames, _settings(arguments), SILENT))
    asked = _planted(folder).unique("question_id").join(found, on="question_id")
    flagged = asked.with_columns(flag=pl.when("contaminated").then(1))
    return {"recall": _recall(flagged, "item", "flag"), "extra": _extra(flagged, "item", "flag")}


def _recall(rows: pl.DataFrame, planted: str, found: str) -> float:
    return round(float(rows.filter(pl.col(planted).is_not_null())[found].is_not_null().mean()), 4)  # type: ignore[arg-type]


def _extra(rows: pl.DataFrame, planted: str, found: str) -> int:
    """Return the number of rows that are found and not planted."""
    return int(rows.filter(pl.col(planted).is_null())[found].is_not_null().sum())


# datatrove and datasketch


def _datatrove_questions(arguments: argparse.Namespace, size: int, folder: Path) -> dict[str, Any]:
    removed = _datatrove_minhash(folder, "question_id", "question")
    asked = _planted(folder).unique("question_id").join(removed, left_on="question_id", right_on="id", how="left")
    return {
        "question_recall": _recall(asked, "question_of", "removed"),
        "question_extra": _extra(asked, "question_of", "removed"),
    }


def _datatrove_traces(arguments: argparse.Namespace, size: int, folder: Path) -> dict[str, Any]:
    removed = _datatrove_minhash(folder, "trace_id", "explanation")
    merged = _planted(folder).join(removed, left_on="trace_id", right_on="id", how="left")
    return {
        "trace_recall": _recall(merged, "trace_of", "removed"),
        "trace_extra": _extra(merged, "trace_of", "removed"),
    }


def _datatrove_minhash(folder: Path, key: str, column: str) -> pl.DataFrame:
    """Run the four stages of datatrove with its default settings in this process, and return the ids it removes."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )

    def documents() -> Iterator[Document]:
        for frame in _frames(folder, list(dict.fromkeys(["question_id", key, column]))):
            rows = frame.unique(key, maintain_order=True)
            for row_id, text in rows.select(key, column).iter_rows():
                yield Document(text=text, id=row_id)

    with tempfile.TemporaryDirectory() as work:
        config = MinhashConfig()
        MinhashDedupSignature(f"{work}/signatures", config).run(documents(), 0, 1)
        for bucket in range(config.num_buckets):
            stage = MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config)
            stage.run(None, bucket, config.num_buckets)
        MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config=config).run(None, 0, 1)
        kept = {document.id for document in MinhashDedupFilter(f"{work}/remove").run(documents(), 0, 1)}
        return pl.DataFrame({"id": [document.id for document in documents() if document.id not in kept], "removed": 1})


def _datasketch(arguments: argparse.Namespace, size: int, folder: Path) -> dict[str, Any]:
    """Look for near duplicates of questions with datasketch's MinHash and LSH at the same threshold, on words."""
    import xxhash
    from datasketch import MinHash, MinHashLSH

    similarity = _settings(arguments).similarity
    lsh = MinHashLSH(threshold=similarity, num_perm=64)
    empty = MinHash(num_perm=64, hashfunc=xxhash.xxh32_intdigest)
    found = {}
    for frame in _frames(folder, ["question_id", "question"]):
        rows = frame.unique("question_id", maintain_order=True)
        for row_id, text in rows.iter_rows():
            minhash = empty.copy()
            minhash.update_batch([word.encode() for word in set(re.findall(r"\w+", text.lower()))])
            found[row_id] = any(lsh.query(minhash))
            lsh.insert(row_id, minhash, check_duplication=False)
    removed = pl.DataFrame({"id": [row_id for row_id, is_found in found.items() if is_found], "removed": 1})
    asked = _planted(folder).unique("question_id").join(removed, left_on="question_id", right_on="id", how="left")
    return {
        "question_recall": _recall(asked, "question_of", "removed"),
        "question_extra": _extra(asked, "question_of", "removed"),
    }


def _datatrove_ngrams(arguments: argparse.Namespace, size: int, folder: Path) -> dict[str, Any]:
    """Filter questions with datatrove's n-gram decontamination; its index is written here, as lighteval is missing."""
    from datatrove.data import Document
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.text import ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=13)
    with tempfile.TemporaryDirectory() as work:
        step = NGramsDecontFilter(work, config)
        hashes = [
            step.hash_func(" ".join(ngram))
            for text in _read(arguments.benchmark, "question")
            for ngram in ngrams(step.tokenizer.word_tokenize(simplify_text(text, config.norm_config)), 13)
        ]
        np.array(hashes, dtype=config.hash_config.np_descr).tofile(f"{work}/benchmark.index.hashes")
        removed = []
        for frame in _frames(folder, ["question_id", "question"]):
            for row_id, text in frame.unique("question_id", maintain_order=True).iter_rows():
                if step.filter(Document(text=text, id=row_id)) is not True:
                    removed.append(row_id)
    asked = _planted(folder).unique("question_id")
    flagged = asked.join(pl.DataFrame({"question_id": removed, "flag": 1}), on="question_id", how="left")
    return {"recall": _recall(flagged, "item", "flag"), "extra": _extra(flagged, "item", "flag")}


if __name__ == "__main__":
    main()
