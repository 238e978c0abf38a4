"""Parquet files of a run: how they are written, and read with few requests where they are in a store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_data.errors import RunFolderError
from rlt_data.storage.paths import Place, store_errors

if TYPE_CHECKING:
    from upath import UPath

#: Bytes that are asked of the end of a file of which some columns are wanted; a smaller file is there with them.
_END = 2**20
#: Bytes that are asked of the end of a file whose rows are counted; its footer is seldom longer.
_FOOTER = 2**16
#: Files whose ends are asked for together.
_FILES_AT_A_TIME = 256
_ROWS_A_SHARD = 100_000


def write_rows(path: Path, rows: pa.Table) -> None:
    """Write rows to a file on the disk."""
    pq.write_table(rows, path, compression="zstd", row_group_size=1024)


class Shards:
    """Writes rows into files of bounded length in a folder on the disk, ``train-00000.parquet`` and so on.

    Args:
        folder: where to, an existing folder.
        schema: the columns.

    Attributes:
        rows: of each file.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder = folder
        self.schema = schema
        self.rows: list[int] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, rows: pa.Table) -> None:
        """Write rows, in a new file where the current one is full."""
        if self._writer is None or self.rows[-1] >= _ROWS_A_SHARD:
            self.close()
            path = self.folder / f"train-{len(self.rows):05d}.parquet"
            self._writer = pq.ParquetWriter(path, self.schema, compression="zstd")
            self.rows.append(0)
        self._writer.write_table(rows)
        self.rows[-1] += len(rows)

    def close(self) -> None:
        """Finish the current file."""
        if self._writer:
            self._writer.close()
            self._writer = None


def read_rows(
    files: Sequence[Place], columns: Sequence[str], *, all_columns: bool, schema: pa.Schema | None = None
) -> list[pa.Table]:
    """Read columns of files, one table each.

    Args:
        files: files of one run.
        columns: which columns, in which order.
        all_columns: whether that is about all there are, so that it pays to fetch whole files at once.
        schema: of the table; its nullable columns are null where a file was written before they existed.

    Raises:
        FileNotFoundError: a file is not there (any more).
        RunFolderError: a file cannot be read, or has no such column.
    """
    if stored := _stored(files):
        return _from_store(stored, list(columns), schema, all_columns=all_columns)
    return [_read(path, path, list(columns), schema) for path in files]


def _from_store(
    files: list[UPath], columns: list[str], schema: pa.Schema | None, *, all_columns: bool
) -> list[pa.Table]:
    fs, tables = files[0].fs, []
    for path, end in zip(files, _ends(files, None if all_columns else _END), strict=True):
        if all_columns or len(end) < _END:
            tables.append(_read(path, pa.BufferReader(end), columns, schema))
        else:
            with table_errors(path), store_errors(), fs.open(path.path, cache_type="none") as file:
                tables.append(_read(path, file, columns, schema))
    return tables


def _read(path: Place, source: Any, columns: list[str], schema: pa.Schema | None) -> pa.Table:
    # read_table, which is made for many files, takes twice as long for one
    with table_errors(path), pq.ParquetFile(source, pre_buffer=not isinstance(source, Path)) as file:
        rows = file.read(columns)
        for field in schema or ():
            if field.nullable and field.name in columns and field.name not in rows.column_names:
                rows = rows.append_column(field, pa.nulls(len(rows), field.type))
        return rows.select(columns)


def count_rows(files: Sequence[Place]) -> int:
    """Return how many rows files of one run have together, from their footers."""
    stored = _stored(files)
    rows = 0 if stored else sum(_count(path, path) for path in files)
    for start in range(0, len(stored), _FILES_AT_A_TIME):
        few = stored[start : start + _FILES_AT_A_TIME]
        for path, end in zip(few, _ends(few, _FOOTER), strict=True):
            footer = int.from_bytes(end[-8:-4], "little") + 8
            if footer > len(end):
                [end] = _ends([path], footer)
            rows += _count(path, pa.BufferReader(end))
    return rows


def _count(path: Place, source: Any) -> int:
    with table_errors(path):
        return int(pq.read_metadata(source).num_rows)


def _stored(files: Sequence[Place]) -> list[UPath]:
    return [path for path in files if not isinstance(path, Path)]


def _ends(files: list[UPath], size: int | None) -> list[bytes]:
    """Fetch the ends of files side by side, or all of them."""
    fs, paths = files[0].fs, [path.path for path in files]
    starts, ends = [0] * len(paths), [None] * len(paths)
    with table_errors(files[0].parent), store_errors():
        if size is not None:  # not every library takes places that are counted from the end
            ends = fs.sizes(paths)
            starts = [max(0, end - size) for end in ends]
        found: list[bytes] = fs.cat_ranges(paths, starts, ends, on_error="raise")
    return found


@contextlib.contextmanager
def table_errors(path: Place) -> Iterator[None]:
    """Turn what is raised of a damaged file into RunFolderError, which names a place."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, KeyError, OSError) as error:
        raise RunFolderError(f"{path}: cannot be read as a table: {error}") from None
