"""The settings of every step, stated once: each field is a flag, a YAML key and a documented argument.

Nothing heavy is imported here, so that ``rlt-data --help`` stays fast. Values are checked when a settings object is
made; :func:`parse_settings` turns what pydantic finds into one line per mistake, with the nearest valid key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from rlt_data.errors import SettingsError
from rlt_data.places import is_url


class Settings(BaseModel):
    """Immutable settings that know all their keys; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


AnySettings = TypeVar("AnySettings", bound=Settings)

#: What a model can be named by.
MODEL_HELP = "Hub id, folder, GGUF file, gemma-3-270m, or nano."
#: What a run can be named by.
RUN_HELP = "Run folder, or its URL such as s3://bucket/run"

INPUT, MODEL, ENGINE, OUTPUT = "Input", "Model", "Engine", "Output"
REWARD, SAMPLING, TRAINING = "Reward", "Sampling", "Training"


def _nano(role: str) -> BeforeValidator:
    return BeforeValidator(lambda name: f"nano-{role}" if name == "nano" else name)


#: Names of models; ``nano`` means another miniature in each place.
StudentName = Annotated[str, _nano("student")]
TeacherName = Annotated[str, _nano("teacher")]
WarmTeacherName = Annotated[str, _nano("teacher-warm")]


def _on_this_machine(name: str) -> str:
    if is_url(name):
        raise ValueError("takes a place on this machine; only run folders and data sets can be URLs")
    return name


#: Names of what can be on this machine only.
LocalName = Annotated[str, AfterValidator(_on_this_machine)]


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

    engine: Literal["transformers", "vllm", "server"] = _field(
        "transformers", MODEL, "What runs the models; server: an OpenAI-compatible one, see --url."
    )
    device: str = _field("auto", MODEL, "auto, cpu, cuda, cuda:1, mps, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _field(
        "auto", MODEL, "auto: the checkpoint's, or float32 on a CPU without bfloat16 arithmetic."
    )
    batch_size: int | None = _field(None, MODEL, "Samples generated at a time; default: what fits, 32 on CPU.", ge=1)
    batch_tokens: int | None = _field(None, MODEL, "Tokens scored at a time; default: 4096 on CPU, else 16384.", ge=1)
    chat_template: str | None = _field(None, MODEL, "Jinja file, or 'plain' for ours; default: the model's own.")
    trust_remote_code: bool = _field(False, MODEL, "Run Python code that comes with a checkpoint.")
    stall_timeout: float = _field(
        900.0, ENGINE, "Seconds without any sign of life from an engine after which the run is ended.", gt=0
    )
    data_parallel: int = _field(1, ENGINE, "vllm: engine processes, each on GPUs of its own.", ge=1)
    tensor_parallel: int = _field(1, ENGINE, "vllm: GPUs that share one engine.", ge=1)
    gpu_memory: float = _field(0.9, ENGINE, "vllm: share of GPU memory to use, for all models together.", gt=0, lt=1)
    max_model_len: int | None = _field(None, ENGINE, "vllm: longest text; default: the model's context.", ge=2)
    url: tuple[str, ...] = _field(
        (), ENGINE, "server: base URL such as http://host:8000/v1; may be repeated, requests go to all."
    )
    served_model: str | None = _field(None, ENGINE, "server: the model's name there; default: the one it serves.")
    api_key_env: str = _field("OPENAI_API_KEY", ENGINE, "server: environment variable that holds the key, if any.")
    concurrency: int = _field(64, ENGINE, "server: requests at a time to each URL.", ge=1)
    connect_timeout: float = _field(10.0, ENGINE, "server: seconds for a connection.", gt=0)
    read_timeout: float = _field(600.0, ENGINE, "server: seconds for an answer.", gt=0)
    retries: int = _field(8, ENGINE, "server: tries of a request after the first.", ge=0)
    ray: str | None = _field(
        None, ENGINE, "Run engines on a Ray cluster: its address, auto for the one of this machine, local to start one."
    )
    engines: int | None = _field(
        None, ENGINE, "With --ray: engines; default: as many as have GPUs, or one a machine without.", ge=1
    )
    gpus_per_engine: float | None = _field(
        None, ENGINE, "With --ray: GPUs of each engine; default: --tensor-parallel, or 0 without GPUs.", ge=0
    )

    @field_validator("ray")
    @classmethod
    def _auto_local_or_address(cls, value: str | None) -> str | None:
        if value not in (None, "auto", "local") and not re.fullmatch(r"[^/\s]+:\d+", value):
            raise ValueError("takes auto, local, or the address of a cluster such as 10.0.0.1:6379")
        return value

    @field_validator("url", mode="before")
    @classmethod
    def _one_url_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _plain_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        urls = tuple(url.strip().rstrip("/") for url in urls)
        for number, url in enumerate(urls, 1):
            if problem := _problem_with_url(url):
                # Not a ValueError: pydantic shows the value with it, which may hold a password.
                raise SettingsError(f"--url: number {number} {problem}; takes URLs such as http://host:8000/v1")
        if len(set(urls)) < len(urls):
            raise ValueError("one URL is given twice; --concurrency says how many requests each gets at a time")
        return urls

    @property
    def drawn_by(self) -> dict[str, str]:
        """What a sample depends on of these: other engines draw other samples from the same seed."""
        return {} if self.engine == "transformers" else {"engine": self.engine}

    @model_validator(mode="after")
    def _options_fit_the_engine(self) -> ModelSettings:
        for engine, names in (("vllm", _VLLM_FIELDS), ("server", _SERVER_FIELDS)):
            for name in names:
                if self.engine != engine and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: goes with --engine {engine}, not with {self.engine}")
        if self.engine == "server" and not self.url:
            raise ValueError("url: is needed with --engine server")
        if self.engine == "server" and self.ray:
            raise ValueError("ray: goes with --engine transformers or vllm; servers run where they run")
        if not self.ray and (self.engines is not None or self.gpus_per_engine is not None):
            raise ValueError("ray: is needed with --engines and --gpus-per-engine")
        return self


