"""Read data sets that ``rlt-data distill`` wrote, by the format in their distill.json."""

from __future__ import annotations

import json
from pathlib import Path

from rlt_data.errors import RltDataError
from rlt_data.formats.schema import Format
from rlt_data.inputs.files import Sources
from rlt_data.inputs.rows import Fields, Found
from rlt_data.settings import parse_settings


def format_of(sources: Sources) -> Format | None:
    """Return the format in the distill.json beside the first source, or None if there is none."""
    path = Path(sources.sources[0].name)
    for folder in (path, path.parent, path.parent.parent):
        try:
            content = json.loads((folder / "distill.json").read_text(encoding="utf-8"))
            return parse_settings(Format, content["format"], where="distill.json")
        except (OSError, ValueError, LookupError, TypeError, RltDataError):
            continue  # another program's file, or a damaged one: the rows are read by their columns
    return None


def undo_format(fields: Fields, format: Format) -> Fields:
    """Return the fields of a row without the texts and tags that the format put around them."""
    fields = dict(fields)
    question, solution = fields.get("question", Found(None)), fields.get("solution", Found(None))
    if isinstance(question.value, str):
        text = question.value.removeprefix(f"{format.student_system}\n\n") if format.student_system else question.value
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
