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

from rlt_data.errors import InputError, RunFolderError, SettingsError
from rlt_data.formats import Format, Problem, encode
from rlt_data.formats.views import read_completion
from rlt_data.inputs.ids import read_ids
from rlt_data.progress import SILENT, Progress, task
from rlt_data.settings import DistillSettings
from rlt_data.signals.expressions import meaning, why_missing
from rlt_data.signals.funnel import FunnelStep, lost_questions
from rlt_data.steps import trainers
from rlt_data.steps.export_shapes import PROVENANCE, ExportShape, dataset_card
from rlt_data.steps.export_texts import ExportTexts
from rlt_data.steps.provenance import recorded_format
from rlt_data.steps.rank import count_missing_traces, refuse_missing_scores
from rlt_data.steps.selection import Selection, held_out
from rlt_data.storage.backends import open_folder
from rlt_data.storage.folder import checksum, json_text
from rlt_data.storage.outputs import new_folder
from rlt_data.storage.parquet import Shards
from rlt_data.storage.paths import StoragePath, disk_errors, storage_path
from rlt_data.storage.rows import OF_QUESTIONS, OWN, columns_of, read_rows
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SIGNAL_PREFIX, content_hash

logger = logging.getLogger(__name__)

#: Rows whose texts are in memory at the same time.
_ROWS_AT_A_TIME = 256
#: Columns of a selected trace, and those that are read for it; together they make its row.
_SELECTED = ("trace_id", "rank", "bucket", "value", "thought_tokens", "rejected_id")
_OF_TRACE = ("source_id", "completion", "origin", "answer", "meta", "solution", *OWN, *OF_QUESTIONS)
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
        funnel: what each condition dropped, in order; without the split into train and test.
        fallbacks: questions whose best trace was too long and that got another trace.
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
    funnel: list[FunnelStep] = field(default_factory=list)
    fallbacks: int = 0
    mean_thought_tokens: float = 0.0
    origins: dict[str, int] = field(default_factory=dict)
    missing_traces: int = 0
    seconds: float = 0.0


def distill(settings: DistillSettings, progress: Progress = SILENT) -> DistillSummary:
    """Write a training data set from a ranked run; implements ``rlt-data distill``.

    Raises:
        RunFolderError: the run has no ranks, traces without a score, or outdated ranks or signals; or the folder of the
            data set contains other files.
        SettingsError: an expression or column is wrong, the selection is empty, or ``holdout`` leaves no question for
            training.
        InputError: the file of ``ids`` cannot be read, or names traces that the run does not have.
        ModelError: the tokenizer's chat template would change the rows.
    """
    began = time.monotonic()
    run = RunFolder.existing(settings.input)
    if not run.parts("ranks"):
        raise RunFolderError(f"{run.path}: has no ranks; run rlt-data rank first")
    refuse_missing_scores(run, "rlt-data score, then rlt-data rank")
    if not run.is_current("ranks"):
        raise RunFolderError(
            f"{run.path}: the ranks are older than the scores or signals that they were made from; run rlt-data rank "
            "again"
        )
    format = recorded_format(run, "score")
    if format is None:
        raise RunFolderError(f"{run.path}: run.json does not record the format of the scored traces")
    out = storage_path(settings.out) if settings.out else run.path / "dataset"
    ids = _known_ids(run, settings.ids) if settings.ids else None
    rows = Rows(run, settings, format)
    selection = Selection(run, settings, rows.lengths, ids)
    tables = [*selection.tables, *(columns_of(run)[name] for name in settings.columns)]
    made_from = {name: run.digest(name) for name in tables if name == "ranks" or name.startswith(SIGNAL_PREFIX)}
    summary = DistillSummary(out, missing_traces=count_missing_traces(run))
    chosen = selection.chosen(progress)
    with disk_errors(out):
        _refuse_other_content(out)
        with new_folder(out) as folder:
            (folder / "data").mkdir()
            with task(progress, "distill", len(run.parts("traces"))):
                splits: dict[str, Iterable[pl.DataFrame]] = {"train": chosen}
                if settings.holdout:
                    splits["train"], test = held_out(chosen, settings)
                    splits["test"] = test
                    summary.held_out = sum(map(len, test))
                    summary.held_out_questions = sum(frame["question_id"].n_unique() for frame in test)
                digest = _write(folder, rows, splits, summary)
            summary.funnel, summary.fallbacks = selection.funnel.steps, selection.fallbacks
            if summary.rows == 0:
                raise _nothing_selected(run, summary.funnel)
            summary.seconds = time.monotonic() - began
            trainers.write_trainer_files(folder, out.name, settings.shape, rows.thought_key)
            _describe(folder, run, settings, format, summary, digest, made_from, ids)
            if changed := run.changed(made_from, again=True):
                raise RunFolderError(
                    f"{run.path}: the {changed[0]} changed in the meantime; run rlt-data distill again"
                )
    return summary