def _problem_with_url(url: str) -> str | None:
    """Say why a text is not the base URL of a server, without any part of it; None if it is one."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("http", "https"):
        return "does not begin with http:// or https://"
    if not host or any(char.isspace() for char in url):
        return "is no URL"
    if parts.username or parts.password or "@" in parts.netloc:
        return "holds a user name or a password; keys come from the environment (--api-key-env)"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "holds a query; keys come from the environment (--api-key-env)"
    return None


_VLLM_FIELDS = ("data_parallel", "tensor_parallel", "gpu_memory", "max_model_len")
_SERVER_FIELDS = (
    "url",
    "served_model",
    "api_key_env",
    "concurrency",
    "connect_timeout",
    "read_timeout",
    "retries",
)


class FormatSettings(Settings):
    """How problems are shown."""

    format: str = _field(
        "auto",
        INPUT,
        "rlt, rlt-shots, think, or a YAML file; auto: the model's own, else rlt, or rlt-shots without chat template.",
    )


class CheckSettings(InputSettings, FormatSettings):
    """Settings of :func:`rlt_data.check`."""


class SamplingSettings(Settings):
    """How a model is sampled."""

    temperature: float = _field(0.7, SAMPLING, "0 takes the likeliest token.", ge=0)
    top_p: float = _field(1.0, SAMPLING, "Nucleus sampling; log-probs stay those of the whole vocabulary.", gt=0, le=1)
    top_k: int = _field(0, SAMPLING, "Sample from the k likeliest tokens; 0: from all.", ge=0)
    max_tokens: int | None = _field(None, SAMPLING, "Longest sample; default: what the context leaves.", ge=1)
    seed: int = _field(0, SAMPLING, "Every sample's own seed follows from it, the question and the sample's number.")
    retry_errors: bool = _field(False, OUTPUT, "Run only the rows that are in errors.jsonl.")

    @property
    def sampled_by(self) -> dict[str, Any]:
        """What a sample depends on of these."""
        return self.model_dump(include={"temperature", "top_p", "top_k", "max_tokens", "seed"})


class GenerateSettings(InputSettings, FormatSettings, ModelSettings, SamplingSettings):
    """Settings of :func:`rlt_data.steps.generate`."""

    teacher: TeacherName = _field(..., MODEL, MODEL_HELP)
    out: str | None = _field(None, OUTPUT, f"{RUN_HELP}; default: runs/<input>-<teacher>.")
    n: int = _field(16, SAMPLING, "Traces per question.", ge=1)


class RewardSettings(Settings):
    """How the terms of the dense reward are weighed."""

    lambda_: float = _field(3.0, REWARD, "Weight of the KL term.", alias="lambda", ge=0)
    alpha: float = _field(0.01, REWARD, "Weight of min and max beside the means.", ge=0)
    kl: Literal["k1", "k3", "full"] = _field(
        "k1", REWARD, "Estimate on the sampled tokens (k1: log-ratio, k3), or over the full vocabulary."
    )
    missing_tag_penalty: float = _field(-1.0, REWARD, "Added where the closing tag is missing.", le=0)


class ScoreSettings(InputSettings, FormatSettings, ModelSettings, RewardSettings):
    """Settings of :func:`rlt_data.steps.score`; ``input`` may also be a run folder."""

    student: StudentName = _field(..., MODEL, MODEL_HELP)
    teacher: Annotated[str | None, _nano("teacher")] = _field(
        None, MODEL, "Checkpoint for the teacher's log-probs where the traces lack them; none: score without them."
    )
    teacher_logprobs: Literal["auto", "trace", "compute"] = _field(
        "auto", MODEL, "trace: only those stored with the traces; compute: always a second pass."
    )
    out: str | None = _field(
        None, OUTPUT, f"{RUN_HELP}; default: the input run, or runs/<input>-<student> for a file of traces."
    )
    temperature: float = _field(0.7, REWARD, "Temperature of all log-probs.", gt=0)
    served_temperature: float = _field(
        1.0, ENGINE, "server: temperature that its log-probs of prompts are at; see docs/engines.md.", gt=0
    )
    per_token: bool = _field(False, OUTPUT, "Keep every token's log-probs and KL as list columns.")
    retry_errors: bool = _field(False, OUTPUT, "Run only the rows that are in errors.jsonl.")

    @model_validator(mode="after")
    def _a_server_can_score_so(self) -> ScoreSettings:
        if self.engine != "server":
            if self.served_temperature != 1.0:
                raise ValueError(f"served_temperature: goes with --engine server, not with {self.engine}")
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

    input: str = _field(..., INPUT, f"{RUN_HELP}, with scores.", alias="in")
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

    input: str = _field(..., INPUT, f"{RUN_HELP}, with ranks.", alias="in")
    out: str | None = _field(None, OUTPUT, "Folder of the data set, or its URL; default: RUN/dataset.")
    select: str = _field("best", None, "best, rank:K, bucket:K, top:K (the best K of a question), random, or all.")
    limit: int | None = _field(None, None, "Keep this many rows, a random draw of questions.", ge=1)
    seed: int = _field(0, None, "Seed of the draw and of --select random.")
    max_tokens: int | None = _field(None, None, "Longest row in tokens of the student; needs --tokenizer.", ge=1)
    tokenizer: Annotated[str | None, _nano("student")] = _field(
        None, None, "The student's checkpoint, for its tokenizer and chat template."
    )
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


class MergeSettings(Settings):
    """Settings of :func:`rlt_data.steps.merge`."""

    input: tuple[str, ...] = _field(..., INPUT, f"{RUN_HELP}; one --in for each of the runs.", alias="in")
    out: str = _field(..., OUTPUT, "Run folder to make, or its URL.")

    @field_validator("input", mode="before")
    @classmethod
    def _at_least_two(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) < 2:
            raise ValueError("takes two run folders or more, such as --in runs/a --in runs/b")
        return value


class EvaluateSettings(FormatSettings, ModelSettings, SamplingSettings):
    """Settings of :func:`rlt_data.steps.evaluate`."""

    model: StudentName = _field(..., MODEL, MODEL_HELP)
    benchmark: Literal["aime24", "math500", "gpqa-diamond", "gsm8k", "countdown", "math", "choice"] = _field(
        ..., INPUT, "What the rows are and how they are graded; math and choice: any question and answer columns."
    )
    input: str | None = _field(
        None, INPUT, "File, datasets folder or Hub id; default: the benchmark's own data set on the Hub.", alias="in"
    )
    question_column: str | None = _field(None, INPUT, "Column with the question.")
    answer_column: str | None = _field(None, INPUT, "Column with the gold answer.")
    subset: str | None = _field(None, INPUT, "Configuration of a data set from the Hub that --in names.")
    split: str = _field("train", INPUT, "Its split, or that of a datasets folder.")
    limit: int | None = _field(None, INPUT, "Read only the first rows.", ge=1)
    out: str | None = _field(None, OUTPUT, f"{RUN_HELP}; default: runs/<benchmark>-<model>.")
    n: int = _field(1, SAMPLING, "Samples per question.", ge=1)
    temperature: float = _field(0.0, SAMPLING, "0 takes the likeliest token; samples that differ need more.", ge=0)

    @model_validator(mode="after")
    def _several_samples_differ(self) -> EvaluateSettings:
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n: at temperature 0 all samples are the same; give a temperature such as 0.7")
        return self


class TrainingSettings(Settings):
    """What every training takes."""

    model: StudentName = _field(..., MODEL, f"Where the model begins: {MODEL_HELP}")
    out: LocalName = _field(..., OUTPUT, "Folder of the trained model and its checkpoints.")
    learning_rate: float = _field(1e-5, TRAINING, "Largest learning rate.", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = _field("cosine", TRAINING, "How the learning rate falls.")
    warmup: float = _field(0.0, TRAINING, "Share of the steps in which the learning rate rises.", ge=0, lt=1)
    weight_decay: float = _field(0.0, TRAINING, "AdamW's weight decay.", ge=0)
    adam_beta1: float = _field(0.9, TRAINING, "AdamW's first beta.", ge=0, lt=1)
    adam_beta2: float = _field(0.999, TRAINING, "AdamW's second beta.", ge=0, lt=1)
    max_grad_norm: float = _field(1.0, TRAINING, "Gradients are clipped to this norm.", gt=0)
    micro_batch_size: int = _field(1, TRAINING, "Rows of one forward pass of one process.", ge=1)
    leave_out_long: bool = _field(False, TRAINING, "Leave rows out that are too long instead of stopping.")
    activation_checkpointing: bool = _field(True, TRAINING, "Compute activations again instead of keeping them.")
    seed: int = _field(0, TRAINING, "Seed of everything random.")
    dtype: Literal["float32", "bfloat16"] = _field("float32", MODEL, "Type of the trained weights.")
    device: str = _field("auto", MODEL, "auto, cpu, cuda, mps.")
    chat_template: str | None = _field(None, MODEL, "Jinja file, or 'plain' for ours; default: the model's own.")
    save_steps: int = _field(100, OUTPUT, "Steps between two checkpoints.", ge=1)
    keep_checkpoints: int = _field(2, OUTPUT, "Checkpoints to keep.", ge=1)
    log_to: Literal["none", "tensorboard", "trackio", "wandb"] = _field("none", OUTPUT, "Where curves go.")
    dry_run: bool = _field(False, OUTPUT, "Check everything and show the plan, without loading weights.")

    @property
    def depends_on(self) -> dict[str, Any]:
        """What the trained weights depend on of these, beside model and data."""
        shown = set(InputSettings.model_fields) | set(FormatSettings.model_fields)  # in the data, as it was shown
        kept = {"out", "keep_checkpoints", "sample_rows", "log_to", "dry_run"}
        run_by = {"model", "student", "device", "chat_template", "micro_batch_size", "vllm_memory"}
        return self.model_dump(mode="json", exclude=shown | kept | run_by)


class FineTuneSettings(TrainingSettings):
    """How a model is fine-tuned on texts."""

    input: str = _field(..., INPUT, "Rows to train on: file, folder or Hub data set id.", alias="in")
    epochs: int = _field(3, TRAINING, "Times to go through the data.", ge=1)
    max_steps: int | None = _field(None, TRAINING, "End after this many steps instead.", ge=1)
    batch_size: int = _field(32, TRAINING, "Rows of a step, over all processes.", ge=1)
    max_length: int = _field(16_384, TRAINING, "Longest row, in tokens.", ge=8)
    packing: bool = _field(False, TRAINING, "Put several rows into one sequence; they do not see each other.")
    lora_rank: int = _field(0, TRAINING, "Train LoRA adapters of this rank on all linear layers; 0: all weights.", ge=0)


#: Released and published values (docs/training.md has their sources) by preset.
_STRATOS = {"learning_rate": 1e-5, "epochs": 3, "batch_size": 96, "max_length": 16_384, "warmup": 0.1}
_S1 = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 16, "max_length": 20_000, "warmup": 0.05} | {
    "weight_decay": 1e-4,
    "adam_beta2": 0.95,
}
STUDENT_PRESETS: dict[str, dict[str, Any]] = {"7b-17k": _STRATOS, "32b-17k": _STRATOS, "7b-1k": _S1, "32b-1k": _S1}


class TrainStudentSettings(FineTuneSettings):
    """Settings of :func:`rlt_data.training.sft.train_student`; a preset's values are those that are not given."""

    preset: Literal["none", "7b-1k", "7b-17k", "32b-1k", "32b-17k"] = _field("none", None, "Published values.")
    warmup: float = _field(0.1, TRAINING, "Share of the steps in which the learning rate rises.", ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        return STUDENT_PRESETS.get(data.get("preset", "none"), {}) | data if isinstance(data, dict) else data


class WarmUpSettings(FineTuneSettings, InputSettings, FormatSettings):
    """Settings of :func:`rlt_data.training.teacher.warm_up`; defaults are those of the authors' teacher."""

    epochs: int = _field(10, TRAINING, "Times to go through the data.", ge=1)
    batch_size: int = _field(16, TRAINING, "Rows of a step, over all processes.", ge=1)
    warmup: float = _field(0.05, TRAINING, "Share of the steps in which the learning rate rises.", ge=0, lt=1)
    weight_decay: float = _field(1e-4, TRAINING, "AdamW's weight decay.", ge=0)
    adam_beta2: float = _field(0.95, TRAINING, "AdamW's second beta.", ge=0, lt=1)


#: What TRL does if it is not told otherwise, where that differs from the authors' trainer.
_TRL = {"loss": "dapo", "beta": 0.0, "sync_steps": 0, "bias_corrected_kl": True, "vllm_correction": True}


class PolicySettings(TrainingSettings, InputSettings, FormatSettings):
    """How a model is trained by GRPO; the defaults are those of the authors' teacher."""

    recipe: Literal["paper", "trl"] = _field(
        "paper", None, "Where loss, KL and reference model are not given: the authors' choices, or TRL's defaults."
    )
    steps: int = _field(125, TRAINING, "Optimizer steps.", ge=1)
    questions: int = _field(16, TRAINING, "Questions of a step.", ge=1)
    group: int = _field(64, TRAINING, "Samples of each question, whose rewards are normalised together.", ge=2)
    learning_rate: float = _field(1e-6, TRAINING, "Largest learning rate.", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = _field("constant", TRAINING, "How the learning rate falls.")
    temperature: float = _field(0.7, SAMPLING, "Of sampling, and of all log-probs.", gt=0)
    top_p: float = _field(1.0, SAMPLING, "Nucleus sampling.", gt=0, le=1)
    top_k: int = _field(0, SAMPLING, "Sample from the k likeliest tokens; 0: from all.", ge=0)
    max_tokens: int = _field(16_384, SAMPLING, "Longest sample.", ge=1)
    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = _field(
        "grpo", TRAINING, "How token losses are averaged; grpo: over each sample, then over samples."
    )
    scale_rewards: Literal["group", "batch", "none"] = _field(
        "group", TRAINING, "Deviation by which advantages are divided."
    )
    epsilon: float = _field(0.2, TRAINING, "Clipping of the probability ratio; idle with one update a batch.", gt=0)
    beta: float = _field(0.04, TRAINING, "Weight of the KL to the reference model; 0: none.", ge=0)
    bias_corrected_kl: bool = _field(False, TRAINING, "Weight that KL by the probability ratio.")
    sync_steps: int = _field(32, TRAINING, "Steps between two updates of the reference model; 0: it stays.", ge=0)
    sync_mixup: float = _field(0.9, TRAINING, "Share of the policy in the updated reference model.", gt=0, le=1)
    vllm: Literal["none", "colocate", "server"] = _field(
        "none", SAMPLING, "Sample with vLLM, on the training GPUs or on a server."
    )
    vllm_url: str | None = _field(None, SAMPLING, "Address of the vLLM server.")
    vllm_memory: float = _field(0.3, SAMPLING, "Share of GPU memory for colocated vLLM.", gt=0, lt=1)
    vllm_tensor_parallel: int = _field(1, SAMPLING, "GPUs that share one colocated vLLM.", ge=1)
    vllm_correction: bool = _field(False, TRAINING, "Correct for differences between vLLM's log-probs and training's.")
    batch_tokens: int | None = _field(None, MODEL, "Tokens scored at a time; default: 4096 on CPU, else 16384.", ge=1)
    batch_size: int | None = _field(None, MODEL, "Samples generated at a time; default: what fits, 32 on CPU.", ge=1)
    save_steps: int = _field(25, OUTPUT, "Steps between two checkpoints.", ge=1)
    held_out: int = _field(
        64, INPUT, "Questions that are kept out of training, to choose the best checkpoint by.", ge=0
    )
    sample_rows: int = _field(16, OUTPUT, "Samples of each checkpoint that are kept as a table.", ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, data: Any) -> Any:
        return (_TRL | data) if isinstance(data, dict) and data.get("recipe") == "trl" else data

    @model_validator(mode="after")
    def _parts_fit(self) -> PolicySettings:
        if self.vllm == "server" and not self.vllm_url:
            raise ValueError("vllm_url: is needed with --vllm server")
        if self.vllm != "server" and self.vllm_url:
            raise ValueError("vllm_url: goes with --vllm server only")
        return self


class TrainTeacherSettings(PolicySettings, RewardSettings):
    """Settings of :func:`rlt_data.training.teacher.train_teacher`."""

    model: WarmTeacherName = _field(..., MODEL, f"Where the teacher begins: {MODEL_HELP}")
    student: StudentName = _field(..., MODEL, f"Frozen student that rewards: {MODEL_HELP}")
    student_dtype: Literal["auto", "float32", "bfloat16", "float16"] = _field("auto", MODEL, "Type of the student.")
    kl: Literal["k1", "k3"] = _field("k1", REWARD, "Estimate of the KL on the sampled tokens.")


class TrainSolverSettings(PolicySettings):
    """Settings of :func:`rlt_data.training.solver.train_solver`."""

    benchmark: Literal["countdown", "gsm8k", "math"] = _field(
        "math", INPUT, "What the rows are and how answers are graded."
    )
    unformatted_reward: float = _field(-1.0, REWARD, "Of an answer that is not thought and solution in their tags.")
    wrong_reward: float = _field(-0.5, REWARD, "Of a wrong answer in its tags.")
    correct_reward: float = _field(1.0, REWARD, "Of a right answer in its tags.")


class CountdownSettings(Settings):
    """Settings of :func:`rlt_data.steps.countdown`."""

    out: LocalName = _field(..., OUTPUT, "JSONL file to write.")
    rows: int = _field(1000, OUTPUT, "Problems to make.", ge=1)
    split: Literal["train", "test"] = _field("train", OUTPUT, "Problems of this split; the two never share one.")
    test_share: float = _field(0.2, OUTPUT, "Share of all problems that belong to the test split.", gt=0, lt=1)
    seed: int = _field(0, OUTPUT, "Seed of the draw.")
    fewest: int = _field(3, None, "Numbers of a problem, at least.", ge=2, le=8)
    most: int = _field(4, None, "Numbers of a problem, at most.", ge=2, le=8)
    smallest: int = _field(1, None, "Smallest number.", ge=0)
    largest: int = _field(99, None, "Largest number.", ge=1)
    smallest_target: int = _field(10, None, "Smallest target.", ge=0)
    largest_target: int = _field(100, None, "Largest target.", ge=1)
    largest_value: int = _field(10_000, None, "Largest intermediate value.", ge=1)
    operators: str = _field("+-*/", None, "Operators to combine with.", pattern=r"^[-+*/]+$")

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> CountdownSettings:
        for low, high in (("fewest", "most"), ("smallest", "largest"), ("smallest_target", "largest_target")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} is larger than {high}")
        return self


class PipelineSettings(Settings):
    """One YAML file for the whole way; each section holds the flags of its command as keys."""

    out: str = Field(description=f"{RUN_HELP}.")
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
    shown = "" if isinstance(value, (dict, list, tuple)) else f" (got {value!r})"
    return (f"{name}: " if name else "") + message + shown


def _keys_at(model: type[Settings], path: list[str]) -> list[str]:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if path and path[0] in fields:
        inner = fields[path[0]].annotation
        for candidate in getattr(inner, "__args__", (inner,)):
            if isinstance(candidate, type) and issubclass(candidate, Settings):
                return _keys_at(candidate, path[1:])
    return list(fields)
