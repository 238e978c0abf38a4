from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_data.errors import InputError, RltDataError, SettingsError
from rlt_data.inputs.read import read_records
from rlt_data.settings import InputSettings, parse_settings
from tests.permissions import permissions_apply

ROWS = [{"id": "a", "question": "1 + 1?", "solution": "2"}, {"id": "b", "question": "é\n?", "solution": "3"}]


def read(path: Path | str, **settings: Any) -> list[Any]:
    return list(read_records(parse_settings(InputSettings, {"in": str(path), **settings})))


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _zstd(path: Path) -> None:
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write(jsonl(ROWS))


WRITERS = {
    "rows.jsonl": lambda path: path.write_bytes(jsonl(ROWS)),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS)),
    "crlf.jsonl": lambda path: path.write_bytes(jsonl(ROWS).replace(b"\n", b"\r\n")),
    "no_newline_at_the_end.jsonl": lambda path: path.write_bytes(jsonl(ROWS).rstrip()),
    "blank_lines.jsonl": lambda path: path.write_bytes(b"\n" + jsonl(ROWS).replace(b"\n", b"\n\n")),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(jsonl(ROWS))),
    "rows.jsonl.zst": _zstd,
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "nested.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "really_jsonl.json": lambda path: path.write_bytes(jsonl(ROWS)),
    "rows.csv": lambda path: pl.DataFrame(ROWS).write_csv(path),
    "bom.csv": lambda path: pl.DataFrame(ROWS).write_csv(path, include_bom=True),
    "rows.parquet": lambda path: pl.DataFrame(ROWS).write_parquet(path),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "saved_splits": lambda path: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path),
    "folder_of_parquet": lambda path: (path.mkdir(), pl.DataFrame(ROWS).write_parquet(path / "train.parquet")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert [record.data for record in read(tmp_path / name)] == ROWS


def test_a_limit_reads_only_the_first_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl(ROWS) + b"broken")
    assert len(read(tmp_path / "rows.jsonl", limit=2)) == 2


def test_a_bad_line_is_one_bad_record_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [b'{"question": ', b"[1]", b'"text"', b'{"question": "\xff"}', b'{"a": "\0"}', b"\0\0\0"]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*lines, jsonl(ROWS)]))
    records = read(tmp_path / "rows.jsonl")
    assert [record.location for record in records] == [f"line {number}" for number in range(1, 9)]
    reasons = [record.reason for record in records]
    assert reasons[6:] == [None, None]
    for problem, expected in zip(
        reasons, ["not JSON", "a list", "text", "not UTF-8 at byte 15", "not JSON", "not JSON"],
        strict=False,
    ):  # fmt: skip
        assert expected in problem


def test_csv_rows_with_a_wrong_number_of_fields_are_bad(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('question,solution\n"one\ntwo",1\na,b,c\nd\n')
    records = read(tmp_path / "rows.csv")
    assert records[0].data == {"question": "one\ntwo", "solution": "1"}
    assert [record.location for record in records[1:]] == ["line 4", "line 5"]
    for record, reason in zip(records[1:], ["more fields", "fewer fields"], strict=True):
        assert record.data is None and reason in str(record.reason) and "2 columns" in str(record.reason)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "the file is empty"),
        ("utf16.jsonl", "é".encode("utf-16"), "UTF-16"),
        ("rows.txt", b"x", "unknown file type"),
        ("torn.jsonl.gz", gzip.compress(jsonl(ROWS) * 999)[:-20], "cannot be read"),
        ("fake.jsonl.zst", b"not zstandard", "cannot be read"),
        ("fake.parquet", b"not parquet, not parquet", "cannot be read"),
        ("broken.json", b'[{"question": 1,]', "not JSON at column"),
        ("number.json", b"3", "expected a JSON list of objects, got a number"),
        ("latin.csv", "question,solution\né,2\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert message in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


def test_missing_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match="^nobody/nothing: "):
        read("nobody/nothing")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(InputError, match="the folder is empty"):
        read(tmp_path / "hollow")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(InputError, match="'test'.*--split: train"):
        read(tmp_path / "splits", split="test")


def test_a_data_set_whose_files_have_other_columns_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '*.jsonl'\n---\n")
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "b.jsonl").write_bytes(jsonl([{"question": "q", "numbers": [1, 2]}]))
    with pytest.raises(InputError) as error:
        read(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'b.jsonl'}: ")
    assert "numbers" in message and "\n" not in message


