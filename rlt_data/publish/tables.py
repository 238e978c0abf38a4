"""The tables of a data set on the Hub: one configuration for each way to load it, written as Parquet files first.

default          what was distilled
rank_01, ...     well-formed traces of one rank, in the columns of the distilled rows; bucket_1, ... where buckets are
                 quantiles
traces           every trace with its question, its scores and its rank
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rlt_data.errors import RunFolderError
from rlt_data.progress import Progress
from rlt_data.provenance import recorded_format
from rlt_data.settings import DistillSettings
from rlt_data.steps.distill import DistillSummary, Selection
from rlt_data.store import Run

#: Rows of one Parquet file.
ROWS_A_FILE = 100_000
_ROWS_AT_A_TIME = 256
#: Columns that stay in the run: lists with a value for each token.
_LISTS = ("token_ids", "logprobs", "prefill_token_ids", "prefill_logprobs")


@dataclass
class Config:
    """A way to load the data set.

    Attributes:
        name: what ``load_dataset`` gets as its second argument.
        folder: of its files, inside the data set.
        schema: its columns.
        rows: by file name, in the order of the rows.
        size: bytes of the rows in memory.
    """

    name: str
    folder: Path
    schema: pa.Schema
    rows: dict[str, int] = field(default_factory=dict)
    size: int = 0


class Shards:
    """Writes the rows of a configuration into files of bounded length.

    Args:
        root: folder of the data set.
        name: of the configuration.
        schema: its columns.
    """

    def __init__(self, root: Path, name: str, schema: pa.Schema) -> None:
        self.config = Config(name, root / "data" / name, schema)
        self.config.folder.mkdir(parents=True)
        self._writer: pq.ParquetWriter | None = None
        self._lengths: list[int] = []
        self._held: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        """Write a row, sooner or later."""
        self._held.append(row)
        if len(self._held) == _ROWS_AT_A_TIME:
            self._flush()

    def write(self, table: pa.Table) -> None:
        """Write rows."""
        while len(table):
            if self._writer is None or self._lengths[-1] == ROWS_A_FILE:
                self._next_file()
            now = table.slice(0, ROWS_A_FILE - self._lengths[-1])
            assert self._writer is not None
            self._writer.write_table(now)
            self._lengths[-1] += len(now)
            self.config.size += now.nbytes
            table = table.slice(len(now))

    def close(self) -> Config:
        """Finish the files, and give them names that say how many there are."""
        self._flush()
        if self._writer:
            self._writer.close()
        for number, length in enumerate(self._lengths):
            name = f"train-{number:05d}-of-{len(self._lengths):05d}.parquet"
            self._file(number).rename(self.config.folder / name)
            self.config.rows[name] = length
        return self.config

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self.write(pa.Table.from_pylist(held, schema=self.config.schema))

    def _next_file(self) -> None:
        if self._writer:
            self._writer.close()
        self._writer = pq.ParquetWriter(self._file(len(self._lengths)), self.config.schema, compression="zstd")
        self._lengths.append(0)

    def _file(self, number: int) -> Path:
        return self.config.folder / f"{number:05d}.parquet.new"


def write_configs(run: Run, distilled: Path, root: Path, progress: Progress) -> list[Config]:
    """Write all configurations of a run.

    Args:
        run: a ranked run.
        distilled: what ``distill`` made of it.
        root: an empty folder.
        progress: told of every part.

    Raises:
        RunFolderError: there are no ranks.
    """
    configs = [_default(distilled, root), *_by_rank(run, distilled, root, progress), _traces(run, root, progress)]
    return [config for config in configs if config.rows]


def _default(distilled: Path, root: Path) -> Config:
    files = sorted((distilled / "data").glob("*.parquet"))
    config = Config("default", root / "data" / "default", pq.read_schema(files[0]))
    config.folder.mkdir(parents=True)
    for number, file in enumerate(files):
        name = f"train-{number:05d}-of-{len(files):05d}.parquet"
        shutil.copyfile(file, config.folder / name)
        read = pq.ParquetFile(file)
        config.rows[name] = read.metadata.num_rows
        config.size += sum(read.metadata.row_group(i).total_byte_size for i in range(read.num_row_groups))
    return config


def _by_rank(run: Run, distilled: Path, root: Path, progress: Progress) -> Iterator[Config]:
    """Write the configurations by rank, or by bucket where buckets are not ranks."""
    format = recorded_format(run, "score")
    if format is None or not run.parts("ranks"):
        raise RunFolderError(f"{run.path}: there are no ranks; run rlt-data rank first")
    made = json.loads((distilled / "distill.json").read_text(encoding="utf-8"))["settings"]
    by_rank = run.step("rank").get("settings", {}).get("buckets", "ranks") == "ranks"
    settings = DistillSettings(input=str(run.path), select="all", shape=made["shape"])
    selection = Selection(run, settings, format, DistillSummary(run.path))
    shards: dict[int, Shards] = {}
    for frame in selection.chosen(progress):
        for row in selection.rows(frame):
            number = row["rank" if by_rank else "bucket"]
            if number not in shards:
                name = f"rank_{number:02d}" if by_rank else f"bucket_{number}"
                shards[number] = Shards(root, name, selection.schema)
            shards[number].append(selection.shaped(row))
    for _, each in sorted(shards.items()):
        yield each.close()


def _traces(run: Run, root: Path, progress: Progress) -> Config:
    """Write every trace with its question, its scores and its rank."""
    shards: Shards | None = None
    for part in run.parts("traces"):
        rows = pl.DataFrame(run.read("traces", part)).drop(_LISTS)
        questions = pl.DataFrame(run.read("questions", part)).drop("source_id")
        rows = rows.join(questions, on="question_id", how="left", maintain_order="left")
        for table in ("scores", "ranks"):
            more = pl.DataFrame(run.read(table, part)).drop(pl.selectors.list())
            new = [name for name in more.columns if name not in rows.columns]
            rows = rows.join(more.select("trace_id", *new), on="trace_id", how="left", maintain_order="left")
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        shards = shards or Shards(root, "traces", table.schema)
        shards.write(table.cast(shards.config.schema))
        progress.advance()
    if shards is None:
        raise RunFolderError(f"{run.path}: no traces yet")
    return shards.close()
