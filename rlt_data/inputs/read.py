"""Read records from files, folders and the Hub as a stream, so that memory use does not grow with the input."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from rlt_data.errors import InputError, SettingsError, one_line
from rlt_data.libraries import quiet_bars
from rlt_data.settings import InputSettings
from rlt_data.settings.base import is_url

#: Longest line in bytes. A file with a longer line is refused, because it is probably not JSONL.
LONGEST_LINE = 64 * 2**20

#: What files, decompressors and Arrow raise for damaged content and for values that Python cannot represent.
_UNREADABLE = (OSError, EOFError, ValueError, ArithmeticError, LookupError, zlib.error, pa.ArrowException)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Record:
    """One record of an input.

    Attributes:
        location: where it is in the input, such as ``line 3`` or ``row 3``.
        data: its columns, or None if it cannot be read.
        reason: why it cannot be read, or None.
    """

    location: str
    data: dict[str, Any] | None
    reason: str | None = None


def read_records(settings: InputSettings) -> Iterator[Record]:
    """Read the records of an input, at most ``settings.limit``.

    Raises:
        InputError: the input does not exist or cannot be read.
        SettingsError: a setting has no effect on this kind of input.
    """
    records = _records(settings)
    return islice(records, settings.limit) if settings.limit else records


def input_digest(settings: InputSettings) -> str | None:
    """Return a hash of an input file's bytes, or None if the input is not a file."""
    path = Path(settings.input)
    digest = xxhash.xxh3_128()
    with _readable(path):
        if not path.is_file():
            return None
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _records(settings: InputSettings) -> Iterator[Record]:
    path = Path(settings.input)
    if not settings.input.strip():
        raise InputError("--in: is empty; name a file, a folder, or a data set on the Hub (ORG/NAME)")
    if is_url(settings.input):
        raise InputError(f"{settings.input}: input must be on this machine; only run folders can be URLs")
    with _readable(path):
        is_folder, exists = path.is_dir(), path.exists()
    if exists:
        unread = settings.not_default(*(["revision"] if is_folder else ["split", "subset", "revision"]))
        if unread:
            kind = "folder" if is_folder else "file"
            raise SettingsError(f"--{unread[0]}: has no effect on {settings.input}, which is a {kind}")
    if is_folder:
        return _from_dataset(_load_folder(path, settings))
    if not exists:
        if _HUB_ID.fullmatch(settings.input) and not path.suffix:
            return _from_dataset(_load_hub(settings))
        raise InputError(f"{settings.input}: no such file or folder (name a data set on the Hub as ORG/NAME)")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    kind = path.name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2].lower()
    if kind == "parquet":
        return _from_parquet(path)
    if kind in ("csv", "tsv"):
        return _from_csv(path, kind)
    if kind == "json":
        return _from_json(path)
    if kind in ("jsonl", "ndjson"):
        return _from_jsonl(path)
    raise InputError(f"{path}: unknown file type; expected .jsonl (also .gz or .zst), .json, .csv, .tsv or .parquet")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors of reading a file or folder into InputError."""
    try:
        yield
    except _UNREADABLE as error:
        raise InputError(f"{_path_of(error) or path}: cannot be read: {_reason(error)}") from None


def _path_of(error: BaseException) -> str | None:
    filename = getattr(error, "filename", None)
    return filename if isinstance(filename, str) else None


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or one_line(error)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with _readable(path):
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                yield cast(BinaryIO, file)
        elif path.suffix == ".zst":
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


def _from_csv(path: Path, kind: str) -> Iterator[Record]:
    """Read a CSV file, also one with semicolons, tabs or a space after each; an empty field is a missing value."""
    csv.field_size_limit(sys.maxsize)
    with _opened(path) as file:
        head = file.readline(LONGEST_LINE).decode("utf-8", "replace")
    delimiter = "\t" if kind == "tsv" else max(",;\t", key=head.count)
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
    with _readable(path):
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


@dataclass(frozen=True)
class _Shard:
    """The rows of one file of a data set, or all rows if the files are not known; ``name`` is for messages."""

    name: str
    rows: Iterable[dict[str, Any]]


def _from_dataset(shards: Iterable[_Shard]) -> Iterator[Record]:
    number = 0
    for shard in shards:
        try:
            for data in shard.rows:
                yield Record(f"row {number}", dict(data))
                number += 1
        except Exception as error:  # noqa: BLE001 - datasets raises many types of errors while it reads
            raise InputError(f"{shard.name}: cannot be read: {_dataset_error(error)}") from None


def _dataset_error(error: Exception) -> str:
    from datasets.table import CastError

    if isinstance(error, CastError):
        return f"its columns differ from those of the first file: {error.details()}"
    return _reason(error)


def _load_folder(path: Path, settings: InputSettings) -> Iterable[_Shard]:
    import datasets

    with _readable(path):
        if not any(path.iterdir()):
            raise InputError(f"{path}: the folder is empty")
        for _ in os.walk(path, onerror=_raise):  # datasets skips a subfolder that it cannot list
            pass
    folder = str(path.resolve())  # datasets names a data set after its folder, so "." does not work
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return [_Shard(str(path), _split_of(datasets.load_from_disk(folder), str(path), settings))]
        builder = datasets.load_dataset_builder(folder, settings.subset)
        # Streamed, because the cache of datasets goes by folder name and could return the rows of another folder.
        rows = _split_of(builder.as_streaming_dataset(), str(path), settings)
        files = [str(file) for file in (builder.config.data_files or {}).get(settings.split, ())]
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - datasets raises many types of errors for a wrong folder
        reason = "its files are empty" if isinstance(error, StopIteration) else _reason(error)
        raise InputError(f"{_path_of(error) or path}: cannot be read as a data set: {reason}") from None
    if rows.num_shards != len(files):
        return [_Shard(str(path), rows)]
    return [_Shard(file, rows.shard(len(files), number)) for number, file in enumerate(files)]


def _raise(error: OSError) -> None:
    raise error


@quiet_bars(data=True)
def _load_hub(settings: InputSettings) -> Iterable[_Shard]:
    import datasets

    try:
        loaded = datasets.load_dataset(settings.input, settings.subset, revision=settings.revision)
    except Exception as error:  # noqa: BLE001 - the network, the permissions or the name; the message says which
        raise InputError(
            f"{settings.input}: no such file, and no data set of that name could be loaded from the Hub: "
            f"{one_line(error)}"
        ) from None
    return [_Shard(settings.input, _split_of(loaded, settings.input, settings))]


def _split_of(loaded: Any, name: str, settings: InputSettings) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if settings.split not in loaded:
        raise InputError(f"{name}: no split {settings.split!r}; available for --split: {', '.join(map(str, loaded))}")
    return loaded[settings.split]


def _without_byte_order_mark(path: Path, raw: bytes) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: the file is UTF-16; save it as UTF-8")
    return raw.removeprefix(b"\xef\xbb\xbf")


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
