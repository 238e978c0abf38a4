"""Settings of inputs: which rows are read, how their columns are understood, and the prompt format."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, field_validator, model_validator

from rlt_data.plugins import PRESETS
from rlt_data.settings.base import (
    COLUMNS,
    INPUT,
    MODEL,
    OUTPUT,
    InputNames,
    Settings,
    StudentName,
    field,
    nano,
)
from rlt_data.settings.engines import TemplateSettings


class SourceSettings(Settings):
    """Which rows are read."""

    input: InputNames = field(
        ...,
        INPUT,
        "JSONL (also .gz, .zst), JSON, CSV or Parquet file, folder, pattern such as 'data/*.jsonl', or Hub data set "
        "id; repeatable.",
        affects="rows",
        by_content=True,
        alias="in",
        positional="FILE",
    )
    split: str = field("train", INPUT, "Split of a Hub data set or a datasets folder.", affects="rows", by_content=True)
    subset: str | None = field(
        None, INPUT, "Configuration of a Hub data set or a datasets folder.", affects="rows", by_content=True
    )
    revision: str | None = field(None, INPUT, "Revision of a Hub data set.", affects="rows", by_content=True)
    limit: int | None = field(
        None, INPUT, "Number of rows to read, from the start. Default: all.", affects="rows", by_content=True, ge=1
    )

    def as_input(self) -> InputSettings:
        """Return these settings as complete input settings; settings that the step lacks have their defaults."""
        names = type(self).model_fields.keys() & InputSettings.model_fields.keys()
        return InputSettings.model_validate(self.model_dump(include=names))


class ShareSettings(Settings):
    """Which share of the questions is read, so that several machines can divide them."""

    share: str | None = field(
        None,
        INPUT,
        "Share of the questions as I/N, such as 3/8: the I-th of N equal ranges, in the order of the input. merge "
        "combines the runs. Default: all.",
        affects="rows",
        by_content=True,
    )

    @field_validator("share")
    @classmethod
    def _is_share(cls, value: str | None) -> str | None:
        if value is not None:
            match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", value, re.ASCII)
            if not match or int(match[1]) > int(match[2]):
                raise ValueError("must be I/N with I from 1 to N, such as 3/8")
        return value


class BadRowSettings(Settings):
    """What happens to invalid rows."""

    skip_bad_rows: bool = field(
        False, INPUT, "Skip invalid rows. Default: stop before any model is loaded.", affects="rows", by_content=True
    )


class ColumnSettings(Settings):
    """Which columns contain the problem."""

    preset: Annotated[str, AfterValidator(PRESETS.check)] = field(
        "auto",
        COLUMNS,
        f"Layout of the rows: {', '.join(PRESETS.built_in)}, or a plug-in's; auto detects it.",
        affects="rows",
        by_content=True,
    )
    question_column: str | None = field(
        None, COLUMNS, "Column with the question. Default: from the preset.", affects="rows", by_content=True
    )
    solution_column: str | None = field(
        None, COLUMNS, "Column with the solution. Default: from the preset.", affects="rows", by_content=True
    )
    id_column: str | None = field(
        None, COLUMNS, "Column with the row id, stored as source_id. Default: id.", affects="rows", by_content=True
    )
    system: Literal["row", "format"] = field(
        "row",
        COLUMNS,
        "System text of student and solver: the row's own if it has one (row), or always the format's.",
        affects="rows",
        by_content=True,
    )
    max_chars: int = field(
        200_000,
        COLUMNS,
        "Reject rows with a field longer than this many characters.",
        affects="rows",
        by_content=True,
        ge=1,
    )


class StoredColumnSettings(Settings):
    """Which further columns are stored with the questions."""

    answer_column: str | None = field(
        None, COLUMNS, "Column with the short final answer, stored for evaluation.", affects="rows", by_content=True
    )
    keep: tuple[str, ...] = field(
        (), COLUMNS, "Another column to store as metadata; repeatable.", affects="rows", by_content=True
    )


class TraceColumnSettings(Settings):
    """Which columns contain existing traces."""

    explanation_column: str | None = field(
        None, COLUMNS, "Column with an existing explanation, without tags.", affects="rows", by_content=True
    )
    completion_column: str | None = field(
        None, COLUMNS, "Column with an existing completion, including the closing tag.", affects="rows", by_content=True
    )
    own_solution_column: str | None = field(
        None,
        COLUMNS,
        "Column with the solution that the author of an existing trace wrote after it, in place of --solution-column.",
        affects="rows",
        by_content=True,
    )
    origin_column: str | None = field(
        None,
        COLUMNS,
        "Column with the author of an existing trace, such as a model. Default: origin, generator, generated_by, "
        "model_name or model.",
        affects="rows",
        by_content=True,
    )

    @model_validator(mode="after")
    def _one_solution(self) -> Self:
        if self.own_solution_column and getattr(self, "solution_column", None):
            raise ValueError("own_solution_column: cannot be combined with --solution-column")
        return self


class InputSettings(
    SourceSettings, ShareSettings, BadRowSettings, ColumnSettings, StoredColumnSettings, TraceColumnSettings
):
    """All settings of an input. Each step inherits those that it reads."""


class RunOrFilesSettings(InputSettings):
    """The input of a step that takes a run, or imports the traces of files into one."""

    input: InputNames = field(
        ...,
        INPUT,
        "Run folder or URL; or files (repeatable) or a Hub data set with traces, to which the input flags apply.",
        affects="rows",
        by_content=True,
        alias="in",
        positional="RUN",
    )


class FormatSettings(Settings):
    """How problems are presented to a model."""

    format: str = field(
        "auto",
        INPUT,
        "Prompt format: rlt, rlt-shots, think, native, or a YAML file. auto: the format the model was trained with, "
        "else native for a student with reasoning markup, else rlt (rlt-shots for a model without a chat template).",
        affects="rows",
        by_content=True,
    )


class CheckSettings(SourceSettings, ColumnSettings, StoredColumnSettings, TraceColumnSettings, FormatSettings):
    """Settings of :func:`rlt_data.check`."""

    model: tuple[str, ...] = field(
        (),
        MODEL,
        "Model whose control tokens questions, solutions and traces must not contain; repeatable. Only its tokenizer "
        "is loaded.",
        affects="output",
    )
    trust_remote_code: bool = field(False, MODEL, "Run Python code from the checkpoint.", affects="output")
    as_json: bool = field(
        False, OUTPUT, "Print the report as JSON, with the example row in full.", affects="output", alias="json"
    )

    @field_validator("model", mode="before")
    @classmethod
    def _one_model_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    first_flags = (
        "preset",
        "question_column",
        "solution_column",
        "answer_column",
        "explanation_column",
        "completion_column",
        "format",
        "limit",
        "as_json",
    )


class PreviewSettings(
    SourceSettings,
    ColumnSettings,
    StoredColumnSettings,
    TraceColumnSettings,
    FormatSettings,
    TemplateSettings,
):
    """Settings of :func:`rlt_data.preview`."""

    first_flags = ("student", "teacher", "format", "key", "as_json")

    student: StudentName = field(..., MODEL, "Student. Only its tokenizer is loaded.", affects="rows", by_content=True)
    teacher: Annotated[str | None, nano("teacher")] = field(
        None, MODEL, "Teacher, to show its prompt too. Only its tokenizer is loaded.", affects="rows", by_content=True
    )
    key: str | None = field(
        None,
        INPUT,
        "Id of the row; in a run also a trace id or question id. Default: the first row.",
        affects="output",
    )
    trust_remote_code: bool = field(False, MODEL, "Run Python code from the checkpoint.", affects="output")
    as_json: bool = field(False, OUTPUT, "Print the texts and ranges as JSON.", affects="output", alias="json")
