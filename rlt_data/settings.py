"""The settings of every step, stated once: each field is a flag, a YAML key and a documented argument.

Nothing heavy is imported here, so that ``rlt-data --help`` stays fast. Values are checked when a settings object is
made; :func:`parse_settings` turns what pydantic finds into one line per mistake, with the nearest valid key.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rlt_data.errors import SettingsError


class Settings(BaseModel):
    """Immutable settings that know all their keys; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


AnySettings = TypeVar("AnySettings", bound=Settings)

INPUT, MODEL, OUTPUT, REWARD, SAMPLING = "Input", "Model", "Output", "Reward", "Sampling"


def _field(default: Any, panel: str | None, help: str, **options: Any) -> Any:
    return Field(default, description=help, json_schema_extra={"panel": panel}, **options)


class InputSettings(Settings):
    """Where rows come from and which columns hold what."""

    input: str = _field(
        ...,
        INPUT,
        "JSONL (also .gz, .zst), JSON, CSV or Parquet file, a datasets folder, or a Hub data set id.",
        alias="in",
    )
    preset: Literal[
        "auto",
        "question-solution",
        "question-answer",
        "prompt-completion",
        "gsm8k",
        "math",
        "s1k",
        "bespoke",
        "sharegpt",
        "messages",
    ] = _field("auto", INPUT, "Shape of the rows; auto looks at the columns.")
    question_column: str | None = _field(None, INPUT, "Column with the question.")
    solution_column: str | None = _field(None, INPUT, "Column with the solution.")
    answer_column: str | None = _field(None, INPUT, "Column with the short final answer, kept for evaluation.")
    explanation_column: str | None = _field(None, INPUT, "Column with an existing trace, without tags.")
    completion_column: str | None = _field(
        None, INPUT, "Column with an existing trace as written, closing tag included."
    )
    id_column: str | None = _field(None, INPUT, "Column with the row's id; becomes source_id. Default: id, if there.")
    keep: tuple[str, ...] = _field((), INPUT, "Further column to carry along as metadata; may be repeated.")
    split: str = _field("train", INPUT, "Split of a data set from the Hub or a datasets folder.")
    subset: str | None = _field(None, INPUT, "Configuration of a data set from the Hub.")
    revision: str | None = _field(None, INPUT, "Revision of a data set from the Hub.")
    limit: int | None = _field(None, INPUT, "Read only the first rows.", ge=1)
    max_chars: int = _field(200_000, INPUT, "A longer field makes its row a bad row.", ge=1)
    skip_bad_rows: bool = _field(False, INPUT, "Leave bad rows out instead of stopping.")


class ModelSettings(Settings):
    """How models are loaded and run."""

    engine: Literal["transformers"] = _field("transformers", MODEL, "What runs the models.")
    device: str = _field("auto", MODEL, "auto, cpu, cuda, cuda:1, mps, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _field(
        "auto", MODEL, "auto: the checkpoint's, or float32 on a CPU without bfloat16 arithmetic."
    )
    batch_size: int | None = _field(None, MODEL, "Samples generated at a time; default: what fits, 32 on CPU.", ge=1)
    batch_tokens: int | None = _field(None, MODEL, "Tokens scored at a time; default: 4096 on CPU, else 16384.", ge=1)
    chat_template: str | None = _field(None, MODEL, "Jinja file, or 'plain' for ours; default: the model's own.")
    trust_remote_code: bool = _field(False, MODEL, "Run Python code that comes with a checkpoint.")


class FormatSettings(Settings):
    """How problems are shown."""

    format: str = _field(
        "auto",
        INPUT,
        "rlt, rlt-shots, think, or a YAML file; auto: rlt, or rlt-shots for a model without chat template.",
    )


class CheckSettings(InputSettings, FormatSettings):
    """Settings of :func:`rlt_data.check`."""


class GenerateSettings(InputSettings, FormatSettings, ModelSettings):
    """Settings of :func:`rlt_data.steps.generate`."""

    teacher: str = _field(..., MODEL, "Hub id, folder, GGUF file, or gemma-3-270m.")
    out: str | None = _field(None, OUTPUT, "Run folder; default: runs/<input>-<teacher>.")
    n: int = _field(16, SAMPLING, "Traces per question.", ge=1)
    temperature: float = _field(0.7, SAMPLING, "0 takes the likeliest token.", ge=0)
    top_p: float = _field(1.0, SAMPLING, "Nucleus sampling; log-probs stay those of the whole vocabulary.", gt=0, le=1)
    top_k: int = _field(0, SAMPLING, "Sample from the k likeliest tokens; 0: from all.", ge=0)
    max_tokens: int | None = _field(None, SAMPLING, "Longest trace; default: what the context leaves.", ge=1)
    seed: int = _field(0, SAMPLING, "Every sample's own seed follows from it, the question and the sample's number.")
    retry_errors: bool = _field(False, OUTPUT, "Run only the rows that are in errors.jsonl.")


