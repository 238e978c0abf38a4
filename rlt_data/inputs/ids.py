"""Read ids of traces from a file of another tool."""

from __future__ import annotations

from pathlib import Path

from rlt_data.errors import InputError, one_line
from rlt_data.inputs.files import file_type
from rlt_data.inputs.read import read_records
from rlt_data.settings import InputSettings


def read_ids(name: str, option: str) -> list[str]:
    """Return the trace ids of a file in their order, each once.

    Args:
        name: JSON, JSONL, CSV or Parquet file with the column ``trace_id``, or a text file with one id per line.
        option: the flag that names the file, for messages.

    Raises:
        InputError: the file cannot be read, has no ids, or a row lacks its id.
    """
    file = Path(name)
    if not file.is_file():
        raise InputError(f"{option}: {name}: no such file")
    if file_type(file) is None:
        try:
            ids = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{option}: {name}: cannot be read: {one_line(error)}") from None
    else:
        ids = []
        for record in read_records(InputSettings(input=name)):
            row = record.data or {}
            key = row.get("trace_id")
            if not isinstance(key, str):
                columns = f"has no column trace_id, only {', '.join(map(repr, row))}"
                reason = record.reason or ("trace_id is not a text" if "trace_id" in row else columns)
                raise InputError(f"{option}: {name}: {record.location}: {reason}")
            ids.append(key.strip())
    unique = [key for key in dict.fromkeys(ids) if key]
    if not unique:
        raise InputError(f"{option}: {name}: has no ids")
    return unique
