"""Settings of the steps, the benchmarks and the whole way."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, field_validator, model_validator

from rlt_data.plugins import PRESETS, REWARDS, SHAPES
from rlt_data.settings.base import (
    ENGINE,
    INPUT,
    MODEL,
    MODEL_HELP,
    OUTPUT,
    REWARD,
    RUN_HELP,
    SAMPLING,
    LocalName,
    Settings,
    StudentName,
    TeacherName,
    field,
    nano,
)
from rlt_data.settings.engines import ENGINE_HELP, EngineName, ModelSettings

_HUB_ID = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)


class InputSettings(Settings):
    """Where rows come from and which columns hold what."""

    input: str = field(
        ...,
        INPUT,
        "JSONL (also .gz, .zst), JSON, CSV or Parquet file, a datasets folder, or a Hub data set id.",
        affects="rows",
        by_content=True,
        alias="in",
    )
    preset: Annotated[str, AfterValidator(PRESETS.check)] = field(
        "auto",
        INPUT,
        f"How to read the rows: {', '.join(PRESETS.built_in)}, or a plugin's; auto looks at the columns.",
        affects="rows",
        by_content=True,
    )
    question_column: str | None = field(None, INPUT, "Column with the question.", affects="rows", by_content=True)
    solution_column: str | None = field(None, INPUT, "Column with the solution.", affects="rows", by_content=True)
    answer_column: str | None = field(
        None, INPUT, "Column with the short final answer, kept for evaluation.", affects="rows", by_content=True
    )
    explanation_column: str | None = field(
        None, INPUT, "Column with an existing trace, without tags.", affects="rows", by_content=True
    )
    completion_column: str | None = field(
        None, INPUT, "Column with an existing trace as written, closing tag included.", affects="rows", by_content=True
    )
    id_column: str | None = field(
        None,
        INPUT,
        "Column with the row's id; becomes source_id. Default: id, if there.",
        affects="rows",
        by_content=True,
    )
    keep: tuple[str, ...] = field(
        (), INPUT, "Further column to carry along as metadata; may be repeated.", affects="rows", by_content=True
    )
    split: str = field(
        "train", INPUT, "Split of a data set from the Hub or a datasets folder.", affects="rows", by_content=True
    )
    subset: str | None = field(
        None, INPUT, "Configuration of a data set from the Hub.", affects="rows", by_content=True
    )
    revision: str | None = field(None, INPUT, "Revision of a data set from the Hub.", affects="rows", by_content=True)
    limit: int | None = field(None, INPUT, "Read only the first rows.", affects="rows", by_content=True, ge=1)
    max_chars: int = field(
        200_000, INPUT, "A longer field makes its row a bad row.", affects="rows", by_content=True, ge=1
    )
    skip_bad_rows: bool = field(
        False, INPUT, "Leave bad rows out instead of stopping.", affects="rows", by_content=True
    )


#: Fields of InputSettings about traces.
_OF_TRACES = ("explanation_column", "completion_column")


class FormatSettings(Settings):
    """How problems are shown."""

    format: str = field(
        "auto",
        INPUT,
        "rlt, rlt-shots, think, or a YAML file; auto: the model's own, else rlt, or rlt-shots without chat template.",
        affects="rows",
        by_content=True,
    )


class CheckSettings(InputSettings, FormatSettings):
    """Settings of :func:`rlt_data.check`."""


class SamplingSettings(Settings):
    """How a model is sampled."""

    temperature: float = field(0.7, SAMPLING, "0 takes the likeliest token.", affects="rows", ge=0)
    top_p: float = field(
        1.0, SAMPLING, "Nucleus sampling; log-probs stay those of the whole vocabulary.", affects="rows", gt=0, le=1
    )
    top_k: int = field(0, SAMPLING, "Sample from the k likeliest tokens; 0: from all.", affects="rows", ge=0)
    max_tokens: int | None = field(
        None, SAMPLING, "Longest sample; default: what the context leaves.", affects="rows", ge=1
    )
    seed: int = field(
        0, SAMPLING, "Every sample's own seed follows from it, the question and the sample's number.", affects="rows"
    )
    retry_errors: bool = field(False, OUTPUT, "Run only the rows that are in errors.jsonl.", affects="output")


class GenerateSettings(InputSettings, FormatSettings, ModelSettings, SamplingSettings):
    """Settings of :func:`rlt_data.steps.generate`."""

    teacher: TeacherName = field(..., MODEL, MODEL_HELP, affects="rows", by_content=True)
    out: str | None = field(None, OUTPUT, f"{RUN_HELP}; default: runs/<input>-<teacher>.", affects="output")
    n: int = field(16, SAMPLING, "Traces per question.", affects="rows", by_content=True, ge=1)

    @model_validator(mode="after")
    def _traces_are_not_read(self) -> GenerateSettings:
        if wrong := self.not_default(*_OF_TRACES):
            raise ValueError(f"{wrong[0]}: has no effect; generate reads questions and solutions, score reads traces")
        return self


class RewardSettings(Settings):
    """How the terms of the dense reward are weighed."""

    reward: Annotated[str, AfterValidator(REWARDS.check)] = field(
        "rlt", REWARD, "rlt, or a reward of a plugin or your own as module:function.", affects="rows", by_content=True
    )
    lambda_: float = field(3.0, REWARD, "Weight of the KL term.", affects="rows", alias="lambda", ge=0)
    alpha: float = field(0.01, REWARD, "Weight of min and max beside the means.", affects="rows", ge=0)
    kl: Literal["k1", "k3", "full"] = field(
        "k1", REWARD, "Estimate on the sampled tokens (k1: log-ratio, k3), or over the full vocabulary.", affects="rows"
    )
    missing_tag_penalty: float = field(-1.0, REWARD, "Added where the closing tag is missing.", affects="rows", le=0)


class ScoreSettings(InputSettings, FormatSettings, ModelSettings, RewardSettings):
    """Settings of :func:`rlt_data.steps.score`; ``input`` may also be a run folder."""

    engine: EngineName = field("transformers", MODEL, ENGINE_HELP, affects="speed")  # all give the same log-probs
    student: StudentName = field(..., MODEL, MODEL_HELP, affects="rows", by_content=True)
    teacher: Annotated[str | None, nano("teacher")] = field(
        None,
        MODEL,
        "Checkpoint for the teacher's log-probs where the traces lack them; none: score without them.",
        affects="rows",
        by_content=True,
    )
    teacher_logprobs: Literal["auto", "trace", "compute"] = field(
        "auto", MODEL, "trace: only those stored with the traces; compute: always a second pass.", affects="speed"
    )
    out: str | None = field(
        None,
        OUTPUT,
        f"{RUN_HELP}; default: the input run, or runs/<input>-<student> for a file of traces.",
        affects="output",
    )
    temperature: float = field(0.7, REWARD, "Temperature of all log-probs.", affects="rows", gt=0)
    served_temperature: float = field(
        1.0,
        ENGINE,
        "server: temperature that its log-probs of prompts are at; see docs/engines.md.",
        affects="speed",
        gt=0,
    )
    per_token: bool = field(False, OUTPUT, "Keep every token's log-probs and KL as list columns.", affects="rows")
    retry_errors: bool = field(False, OUTPUT, "Run only the rows that are in errors.jsonl.", affects="output")

    @model_validator(mode="after")
    def _a_server_can_score_so(self) -> ScoreSettings:
        if self.engine != "server":
            return self
        if self.temperature != self.served_temperature:
            raise ValueError(
                f"temperature: a server's log-probs of prompts know no temperature; take --temperature "
                f"{self.served_temperature:g}, or serve a copy of the student whose head is divided by "
                f"{self.temperature:g} and say --served-temperature {self.temperature:g} (docs/engines.md)"
            )
        if self.teacher not in (None, "none", self.student):
            raise ValueError(
                "teacher: the servers of --url run the student, so nothing is left for a second pass of the teacher; "
                "leave --teacher out if the traces carry their log-probs, say 'none', or take another engine"
            )
        return self

    @model_validator(mode="after")
    def _whole_distributions_need_transformers(self) -> ScoreSettings:
        if self.kl == "full" and self.engine != "transformers":
            raise ValueError(f"kl: full compares whole distributions, which --engine {self.engine} does not give")
        if self.kl == "full" and self.ray:
            raise ValueError("kl: full compares whole distributions, which do not come from engines on a cluster")
        return self


class RankSettings(Settings):
    """Settings of :func:`rlt_data.steps.rank`."""

    input: str = field(..., INPUT, f"{RUN_HELP}, with scores.", affects="rows", by_content=True, alias="in")
    by: Literal["reward", "reward_without_entropy", "r_ss", "solution_logprob_mean"] = field(
        "reward", None, "Column of scores to rank by, larger is better.", affects="rows"
    )
    buckets: str = field(
        "ranks", None, "ranks: one bucket per rank; a number N: N quantiles of all traces.", affects="rows"
    )

    @field_validator("buckets", mode="before")
    @classmethod
    def _ranks_or_number(cls, value: Any) -> str:
        text = str(value)
        if text != "ranks" and not (text.isascii() and text.isdigit() and int(text) >= 2):
            raise ValueError("takes 'ranks' or a number of quantiles such as 4")
        return text


class DistillSettings(Settings):
    """Settings of :func:`rlt_data.steps.distill`."""

    input: str = field(..., INPUT, f"{RUN_HELP}, with ranks.", affects="rows", by_content=True, alias="in")
    out: str | None = field(None, OUTPUT, "Folder of the data set, or its URL; default: RUN/dataset.", affects="output")
    select: str = field(
        "best", None, "best, rank:K, bucket:K, top:K (the best K of a question), random, or all.", affects="rows"
    )
    limit: int | None = field(None, None, "Keep this many rows, a random draw of questions.", affects="rows", ge=1)
    seed: int = field(0, None, "Seed of the draw and of --select random.", affects="rows")
    max_tokens: int | None = field(
        None, None, "Longest row in tokens of the student; needs --tokenizer.", affects="rows", ge=1
    )
    tokenizer: Annotated[str | None, nano("student")] = field(
        None, None, "The student's checkpoint, for its tokenizer and chat template.", affects="rows", by_content=True
    )
    shape: Annotated[str, AfterValidator(SHAPES.check)] = field(
        "messages", OUTPUT, f"Columns of the data set: {', '.join(SHAPES.built_in)}, or a plugin's.", affects="rows"
    )
    include_truncated: bool = field(False, None, "Also take traces that hit the token limit.", affects="rows")

    @field_validator("select")
    @classmethod
    def _known_selection(cls, value: str) -> str:
        kind, _, number = value.partition(":")
        if kind in ("best", "random", "all") and not number and ":" not in value:
            return value
        if kind in ("rank", "bucket", "top") and number.isascii() and number.isdigit() and int(number) >= 1:
            return value
        raise ValueError("takes best, rank:K, bucket:K, top:K, random or all, with K from 1")


class MergeSettings(Settings):
    """Settings of :func:`rlt_data.steps.merge`."""

    input: tuple[str, ...] = field(
        ..., INPUT, f"{RUN_HELP}; one --in for each of the runs.", affects="rows", by_content=True, alias="in"
    )
    out: str = field(..., OUTPUT, "Run folder to make, or its URL.", affects="output")

    @field_validator("input", mode="before")
    @classmethod
    def _at_least_two(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) < 2:
            raise ValueError("takes two run folders or more, such as --in runs/a --in runs/b")
        return value


class EvaluateSettings(FormatSettings, ModelSettings, SamplingSettings):
    """Settings of :func:`rlt_data.steps.evaluate`."""

    model: StudentName = field(..., MODEL, MODEL_HELP, affects="rows", by_content=True)
    benchmark: Literal["aime24", "math500", "gpqa-diamond", "gsm8k", "countdown", "math", "choice"] = field(
        ...,
        INPUT,
        "What the rows are and how they are graded; math and choice: any question and answer columns.",
        affects="rows",
    )
    input: str | None = field(
        None,
        INPUT,
        "File, datasets folder or Hub id; default: the benchmark's own data set on the Hub.",
        affects="rows",
        by_content=True,
        alias="in",
    )
    question_column: str | None = field(None, INPUT, "Column with the question.", affects="rows", by_content=True)
    answer_column: str | None = field(None, INPUT, "Column with the gold answer.", affects="rows", by_content=True)
    subset: str | None = field(
        None, INPUT, "Configuration of a data set from the Hub that --in names.", affects="rows", by_content=True
    )
    split: str = field("train", INPUT, "Its split, or that of a datasets folder.", affects="rows", by_content=True)
    limit: int | None = field(None, INPUT, "Read only the first rows.", affects="rows", by_content=True, ge=1)
    out: str | None = field(None, OUTPUT, f"{RUN_HELP}; default: runs/<benchmark>-<model>.", affects="output")
    n: int = field(1, SAMPLING, "Samples per question.", affects="rows", by_content=True, ge=1)
    temperature: float = field(
        0.0, SAMPLING, "0 takes the likeliest token; samples that differ need more.", affects="rows", ge=0
    )

    @model_validator(mode="after")
    def _several_samples_differ(self) -> EvaluateSettings:
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n: at temperature 0 all samples are the same; give a temperature such as 0.7")
        return self


class PushSettings(Settings):
    """Settings of :func:`rlt_data.publish.push`."""

    input: str = field(
        ...,
        INPUT,
        "Run with a distilled data set, or its URL; a folder that distill wrote; or the folder of a training.",
        affects="rows",
        by_content=True,
        alias="in",
    )
    repo_id: str = field(..., OUTPUT, "Where to: ORG/NAME.", affects="output")
    public: bool = field(
        False, OUTPUT, "Make a new repository public; one that is there stays as it is.", affects="output"
    )
    revision: str = field("main", OUTPUT, "Branch; it is made where there is none.", affects="output")
    create_pr: bool = field(False, OUTPUT, "Open a pull request instead of changing the branch.", affects="output")
    branch_per_stage: bool = field(
        False,
        OUTPUT,
        "Of a run, also put the whole tables of each stage on branches: generate, score, rank.",
        affects="output",
    )
    title: str | None = field(
        None, OUTPUT, "Title of the card; default: the one it has, else the repository's name.", affects="output"
    )
    license: str | None = field(
        None,
        OUTPUT,
        "Licence, as the Hub names it, such as apache-2.0; default: the one the card has.",
        affects="output",
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
    )
    base_model: str | None = field(None, OUTPUT, "Of a model: Hub id of the one it began from.", affects="output")
    trained_on: tuple[str, ...] = field(
        (), OUTPUT, "Of a model: Hub id of a data set it was trained on; may be repeated.", affects="output"
    )
    dry_run: bool = field(
        False, OUTPUT, "Show files, card and what would change, and change nothing.", affects="output"
    )

    @field_validator("repo_id", "base_model", "trained_on")
    @classmethod
    def _are_hub_ids(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        names = [value] if isinstance(value, str) else value or ()
        if wrong := [name for name in names if not _HUB_ID.fullmatch(name) or ".." in name or "--" in name]:
            named = "" if isinstance(value, str) else f"{wrong[0]}: "
            raise ValueError(f"{named}takes a Hub id, ORG/NAME, such as Qwen/Qwen2.5-7B-Instruct")
        return value

    @field_validator("revision")
    @classmethod
    def _is_a_branch(cls, value: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", value) or ".." in value:
            raise ValueError("takes the name of a branch: letters, digits, and _ . - / between them")
        return value

    @model_validator(mode="after")
    def _branches_are_others(self) -> PushSettings:
        if self.branch_per_stage and self.create_pr:
            raise ValueError("branch_per_stage: does not go with create_pr, which changes no branch; push twice")
        return self


class ReportSettings(Settings):
    """Settings of :func:`rlt_data.reporting.report`."""

    input: str = field(..., INPUT, f"{RUN_HELP}.", affects="rows", by_content=True, alias="in")
    against: str | None = field(
        None, INPUT, "Second run, to be shown beside it on the same questions.", affects="rows", by_content=True
    )
    out: LocalName = field("report.html", OUTPUT, "HTML file to write.", affects="output")
    limit: int = field(
        10_000, OUTPUT, "Traces to read in it, at most; figures and plots are of all.", affects="output", ge=1
    )
    title: str | None = field(None, OUTPUT, "Title of the page; default: the name of the run.", affects="output")


class CountdownSettings(Settings):
    """Settings of :func:`rlt_data.steps.countdown`."""

    out: LocalName = field(..., OUTPUT, "JSONL file to write.", affects="output")
    rows: int = field(1000, OUTPUT, "Problems to make.", affects="rows", ge=1)
    split: Literal["train", "test"] = field(
        "train", OUTPUT, "Problems of this split; the two never share one.", affects="rows"
    )
    test_share: float = field(
        0.2, OUTPUT, "Share of all problems that belong to the test split.", affects="rows", gt=0, lt=1
    )
    seed: int = field(0, OUTPUT, "Seed of the draw.", affects="rows")
    fewest: int = field(3, None, "Numbers of a problem, at least.", affects="rows", ge=2, le=8)
    most: int = field(4, None, "Numbers of a problem, at most.", affects="rows", ge=2, le=8)
    smallest: int = field(1, None, "Smallest number.", affects="rows", ge=0)
    largest: int = field(99, None, "Largest number.", affects="rows", ge=1)
    smallest_target: int = field(10, None, "Smallest target.", affects="rows", ge=0)
    largest_target: int = field(100, None, "Largest target.", affects="rows", ge=1)
    largest_value: int = field(10_000, None, "Largest intermediate value.", affects="rows", ge=1)
    operators: str = field("+-*/", None, "Operators to combine with.", affects="rows", pattern=r"^[-+*/]+$")

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> CountdownSettings:
        for low, high in (("fewest", "most"), ("smallest", "largest"), ("smallest_target", "largest_target")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} is larger than {high}")
        return self


class PipelineSettings(Settings):
    """One YAML file for the whole way; each section holds the flags of its command as keys."""

    out: str = field(..., None, f"{RUN_HELP}.", affects="output")
    generate: GenerateSettings | None = None
    score: ScoreSettings | None = None
    rank: RankSettings | None = None
    distill: DistillSettings | None = None
