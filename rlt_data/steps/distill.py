"""Select ranked traces and write them as a training data set in the student's format.

DIR/data/train-00000-HASH.parquet ...   rows that datasets.load_dataset(DIR) reads
DIR/train.jsonl                         the same rows
DIR/data/test-..., DIR/test.jsonl       the rows of --holdout
DIR/distill.json, DIR/README.md         settings, counts and checksums; data set card
DIR/dataset_info.json, axolotl.yaml, train_trl.py   how other trainers read the rows

File names contain a hash of the rows because ``datasets`` caches by folder name and README patterns. Without the hash,
it could return the cached rows of another folder of the same name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.formats import Format, Problem, encode
from rlt_data.formats.views import read_completion
from rlt_data.progress import SILENT, Progress, task
from rlt_data.settings import DistillSettings
from rlt_data.steps import trainers
from rlt_data.steps.export_shapes import PROVENANCE, ExportShape, dataset_card
from rlt_data.steps.export_texts import ExportTexts
from rlt_data.steps.provenance import recorded_format
from rlt_data.steps.rank import count_missing_traces, part_chunks, refuse_missing_scores
from rlt_data.storage.backends import open_folder
from rlt_data.storage.folder import checksum, json_text
from rlt_data.storage.outputs import new_folder
from rlt_data.storage.parquet import Shards
from rlt_data.storage.paths import StoragePath, disk_errors, storage_path
from rlt_data.storage.run import RunFolder, content_hash

logger = logging.getLogger(__name__)

#: Rows whose texts are in memory at the same time.
_ROWS_AT_A_TIME = 256
#: Files and folders of a data set. A folder that contains anything else is never replaced.
_CONTENT = {"data", "train.jsonl", "test.jsonl", "distill.json", "README.md", *trainers.FILES}
_SHARD = re.compile(r"(train|test)-\d{5,}(-[0-9a-f]+)?\.parquet")


@dataclass
class DistillSummary:
    """Counts of a distillation.

    Attributes:
        out: folder of the data set.
        rows: rows of the data set, in both splits.
        questions: questions with at least one row.
        held_out: rows of the split ``test``.
        held_out_questions: questions of the split ``test``.
        malformed: selected traces left out because they are unclosed, empty, truncated or contain a tag.
        too_long: traces skipped because they exceed ``max_tokens``.
        fallbacks: questions whose best trace was too long and that got another trace.
        without_row: questions without a row.
        without_row_reasons: number of these questions by reason. ``too long``: all well-formed candidates exceed
            ``max_tokens``. ``truncated``: no candidate is well-formed, and at least one hit the token limit.
            ``malformed``: no candidate is well-formed for other reasons. ``no trace of this rank or bucket``: the
            question has no candidate. ``no worse trace``: a preference row lacks a rejected trace.
        mean_thought_tokens: mean tokens per explanation.
        origins: number of rows by origin; empty for traces of unknown origin.
        missing_traces: traces that an unfinished ``generate`` has not made yet.
        seconds: time spent.
    """

    out: StoragePath
    rows: int = 0
    questions: int = 0
    held_out: int = 0
    held_out_questions: int = 0
    malformed: int = 0
    too_long: int = 0
    fallbacks: int = 0
    without_row: int = 0
    without_row_reasons: dict[str, int] = field(default_factory=dict)
    mean_thought_tokens: float = 0.0
    origins: dict[str, int] = field(default_factory=dict)
    missing_traces: int = 0
    seconds: float = 0.0


def distill(settings: DistillSettings, progress: Progress = SILENT) -> DistillSummary:
    """Write a training data set from a ranked run; implements ``rlt-data distill``.

    Raises:
        RunFolderError: the run has no ranks, traces without a score, or outdated ranks; or the folder of the data set
            contains other files.
        SettingsError: the selection is empty, or ``holdout`` leaves no question for training.
        ModelError: the tokenizer's chat template would change the rows.
    """
    began = time.monotonic()
    run = RunFolder.existing(settings.input)
    if not run.parts("ranks"):
        raise RunFolderError(f"{run.path}: has no ranks; run rlt-data rank first")
    refuse_missing_scores(run, "rlt-data score, then rlt-data rank")
    if not run.is_current("ranks"):
        raise RunFolderError(f"{run.path}: the ranks are older than the scores; run rlt-data rank again")
    ranks = run.digest("ranks")
    format = recorded_format(run, "score")
    if format is None:
        raise RunFolderError(f"{run.path}: run.json does not record the format of the scored traces")
    out = storage_path(settings.out) if settings.out else run.path / "dataset"
    summary = DistillSummary(out, missing_traces=count_missing_traces(run))
    selection = Selection(run, settings, format, summary)
    chosen = selection.chosen(progress)
    if settings.limit:
        chosen = _limited(chosen, settings.limit, settings.seed)
    with disk_errors(out):
        _refuse_other_content(out)
        with new_folder(out) as folder:
            (folder / "data").mkdir()
            with task(progress, "distill", len(run.parts("ranks"))):
                splits: dict[str, Iterable[pl.DataFrame]] = {"train": chosen}
                if settings.holdout:
                    splits = _splits(chosen, settings, summary)
                digest = _write(folder, selection, splits)
            if not summary.rows:
                reasons = ", ".join(f"{count} {reason}" for reason, count in summary.without_row_reasons.items())
                raise SettingsError(
                    f"--select {settings.select}: selects no trace of {run.path} (questions: {reasons})"
                )
            summary.seconds = time.monotonic() - began
            trainers.write_trainer_files(folder, out.name, settings.shape, selection.thought_key)
            _describe(folder, run, settings, format, summary, digest)
            if run.digest("ranks", again=True) != ranks:
                raise RunFolderError(f"{run.path}: the ranks changed in the meantime; run rlt-data distill again")
    return summary


def _refuse_other_content(out: StoragePath) -> None:
    folder = open_folder(out)
    names = folder.names()
    foreign = names - _CONTENT | {f"data/{name}" for name in folder.list_files("data") if not _SHARD.fullmatch(name)}
    if names and ("distill.json" not in names or foreign):
        listed = ", ".join(sorted(foreign)[:3]) or "no distill.json"
        raise RunFolderError(f"{out}: exists and is not a data set of rlt-data ({listed}); choose another --out")


class Selection:
    """Selects traces part by part and turns them into rows.

    Args:
        run: a ranked run.
        settings: settings of the step.
        format: format of the scored traces.
        summary: receives the counts.
    """

    def __init__(self, run: RunFolder, settings: DistillSettings, format: Format, summary: DistillSummary) -> None:
        self._run = run
        self._settings = settings
        self.format = format
        self.summary = summary
        self.kind, _, number = settings.select.partition(":")
        self._number = int(number or 0)
        self._quota = {"best": 1, "random": 1, "rank": 1, "top": self._number}.get(self.kind, math.inf)
        self._texts = ExportTexts(run, settings, format)
        self.thought_key = self._texts.thought_key
        self._shape = ExportShape(settings.shape, self.thought_key)
        self.schema = self._shape.schema

    def chosen(self, progress: Progress) -> Iterator[pl.DataFrame]:
        """Yield the selected traces of several parts at a time: part, question_id, trace_id, rank, value, lengths."""
        for chunk in part_chunks(self._run.parts("ranks")):
            frames = []
            for part in chunk:
                frame = pl.DataFrame(self._run.read("ranks", part)).with_columns(pl.lit(part).alias("part"))
                frames.append(frame.with_columns(pl.col("question_id").rle_id().alias("position")))
            yield self._choose(pl.concat(frames))
            progress.advance(len(chunk))

    def _choose(self, ranks: pl.DataFrame) -> pl.DataFrame:
        candidates = ranks.sort("part", "position", "rank")
        if self.kind in ("rank", "bucket"):
            candidates = candidates.filter(pl.col(self.kind) == self._number)
        accepted = pl.col("flaw").is_null()
        if self._settings.include_truncated:
            accepted = accepted | (pl.col("flaw") == "truncated")
        eligible = candidates.filter(accepted.fill_null(False))
        if self._quota is math.inf or self.kind == "rank":
            self.summary.malformed += len(candidates) - len(eligible)
        if self.kind == "random":
            order = [content_hash(self._settings.seed, key) for key in eligible["trace_id"]]
            eligible = eligible.with_columns(pl.Series("order", order, pl.String))
            eligible = eligible.sort("part", "position", "order").drop("order")
        chosen = self._short_enough(eligible) if self._settings.max_tokens else self._first(eligible)
        paired = self._with_rejected(chosen, eligible) if self._settings.shape == "preference" else chosen
        self._count_questions_without_row(ranks, candidates, eligible, chosen, paired)
        return paired

    def _with_rejected(self, chosen: pl.DataFrame, eligible: pl.DataFrame) -> pl.DataFrame:
        """Add ``rejected_id``, a worse trace of the same question; drop the questions without one."""
        kind, _, number = self._settings.rejected.partition(":")
        pool = eligible.filter(pl.col("rank") == int(number)) if kind == "rank" else eligible
        question = ["part", "position"]
        last = pl.col("trace_id").last().alias("rejected_id"), pl.col("rank").last().alias("rejected_rank")
        worse = pool.sort(*question, "rank").group_by(question, maintain_order=True).agg(*last)
        pairs = chosen.join(worse, on=question, how="inner", maintain_order="left")
        return pairs.filter(pl.col("rejected_rank") > pl.col("rank")).drop("rejected_rank")

    def _first(self, eligible: pl.DataFrame) -> pl.DataFrame:
        if self._quota is math.inf:
            return eligible
        return eligible.filter(pl.int_range(pl.len()).over("part", "position") < int(self._quota))

    def _short_enough(self, eligible: pl.DataFrame) -> pl.DataFrame:
        """Select the first traces of each question that have at most ``max_tokens`` tokens."""
        chosen: list[pl.DataFrame] = []
        counts: dict[str, int] = {}
        skipped: set[str] = set()
        eligible = eligible.with_columns(pl.int_range(pl.len()).over("part", "position").alias("turn"))
        for (_,), frame in eligible.partition_by("turn", as_dict=True).items():  # all first traces, then all second ...
            if self._quota is not math.inf:
                full = [key for key, count in counts.items() if count >= self._quota]
                frame = frame.filter(~pl.col("question_id").is_in(full))
            lengths = pl.Series("tokens", self._lengths(self.rows(frame)), pl.Int64)
            fits = lengths <= int(self._settings.max_tokens or 0)
            self.summary.too_long += int((~fits).sum())
            for key in frame.filter(fits)["question_id"]:
                counts[key] = counts.get(key, 0) + 1
                self.summary.fallbacks += key in skipped and self.kind in ("best", "top", "random")
                skipped.discard(key)
            skipped.update(frame.filter(~fits)["question_id"])
            chosen.append(frame.filter(fits))
        if not chosen:
            return eligible.drop("turn").clear()
        return pl.concat(chosen).drop("turn").sort("part", "position", "rank")

    def _count_questions_without_row(
        self,
        ranks: pl.DataFrame,
        candidates: pl.DataFrame,
        eligible: pl.DataFrame,
        chosen: pl.DataFrame,
        paired: pl.DataFrame,
    ) -> None:
        """Count the questions without a row by reason. The filter that removes the last trace of a question decides."""
        unpaired = set(chosen["question_id"]) - set(paired["question_id"])
        missing = set(ranks["question_id"]) - set(chosen["question_id"])
        too_long = missing & set(eligible["question_id"])
        truncated = missing & set(candidates.filter(pl.col("flaw") == "truncated")["question_id"]) - too_long
        malformed = missing & set(candidates["question_id"]) - too_long - truncated
        reasons = {
            "too long": len(too_long),
            "truncated": len(truncated),
            "malformed": len(malformed),
            "no trace of this rank or bucket": len(missing - too_long - truncated - malformed),
            "no worse trace": len(unpaired),
        }
        self.summary.without_row += len(missing) + len(unpaired)
        totals = self.summary.without_row_reasons
        totals |= {reason: totals.get(reason, 0) + count for reason, count in reasons.items() if count}

    def rows(self, chosen: pl.DataFrame) -> Iterator[dict[str, Any]]:
        """Yield the texts and columns of the selected traces, in order."""
        for (part,), frame in chosen.partition_by("part", as_dict=True, maintain_order=True).items():
            names = ["trace_id", "completion", "origin", "answer", "meta", "solution"]
            traces = pl.DataFrame(self._run.read("traces", int(part), names))
            columns = ["trace_id", "question_id", "source_id", "rank", "bucket", "value", "thought_tokens"]
            joined = frame.select(columns).join(traces, on="trace_id", how="left", maintain_order="left")
            if "rejected_id" in frame.columns:
                rejected = traces.select(rejected_id="trace_id", rejected="completion", rejected_solution="solution")
                joined = joined.with_columns(frame["rejected_id"]).join(rejected, on="rejected_id", how="left")
            for row in self._run.join_questions(joined, int(part)).iter_rows(named=True):
                texts = {name: row[name] for name in ("completion", "rejected") if name in row}
                read = {name: read_completion(self.format, text).text for name, text in texts.items()}
                yield row | read | {"explanation": read["completion"]}

    def shaped(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the data set row of a selected trace."""
        columns = self._shape.columns(self._texts.of(row), row["trace_id"])
        origin = {field.name: row.get(field.name) for field in PROVENANCE}
        return columns | origin | {"reward": row["value"], "final_answer": row["answer"]}

    def _lengths(self, rows: Iterator[dict[str, Any]]) -> list[int]:
        """Return the tokens of each row in the student's training text."""
        views = self._texts.views
        assert views is not None
        lengths: list[int] = []
        while batch := list(islice(rows, _ROWS_AT_A_TIME)):
            texts = [views.student(Problem.of(row), row["explanation"]).text for row in batch]
            lengths += [len(encoding) for encoding in encode(self._texts.tokenizer, texts)]
        return lengths

    def count(self, chosen: pl.DataFrame) -> None:
        """Add the selected traces to the summary."""
        summary, before = self.summary, self.summary.rows
        summary.rows += len(chosen)
        summary.questions += chosen["question_id"].n_unique()
        tokens = summary.mean_thought_tokens * before + float(chosen["thought_tokens"].sum())
        summary.mean_thought_tokens = tokens / max(summary.rows, 1)
        origins = Counter(summary.origins) + Counter(chosen["origin"].drop_nulls().to_list())
        summary.origins = dict(sorted(origins.items()))