def _known_ids(run: RunFolder, file: str) -> list[str]:
    """Return the ids of a file of traces, all of which are ranked.

    Raises:
        InputError: the file cannot be read, or an id is not that of a ranked trace.
    """
    ids = read_ids(file, "--ids")
    unranked = dict.fromkeys(ids)
    for part in run.parts("ranks"):
        for key in run.keys("ranks", part) & unranked.keys():
            del unranked[key]
    if unranked:
        example = next(iter(unranked))
        raise InputError(
            f"--ids: {file}: {len(unranked):,} of {len(ids):,} ids are not those of ranked traces of {run.path}, such "
            f"as {example}" + ("; a complete id has 32 characters" if len(example) < 32 else "")
        )
    return ids


def _nothing_selected(run: RunFolder, funnel: list[FunnelStep]) -> SettingsError:
    lost = ", ".join(f"{condition} ({count:,})" for condition, count in lost_questions(funnel).items())
    return SettingsError(
        f"no trace of {run.path} fulfils all conditions; questions that lost their last trace, by condition: {lost}"
    )


def _refuse_other_content(out: StoragePath) -> None:
    folder = open_folder(out)
    names = folder.names()
    foreign = names - _CONTENT | {f"data/{name}" for name in folder.list_files("data") if not _SHARD.fullmatch(name)}
    if names and ("distill.json" not in names or foreign):
        listed = ", ".join(sorted(foreign)[:3]) or "no distill.json"
        raise RunFolderError(f"{out}: exists and is not a data set of rlt-data ({listed}); choose another --out")


