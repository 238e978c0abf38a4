"""The tables of a data set on the Hub: one configuration for each way to load it, written as Parquet files first.

default          what was distilled
rank_01, ...     well-formed traces of one rank, in the columns of the distilled rows; bucket_1, ... where buckets are
                 quantiles
traces           every trace with its question, its scores and its rank

A branch for each stage may hold its tables whole: questions and traces, scores, ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rlt_data.errors import RunFolderError
from rlt_data.progress import Progress
from rlt_data.settings import DistillSettings
from rlt_data.steps.distill import DistillSummary, Selection
from rlt_data.steps.provenance import recorded_format
from rlt_data.steps.registry import DATA_STEPS
from rlt_data.storage.backends import open_folder
from rlt_data.storage.parquet import Shards, table_errors
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SCHEMAS

#: The tables of each stage that has any.
STAGES = {step.name: step.writes for step in DATA_STEPS if step.writes}

_ROWS_AT_A_TIME = 256


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


class ConfigWriter:
    """Writes the rows of a configuration.

    Args:
        root: folder of the data set.
        name: of the configuration.
        schema: its columns.
    """

    def __init__(self, root: Path, name: str, schema: pa.Schema) -> None:
        self.config = Config(name, root / "data" / name, schema)
        self.config.folder.mkdir(parents=True)
        self._shards = Shards(self.config.folder, schema)
        self._held: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        """Write a row, sooner or later."""
        self._held.append(row)
        if len(self._held) == _ROWS_AT_A_TIME:
            self._flush()

    def write(self, table: pa.Table) -> None:
        """Write rows."""
        self._shards.write(table)
        self.config.size += table.nbytes

    def close(self) -> Config:
        """Finish the files, and give them names that say how many there are."""
        self._flush()
        self._shards.close()
        for number, length in enumerate(self._shards.rows):
            name = _file_name(number, len(self._shards.rows))
            (self.config.folder / f"train-{number:05d}.parquet").rename(self.config.folder / name)
            self.config.rows[name] = length
        return self.config

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self.write(pa.Table.from_pylist(held, schema=self.config.schema))


def _file_name(number: int, files: int) -> str:
    return f"train-{number:05d}-of-{files:05d}.parquet"


def write_configs(
    run: RunFolder, distilled: StoragePath, made: Mapping[str, Any], root: Path, progress: Progress
) -> list[Config]:
    """Write all configurations of a run.

    Args:
        run: a ranked run.
        distilled: what ``distill`` made of it.
        made: its distill.json.
        root: an empty folder.
        progress: told of every part.

    Raises:
        RunFolderError: there are no ranks.
    """
    configs = [write_default(distilled, root), *_by_rank(run, made, root, progress), _traces(run, root, progress)]
    return [config for config in configs if config.rows]


def write_default(distilled: StoragePath, root: Path) -> Config:
    """Write the configuration of what was distilled.

    Raises:
        RunFolderError: there is nothing, or a file is damaged.
    """
    source = open_folder(distilled / "data")
    names = sorted(name for name in source.names() if name.endswith(".parquet"))
    if not names:
        raise RunFolderError(f"{distilled}: there are no rows (no data/*.parquet); distill again")
    (root / "distilled").mkdir()
    files = [root / "distilled" / name for name in names]
    for file in files:
        source.fetch(file.name, file)
    return _adopted("default", files, root, distilled / "data")


def write_stage(run: RunFolder, stage: str, root: Path, progress: Progress) -> list[Config]:
    """Write the tables of a stage whole, as they are in the run; none of those that are not there.

    Args:
        run: the run.
        stage: a key of :data:`STAGES`.
        root: an empty folder.
        progress: told of every part.
    """
    configs = []
    for table in STAGES[stage]:
        files = {part: root / table / f"{part:05d}.parquet" for part in run.parts(table)}
        (root / table).mkdir()
        for part, file in files.items():
            run.export_part(table, part, file)
            progress.advance()
        if files:
            configs.append(_adopted(table, [*files.values()], root, run.path / table))
    return configs


def _adopted(name: str, files: list[Path], root: Path, source: StoragePath) -> Config:
    """Make a configuration of files that are there already, in the folder of the data set.

    Raises:
        RunFolderError: one is damaged; names the folder that they came from.
    """
    with table_errors(source):
        config = Config(name, root / "data" / name, pq.read_schema(files[0]))
        config.folder.mkdir(parents=True)
        for number, file in enumerate(files):
            own = config.folder / _file_name(number, len(files))
            file.rename(own)
            with pq.ParquetFile(own) as read:
                config.rows[own.name] = read.metadata.num_rows
                config.size += sum(read.metadata.row_group(i).total_byte_size for i in range(read.num_row_groups))
    return config


def _by_rank(run: RunFolder, made: Mapping[str, Any], root: Path, progress: Progress) -> Iterator[Config]:
    """Write the configurations by rank, or by bucket where buckets are not ranks."""
    format = recorded_format(run, "score")
    if format is None or not run.parts("ranks"):
        raise RunFolderError(f"{run.path}: there are no ranks; run rlt-data rank first")
    by_rank = run.step("rank").get("settings", {}).get("buckets", "ranks") == "ranks"
    settings = DistillSettings(input=str(run.path), select="all", shape=made["settings"]["shape"])
    selection = Selection(run, settings, format, DistillSummary(run.path))
    writers: dict[int, ConfigWriter] = {}
    for frame in selection.chosen(progress):
        for row in selection.rows(frame):
            number = row["rank" if by_rank else "bucket"]
            if number not in writers:
                name = f"rank_{number:02d}" if by_rank else f"bucket_{number}"
                writers[number] = ConfigWriter(root, name, selection.schema)
            writers[number].append(selection.shaped(row))
    for _, each in sorted(writers.items()):
        yield each.close()


def _plain(table: str) -> list[str]:
    """Return the columns of a table but those with a value for each token, which stay in the run."""
    return [field.name for field in SCHEMAS[table] if not pa.types.is_list(field.type)]


def _traces(run: RunFolder, root: Path, progress: Progress) -> Config:
    """Write every trace with its question, its scores and its rank."""
    writer: ConfigWriter | None = None
    for part in run.parts("traces"):
        rows = pl.DataFrame(run.read("traces", part, _plain("traces")))
        rows = run.join_questions(rows, part)
        for table in ("scores", "ranks"):
            rows = run.join(rows, table, part, _plain(table))
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or ConfigWriter(root, "traces", table.schema)
        writer.write(table.cast(writer.config.schema))
        progress.advance()
    if writer is None:
        raise RunFolderError(f"{run.path}: no traces yet")
    return writer.close()
