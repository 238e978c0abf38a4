"""Read the records of files as a stream, so that memory use does not grow with the input."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_data.errors import InputError
from rlt_data.inputs.files import Source, Sources, file_type, find_sources, readable
from rlt_data.settings import InputSettings

#: Longest line in bytes. A file with a longer line is refused, because it is probably not JSONL.
LONGEST_LINE = 64 * 2**20


@dataclass(frozen=True)
class Record:
    """One record of an input.

    Attributes:
        location: where it is in the input, such as ``line 3`` or ``b.jsonl row 3``.
        data: its columns, or None if it cannot be read.
        reason: why it cannot be read, or None.
        source: file or data set that has it, if the input has several; else empty.
    """

    location: str
    data: dict[str, Any] | None
    reason: str | None = None
    source: str = ""


def read_records(settings: InputSettings, sources: Sources | None = None) -> Iterator[Record]:
    """Read the records of an input, at most ``settings.limit``.

    Args:
        settings: the input.
        sources: its files, if they have been found before.

    Raises:
        InputError: the input does not exist or cannot be read.
        SettingsError: a setting has no effect on this kind of input.
    """
    records = _records(settings, (sources or find_sources(settings)).sources)
    return islice(records, settings.limit) if settings.limit else records


def _records(settings: InputSettings, sources: Sequence[Source]) -> Iterator[Record]:
    for source in sources:
        if source.label:
            for record in _of_source(source, settings):
                yield replace(record, location=f"{source.label} {record.location}", source=source.name)
        else:
            yield from _of_source(source, settings)


def _of_source(source: Source, settings: InputSettings) -> Iterator[Record]:
    if source.kind != "file":
        from rlt_data.inputs.dataset import read_dataset

        rows = read_dataset(source, settings)
        return (Record(f"row {number}", data) for number, data in enumerate(rows))
    path = Path(source.name)
    with readable(path):
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
    return _READERS[str(file_type(path))](path)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with readable(path):
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                yield cast(BinaryIO, file)
        elif path.suffix.lower() == ".zst":
            with pa.input_stream(str(path), compression="zstd") as stream, io.BufferedReader(stream) as buffered:
                yield cast(BinaryIO, buffered)
        else:
            with path.open("rb") as plain:
                yield plain


def _from_jsonl(path: Path) -> Iterator[Record]:
    with _opened(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            location = f"line {number}"
            if len(line) == LONGEST_LINE:
                raise InputError(f"{path}:{number}: the line is longer than {LONGEST_LINE >> 20} MiB; is this JSONL?")
            if number == 1:
                line = _without_byte_order_mark(path, line)
            if line.strip():
                yield _json_record(location, line)
        if number == 0:
            raise InputError(f"{path}: the file is empty")


def _json_record(location: str, line: bytes) -> Record:
    try:
        data = json.loads(line.rstrip(b"\r\n").decode("utf-8"), parse_float=Decimal)
    except UnicodeDecodeError as error:
        return Record(location, None, f"not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return Record(location, None, f"not JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Record(location, None, _json_limit(error))
    return _object_record(location, data)


def _json_limit(error: ValueError | RecursionError) -> str:
    """Return why Python refuses well-formed JSON."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _object_record(location: str, data: Any) -> Record:
    if not isinstance(data, dict):
        return Record(location, None, f"expected a JSON object, got {_kind(data)}")
    return Record(location, data)


def _from_json(path: Path) -> Iterator[Record]:
    with _opened(path) as file:
        raw = _without_byte_order_mark(path, file.read())
    try:
        content = json.loads(raw.decode("utf-8"), parse_float=Decimal)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and raw.lstrip()[:1] == b"{":  # JSONL with the suffix .json
            yield from _from_jsonl(path)
            return
        raise InputError(f"{path}:{error.lineno}: not JSON at column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {_json_limit(error)}") from None
    if isinstance(content, dict):
        content = _rows_of(content)
    if not isinstance(content, list):
        raise InputError(f"{path}: expected a JSON list of objects, got {_kind(content)}")
    for number, data in enumerate(content):
        yield _object_record(f"row {number}", data)


def _rows_of(content: dict[str, Any]) -> list[Any]:
    """Return the rows of a JSON object: a list such as ``data``, its columns as rows, or the object itself."""
    for key in ("data", "rows", "train", "examples", "instances", "items", "records"):
        if isinstance(content.get(key), list):
            return list(content[key])
    columns = list(content.values())
    if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        if len(columns) > 1:  # as Dataset.to_dict writes them
            return [dict(zip(content, values, strict=True)) for values in zip(*columns, strict=True)]
    if columns and all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        return [{name: column[key] for name, column in content.items()} for key in columns[0]]  # as pandas writes them
    return [content]


def _from_csv(path: Path) -> Iterator[Record]:
    """Read a CSV file, also one with semicolons, tabs or a space after each; an empty field is a missing value."""
    csv.field_size_limit(sys.maxsize)
    with _opened(path) as file:
        head = file.readline(LONGEST_LINE).decode("utf-8", "replace")
    delimiter = "\t" if ".tsv" in path.name.lower() else max(",;\t", key=head.count)
    spaced = f"{delimiter} " in head
    with _opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.DictReader(text, restkey="", strict=True, delimiter=delimiter, skipinitialspace=spaced)
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            columns = len(reader.fieldnames)
            for data in reader:
                location = f"line {reader.line_num}"
                if "" in data:
                    yield Record(location, None, f"more fields than the {columns} columns of the header")
                elif None in data.values():
                    yield Record(location, None, f"fewer fields than the {columns} columns of the header")
                else:
                    yield Record(location, {column: value or None for column, value in data.items()})
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 after line {reader.line_num} ({error.reason})") from None
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _from_parquet(path: Path) -> Iterator[Record]:
    with readable(path):
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for data in _rows_with_short_floats(batch):
                yield Record(f"row {number}", data)
                number += 1


def _rows_with_short_floats(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows of a batch, with the shortest digits that give the same number for floats of 16 and 32 bits."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError):  # a time outside of Python's range
        types = [pa.string() if pa.types.is_temporal(column.type) else column.type for column in batch.schema]
        batch = batch.cast(pa.schema(list(zip(batch.schema.names, types, strict=True))))
        rows = batch.to_pylist()
    for column in batch.schema:
        if column.type in (pa.float16(), pa.float32()):
            digits = batch.column(column.name).cast(pa.float32()).cast(pa.string()).to_pylist()
            for row, text in zip(rows, digits, strict=True):
                row[column.name] = None if text is None else Decimal(text)
    return rows


def _without_byte_order_mark(path: Path, raw: bytes) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: the file is UTF-16; save it as UTF-8")
    return raw.removeprefix(b"\xef\xbb\xbf")


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


_READERS = {"jsonl": _from_jsonl, "json": _from_json, "csv": _from_csv, "parquet": _from_parquet}