class Rows:
    """Turns selected traces into rows of the data set.

    Args:
        run: a ranked run.
        settings: settings of the step.
        format: format of the scored traces.

    Attributes:
        schema: the columns of a row.
        thought_key: key of the thought in messages, if the student's template reads one.

    Raises:
        SettingsError: a column does not exist, or the layout has it already.
    """

    def __init__(self, run: RunFolder, settings: DistillSettings, format: Format) -> None:
        self._run = run
        self._tables = columns_of(run)
        self.format = format
        self._texts = ExportTexts(run, settings, format)
        self.thought_key = self._texts.thought_key
        self._shape = ExportShape(settings.shape, self.thought_key)
        added = [pa.field(name, _column_type(run, name)) for name in dict.fromkeys(settings.columns)]
        if taken := [column.name for column in added if column.name in self._shape.schema.names]:
            raise SettingsError(f"--columns: every row of --shape {settings.shape} has a column {taken[0]!r} already")
        self._added = {column.name: f"added {column.name}" for column in added}
        self.schema = pa.schema([*self._shape.schema, *added])

    def rows(self, chosen: pl.DataFrame) -> Iterator[dict[str, Any]]:
        """Yield the texts and columns of the selected traces, in order."""
        for (part,), frame in chosen.partition_by("part", as_dict=True, maintain_order=True).items():
            traces = read_rows(self._run, int(part), [*_OF_TRACE, *self._added], self._tables)
            added = [pl.col(name).alias(key) for name, key in self._added.items()]
            traces = traces.select("trace_id", "question_id", *_OF_TRACE, *added)
            joined = frame.select(name for name in _SELECTED if name in frame.columns)
            joined = joined.join(traces, on="trace_id", how="left", maintain_order="left")
            if "rejected_id" in frame.columns:
                worse = traces.select(rejected_id="trace_id", rejected="completion", rejected_solution="trace_solution")
                joined = joined.join(worse, on="rejected_id", how="left", maintain_order="left")
            for row in joined.iter_rows(named=True):
                texts = {name: row[name] for name in ("completion", "rejected") if name in row}
                read = {name: read_completion(self.format, text).text for name, text in texts.items()}
                yield row | read | {"explanation": read["completion"]}

    def shaped(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the data set row of a selected trace."""
        columns = self._shape.columns(self._texts.of(row), row["trace_id"])
        origin = {field.name: row.get(field.name) for field in PROVENANCE}
        added = {name: _finite(row[key]) for name, key in self._added.items()}
        return columns | origin | {"reward": row["value"], "final_answer": row["answer"]} | added

    def lengths(self, chosen: pl.DataFrame) -> list[int]:
        """Return the tokens of the student's training text for each selected trace."""
        views = self._texts.views
        assert views is not None
        rows = self.rows(chosen)
        lengths: list[int] = []
        while batch := list(islice(rows, _ROWS_AT_A_TIME)):
            texts = [views.student(Problem.of(row), row["explanation"]).text for row in batch]
            lengths += [len(encoding) for encoding in encode(self._texts.tokenizer, texts)]
        return lengths


def _column_type(run: RunFolder, name: str) -> pa.DataType:
    """Return the type of a further column: bool, string, int64 or float64, as JSON loaders infer it.

    Raises:
        SettingsError: the run has no such column, or it has a list per trace.
    """
    tables = columns_of(run)
    if name not in tables:
        raise SettingsError(f"--columns: {why_missing(run, name, list(tables))}")
    schema = run.schema(tables[name])
    type = schema.field(name).type if name in schema.names else pa.string()
    if pa.types.is_uint64(type):
        raise SettingsError(f"--columns: {name} has numbers above 2^63, which JSON loaders do not read")
    if pa.types.is_integer(type) or pa.types.is_floating(type):
        return pa.int64() if pa.types.is_integer(type) else pa.float64()
    if pa.types.is_boolean(type) or pa.types.is_string(type):
        return type
    raise SettingsError(f"--columns: {name} has a list per trace; only columns with single values can be added")


def _finite(value: Any) -> Any:
    """Return a value, or None for NaN and infinity, which JSON cannot represent."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _count(summary: DistillSummary, chosen: pl.DataFrame) -> None:
    """Add selected traces to the summary."""
    before = summary.rows
    summary.rows += len(chosen)
    summary.questions += chosen["question_id"].n_unique()
    tokens = summary.mean_thought_tokens * before + float(chosen["thought_tokens"].sum())
    summary.mean_thought_tokens = tokens / max(summary.rows, 1)
    origins = Counter(summary.origins) + Counter(chosen["origin"].drop_nulls().to_list())
    summary.origins = dict(sorted(origins.items()))


def _write(folder: Path, rows: Rows, splits: dict[str, Iterable[pl.DataFrame]], summary: DistillSummary) -> str:
    """Write the rows of each split as Parquet files and one JSONL file, count them, and return their hash."""
    digest = hashlib.blake2b(digest_size=8)
    for split, chosen in splits.items():
        with (
            (folder / f"{split}.jsonl").open("w", encoding="utf-8") as lines,
            Shards(folder / "data", rows.schema, split) as files,
        ):
            for frame in chosen:
                texts = rows.rows(frame)
                while batch := [rows.shaped(row) for row in islice(texts, _ROWS_AT_A_TIME)]:
                    table = pa.Table.from_pylist(batch, schema=rows.schema)
                    # With a null for each missing field, as in the Parquet files.
                    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
                    digest.update(text.encode())
                    lines.write(text)
                    files.write(table)
                _count(summary, frame)
    for file in (folder / "data").iterdir():
        file.rename(file.with_stem(f"{file.stem}-{digest.hexdigest()}"))
    return digest.hexdigest()


def _describe(
    folder: Path,
    run: RunFolder,
    settings: DistillSettings,
    format: Format,
    summary: DistillSummary,
    digest: str,
    made_from: dict[str, str],
    ids: list[str] | None,
) -> None:
    steps = run.info.get("steps", {})
    counts = {key: value for key, value in asdict(summary).items() if key not in ("out", "missing_traces", "seconds")}
    content = {
        "settings": settings.model_dump(mode="json", exclude={"input", "out"})
        | ({"ids": Path(settings.ids).name} if settings.ids else {}),
        "format": format.model_dump(mode="json"),
        "funnel": counts.pop("funnel"),
        "counts": counts,
        "columns": {name: meaning(run, name) for name in settings.columns},
        "steps": {name: _public(step) for name, step in steps.items()},
        "made_from": made_from,
    }
    if ids:
        content["ids"] = {"count": len(ids), "hash": content_hash(sorted(ids))}
    (folder / "README.md").write_text(dataset_card(settings, summary.rows, summary.held_out, digest), encoding="utf-8")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    content["files"] = {file.relative_to(folder).as_posix(): checksum(file) for file in files}
    (folder / "distill.json").write_text(json_text(content), encoding="utf-8")


def _public(step: dict[str, Any]) -> dict[str, Any]:
    """Return a step's run.json entry without local paths and without what distill.json records elsewhere."""
    settings = {key: value for key, value in step.get("settings", {}).items() if key not in ("in", "input", "out")}
    excluded = ("format", "sources", "work")
    return {key: value for key, value in step.items() if key not in excluded} | {"settings": settings}
