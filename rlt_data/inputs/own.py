"""Read data sets that ``rlt-data distill`` wrote, by the format and the shape in their distill.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlt_data.errors import RltDataError
from rlt_data.formats.schema import Format
from rlt_data.inputs.files import Sources
from rlt_data.inputs.rows import Columns, Fields, Found
from rlt_data.settings import parse_settings


@dataclass(frozen=True)
class OwnDataSet:
    """How the rows of a data set of ours were made.

    Attributes:
        format: the format of the student's texts.
        end: text that ends the assistant's turn in rendered texts; empty if it is not recorded.
    """

    format: Format
    end: str

    def undo(self, fields: Fields, data: Columns) -> Fields:
        """Return the fields of a record without what the format and the chat template put around them.

        Args:
            fields: the fields as the preset found them.
            data: the columns of the record.
        """
        format, fields = self.format, dict(fields)
        if isinstance(data.get("user_text"), str) and isinstance(data.get("system_text"), str):  # a rendered shape
            fields["question"] = Found(data["user_text"], "user_text")
            fields["system"] = Found(data["system_text"] or None, "system_text")
            column = "chosen" if "chosen" in data else "completion"
            fields.pop("completion", None)
            fields["solution"] = Found(str(data.get(column)).removesuffix(self.end), column)
        question, solution = fields.get("question", Found(None)), fields.get("solution", Found(None))
        if isinstance(question.value, str):
            text = question.value
            if format.student_system:
                text = text.removeprefix(f"{format.student_system}\n\n")
            before, _, after = format.question_template.partition("{question}")
            text = text.removeprefix(before).removesuffix(after)
            if text != question.value:
                fields["question"] = question.changed(text, "texts of the format removed")
        if fields.get("system", Found(None)).value == format.student_system:
            del fields["system"]
        if isinstance(solution.value, str) and (parts := format.split_message(solution.value)):
            fields["solution"] = solution.changed(parts[1], "tags of the format")
            fields["explanation"] = solution.changed(parts[0], "tags of the format")
        return fields


def own_data_set(sources: Sources) -> OwnDataSet | None:
    """Return how the first source was made if there is a distill.json next to it, else None."""
    path = Path(sources.sources[0].name)
    for folder in (path, path.parent, path.parent.parent):
        try:
            content: dict[str, Any] = json.loads((folder / "distill.json").read_text(encoding="utf-8"))
            format = parse_settings(Format, content["format"], where="distill.json")
            student = content["steps"].get("score", {}).get("templates", {}).get("student", {})
            return OwnDataSet(format, str(student.get("end", "")))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RltDataError):
            continue  # another program's file, or a damaged one: the rows are read by their columns
    return None
