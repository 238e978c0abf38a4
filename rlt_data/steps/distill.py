"""Choose traces and write them as the data set a student is trained on: ranks in, rows in the student's format out.

DIR/data/train-00000-HASH.parquet ...   what datasets.load_dataset(DIR) reads
DIR/train.jsonl                         the same rows
DIR/distill.json, DIR/README.md         how it was made

The hash of the rows is in the names because ``datasets`` keeps what it has loaded under the folder's name and the
patterns of its README, and would otherwise give the rows of another folder of that name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.formats import Format, Views, encode
from rlt_data.formats.views import read_completion, student_message
from rlt_data.progress import SILENT, Progress, task
from rlt_data.settings import DistillSettings, ModelSettings
from rlt_data.steps.export_shapes import PROVENANCE, ExportShape, dataset_card
from rlt_data.steps.provenance import recorded_format
from rlt_data.steps.rank import PARTS_AT_A_TIME
from rlt_data.storage.backends import open_folder
from rlt_data.storage.folder import checksum, json_text
from rlt_data.storage.outputs import new_folder
from rlt_data.storage.parquet import Shards
from rlt_data.storage.paths import StoragePath, disk_errors, storage_path
from rlt_data.storage.run import RunFolder, content_hash

logger = logging.getLogger(__name__)

#: Rows whose texts are in memory together.
_ROWS_AT_A_TIME = 256
#: What the folder of a data set holds; a folder with anything else is never replaced.
_CONTENT = {"data", "train.jsonl", "distill.json", "README.md"}
_SHARD = re.compile(r"train-\d{5,}(-[0-9a-f]+)?\.parquet")


@dataclass
class DistillSummary:
    """What a data set was made of.

    Attributes:
        out: the folder.
        rows: rows of the data set.
        questions: questions that gave at least one.
        malformed: chosen traces that were left out because they were unclosed, empty, truncated or held a tag.
        too_long: traces that were passed over because they have more than ``max_tokens`` tokens.
        fallbacks: questions whose first choice did not fit and another trace was taken.
        without_row: questions that gave no row.
        mean_thought_tokens: mean length of the explanations.
        seconds: time spent.
    """

    out: StoragePath
    rows: int = 0
    questions: int = 0
    malformed: int = 0
    too_long: int = 0
    fallbacks: int = 0
    without_row: int = 0
    mean_thought_tokens: float = 0.0
    seconds: float = 0.0


def distill(settings: DistillSettings, progress: Progress = SILENT) -> DistillSummary:
    """Write a distillation data set from a ranked run; the library side of ``rlt-data distill``.

    Raises:
        RunFolderError: there are no ranks, or the folder of the data set holds something else.
        SettingsError: nothing was selected, or ``max_tokens`` came without ``tokenizer``.
        ModelError: the tokenizer's chat template would change the rows.
    """
    began = time.monotonic()
    run = RunFolder.existing(settings.input)
    if not run.parts("ranks"):
        raise RunFolderError(f"{run.path}: there are no ranks; run rlt-data rank first")
    if not run.is_current("ranks"):
        raise RunFolderError(f"{run.path}: the ranks are older than the scores; run rlt-data rank again")
    ranks = run.digest("ranks")
    format = recorded_format(run, "score")
    if format is None:
        raise RunFolderError(f"{run.path}: run.json does not say in which format the traces were scored")
    out = storage_path(settings.out) if settings.out else run.path / "dataset"
    summary = DistillSummary(out)
    selection = Selection(run, settings, format, summary)
    chosen = selection.chosen(progress)
    if settings.limit:
        chosen = _limited(chosen, settings.limit, settings.seed)
    with disk_errors(out):
        _refuse_other_content(out)
        with new_folder(out) as fresh:
            (fresh / "data").mkdir()
            with task(progress, "distill", len(run.parts("ranks"))):
                digest = _write(fresh, selection, chosen)
            if not summary.rows:
                raise SettingsError(
                    f"--select {settings.select}: no trace of {run.path} can be taken ({_why(summary)})"
                )
            summary.seconds = time.monotonic() - began
            _describe(fresh, run, settings, format, summary, digest)
            if run.digest("ranks", again=True) != ranks:
                raise RunFolderError(f"{run.path}: the ranks were replaced meanwhile; run rlt-data distill again")
    return summary


def _refuse_other_content(out: StoragePath) -> None:
    folder = open_folder(out)
    names = folder.names()
    foreign = names - _CONTENT | {f"data/{name}" for name in folder.below("data") if not _SHARD.fullmatch(name)}
    if names and ("distill.json" not in names or foreign):
        others = ", ".join(sorted(foreign)[:3]) or "no distill.json"
        raise RunFolderError(f"{out}: is there already and holds something else ({others}); choose another --out")


class Selection:
    """Chooses traces part by part, and makes rows of them."""

    def __init__(self, run: RunFolder, settings: DistillSettings, format: Format, summary: DistillSummary) -> None:
        self._run = run
        self._settings = settings
        self.format = format
        self.summary = summary
        self.kind, _, number = settings.select.partition(":")
        self._number = int(number or 0)
        self._quota = {"best": 1, "random": 1, "rank": 1, "top": self._number}.get(self.kind, math.inf)
        self._shape = ExportShape(settings.shape)
        self.schema = self._shape.schema
        self._lengths = None
        if settings.max_tokens and not settings.tokenizer:
            raise SettingsError("--max-tokens: needs --tokenizer, the student's checkpoint, to count tokens with")
        if settings.tokenizer:
            self._lengths = _Lengths(settings.tokenizer, format)

    def chosen(self, progress: Progress) -> Iterator[pl.DataFrame]:
        """Yield the chosen traces of a few parts at a time: part, question_id, trace_id, rank, value, lengths."""
        parts = self._run.parts("ranks")
        for start in range(0, len(parts), PARTS_AT_A_TIME):
            few = parts[start : start + PARTS_AT_A_TIME]
            frames = []
            for part in few:
                frame = pl.DataFrame(self._run.read("ranks", part)).with_columns(pl.lit(part).alias("part"))
                frames.append(frame.with_columns(pl.col("question_id").rle_id().alias("place")))
            yield self._choose(pl.concat(frames))
            progress.advance(len(few))

    def _choose(self, ranks: pl.DataFrame) -> pl.DataFrame:
        questions = ranks["question_id"].n_unique()
        wanted = ranks.sort("part", "place", "rank")
        if self.kind in ("rank", "bucket"):
            wanted = wanted.filter(pl.col(self.kind) == self._number)
        accepted = pl.col("flaw").is_null()
        if self._settings.include_truncated:
            accepted = accepted | (pl.col("flaw") == "truncated")
        able = wanted.filter(accepted.fill_null(False))
        if self._quota is math.inf or self.kind == "rank":
            self.summary.malformed += len(wanted) - len(able)
        if self.kind == "random":
            order = [content_hash(self._settings.seed, key) for key in able["trace_id"]]
            able = able.with_columns(pl.Series("order", order, pl.String)).sort("part", "place", "order").drop("order")
        chosen = self._fitting(able) if self._settings.max_tokens else self._first(able)
        self.summary.without_row += questions - chosen["question_id"].n_unique()
        return chosen

    def _first(self, able: pl.DataFrame) -> pl.DataFrame:
        if self._quota is math.inf:
            return able
        return able.filter(pl.int_range(pl.len()).over("part", "place") < int(self._quota))

    def _fitting(self, able: pl.DataFrame) -> pl.DataFrame:
        """Take the first traces of each question that are short enough."""
        taken: list[pl.DataFrame] = []
        counts: dict[str, int] = {}
        passed: set[str] = set()
        able = able.with_columns(pl.int_range(pl.len()).over("part", "place").alias("turn"))
        for (_,), now in able.partition_by("turn", as_dict=True).items():  # all first traces, all second ones, ...
            if self._quota is not math.inf:
                full = [key for key, count in counts.items() if count >= self._quota]
                now = now.filter(~pl.col("question_id").is_in(full))
            assert self._lengths is not None
            lengths = pl.Series("tokens", self._lengths.of(self.rows(now)), pl.Int64)
            fits = lengths <= int(self._settings.max_tokens or 0)
            self.summary.too_long += int((~fits).sum())
            for key in now.filter(fits)["question_id"]:
                counts[key] = counts.get(key, 0) + 1
                self.summary.fallbacks += key in passed and self.kind in ("best", "top", "random")
                passed.discard(key)
            passed.update(now.filter(~fits)["question_id"])
            taken.append(now.filter(fits))
        return pl.concat(taken).drop("turn").sort("part", "place", "rank") if taken else able.drop("turn").clear()

    def rows(self, chosen: pl.DataFrame) -> Iterator[dict[str, Any]]:
        """Make the contents of chosen traces, in their order."""
        for (part,), frame in chosen.partition_by("part", as_dict=True, maintain_order=True).items():
            traces = pl.DataFrame(self._run.read("traces", int(part), ["trace_id", "completion", "meta"])).join(
                frame.select("trace_id"), on="trace_id", how="semi"
            )
            columns = ["trace_id", "question_id", "source_id", "rank", "bucket", "value", "thought_tokens"]
            joined = frame.select(columns).join(traces, on="trace_id", how="left", maintain_order="left")
            for row in self._run.join_questions(joined, int(part)).iter_rows(named=True):
                explanation = read_completion(self.format, row["completion"]).text
                yield row | {"explanation": explanation, "thought": self.format.padding + explanation}

    def shaped(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make a row of the data set of a chosen trace."""
        texts = {
            "system": self.format.student_system,
            "question": row["question"],
            "solution": row["solution"],
            "explanation": row["explanation"],
            "message": student_message(self.format, row["solution"], row["thought"]),
        }
        columns = self._shape.columns(texts, row["trace_id"])
        origin = {field.name: row.get(field.name) for field in PROVENANCE}
        return columns | origin | {"reward": row["value"]}

    def count(self, chosen: pl.DataFrame) -> None:
        """Count chosen traces that have become rows."""
        summary, before = self.summary, self.summary.rows
        summary.rows += len(chosen)
        summary.questions += chosen["question_id"].n_unique()
        tokens = summary.mean_thought_tokens * before + float(chosen["thought_tokens"].sum())
        summary.mean_thought_tokens = tokens / max(summary.rows, 1)


