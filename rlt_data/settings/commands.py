"""Settings of the commands that look at a run, run a pipeline or print a format."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator, model_validator

from rlt_data.settings.base import INPUT, OUTPUT, RUN_HELP, Settings, Texts, field, where_field
from rlt_data.settings.steps import ReportSettings


class RunPipelineSettings(Settings):
    """Settings of ``rlt-data run``."""

    pipeline: str = field(
        ...,
        INPUT,
        "YAML file with the keys out, generate, score, curate, rank and distill.",
        affects="rows",
        positional="PIPELINE",
    )


class ShowSettings(Settings):
    """Settings of ``rlt-data show``."""

    input: str = field(..., INPUT, f"{RUN_HELP}.", affects="output", alias="in", positional="RUN")
    key: str | None = field(
        None,
        INPUT,
        "Trace id or question id (a prefix is enough), or id of the input row. Default: the first question.",
        affects="output",
        positional="KEY",
    )
    ends: bool = field(False, OUTPUT, "Show only the best and the worst trace of the question.", affects="output")
    best: int | None = field(None, OUTPUT, "Show the N best traces.", affects="output", ge=1)
    worst: int | None = field(None, OUTPUT, "Show the N worst traces, the worst first.", affects="output", ge=1)
    where: Texts = where_field("Show only traces", affects="output")

    @model_validator(mode="after")
    def _one_choice(self) -> ShowSettings:
        if len(chosen := self.not_default("ends", "best", "worst")) > 1:
            raise ValueError(f"{chosen[1]}: cannot be combined with --{chosen[0]}")
        if self.ends and self.where:
            raise ValueError("ends: cannot be combined with --where")
        return self


class StatsSettings(Settings):
    """Settings of ``rlt-data stats``."""

    input: str = field(..., INPUT, f"{RUN_HELP}.", affects="output", alias="in", positional="RUN")
    where: Texts = where_field("Use only traces", affects="output")


class ViewSettings(Settings):
    """Settings of ``rlt-data view``."""

    input: str = field(..., INPUT, f"{RUN_HELP}.", affects="output", alias="in", positional="RUN")
    port: int = field(8377, OUTPUT, "Port to listen on; 0: any free port.", affects="output", ge=0, le=65535)
    limit: int = field(
        ReportSettings.model_fields["limit"].default, OUTPUT, "Maximum number of traces.", affects="output", ge=1
    )
    open: bool = field(False, OUTPUT, "Open the page in a browser.", affects="output")


class CompareSettings(Settings):
    """Settings of :func:`rlt_data.compare`."""

    input: tuple[str, ...] = field(
        ...,
        INPUT,
        "Two runs of rlt-data evaluate, folders or URLs.",
        affects="output",
        alias="in",
        positional="RUN",
    )
    as_json: bool = field(False, OUTPUT, "Print the comparison as JSON.", affects="output", alias="json")

    @field_validator("input", mode="before")
    @classmethod
    def _are_two(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError("requires two runs of evaluate, such as: rlt-data compare runs/a runs/b")
        return value


class FormatsSettings(Settings):
    """Settings of ``rlt-data formats``."""

    name: str | None = field(
        None,
        INPUT,
        "Built-in format or YAML file to print. Default: list the formats.",
        affects="output",
        positional="NAME",
    )