def test_a_broken_file_of_a_data_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "train-b.jsonl").write_bytes(b'{"id": "a", "question":\n')
    (tmp_path / "test.jsonl").write_bytes(jsonl(ROWS))
    with pytest.raises(InputError, match=f"^{tmp_path / 'train-b.jsonl'}: ") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_of_empty_files_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(InputError, match=f"^{tmp_path / 'a.jsonl'}: the file is empty"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("", SettingsError, "^in: must not be empty"), (" ", InputError, "^--in: is empty; name a file")],
)
def test_an_empty_name_is_not_the_current_folder(
    name: str, error: type[RltDataError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    monkeypatch.chdir(tmp_path)
    assert len(read(".")) == len(ROWS)
    with pytest.raises(error, match=message):
        read(name)


@pytest.mark.parametrize("locked", ["rows.jsonl", "rows.parquet", "folder", "folder/b.jsonl", "folder/inner"])
def test_unreadable_files_and_folders_are_named_in_one_line(tmp_path: Path, locked: str) -> None:
    for name in ("rows.jsonl", "folder/a.jsonl", "folder/b.jsonl", "folder/inner/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl(ROWS))
    pl.DataFrame(ROWS).write_parquet(tmp_path / "rows.parquet")
    (tmp_path / locked).chmod(0)
    try:
        with permissions_apply(), pytest.raises(InputError, match=f"^{tmp_path / locked}: ") as error:
            read(tmp_path / locked.partition("/")[0])
    finally:
        (tmp_path / locked).chmod(0o755)
    assert "ermission denied" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_gives_the_rows_of_all_its_files_in_order(tmp_path: Path) -> None:
    for name, row in zip("ab", ROWS, strict=True):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl([row]))
    assert [(record.location, record.data) for record in read(tmp_path)] == [
        ("a.jsonl line 1", ROWS[0]),
        ("b.jsonl line 1", ROWS[1]),
    ]


def test_a_damaged_saved_data_set_is_one_line(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS * 100).save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.arrow"))
    content = file.read_bytes()
    file.write_bytes(content[:200] + b"\xff" * 400 + content[600:])
    with pytest.raises(InputError, match=f"^{tmp_path / 'saved'}: "):
        read(tmp_path / "saved")


def _every_damage(content: bytes) -> list[bytes]:
    return [content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :] for i in range(0, len(content), 2)]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet"])
def test_no_damage_of_a_compressed_file_is_a_traceback(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    refused = 0
    for damaged in _every_damage((tmp_path / name).read_bytes()):
        (tmp_path / name).write_bytes(damaged)
        try:
            read(tmp_path / name)
        except InputError as error:
            assert str(error).startswith(f"{tmp_path / name}: ") and "\n" not in str(error)
            refused += 1
    assert refused > 10


HUGE, DEEP = "9" * 5000, "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("value", "reason"), [(HUGE, "a number has too many digits"), (DEEP, "nested too deeply")], ids=["digits", "depth"]
)
def test_json_that_python_does_not_read_is_a_bad_row_or_one_line(tmp_path: Path, value: str, reason: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl(ROWS[:1]) + f'{{"id": {value}}}\n'.encode() + jsonl(ROWS[1:]))
    good, bad, other = read(tmp_path / "rows.jsonl")
    assert (good.data, other.data) == (ROWS[0], ROWS[1]) and (bad.location, bad.reason) == ("line 2", reason)
    (tmp_path / "rows.json").write_text(f'[{{"id": {value}}}]')
    with pytest.raises(InputError, match=f"rows.json: {reason}"):
        read(tmp_path / "rows.json")


def test_parquet_values_that_python_cannot_represent(tmp_path: Path) -> None:
    far = pa.array([2**62], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"question": ["q"], "solution": ["s"], "when": far}), tmp_path / "far.parquet")
    [record] = read(tmp_path / "far.parquet")
    assert (record.data["question"], record.data["solution"]) == ("q", "s")
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"question": text}), tmp_path / "latin.parquet")
    with pytest.raises(InputError, match="latin.parquet: "):
        read(tmp_path / "latin.parquet")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolons.csv", "question;answer\na, b?;1\n"),
        ("tabs.csv", "question\tanswer\na, b?\t1\n"),
        ("tabs.tsv", "question\tanswer\na, b?\t1\n"),
        ("spaces.csv", 'question, answer\n"a, b?", 1\n'),
    ],
)
def test_csv_delimiters(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert [record.data for record in read(tmp_path / name)] == [{"question": "a, b?", "answer": "1"}]


def test_empty_csv_fields_are_missing_and_spaces_are_kept(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,solution,explanation\n  a?, 1,\n")
    assert read(tmp_path / "rows.csv")[0].data == {"question": "  a?", "solution": " 1", "explanation": None}


@pytest.mark.parametrize(
    "content",
    [
        {"version": "1", "tags": [], "data": ROWS},
        {column: [row[column] for row in ROWS] for column in ROWS[0]},
        {column: {str(i): row[column] for i, row in enumerate(ROWS)} for column in ROWS[0]},
    ],
    ids=["data", "columns", "pandas"],
)
def test_json_objects_of_rows(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(content))
    assert [record.data for record in read(tmp_path / "rows.json")] == ROWS


@pytest.mark.parametrize("row", [{"question": "q", "generations": ["a"]}, {"messages": [{"role": "user"}]}])
def test_a_json_object_may_be_one_row(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "row.json").write_text(json.dumps(row))
    assert [record.data for record in read(tmp_path / "row.json")] == [row]


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 3.14159265358979323846, "b": 1.10}')
    assert list(map(str, read(tmp_path / "rows.jsonl")[0].data.values())) == ["3.14159265358979323846", "1.10"]
    table = pa.table({"a": pa.array([0.1, None], pa.float32()), "b": pa.array([0.5, 2.0], pa.float64())})
    pq.write_table(table, tmp_path / "rows.parquet")
    first, second = (record.data for record in read(tmp_path / "rows.parquet"))
    assert (str(first["a"]), second["a"], second["b"]) == ("0.1", None, 2.0)