def _limited(chosen: Iterator[pl.DataFrame], limit: int, seed: int) -> Iterator[pl.DataFrame]:
    """Keep ``limit`` rows, those of the questions with the smallest seeded hash.

    The draw is independent of the order of the questions and the size of the parts.
    """
    kept: pl.DataFrame | None = None
    for frame in chosen:
        draws = {key: _draw(seed, key) for key in frame["question_id"].unique()}
        frame = frame.with_columns(pl.col("question_id").replace_strict(draws, return_dtype=pl.String).alias("draw"))
        kept = frame if kept is None else pl.concat([kept, frame])
        kept = kept.sort("draw", "rank").head(limit)
    if kept is not None:
        yield kept.drop("draw").sort("part", "position", "rank")


def _splits(
    chosen: Iterator[pl.DataFrame], settings: DistillSettings, summary: DistillSummary
) -> dict[str, Iterable[pl.DataFrame]]:
    """Divide the selected traces into the splits, by question, and count those of ``test``.

    The questions of ``test`` are those with the smallest seeded hash, as with ``limit``.

    Raises:
        SettingsError: no question is left for the split ``train``.
    """
    frames = list(chosen)
    questions = {key for frame in frames for key in frame["question_id"]}
    holdout = settings.holdout or 0
    number = int(holdout) if holdout >= 1 else max(1, round(holdout * len(questions)))
    if questions and number >= len(questions):
        raise SettingsError(
            f"--holdout: {settings.holdout:g} leaves no question for training; the selection has {len(questions)}"
        )
    drawn = sorted(questions, key=lambda key: _draw(settings.seed, key))[:number]
    is_test = pl.col("question_id").is_in(drawn)
    test = [frame.filter(is_test) for frame in frames]
    summary.held_out, summary.held_out_questions = sum(map(len, test)), len(drawn)
    return {"train": [frame.filter(~is_test) for frame in frames], "test": test}


