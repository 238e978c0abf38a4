"""Read and write tables as Parquet files with a checksum in every page."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_data.errors import RunFolderError
from rlt_data.storage.paths import StoragePath

_ROWS_PER_SHARD = 100_000


def write_rows(path: Path, rows: pa.Table) -> None:
    """Write rows to a Parquet file on the disk."""
    pq.write_table(rows, path, compression="zstd", row_group_size=1024, write_page_checksum=True)


class Shards:
    """Writes rows to files of limited size in a folder on the disk: ``train-00000.parquet`` and so on.

    Args:
        folder: an existing folder.
        schema: the columns.
        split: the split that the files belong to, with which their names begin.

    Attributes:
        rows: number of rows of each file.
    """

    def __init__(self, folder: Path, schema: pa.Schema, split: str = "train") -> None:
        self.folder = folder
        self.split = split
        self.schema = schema
        self.rows: list[int] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, rows: pa.Table) -> None:
        """Write rows, to a new file if the current one is full."""
        if self._writer is None or self.rows[-1] >= _ROWS_PER_SHARD:
            self.close()
            path = self.folder / f"{self.split}-{len(self.rows):05d}.parquet"
            self._writer = pq.ParquetWriter(path, self.schema, compression="zstd", write_page_checksum=True)
            self.rows.append(0)
        self._writer.write_table(rows)
        self.rows[-1] += len(rows)

    def close(self) -> None:
        """Finish the current file."""
        if self._writer:
            self._writer.close()
            self._writer = None


def read_file(path: StoragePath, source: Any, schema: pa.Schema) -> pa.Table:
    """Read columns of a Parquet file. A missing column is filled with nulls if the schema allows nulls.

    Args:
        path: path of the file, for messages.
        source: the file: a path, buffer or file object.
        schema: the columns in the order of the result.

    Raises:
        FileNotFoundError: the file does not exist (any more).
        RunFolderError: the file is damaged or lacks a required column.
    """
    # pq.read_table is made for many files and takes twice as long for one.
    pre_buffer = not isinstance(source, Path)
    with table_errors(path), pq.ParquetFile(source, pre_buffer=pre_buffer, page_checksum_verification=True) as file:
        names = set(file.schema_arrow.names)
        missing = [field for field in schema if field.name not in names]
        if required := [field.name for field in missing if not field.nullable]:
            raise KeyError(f"it has no column {required[0]!r}")
        rows = file.read([name for name in schema.names if name in names])
        for field in missing:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
        rows = rows.select(schema.names)
        return rows if rows.schema.equals(schema) else rows.cast(schema)


def count_file(path: StoragePath, source: Any) -> int:
    """Return the number of rows of a file from its footer. The arguments and errors are those of :func:`read_file`."""
    with table_errors(path):
        return int(pq.read_metadata(source).num_rows)


@contextlib.contextmanager
def table_errors(path: StoragePath) -> Iterator[None]:
    """Turn errors of reading a damaged file into RunFolderError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise RunFolderError(f"{path}: cannot be read as a table: {reason}") from None
