"""The tables of a data set on the Hub, one configuration each, written to local Parquet files.

default          the distilled rows
rank_01, ...     the well-formed traces of one rank, with the columns of ``default``; bucket_1, ... if buckets are
                 quantiles; one configuration ``ranks`` or ``buckets`` if there are many
traces           all traces, with their questions, scores and ranks

``--branch-per-stage`` also publishes the complete tables of each step on a branch: questions and traces, scores, ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlt_data.errors import RunFolderError
from rlt_data.progress import Progress
from rlt_data.settings import DistillSettings
from rlt_data.steps.distill import Rows
from rlt_data.steps.provenance import recorded_format
from rlt_data.steps.registry import DATA_STEPS
from rlt_data.steps.selection import Selection
from rlt_data.storage.backends import open_folder
from rlt_data.storage.parquet import Shards, table_errors
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.rows import OWN, columns_of, read_rows
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SCHEMAS

#: Tables by the step that writes them.
STAGES = {step.name: step.writes for step in DATA_STEPS if step.writes}

#: More ranks or buckets than this share one configuration, because each adds a list of all columns to the card.
MAX_RANK_CONFIGS = 16

_ROWS_AT_A_TIME = 256


@dataclass
class Config:
    """A configuration of the data set.

    Attributes:
        name: the second argument of ``load_dataset``.
        folder: the local folder of its files.
        schema: its columns.
        rows: row counts by file name, in the order of the rows.
        sizes: bytes of the rows in memory, by split.
    """

    name: str
    folder: Path
    schema: pa.Schema
    rows: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def row_count(self) -> int:
        """Rows of all splits."""
        return sum(self.rows.values())

    @property
    def splits(self) -> dict[str, int]:
        """Row counts by split."""
        return {
            split: sum(count for name, count in self.rows.items() if name.startswith(f"{split}-"))
            for split in self.sizes
        }


class ConfigWriter:
    """Writes the rows of a configuration to Parquet files.

    Args:
        root: the folder of the data set.
        name: the name of the configuration.
        schema: the columns.
    """

    def __init__(self, root: Path, name: str, schema: pa.Schema) -> None:
        self.config = Config(name, root / "data" / name, schema, sizes={"train": 0})
        self.config.folder.mkdir(parents=True)
        self._shards = Shards(self.config.folder, schema)
        self._buffer: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        """Buffer a row, and write the buffer when it is full."""
        self._buffer.append(row)
        if len(self._buffer) == _ROWS_AT_A_TIME:
            self._flush()

    def write(self, table: pa.Table) -> None:
        """Write a table immediately."""
        self._shards.write(table)
        self.config.sizes["train"] += table.nbytes

    def close(self) -> Config:
        """Finish the files, and rename them to include the number of files."""
        self._flush()
        self._shards.close()
        for number, length in enumerate(self._shards.rows):
            name = _file_name("train", number, len(self._shards.rows))
            (self.config.folder / f"train-{number:05d}.parquet").rename(self.config.folder / name)
            self.config.rows[name] = length
        return self.config

    def _flush(self) -> None:
        rows, self._buffer = self._buffer, []
        if rows:
            self.write(pa.Table.from_pylist(rows, schema=self.config.schema))


def _file_name(split: str, number: int, files: int) -> str:
    return f"{split}-{number:05d}-of-{files:05d}.parquet"


def write_configs(
    run: RunFolder, distilled: StoragePath, provenance: Mapping[str, Any], root: Path, progress: Progress
) -> list[Config]:
    """Write all configurations of a run.

    Args:
        run: a ranked run.
        distilled: the folder that ``distill`` wrote.
        provenance: the content of its distill.json.
        root: an empty folder.
        progress: advances by one for each part and table.

    Raises:
        RunFolderError: the run has no ranks.
    """
    by_rank = _write_by_rank(run, provenance, root, progress)
    configs = [write_default(distilled, root), *by_rank, _write_traces(run, root, progress)]
    return [config for config in configs if config.rows]


def write_default(distilled: StoragePath, root: Path) -> Config:
    """Write the configuration ``default`` from a folder that ``distill`` wrote.

    Raises:
        RunFolderError: the folder has no rows, or a file is damaged.
    """
    source = open_folder(distilled / "data")
    names = sorted(name for name in source.names() if name.endswith(".parquet"))
    if not names:
        raise RunFolderError(f"{distilled}: has no rows (data/*.parquet); run rlt-data distill again")
    (root / "distilled").mkdir()
    splits: dict[str, list[Path]] = {}
    for split in ("train", "test"):
        files = [root / "distilled" / name for name in names if name.startswith(f"{split}-")]
        for file in files:
            source.fetch(file.name, file)
        splits |= {split: files} if files else {}
    return _adopt("default", splits, root, distilled / "data")


def write_stage(run: RunFolder, stage: str, root: Path, progress: Progress) -> list[Config]:
    """Copy the tables of a stage that the run has.

    Args:
        run: the run.
        stage: a key of :data:`STAGES`.
        root: an empty folder.
        progress: advances by one for each part.
    """
    configs = []
    for table in STAGES[stage]:
        files = {part: root / table / f"{part:05d}.parquet" for part in run.parts(table)}
        (root / table).mkdir()
        for part, file in files.items():
            run.export_part(table, part, file)
            progress.advance()
        if files:
            configs.append(_adopt(table, {"train": [*files.values()]}, root, run.path / table))
    return configs


def _adopt(name: str, splits: Mapping[str, list[Path]], root: Path, source: StoragePath) -> Config:
    """Make a configuration from existing Parquet files, which are moved.

    Args:
        name: the name of the configuration.
        splits: local copies of the files of each split.
        root: the folder of the data set.
        source: the folder that the files were copied from, for error messages.

    Raises:
        RunFolderError: a file is damaged.
    """
    with table_errors(source):
        first = next(file for files in splits.values() for file in files)
        config = Config(name, root / "data" / name, pq.read_schema(first))
        config.folder.mkdir(parents=True)
        for split, files in splits.items():
            config.sizes[split] = 0
            for number, file in enumerate(files):
                target = config.folder / _file_name(split, number, len(files))
                file.rename(target)
                with pq.ParquetFile(target) as opened:
                    metadata = opened.metadata
                    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
                config.rows[target.name] = metadata.num_rows
                config.sizes[split] += sum(group.total_byte_size for group in groups)
    return config


def _write_by_rank(run: RunFolder, provenance: Mapping[str, Any], root: Path, progress: Progress) -> Iterator[Config]:
    """Write one configuration per rank, or per bucket if buckets are quantiles; a single one if there are many."""
    format = recorded_format(run, "score")
    if format is None or not run.parts("ranks"):
        raise RunFolderError(f"{run.path}: has no ranks; run rlt-data rank first")
    by_rank = run.step("rank").get("settings", {}).get("buckets", "ranks") == "ranks"
    column = "rank" if by_rank else "bucket"
    numbers = [run.read("ranks", part, [column]).column(0) for part in run.parts("ranks")]
    is_one_config = max((pc.max(chunk).as_py() or 0 for chunk in numbers), default=0) > MAX_RANK_CONFIGS
    recorded = provenance["settings"]
    # A pair belongs to no rank, so its traces are published one by one in the same template.
    shape = "prompt-completion" if recorded["shape"] == "preference" else recorded["shape"]
    settings = DistillSettings(
        input=str(run.path),
        select="all",
        include=[name for name in recorded.get("include", ()) if name in ("contaminated", "duplicate")],
        shape=shape,
        columns=recorded.get("columns", ()),
        tokenizer=recorded.get("tokenizer"),
    )
    rows = Rows(run, settings, format)
    schema = rows.schema
    if is_one_config and column not in schema.names:
        schema = schema.append(pa.field(column, pa.int32()))
    writers: dict[int, ConfigWriter] = {}
    for frame in Selection(run, settings, rows.lengths).chosen(progress):
        for row in rows.rows(frame):
            if row[column] is None:
                continue  # a trace without a value is in no quantile
            number = 0 if is_one_config else row[column]
            if number not in writers:
                single = f"rank_{number:02d}" if by_rank else f"bucket_{number}"
                writers[number] = ConfigWriter(root, f"{column}s" if is_one_config else single, schema)
            writers[number].append({column: row[column]} | rows.shaped(row))
    for _, writer in sorted(writers.items()):
        yield writer.close()


def _write_traces(run: RunFolder, root: Path, progress: Progress) -> Config:
    """Write all traces, with the columns of :meth:`RunFolder.scan` that do not have a value per token."""
    writer: ConfigWriter | None = None
    tables = columns_of(run)
    per_token = {field.name for schema in SCHEMAS.values() for field in schema if pa.types.is_list(field.type)}
    names = [name for name in tables if name not in per_token and name not in OWN]
    for part in run.parts("traces"):
        table = read_rows(run, part, names, tables).select(names).to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or ConfigWriter(root, "traces", table.schema)
        writer.write(table.cast(writer.config.schema))
        progress.advance()
    if writer is None:
        raise RunFolderError(f"{run.path}: no traces yet")
    return writer.close()