class _Lengths:
    """Counts the tokens of a row as the student is trained on it."""

    def __init__(self, name: str, format: Format) -> None:
        # Here, because it imports torch, which distilling without --tokenizer does not need.
        from rlt_data.engines import find_checkpoint, open_tokenizer

        settings = ModelSettings()
        self._tokenizer, template = open_tokenizer(find_checkpoint(name, tokenizer_only=True), settings)
        self._views = Views(format.model_copy(update={"shots": ()}), template)
        self._views.check()

    def of(self, rows: Iterator[dict[str, Any]]) -> list[int]:
        """Return the number of tokens of each row, chat template included."""
        lengths: list[int] = []
        while few := list(islice(rows, _ROWS_AT_A_TIME)):
            texts = [self._views.student(row["question"], row["solution"], row["thought"]).text for row in few]
            lengths += [len(encoding) for encoding in encode(self._tokenizer, texts)]
        return lengths


def _limited(chosen: Iterator[pl.DataFrame], limit: int, seed: int) -> Iterator[pl.DataFrame]:
    """Keep the rows of the questions of smallest hash with the seed: a draw that no order or part size changes."""
    kept: pl.DataFrame | None = None
    for frame in chosen:
        draws = {
            key: hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).hexdigest()
            for key in frame["question_id"].unique()
        }
        frame = frame.with_columns(pl.col("question_id").replace_strict(draws, return_dtype=pl.String).alias("draw"))
        kept = frame if kept is None else pl.concat([kept, frame])
        kept = kept.sort("draw", "rank").head(limit)
    if kept is not None:
        yield kept.drop("draw").sort("part", "place", "rank")


