"""Rows of widely used data sets are read without flags, or the message names the flag that is needed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlt_data.errors import InputError
from rlt_data.inputs import CheckReport, check
from rlt_data.settings import CheckSettings
from tests.conftest import write_jsonl
from tests.inputs.shapes import SHAPES, Shape

TABLE = Path(__file__).parents[2] / "docs" / "results" / "datasets.md"


def report(folder: Path, data: dict[str, Any], **flags: Any) -> CheckReport:
    return check(CheckSettings(input=str(write_jsonl(folder / "rows.jsonl", [data])), **flags))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_row_of_a_known_data_set(shape: Shape, tmp_path: Path) -> None:
    if shape.refused:
        with pytest.raises(InputError, match=re.escape(shape.refused)):
            report(tmp_path, shape.data).refuse_bad_rows(skip=False)
    if shape.solution is None:
        return
    counts = report(tmp_path, shape.data, **shape.flags)
    assert counts.example is not None
    row = counts.example[1]
    assert (row.question, row.solution, row.answer) == (shape.question, shape.solution, shape.answer)
    assert (row.explanation, row.system) == (shape.thought, shape.system)
    assert counts.warnings == []
    if shape.flags and not shape.refused:
        [warning] = report(tmp_path, shape.data).warnings
        assert next(iter(shape.flags.values())) in warning


def test_the_table_in_the_documentation_is_that_of_the_tests() -> None:
    lines = [f"| {shape.name} | {_read(shape)} | {_flags(shape)} | {shape.note} |" for shape in SHAPES]
    assert "\n".join(lines) in TABLE.read_text(encoding="utf-8"), "\n".join(lines)


def _flags(shape: Shape) -> str:
    flags = (f"`--{name.replace('_', '-')} {shlex.quote(value)}`" for name, value in shape.flags.items())
    return " ".join(flags)


def _read(shape: Shape) -> str:
    if shape.solution is None:
        return "-"
    fields = {"answer": shape.answer, "trace": shape.thought, "system text": shape.system}
    return ", ".join(["question", "solution", *(name for name, value in fields.items() if value)])
