"""Settings of ``distill``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, field_serializer, field_validator, model_validator

from rlt_data.plugins import SHAPES
from rlt_data.settings.base import (
    INPUT,
    OUTPUT,
    RUN_HELP,
    SELECTION,
    SEVERAL,
    Settings,
    Texts,
    field,
    nano,
    where_field,
)

#: What is left out by default.
Inclusion = Literal["truncated", "control-token", "contaminated", "duplicate"]


class DistillSettings(Settings):
    """Settings of :func:`rlt_data.steps.distill`."""

    first_flags = ("select", "where", "include", "limit", "holdout", "tokenizer", "shape", "out")

    input: str = field(
        ..., INPUT, f"{RUN_HELP}, already ranked.", affects="rows", by_content=True, alias="in", positional="RUN"
    )
    out: str | None = field(None, OUTPUT, "Folder or URL of the data set. Default: RUN/dataset.", affects="output")
    select: str = field(
        "best",
        SELECTION,
        "Traces to select: best, rank:K, bucket:K, top:K (the best K of each question), random (one per question), or "
        "all.",
        affects="rows",
    )
    where: Texts = where_field("Select only traces", affects="rows")
    include: Annotated[tuple[Inclusion, ...], SEVERAL] = field(
        (),
        SELECTION,
        "Also select traces that are left out by default: truncated, control-token, contaminated or duplicate; "
        "repeatable.",
        affects="rows",
    )
    ids: str | None = field(
        None,
        SELECTION,
        "Select exactly these traces: text file with one id per line, or JSONL, CSV or Parquet file with a column "
        "trace_id.",
        affects="rows",
        by_content=True,
    )
    per: str | None = field(
        None, SELECTION, "SQL expression, such as origin; --cap limits the rows of each value.", affects="rows"
    )
    cap: int | None = field(None, SELECTION, "Maximum number of rows for each value of --per.", affects="rows", ge=1)
    limit: int | None = field(
        None, SELECTION, "Maximum number of rows, from randomly drawn questions. Default: all.", affects="rows", ge=1
    )
    holdout: float | None = field(
        None,
        SELECTION,
        "Hold out the rows of this many randomly drawn questions, or of a share of them below 1, as the split test.",
        affects="rows",
        gt=0,
    )
    seed: int = field(0, SELECTION, "Seed of --cap, --limit, --holdout and --select random.", affects="rows")
    max_tokens: int | None = field(
        None,
        SELECTION,
        "Maximum length of a row in student tokens; requires --tokenizer. Default: unlimited.",
        affects="rows",
        ge=1,
    )
    tokenizer: Annotated[str | None, nano("student")] = field(
        None,
        SELECTION,
        "Student checkpoint, to check its chat template and to count the tokens of --max-tokens.",
        affects="rows",
        by_content=True,
    )
    shape: Annotated[str, AfterValidator(SHAPES.check)] = field(
        "messages", OUTPUT, f"Columns of the data set: {', '.join(SHAPES.built_in)}, or a plug-in's.", affects="rows"
    )
    columns: Texts = field(
        (),
        OUTPUT,
        "Column of the run to add to each row, such as answer_verdict or rsr; repeatable.",
        affects="rows",
    )
    rejected: str = field(
        "worst",
        SELECTION,
        "With --shape preference, the rejected trace of each question: worst (the lowest eligible rank) or rank:K.",
        affects="rows",
    )

    @classmethod
    def fill_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Select all traces that ``ids`` names."""
        return {"select": "all"} | values if values.get("ids") else values

    @field_validator("select")
    @classmethod
    def _known_selection(cls, value: str) -> str:
        kind, _, number = value.partition(":")
        if kind in ("best", "random", "all") and not number and ":" not in value:
            return value
        if kind in ("rank", "bucket", "top") and number.isascii() and number.isdigit() and int(number) >= 1:
            return value
        raise ValueError("must be best, rank:K, bucket:K, top:K, random or all, with K from 1")

    @field_validator("rejected")
    @classmethod
    def _known_rejection(cls, value: str) -> str:
        if value == "worst" or re.fullmatch(r"rank:([2-9]|[1-9]\d+)", value, re.ASCII):
            return value
        raise ValueError("must be worst or rank:K, with K from 2")

    @model_validator(mode="after")
    def _ids_are_the_selection(self) -> DistillSettings:
        if self.ids and self.select != "all":
            raise ValueError("select: has no effect with --ids, which names the traces")
        if self.ids and self.include:
            raise ValueError("include: has no effect with --ids, which takes traces of any kind")
        if self.ids and self.shape == "preference":
            raise ValueError("ids: cannot be combined with --shape preference, whose rows are pairs of traces")
        return self

    @model_validator(mode="after")
    def _cap_has_values(self) -> DistillSettings:
        if (self.per is None) != (self.cap is None):
            given, missing = ("per", "cap") if self.cap is None else ("cap", "per")
            raise ValueError(f"{given}: requires --{missing}")
        return self

    @model_validator(mode="after")
    def _preference_is_the_best(self) -> DistillSettings:
        if self.shape == "preference" and self.select != "best":
            raise ValueError("select: --shape preference pairs the best trace of each question with a worse one")
        if self.shape != "preference" and self.rejected != "worst":
            raise ValueError("rejected: has no effect without --shape preference")
        return self

    @field_validator("holdout")
    @classmethod
    def _number_or_share(cls, value: float | None) -> float | None:
        if value and value >= 1 and not value.is_integer():
            raise ValueError("must be a number of questions such as 200, or a share below 1 such as 0.05")
        return value

    @field_serializer("holdout")
    def _whole_number(self, value: float | None) -> int | float | None:
        return int(value) if value and value >= 1 else value

    @model_validator(mode="after")
    def _tokens_can_be_counted(self) -> DistillSettings:
        if self.max_tokens and not self.tokenizer:
            raise ValueError("max_tokens: requires --tokenizer, the student's checkpoint, to count tokens with")
        return self