def _write(folder: Path, selection: Selection, chosen: Iterator[pl.DataFrame]) -> str:
    """Write the rows as Parquet files and one JSONL file, and return their hash."""
    digest = hashlib.blake2b(digest_size=8)
    with (
        (folder / "train.jsonl").open("w", encoding="utf-8") as lines,
        Shards(folder / "data", selection.schema) as files,
    ):
        for frame in chosen:
            rows = selection.rows(frame)
            while few := [selection.shaped(row) for row in islice(rows, _ROWS_AT_A_TIME)]:
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in few)
                digest.update(text.encode())
                lines.write(text)
                files.write(pa.Table.from_pylist(few, schema=selection.schema))
            selection.count(frame)
    for file in (folder / "data").iterdir():
        file.rename(file.with_stem(f"{file.stem}-{digest.hexdigest()}"))
    return digest.hexdigest()


def _describe(
    folder: Path, run: RunFolder, settings: DistillSettings, format: Format, summary: DistillSummary, digest: str
) -> None:
    steps = run.info.get("steps", {})
    made = {
        "settings": settings.model_dump(mode="json", exclude={"input", "out"}),
        "format": format.model_dump(mode="json"),
        "counts": {key: value for key, value in asdict(summary).items() if key not in ("out", "seconds")},
        "steps": {name: _public(step) for name, step in steps.items()},
        "made_from": {"ranks": run.digest("ranks")},
    }
    (folder / "README.md").write_text(dataset_card(settings, summary.rows, digest), encoding="utf-8")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    made["files"] = {file.relative_to(folder).as_posix(): checksum(file) for file in files}
    (folder / "distill.json").write_text(json_text(made), encoding="utf-8")


def _public(step: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a step's entry what is said elsewhere, and the places of files on this machine."""
    settings = {key: value for key, value in step.get("settings", {}).items() if key not in ("in", "input", "out")}
    left_out = ("format", "sources", "work")
    return {key: value for key, value in step.items() if key not in left_out} | {"settings": settings}


def _why(summary: DistillSummary) -> str:
    reasons = [f"{summary.without_row} questions have no trace that fits the selection"]
    if summary.malformed:
        reasons.append(f"{summary.malformed} traces are not well-formed")
    if summary.too_long:
        reasons.append(f"{summary.too_long} are too long")
    return ", ".join(reasons)
