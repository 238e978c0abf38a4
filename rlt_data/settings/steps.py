"""Settings of the steps, of evaluation and of pipelines."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, field_validator, model_validator

from rlt_data.plugins import REWARDS
from rlt_data.settings.base import (
    INPUT,
    MODEL,
    MODEL_HELP,
    NUMBERS,
    OUTPUT,
    REWARD,
    RUN_HELP,
    SAMPLING,
    SERVER,
    VLLM,
    InputNames,
    LocalName,
    Settings,
    StudentName,
    TeacherName,
    Texts,
    field,
    keys_of,
    nano,
    where_field,
)
from rlt_data.settings.curation import CurateSettings
from rlt_data.settings.distill import DistillSettings
from rlt_data.settings.engines import ENGINE_HELP, EngineName, ModelSettings
from rlt_data.settings.inputs import (
    BadRowSettings,
    ColumnSettings,
    FormatSettings,
    RunOrFilesSettings,
    ShareSettings,
    SourceSettings,
    StoredColumnSettings,
)

_HUB_ID = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)

#: A language, a region or script after it, or one of the two words that the Hub takes for other texts.
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")


def _without_repetitions(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


class SamplingSettings(Settings):
    """How a model is sampled."""

    temperature: float = field(0.7, SAMPLING, "Sampling temperature; 0: greedy decoding.", affects="rows", ge=0)
    top_p: float = field(
        1.0,
        SAMPLING,
        "Nucleus sampling. Stored log-probs are those of the full distribution.",
        affects="rows",
        gt=0,
        le=1,
    )
    top_k: int = field(0, SAMPLING, "Sample from the k most likely tokens; 0: from all.", affects="rows", ge=0)
    max_tokens: int | None = field(
        None, SAMPLING, "Maximum new tokens. Default: whatever fits in the context.", affects="rows", ge=1
    )
    seed: int = field(
        0, SAMPLING, "Seed; each sample's seed is derived from it, the question and its index.", affects="rows"
    )
    retry_errors: bool = field(False, OUTPUT, "Only retry the rows listed in errors.jsonl.", affects="output")


class DryRunSettings(Settings):
    """A dry run of a step, and what its time and cost are computed from."""

    dry_run: bool = field(
        False,
        OUTPUT,
        "Check everything and print rows, tokens, memory, time and cost, without loading the weights.",
        affects="output",
    )
    tokens_per_second: float | None = field(
        None,
        OUTPUT,
        "With --dry-run: rate of all GPUs together. Default: the rate that the run has measured.",
        affects="output",
        ge=0.001,
        le=1e9,
    )
    gpu_price: float | None = field(
        None, OUTPUT, "With --dry-run: price of a GPU per hour, to print the cost.", affects="output", ge=0, le=1e9
    )
    as_json: bool = field(False, OUTPUT, "With --dry-run: print JSON.", affects="output", alias="json")

    @model_validator(mode="after")
    def _only_with_dry_run(self) -> Self:
        if not self.dry_run and (unread := self.not_default("tokens_per_second", "gpu_price", "as_json")):
            raise ValueError(f"{keys_of(type(self))[unread[0]]}: has no effect without --dry-run")
        return self


class GenerateSettings(
    SourceSettings,
    ShareSettings,
    BadRowSettings,
    ColumnSettings,
    StoredColumnSettings,
    FormatSettings,
    ModelSettings,
    SamplingSettings,
    DryRunSettings,
):
    """Settings of :func:`rlt_data.steps.generate`."""

    first_flags = (
        "teacher",
        "out",
        "n",
        "max_tokens",
        "temperature",
        "limit",
        "question_column",
        "solution_column",
        "engine",
    )

    teacher: TeacherName = field(..., MODEL, f"Teacher: {MODEL_HELP}", affects="rows", by_content=True)
    student: Annotated[str | None, nano("student")] = field(
        None,
        MODEL,
        "Student whose chat template is checked before sampling and decides --format auto. Its weights are not loaded.",
        affects="rows",
        by_content=True,
    )
    out: str | None = field(None, OUTPUT, f"{RUN_HELP}. Default: runs/<input>-<teacher>.", affects="output")
    n: int = field(16, SAMPLING, "Traces per question.", affects="rows", by_content=True, ge=1)
    add: bool = field(
        False,
        OUTPUT,
        "Add traces of another teacher or of other sampling settings to a run that has traces.",
        affects="output",
    )
    origin: str | None = field(
        None,
        OUTPUT,
        "Origin to store with the traces, to tell settings of one teacher apart. Default: the teacher's name.",
        affects="rows",
        by_content=True,
        min_length=1,
    )


class RewardSettings(Settings):
    """The dense reward and the weights of its terms."""

    reward: Annotated[str, AfterValidator(REWARDS.check)] = field(
        "rlt",
        REWARD,
        "Reward function: rlt, a plug-in's, or your own as module:function.",
        affects="rows",
        by_content=True,
    )
    lambda_: float = field(3.0, REWARD, "Weight of the KL term.", affects="rows", alias="lambda", ge=0)
    alpha: float = field(0.01, REWARD, "Weight of the minimum and maximum relative to the means.", affects="rows", ge=0)
    kl: Literal["k1", "k3", "full"] = field(
        "k1",
        REWARD,
        "KL estimator: k1 (log-ratio) or k3 on the sampled tokens, or full, over the vocabulary.",
        affects="rows",
    )
    missing_tag_penalty: float = field(
        -1.0, REWARD, "Added to the reward if the closing tag is missing.", affects="rows", le=0
    )
    solution_weight: float = field(
        1.0, REWARD, "Weight of the solution term r_ss.", affects="rows", omit_default=True, ge=0
    )
    alpha_kl: float | None = field(
        None,
        REWARD,
        "Weight of the maximum in the KL term; --alpha is then the weight of the minimum only. Default: --alpha.",
        affects="rows",
        omit_default=True,
        ge=0,
    )

    @model_validator(mode="after")
    def _reward_has_a_term(self) -> RewardSettings:
        if self.reward == "rlt" and self.solution_weight == 0 and self.lambda_ == 0:
            raise ValueError("solution_weight: 0 with --lambda 0 leaves no term of the reward")
        return self


class ScoreSettings(RunOrFilesSettings, FormatSettings, ModelSettings, RewardSettings, DryRunSettings):
    """Settings of :func:`rlt_data.steps.score`; ``input`` is a run or a file of traces."""

    first_flags = (
        "student",
        "teacher",
        "out",
        "temperature",
        "lambda_",
        "kl",
        "per_token",
        "engine",
        "device",
    )

    engine: EngineName = field("auto", MODEL, ENGINE_HELP, affects="speed")  # all give the same log-probs
    batch_size: int | None = field(
        None, VLLM, "Sequences scored at a time. Default: vLLM's.", affects="speed", ge=1, engines=("vllm",)
    )
    student: StudentName = field(..., MODEL, f"Student: {MODEL_HELP}", affects="rows", by_content=True)
    teacher: Annotated[str | None, nano("teacher")] = field(
        None,
        MODEL,
        "Teacher checkpoint, for traces without stored teacher log-probs; none: score without a teacher.",
        affects="rows",
        by_content=True,
    )
    teacher_logprobs: Literal["auto", "trace", "compute"] = field(
        "auto",
        MODEL,
        "trace: use only the stored log-probs; compute: always run the teacher; auto: run it where needed.",
        affects="speed",
    )
    out: str | None = field(
        None,
        OUTPUT,
        f"{RUN_HELP}. Default: the input run, or runs/<input>-<student> for a file.",
        affects="output",
    )
    temperature: float = field(0.7, REWARD, "Temperature of all log-probs.", affects="rows", gt=0)
    served_temperature: float = field(
        1.0,
        SERVER,
        "Temperature of the server's prompt log-probs; see docs/engines.md.",
        affects="speed",
        gt=0,
        engines=("server",),
    )
    measures: Annotated[tuple[Literal["ifd", "local", "leak"], ...], AfterValidator(_without_repetitions)] = field(
        (),
        REWARD,
        "Add a measure that needs further passes of the student: ifd, local or leak; repeatable (docs/measures.md).",
        affects="rows",
        omit_default=True,
    )
    measure_temperature: float = field(
        1.0,
        REWARD,
        "Temperature of the student's log-probs in measures such as perplexity.",
        affects="rows",
        omit_default=True,
        gt=0,
    )
    per_token: bool = field(False, OUTPUT, "Store each token's log-probs and KL as list columns.", affects="rows")
    retry_errors: bool = field(False, OUTPUT, "Only retry the rows listed in errors.jsonl.", affects="output")

    @model_validator(mode="after")
    def _server_can_score(self) -> ScoreSettings:
        if self.engine != "server":
            return self
        if self.temperature != self.served_temperature:
            raise ValueError(served_temperature_error(self.temperature, self.served_temperature))
        costly = [name for name in self.measures if name != "leak"]
        if costly and self.measure_temperature != self.served_temperature:
            raise ValueError(
                f"measures: {' and '.join(costly)} need log-probs at --measure-temperature "
                f"{self.measure_temperature:g}, and the server returns them at {self.served_temperature:g}; add "
                f"--measure-temperature {self.served_temperature:g}"
            )
        if self.teacher not in (None, "none", self.student):
            raise ValueError(
                "teacher: the servers of --url run the student and cannot run a teacher; omit --teacher if the traces "
                "contain their log-probs, use --teacher none, or use another engine"
            )
        return self

    @model_validator(mode="after")
    def _full_kl_is_possible(self) -> ScoreSettings:
        if self.kl == "full" and self.engine not in ("transformers", "auto"):
            raise ValueError(f"kl: full compares full distributions, which --engine {self.engine} does not return")
        if self.kl == "full" and self.ray:
            raise ValueError("kl: full compares full distributions, which engines on a cluster do not return")
        return self

    @property
    def needs_transformers(self) -> str | None:
        """The first flag that only the transformers engine takes; see :class:`ModelSettings`."""
        return "--kl full" if self.kl == "full" else super().needs_transformers

    @model_validator(mode="after")
    def _teacher_is_read(self) -> ScoreSettings:
        if self.teacher == "none" and self.teacher_logprobs != "auto":
            raise ValueError("teacher_logprobs: has no effect with --teacher none")
        return self


class RankSettings(Settings):
    """Settings of :func:`rlt_data.steps.rank`."""

    input: str = field(..., INPUT, f"{RUN_HELP}.", affects="rows", by_content=True, alias="in", positional="RUN")
    by: str = field(
        "reward",
        None,
        'Column or SQL expression to rank by, such as r_ss or "r_ss - 2 * r_kl"; larger is better.',
        affects="rows",
    )
    lambda_: float | None = field(
        None,
        None,
        "Rank by the reward with this weight of the KL term. Default: that of score.",
        affects="rows",
        alias="lambda",
        ge=0,
    )
    alpha: float | None = field(
        None,
        None,
        "Rank by the reward with this weight of minimum and maximum. Default: that of score.",
        affects="rows",
        ge=0,
    )
    where: Texts = where_field("Rank only traces", affects="rows")
    buckets: str = field(
        "ranks",
        None,
        "ranks: one bucket per rank; a number N: N quantiles over the traces of all questions.",
        affects="rows",
    )

    @model_validator(mode="after")
    def _weights_are_read(self) -> RankSettings:
        if self.by != "reward" and (unread := self.not_default("lambda_", "alpha")):
            raise ValueError(
                f"{unread[0].rstrip('_')}: has no effect with --by {self.by}; write the expression instead"
            )
        return self

    @field_validator("buckets", mode="before")
    @classmethod
    def _ranks_or_number(cls, value: Any) -> str:
        text = str(value)
        if text != "ranks" and not (text.isascii() and text.isdigit() and len(text) < 5 and 2 <= int(text) <= 1000):
            raise ValueError("must be 'ranks' or a number of quantiles from 2 to 1000, such as 4")
        return text


class MergeSettings(Settings):
    """Settings of :func:`rlt_data.steps.merge`."""

    input: tuple[str, ...] = field(
        ...,
        INPUT,
        "Run folders or URLs, at least two.",
        affects="rows",
        by_content=True,
        alias="in",
        positional="RUN",
    )
    out: str = field(..., OUTPUT, "New run folder or URL.", affects="output")

    @field_validator("input", mode="before")
    @classmethod
    def _at_least_two(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) < 2:
            raise ValueError("requires at least two run folders, such as: rlt-data merge runs/a runs/b --out runs/ab")
        return value


class EvaluateSettings(ShareSettings, BadRowSettings, FormatSettings, ModelSettings, SamplingSettings, DryRunSettings):
    """Settings of :func:`rlt_data.steps.evaluate`."""

    first_flags = (
        "model",
        "benchmark",
        "prompts",
        "input",
        "n",
        "temperature",
        "max_tokens",
        "out",
        "engine",
    )

    model: StudentName = field(..., MODEL, f"Model to evaluate: {MODEL_HELP}", affects="rows", by_content=True)
    benchmark: Literal["aime24", "math500", "gpqa-diamond", "gsm8k", "countdown", "math", "choice"] = field(
        ...,
        INPUT,
        "Layout of the rows and how answers are graded. math and choice grade any question and answer columns.",
        affects="rows",
    )
    input: InputNames | None = field(
        None,
        INPUT,
        "File, folder, pattern or Hub data set id; repeatable. Default: the benchmark's data set on the Hub.",
        affects="rows",
        by_content=True,
        alias="in",
    )
    question_column: str | None = field(
        None, INPUT, "Column with the question. Default: the benchmark's.", affects="rows", by_content=True
    )
    answer_column: str | None = field(
        None, INPUT, "Column with the correct answer. Default: the benchmark's.", affects="rows", by_content=True
    )
    subset: str | None = field(
        None, INPUT, "Configuration of the data set that --in names.", affects="rows", by_content=True
    )
    split: str = field("train", INPUT, "Split of the data set that --in names.", affects="rows", by_content=True)
    limit: int | None = field(
        None, INPUT, "Number of rows to read, from the start. Default: all.", affects="rows", by_content=True, ge=1
    )
    prompts: str = field(
        "rlt",
        INPUT,
        "Texts around the question: rlt (those of --format), lighteval, or a YAML file with question_template or "
        "solver_system.",
        affects="rows",
        by_content=True,
    )
    out: str | None = field(None, OUTPUT, f"{RUN_HELP}. Default: runs/<benchmark>-<model>.", affects="output")
    n: int = field(1, SAMPLING, "Samples per question.", affects="rows", by_content=True, ge=1)
    temperature: float = field(
        0.0, SAMPLING, "Sampling temperature; 0: greedy decoding. --n above 1 requires more.", affects="rows", ge=0
    )
    max_thought: int | None = field(
        None,
        SAMPLING,
        "Budget forcing: close a thought after this many tokens, so that the answer follows.",
        affects="rows",
        omit_default=True,
        ge=1,
    )
    waits: int = field(
        0,
        SAMPLING,
        "Budget forcing: when a thought ends, append --wait-text and continue, up to this many times.",
        affects="rows",
        omit_default=True,
        ge=0,
        le=100,
    )
    min_thought: int | None = field(
        None,
        SAMPLING,
        "Budget forcing: --waits continues only thoughts with fewer tokens than this.",
        affects="rows",
        omit_default=True,
        ge=1,
    )
    wait_text: str = field(
        "Wait", SAMPLING, "Budget forcing: text that --waits appends.", affects="rows", omit_default=True, min_length=1
    )

    @model_validator(mode="after")
    def _budget_is_possible(self) -> EvaluateSettings:
        if not self.waits and (unread := self.not_default("min_thought", "wait_text")):
            raise ValueError(f"{unread[0]}: has no effect without --waits")
        for name, most in (("min_thought", "max_thought"), ("max_thought", "max_tokens")):
            small, large = getattr(self, name), getattr(self, most)
            if small and large and small >= large:
                raise ValueError(f"{name}: must be less than --{most.replace('_', '-')} ({large})")
        return self

    @property
    def forces_budget(self) -> bool:
        """Whether thoughts are extended or closed."""
        return bool(self.max_thought or self.waits)

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluateSettings:
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n: all samples are equal at temperature 0; use a temperature such as 0.7")
        return self

    @model_validator(mode="after")
    def _source_is_named(self) -> EvaluateSettings:
        if self.input is None and (unread := self.not_default("subset", "split")):
            raise ValueError(f"{unread[0]}: has no effect without --in")
        return self

    @model_validator(mode="after")
    def _both_columns_are_named(self) -> EvaluateSettings:
        refuse_single_column(self.question_column, self.answer_column)
        return self


def served_temperature_error(temperature: float, served: float) -> str:
    """Return the message that servers do not return log-probs at a temperature."""
    return (
        f"temperature: a server returns prompt log-probs at temperature {served:g} only; use --temperature {served:g}, "
        f"or serve a copy of the student with its LM head divided by {temperature:g} and add --served-temperature "
        f"{temperature:g} (docs/engines.md)"
    )


def refuse_single_column(question: str | None, answer: str | None) -> None:
    """Raise ValueError if only one of the question's and the answer's columns is named."""
    if (question is None) != (answer is None):
        named, missing = ("question", "answer") if answer is None else ("answer", "question")
        raise ValueError(f"{named}_column: has no effect without --{missing}-column")


class PushSettings(Settings):
    """Settings of :func:`rlt_data.publish.push`."""

    first_flags = (
        "repo_id",
        "public",
        "revision",
        "create_pr",
        "branch_per_stage",
        "title",
        "license",
        "language",
        "dry_run",
    )

    input: str = field(
        ...,
        INPUT,
        "Run with a distilled data set, data set that distill wrote, or folder of a training.",
        affects="rows",
        by_content=True,
        alias="in",
        positional="RUN",
    )
    repo_id: str = field(..., OUTPUT, "Repository on the Hub: ORG/NAME.", affects="output")
    public: bool = field(
        False, OUTPUT, "Make a new repository public; an existing one keeps its visibility.", affects="output"
    )
    revision: str = field("main", OUTPUT, "Branch; created if it does not exist.", affects="output")
    create_pr: bool = field(False, OUTPUT, "Open a pull request instead of changing the branch.", affects="output")
    branch_per_stage: bool = field(
        False,
        OUTPUT,
        "Also publish the complete tables of a run on the branches generate, score and rank.",
        affects="output",
    )
    title: str | None = field(
        None, OUTPUT, "Title of the card. Default: the existing one, else the repository's name.", affects="output"
    )
    license: str | None = field(
        None,
        OUTPUT,
        "Licence identifier of the Hub, such as apache-2.0. Default: the existing card's.",
        affects="output",
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
    )
    language: tuple[str, ...] = field(
        (),
        OUTPUT,
        "Language of the texts as an ISO 639 code, such as en; repeatable. Default: the existing card's.",
        affects="output",
    )
    base_model: str | None = field(
        None, MODEL, "Hub id of the base model, for the card of a model. Default: the recorded one.", affects="output"
    )
    trained_on: tuple[str, ...] = field(
        (), MODEL, "Hub id of a training data set, for the card of a model; repeatable.", affects="output"
    )
    evaluation: tuple[str, ...] = field(
        (), MODEL, "Run of rlt-data evaluate with this model, for the card of a model; repeatable.", affects="output"
    )
    dry_run: bool = field(False, OUTPUT, "Print files, card and changes without uploading.", affects="output")

    @field_validator("language")
    @classmethod
    def _are_languages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [code for code in value if not _LANGUAGE.fullmatch(code)]:
            raise ValueError(f"{wrong[0]}: must be an ISO 639 code, such as en or pt-BR")
        return value

    @field_validator("repo_id", "base_model", "trained_on")
    @classmethod
    def _are_hub_ids(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        names = [value] if isinstance(value, str) else value or ()
        if wrong := [name for name in names if not _HUB_ID.fullmatch(name) or ".." in name or "--" in name]:
            named = "" if isinstance(value, str) else f"{wrong[0]}: "
            raise ValueError(f"{named}must be a Hub id, ORG/NAME, such as Qwen/Qwen2.5-7B-Instruct")
        return value

    @field_validator("revision")
    @classmethod
    def _is_branch(cls, value: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", value) or ".." in value:
            raise ValueError("must be a branch name: letters, digits, and _ . - / between them")
        return value

    @model_validator(mode="after")
    def _branches_or_pull_request(self) -> PushSettings:
        if self.branch_per_stage and self.create_pr:
            raise ValueError("branch_per_stage: cannot be combined with --create-pr; push twice")
        return self


class ReportSettings(Settings):
    """Settings of :func:`rlt_data.reporting.report`."""

    input: str = field(..., INPUT, f"{RUN_HELP}.", affects="rows", by_content=True, alias="in", positional="RUN")
    against: str | None = field(
        None, INPUT, "Second run to compare on the same questions.", affects="rows", by_content=True
    )
    out: LocalName = field("report.html", OUTPUT, "HTML file to write.", affects="output")
    limit: int = field(
        10_000, OUTPUT, "Maximum number of traces to show; figures and plots use all traces.", affects="output", ge=1
    )
    title: str | None = field(None, OUTPUT, "Title of the page. Default: the run's name.", affects="output")
    where: Texts = where_field("Show only traces", affects="rows")


class CountdownSettings(Settings):
    """Settings of :func:`rlt_data.steps.countdown`."""

    first_flags = ("out", "rows", "split", "test_share", "seed", "fewest", "most", "operators")

    out: LocalName = field(..., OUTPUT, "JSONL file to write.", affects="output")
    rows: int = field(1000, OUTPUT, "Number of problems.", affects="rows", ge=1)
    split: Literal["train", "test"] = field(
        "train", OUTPUT, "Split to draw problems from; the splits share no problem.", affects="rows"
    )
    test_share: float = field(
        0.2, OUTPUT, "Share of all problems that belong to the test split.", affects="rows", gt=0, lt=1
    )
    seed: int = field(0, OUTPUT, "Random seed.", affects="rows")
    fewest: int = field(3, NUMBERS, "Minimum count of numbers in a problem.", affects="rows", ge=2, le=8)
    most: int = field(4, NUMBERS, "Maximum count of numbers in a problem.", affects="rows", ge=2, le=8)
    smallest: int = field(1, NUMBERS, "Smallest number.", affects="rows", ge=0)
    largest: int = field(99, NUMBERS, "Largest number.", affects="rows", ge=1)
    smallest_target: int = field(10, NUMBERS, "Smallest target.", affects="rows", ge=0)
    largest_target: int = field(100, NUMBERS, "Largest target.", affects="rows", ge=1)
    largest_value: int = field(10_000, NUMBERS, "Largest intermediate value.", affects="rows", ge=1)
    operators: str = field("+-*/", NUMBERS, "Allowed operators.", affects="rows", pattern=r"^[-+*/]+$")

    @model_validator(mode="after")
    def _ranges_are_not_empty(self) -> CountdownSettings:
        for low, high in (("fewest", "most"), ("smallest", "largest"), ("smallest_target", "largest_target")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} is larger than {high}")
        return self


class PipelineSettings(Settings):
    """Settings of a pipeline file; each section contains the flags of its command as keys."""

    out: str = field(..., None, f"{RUN_HELP}.", affects="output")
    generate: GenerateSettings | None = None
    score: ScoreSettings | None = None
    curate: CurateSettings | None = None
    rank: RankSettings | None = None
    distill: DistillSettings | None = None
