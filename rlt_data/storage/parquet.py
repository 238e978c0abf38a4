"""Parquet files: how tables are written to them and read from them. Every page carries a checksum."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_data.errors import RunFolderError
from rlt_data.storage.paths import StoragePath

_ROWS_A_SHARD = 100_000


def write_rows(path: Path, rows: pa.Table) -> None:
    """Write rows to a file on the disk."""
    pq.write_table(rows, path, compression="zstd", row_group_size=1024, write_page_checksum=True)


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
    """Read the columns of a schema from one file; a column that the file lacks is null where the schema allows it.

    Args:
        path: the file, for messages.
        source: the file, or something that reads like it.
        schema: the columns, in the order of the result.

    Raises:
        FileNotFoundError: the file does not exist (any more).
        RunFolderError: the file is damaged, or has other columns.
    """
    # read_table, which is made for many files, takes twice as long for one
    pre_buffer = not isinstance(source, Path)
    with table_errors(path), pq.ParquetFile(source, pre_buffer=pre_buffer, page_checksum_verification=True) as file:
        there = set(file.schema_arrow.names)
        lacking = [field for field in schema if field.name not in there]
        if needed := [field.name for field in lacking if not field.nullable]:
            raise KeyError(f"it has no column {needed[0]!r}")
        rows = file.read([name for name in schema.names if name in there])
        for field in lacking:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
        rows = rows.select(schema.names)
        return rows if rows.schema.equals(schema) else rows.cast(schema)


def count_file(path: StoragePath, source: Any) -> int:
    """Return the rows of a file, from its footer; see :func:`read_file`."""
    with table_errors(path):
        return int(pq.read_metadata(source).num_rows)


@contextlib.contextmanager
def table_errors(path: StoragePath) -> Iterator[None]:
    """Turn the errors of a damaged file into RunFolderError, which names the file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise RunFolderError(f"{path}: cannot be read as a table: {reason}") from None