def _draw(seed: int, question_id: str) -> str:
    """Return a hash of a question that puts the questions in random order."""
    return hashlib.blake2b(f"{seed}/{question_id}".encode(), digest_size=8).hexdigest()


def _write(folder: Path, selection: Selection, splits: dict[str, Iterable[pl.DataFrame]]) -> str:
    """Write the rows of each split as Parquet files and one JSONL file, and return the hash of all rows."""
    digest = hashlib.blake2b(digest_size=8)
    for split, chosen in splits.items():
        with (
            (folder / f"{split}.jsonl").open("w", encoding="utf-8") as lines,
            Shards(folder / "data", selection.schema, split) as files,
        ):
            for frame in chosen:
                rows = selection.rows(frame)
                while batch := [selection.shaped(row) for row in islice(rows, _ROWS_AT_A_TIME)]:
                    table = pa.Table.from_pylist(batch, schema=selection.schema)
                    # With a null for each missing field, as in the Parquet files.
                    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
                    digest.update(text.encode())
                    lines.write(text)
                    files.write(table)
                selection.count(frame)
    for file in (folder / "data").iterdir():
        file.rename(file.with_stem(f"{file.stem}-{digest.hexdigest()}"))
    return digest.hexdigest()


def _describe(
    folder: Path, run: RunFolder, settings: DistillSettings, format: Format, summary: DistillSummary, digest: str
) -> None:
    steps = run.info.get("steps", {})
    excluded = ("out", "missing_traces", "seconds")
    content = {
        "settings": settings.model_dump(mode="json", exclude={"input", "out"}),
        "format": format.model_dump(mode="json"),
        "counts": {key: value for key, value in asdict(summary).items() if key not in excluded},
        "steps": {name: _public(step) for name, step in steps.items()},
        "made_from": {"ranks": run.digest("ranks")},
    }
    (folder / "README.md").write_text(dataset_card(settings, summary.rows, summary.held_out, digest), encoding="utf-8")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    content["files"] = {file.relative_to(folder).as_posix(): checksum(file) for file in files}
    (folder / "distill.json").write_text(json_text(content), encoding="utf-8")


def _public(step: dict[str, Any]) -> dict[str, Any]:
    """Return a step's run.json entry without local paths and without what distill.json records elsewhere."""
    settings = {key: value for key, value in step.get("settings", {}).items() if key not in ("in", "input", "out")}
    excluded = ("format", "sources", "work")
    return {key: value for key, value in step.items() if key not in excluded} | {"settings": settings}