class ScoreSettings(InputSettings, FormatSettings, ModelSettings):
    """Settings of :func:`rlt_data.steps.score`; ``input`` may also be a run folder."""

    student: str = _field(..., MODEL, "Hub id, folder, GGUF file, or gemma-3-270m.")
    teacher: str | None = _field(
        None, MODEL, "Checkpoint for the teacher's log-probs where the traces lack them; none: score without them."
    )
    teacher_logprobs: Literal["auto", "trace", "compute"] = _field(
        "auto", MODEL, "trace: only those stored with the traces; compute: always a second pass."
    )
    out: str | None = _field(
        None, OUTPUT, "Run folder; default: the input run, or runs/<input>-<student> for a file of traces."
    )
    temperature: float = _field(0.7, REWARD, "Temperature of all log-probs.", gt=0)
    lambda_: float = _field(3.0, REWARD, "Weight of the KL term.", alias="lambda", ge=0)
    alpha: float = _field(0.01, REWARD, "Weight of min and max beside the means.", ge=0)
    kl: Literal["k1", "k3", "full"] = _field(
        "k1", REWARD, "Estimate on the sampled tokens (k1: log-ratio, k3), or over the full vocabulary."
    )
    per_token: bool = _field(False, OUTPUT, "Keep every token's log-probs and KL as list columns.")
    retry_errors: bool = _field(False, OUTPUT, "Run only the rows that are in errors.jsonl.")


class RankSettings(Settings):
    """Settings of :func:`rlt_data.steps.rank`."""

    input: str = _field(..., INPUT, "Run folder with scores.", alias="in")
    by: Literal["reward", "reward_without_entropy", "r_ss", "solution_logprob_mean"] = _field(
        "reward", None, "Column of scores to rank by, larger is better."
    )
    buckets: str = _field("ranks", None, "ranks: one bucket per rank; a number N: N quantiles of all traces.")

    @field_validator("buckets", mode="before")
    @classmethod
    def _ranks_or_number(cls, value: Any) -> str:
        text = str(value)
        if text != "ranks" and not (text.isascii() and text.isdigit() and int(text) >= 2):
            raise ValueError("takes 'ranks' or a number of quantiles such as 4")
        return text


class DistillSettings(Settings):
    """Settings of :func:`rlt_data.steps.distill`."""

    input: str = _field(..., INPUT, "Run folder with ranks.", alias="in")
    out: str | None = _field(None, OUTPUT, "Folder of the data set; default: RUN/dataset.")
    select: str = _field("best", None, "best, rank:K, bucket:K, top:K (the best K of a question), random, or all.")
    limit: int | None = _field(None, None, "Keep this many rows, a random draw of questions.", ge=1)
    seed: int = _field(0, None, "Seed of the draw and of --select random.")
    max_tokens: int | None = _field(None, None, "Longest row in tokens of the student; needs --tokenizer.", ge=1)
    tokenizer: str | None = _field(None, None, "The student's checkpoint, for its tokenizer and chat template.")
    shape: Literal["messages", "prompt-completion", "sharegpt", "bespoke"] = _field(
        "messages", OUTPUT, "Columns of the data set."
    )
    include_truncated: bool = _field(False, None, "Also take traces that hit the token limit.")

    @field_validator("select")
    @classmethod
    def _known_selection(cls, value: str) -> str:
        kind, _, number = value.partition(":")
        if kind in ("best", "random", "all") and not number and ":" not in value:
            return value
        if kind in ("rank", "bucket", "top") and number.isascii() and number.isdigit() and int(number) >= 1:
            return value
        raise ValueError("takes best, rank:K, bucket:K, top:K, random or all, with K from 1")


class PipelineSettings(Settings):
    """One YAML file for the whole way; each section holds the flags of its command as keys."""

    out: str = Field(description="Run folder.")
    generate: GenerateSettings | None = None
    score: ScoreSettings | None = None
    rank: RankSettings | None = None
    distill: DistillSettings | None = None


def parse_settings(
    model: type[AnySettings], data: Mapping[str, Any], *, where: str = "", flags: bool = False
) -> AnySettings:
    """Make settings from flags or YAML keys.

    Args:
        model: the settings class.
        data: values by key (an alias such as ``in`` is the key).
        where: what the values came from, such as a file name; put before each message.
        flags: name keys as flags (``--max-tokens``) in messages.

    Raises:
        SettingsError: one line for each unknown, missing or wrong key.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        lines = [_explain(model, problem, flags) for problem in error.errors()]
    prefix = f"{where}: " if where else ""
    raise SettingsError("\n".join(prefix + line for line in lines))


def _explain(model: type[Settings], problem: Any, flags: bool) -> str:
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if flags and path:
        name = "--" + path[0].replace("_", "-")
    kind, value = problem["type"], problem.get("input")
    if kind == "missing":
        return f"{name}: is needed"
    if kind == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, 1)
        return f"{name}: unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = "" if isinstance(value, (dict, list)) else f" (got {value!r})"
    return (f"{name}: " if name else "") + message + shown


def _keys_at(model: type[Settings], path: list[str]) -> list[str]:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if path and path[0] in fields:
        inner = fields[path[0]].annotation
        for candidate in getattr(inner, "__args__", (inner,)):
            if isinstance(candidate, type) and issubclass(candidate, Settings):
                return _keys_at(candidate, path[1:])
    return list(fields)
