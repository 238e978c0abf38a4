"""Run folders with made-up scored traces, for steps that need no model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from rlt_data.formats import load_format
from rlt_data.settings import DistillSettings, RankSettings, parse_settings
from rlt_data.steps.distill import DistillSummary, distill
from rlt_data.steps.rank import RankSummary, rank
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import signal_schema, to_table

_TERMS = ("penalty", "r_ss", "r_kl", "solution_logprob_mean", "solution_logprob_min", "kl_mean", "kl_max")
_COUNTS = ("solution_tokens", "kl_tokens", "student_tokens", "uncovered_chars", "completion_tokens")


def trace(question: str, sample: int, reward: float | None = 0.0, **more: Any) -> dict[str, Any]:
    """Return the columns of a trace and its score; it is well-formed unless ``more`` sets a flag."""
    flags = {"closed": True, "truncated": False, "empty": False, "holds_tag": False}
    flags |= {flag: more[flag] for flag in flags if flag in more}
    return {
        "trace_id": f"{question}/{sample}",
        "question_id": question,
        "source_id": f"source of {question}",
        "sample_index": sample,
        "completion": f"Thought {sample} about {question}.\n" + "<|end_of_explanation|>" * flags["closed"],
        "finish_reason": "length" if flags["truncated"] else "stop" if flags["closed"] else "eos",
        "made_by": "test",
        "reward": reward,
        "reward_without_entropy": 0.0 if reward is None else reward,
        **dict.fromkeys(_TERMS, 0.0),
        **dict.fromkeys(_COUNTS, 1),
        "thought_tokens": 10,
        **flags,
        "well_formed": flags["closed"] and not (flags["truncated"] or flags["empty"] or flags["holds_tag"]),
        "teacher_logprobs": "trace",
        "scored_by": "test",
        **more,
    }


def make_run(path: str | Path, *parts: Iterable[dict[str, Any]], format: str = "rlt") -> RunFolder:
    """Make a run folder with parts of scored traces; the traces of a question must be consecutive."""
    run = RunFolder(path)
    for part, traces in enumerate(parts):
        rows = list(traces)
        questions = [
            {
                "question_id": key,
                "source_id": f"source of {key}",
                "question": f"What is {key}?",
                "solution": f"It is {key}.",
                "answer": key,
            }
            for key, _ in groupby(row["question_id"] for row in rows)
        ]
        run.write_part("questions", part, to_table("questions", questions))
        run.write_part("traces", part, to_table("traces", rows))
        run.write_part("scores", part, to_table("scores", rows))
    for name in ("questions", "traces", "scores"):
        run.compact_all(name)
    run.record("score", {"format": load_format(format).model_dump(mode="json")})
    return run


def drop_part(run: RunFolder, name: str, part: int) -> None:
    """Remove a part of a table, as if the run had never had it."""
    manifest = f"manifests/{name}.json"
    content = json.loads(run.folder.read(manifest))
    del content["parts"][str(part)]
    run.write_json(manifest, content)
    run.folder.remove([f"{name}/part-{part:05d}.parquet"])
    run.parts(name)


def ranked(run: RunFolder, **settings: Any) -> RankSummary:
    """Rank a run."""
    return rank(parse_settings(RankSettings, {"in": str(run.path), **settings}))


def distilled(run: RunFolder, **settings: Any) -> DistillSummary:
    """Distill a run."""
    return distill(parse_settings(DistillSettings, {"in": str(run.path), **settings}))


def table(run: RunFolder, name: str) -> pl.DataFrame:
    """Read a table of a run as a user would."""
    return pl.read_parquet(run.path / name / "*.parquet")


def files_of(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file in a folder, and None for every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


#: Columns that tables of layout version 2 lack.
_NEW_COLUMNS = {"traces": ["origin", "answer"], "scores": ["origin", "meta"], "ranks": ["origin", "meta"]}


def as_second_layout(run: RunFolder) -> RunFolder:
    """Rewrite a ranked run as layout version 2 had it, and return it newly opened."""
    for name, columns in _NEW_COLUMNS.items():
        for part in run.parts(name):
            run.write_part(name, part, run.read(name, part).drop_columns(columns))
        run.compact_all(name)
    ranks = json.loads(run.folder.read("manifests/ranks.json"))
    run.write_json("manifests/ranks.json", ranks | {"made_from": {"scores": run.digest("scores")}})
    run.write_json("run.json", run.info | {"version": 2})
    return RunFolder(run.path)


_SIGNAL_TYPES = {bool: "bool", int: "int", float: "float", str: "string"}


def add_signal(run: RunFolder, name: str, level: str, **columns: dict[str, Any]) -> None:
    """Write a signal's table: for each column, the values by key; other rows are null, or false."""
    types = {column: _SIGNAL_TYPES[type(next(iter(values.values())))] for column, values in columns.items()}
    entry = {"level": level, "columns": types, "depends_on": {"version": 1, "settings": {}, "content": None}}
    run.record("curate", {"signals": run.signals | {name: entry}})
    schema = signal_schema(level, types)
    source = "traces" if level == "trace" else "questions"
    for part in run.parts(source):
        keys = [column for column in schema.names if column not in columns]
        rows = run.read(source, part, keys).to_pylist()
        for row in rows:
            for column, values in columns.items():
                row[column] = values.get(row[f"{level}_id"], False if types[column] == "bool" else None)
        run.write_part(f"signal_{name}", part, pa.Table.from_pylist(rows, schema=schema))
    run.compact_all(f"signal_{name}")
