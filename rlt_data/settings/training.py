"""Settings of training."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from rlt_data.settings.base import (
    INPUT,
    MODEL,
    MODEL_HELP,
    OUTPUT,
    REWARD,
    SAMPLING,
    SERVER,
    SEVERAL,
    TRAINING,
    InputNames,
    LocalName,
    StudentName,
    WarmTeacherName,
    field,
)
from rlt_data.settings.engines import TemplateSettings, base_urls
from rlt_data.settings.inputs import (
    BadRowSettings,
    ColumnSettings,
    FormatSettings,
    SourceSettings,
    TraceColumnSettings,
)
from rlt_data.settings.steps import RewardSettings, refuse_single_column, served_temperature_error

_WARMUP_HELP = "Share of the steps during which the learning rate rises."
_LORA_HELP = "Rank of LoRA adapters on all linear layers; 0: train all weights."


class TrainingSettings(TemplateSettings):
    """Settings of every kind of training.

    Attributes:
        command: the command, without ``rlt-data``.
    """

    command: ClassVar[str]

    model: StudentName = field(..., MODEL, f"Initial model: {MODEL_HELP}", affects="rows", by_content=True)
    out: LocalName = field(..., OUTPUT, "Folder for the trained model and its checkpoints.", affects="output")
    learning_rate: float = field(1e-5, TRAINING, "Peak learning rate.", affects="rows", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = field(
        "cosine", TRAINING, "Learning rate schedule after warm-up.", affects="rows"
    )
    warmup: float = field(0.0, TRAINING, _WARMUP_HELP, affects="rows", ge=0, lt=1, alias="warmup_ratio")
    weight_decay: float = field(0.0, TRAINING, "Weight decay of AdamW.", affects="rows", ge=0)
    adam_beta1: float = field(0.9, TRAINING, "Beta 1 of AdamW.", affects="rows", ge=0, lt=1)
    adam_beta2: float = field(0.999, TRAINING, "Beta 2 of AdamW.", affects="rows", ge=0, lt=1)
    max_grad_norm: float = field(1.0, TRAINING, "Gradient norm to clip to.", affects="rows", gt=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = field(
        "adamw",
        TRAINING,
        "AdamW; 8bit: with state in 8 bits; paged: state moves to the CPU if the GPU is full (both need bitsandbytes).",
        affects="rows",
        omit_default=True,
    )
    lora_rank: int = field(0, TRAINING, _LORA_HELP, affects="rows", ge=0)
    load_in_4bit: bool = field(
        False,
        TRAINING,
        "Load the frozen weights under the adapters in 4 bits (QLoRA); needs bitsandbytes.",
        affects="rows",
        omit_default=True,
    )
    micro_batch_size: int = field(1, TRAINING, "Per-device batch size.", affects="speed", ge=1)
    leave_out_long: bool = field(False, TRAINING, "Skip rows that are too long. Default: stop.", affects="rows")
    activation_checkpointing: bool = field(
        True, TRAINING, "Recompute activations in the backward pass, to save memory.", affects="rows"
    )
    seed: int = field(0, TRAINING, "Random seed.", affects="rows")
    dtype: Literal["float32", "bfloat16"] = field(
        "float32",
        MODEL,
        "Data type of the weights during training. The model is saved with the initial model's data type.",
        affects="rows",
    )
    device: str = field("auto", MODEL, "Device: auto, cpu, cuda, mps.", affects="speed")
    trust_remote_code: bool = field(False, MODEL, "Run Python code from the checkpoint.", affects="speed")
    save_steps: int = field(100, OUTPUT, "Optimizer steps between checkpoints.", affects="rows", ge=1)
    keep_checkpoints: int = field(2, OUTPUT, "Number of checkpoints to keep.", affects="output", ge=1)
    log_to: Literal["none", "tensorboard", "trackio", "wandb"] = field(
        "none", OUTPUT, "Experiment tracker to report to.", affects="output"
    )
    dry_run: bool = field(
        False, OUTPUT, "Check everything and print the plan, without loading the weights.", affects="output"
    )

    @field_validator("device")
    @classmethod
    def _is_the_first_gpu(cls, value: str) -> str:
        if re.fullmatch(r"cuda:0*[1-9]\d*", value):
            raise ValueError(
                f"a training uses the first GPU that it sees; set CUDA_VISIBLE_DEVICES={value[5:]} instead"
            )
        return value

    @model_validator(mode="after")
    def _adapters_are_trained(self) -> TrainingSettings:
        if self.load_in_4bit and not self.lora_rank:
            raise ValueError("load_in_4bit: 4-bit weights cannot be trained; add --lora-rank")
        return self

    def depends_on(self, **content: Any) -> dict[str, Any]:
        """Return what the trained weights depend on; recorded trainings contain field names, not keys."""
        names = {info.alias: name for name, info in type(self).model_fields.items() if info.alias}
        return {names.get(key, key): value for key, value in super().depends_on().items()} | content


class FineTuneSettings(TrainingSettings):
    """Settings of supervised fine-tuning."""

    first_flags: ClassVar[tuple[str, ...]] = (
        "model",
        "out",
        "epochs",
        "learning_rate",
        "batch_size",
        "micro_batch_size",
        "max_length",
        "dry_run",
    )

    input: InputNames = field(
        ...,
        INPUT,
        "Training rows: file, folder, pattern or Hub data set id; repeatable.",
        affects="rows",
        by_content=True,
        alias="in",
        positional="FILE",
    )
    epochs: int = field(3, TRAINING, "Passes over the data.", affects="rows", ge=1)
    max_steps: int | None = field(
        None, TRAINING, "Number of optimizer steps; overrides --epochs.", affects="rows", ge=1
    )
    batch_size: int = field(32, TRAINING, "Rows per optimizer step, over all processes.", affects="rows", ge=1)
    max_length: int = field(16_384, TRAINING, "Maximum length of a row in tokens.", affects="rows", ge=8)
    packing: bool = field(
        False, TRAINING, "Pack several rows into a sequence; rows do not attend to each other.", affects="rows"
    )


#: Released and published values by preset; docs/training.md lists the sources.
_STRATOS = {"learning_rate": 1e-5, "epochs": 3, "batch_size": 96, "max_length": 16_384, "warmup_ratio": 0.1}
_S1 = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 16, "max_length": 20_000, "warmup_ratio": 0.05} | {
    "weight_decay": 1e-4,
    "adam_beta2": 0.95,
}
STUDENT_PRESETS: dict[str, dict[str, Any]] = {"7b-17k": _STRATOS, "32b-17k": _STRATOS, "7b-1k": _S1, "32b-1k": _S1}


class TrainStudentSettings(FineTuneSettings):
    """Settings of :func:`rlt_data.training.sft.train_student`; explicit values override the preset's."""

    command = "train-student"
    first_flags: ClassVar[tuple[str, ...]] = (
        "model",
        "out",
        "preset",
        "epochs",
        "learning_rate",
        "batch_size",
        "micro_batch_size",
        "max_length",
        "dry_run",
    )

    preset: Literal["none", "7b-1k", "7b-17k", "32b-1k", "32b-17k"] = field(
        "none", TRAINING, "Published hyperparameters, by model and data size.", affects="rows", by_content=True
    )
    warmup: float = field(0.1, TRAINING, _WARMUP_HELP, affects="rows", ge=0, lt=1, alias="warmup_ratio")

    @classmethod
    def fill_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Add the values of the preset."""
        return STUDENT_PRESETS.get(str(values.get("preset")), {}) | values


class WarmUpSettings(
    FineTuneSettings, SourceSettings, BadRowSettings, ColumnSettings, TraceColumnSettings, FormatSettings
):
    """Settings of :func:`rlt_data.training.teacher.warm_up`; the defaults are those of the paper's teacher."""

    command = "train-teacher warmup"
    epochs: int = field(10, TRAINING, "Passes over the data.", affects="rows", ge=1)
    batch_size: int = field(16, TRAINING, "Rows per optimizer step, over all processes.", affects="rows", ge=1)
    warmup: float = field(0.05, TRAINING, _WARMUP_HELP, affects="rows", ge=0, lt=1, alias="warmup_ratio")
    weight_decay: float = field(1e-4, TRAINING, "Weight decay of AdamW.", affects="rows", ge=0)
    adam_beta2: float = field(0.95, TRAINING, "Beta 2 of AdamW.", affects="rows", ge=0, lt=1)


#: Optimizer steps of GRPO training, as the authors released it.
DEFAULT_STEPS = 125

#: TRL's defaults where they differ from the paper's.
_TRL = {"loss": "dapo", "beta": 0.0, "ref_sync_steps": 0, "bias_corrected_kl": True, "vllm_correction": True}


class PolicySettings(TrainingSettings, SourceSettings, BadRowSettings, FormatSettings):
    """Settings of GRPO training; the defaults are those of the paper's teacher."""

    first_flags: ClassVar[tuple[str, ...]] = (
        "model",
        "out",
        "steps",
        "questions",
        "group",
        "max_tokens",
        "learning_rate",
        "dry_run",
    )

    recipe: Literal["paper", "trl"] = field(
        "paper",
        TRAINING,
        "Default loss, KL and reference model: the paper's, or TRL's.",
        affects="rows",
        alias="defaults",
    )
    steps: int | None = field(
        None,
        TRAINING,
        f"Optimizer steps. Default: {DEFAULT_STEPS}, or those of --epochs.",
        affects="rows",
        by_content=True,
        ge=1,
    )
    epochs: int | None = field(
        None, TRAINING, "Passes over the training questions, instead of --steps.", affects="rows", by_content=True, ge=1
    )
    questions: int = field(
        16, TRAINING, "Questions per optimizer step.", affects="rows", ge=1, alias="questions_per_step"
    )
    group: int = field(
        64,
        TRAINING,
        "Samples per question, whose rewards are normalised together (TRL's num_generations).",
        affects="rows",
        ge=2,
        alias="samples_per_question",
    )
    lora_rank: int = field(0, TRAINING, _LORA_HELP, affects="rows", omit_default=True, ge=0)
    learning_rate: float = field(1e-6, TRAINING, "Peak learning rate.", affects="rows", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = field(
        "constant", TRAINING, "Learning rate schedule after warm-up.", affects="rows"
    )
    temperature: float = field(0.7, SAMPLING, "Temperature of sampling and of all log-probs.", affects="rows", gt=0)
    top_p: float = field(1.0, SAMPLING, "Nucleus sampling.", affects="rows", gt=0, le=1)
    top_k: int = field(0, SAMPLING, "Sample from the k most likely tokens; 0: from all.", affects="rows", ge=0)
    max_tokens: int = field(16_384, SAMPLING, "Maximum new tokens per sample.", affects="rows", ge=1)
    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = field(
        "grpo",
        TRAINING,
        "Aggregation of token losses. grpo: mean over each sample's tokens, then over samples.",
        affects="rows",
    )
    scale_rewards: Literal["group", "batch", "none"] = field(
        "group", TRAINING, "Standard deviation that normalises the advantages.", affects="rows"
    )
    epsilon: float = field(
        0.2,
        TRAINING,
        "Clipping range of the probability ratio; without effect at one update per batch.",
        affects="rows",
        gt=0,
    )
    beta: float = field(
        0.04, TRAINING, "Weight of the KL penalty to the reference model; 0: none.", affects="rows", ge=0
    )
    bias_corrected_kl: bool = field(False, TRAINING, "Weight the KL penalty by the probability ratio.", affects="rows")
    sync_steps: int = field(
        32,
        TRAINING,
        "Optimizer steps between updates of the reference model; 0: never update it.",
        affects="rows",
        ge=0,
        alias="ref_sync_steps",
    )
    sync_mixup: float = field(
        0.9,
        TRAINING,
        "Share of the policy's weights in the updated reference model.",
        affects="rows",
        gt=0,
        le=1,
        alias="ref_mixup_alpha",
    )
    vllm: Literal["none", "colocate", "server"] = field(
        "none", SAMPLING, "Sample with vLLM: on the training GPUs (colocate) or on a server.", affects="rows"
    )
    vllm_url: str | None = field(None, SAMPLING, "URL of the vLLM server.", affects="rows")
    vllm_memory: float = field(0.3, SAMPLING, "Share of GPU memory for colocated vLLM.", affects="speed", gt=0, lt=1)
    vllm_tensor_parallel: int = field(1, SAMPLING, "GPUs per colocated vLLM engine.", affects="rows", ge=1)
    vllm_correction: bool = field(
        False,
        TRAINING,
        "Correct the loss for differences between vLLM's log-probs and the trainer's (importance sampling).",
        affects="rows",
    )
    batch_tokens: int | None = field(
        None,
        MODEL,
        "Tokens per forward pass of sampling and scoring. Default: 4096 on CPU, 16384 on GPU.",
        affects="rows",
        ge=1,
    )
    batch_size: int | None = field(
        None,
        SAMPLING,
        "Sequences sampled at a time. Default: as many as fit in memory, at most 32 on CPU.",
        affects="rows",
        ge=1,
        alias="sampling_batch_size",
    )
    save_steps: int = field(25, OUTPUT, "Optimizer steps between checkpoints.", affects="rows", ge=1)
    held_out: int = field(
        64, INPUT, "Questions to hold out of training, to select the best checkpoint.", affects="rows", ge=0
    )
    sample_rows: int = field(
        16, OUTPUT, "Samples to save with each checkpoint.", affects="output", ge=0, alias="save_samples"
    )

    @classmethod
    def fill_in(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Add TRL's defaults if they were chosen."""
        return _TRL | values if values.get("defaults") == "trl" else values

    @model_validator(mode="after")
    def _length_is_given_once(self) -> PolicySettings:
        if self.steps and self.epochs:
            raise ValueError("epochs: cannot be combined with --steps")
        return self

    @model_validator(mode="after")
    def _vllm_reads_settings(self) -> PolicySettings:
        if self.vllm == "server" and not self.vllm_url:
            raise ValueError("vllm_url: is required with --vllm server")
        if self.vllm != "server" and self.vllm_url:
            raise ValueError("vllm_url: has no effect without --vllm server")
        if self.vllm != "none" and self.load_in_4bit:
            raise ValueError("load_in_4bit: TRL cannot copy 4-bit weights to vLLM; omit --vllm or --load-in-4bit")
        if self.vllm != "colocate" and (unread := self.not_default("vllm_memory", "vllm_tensor_parallel")):
            raise ValueError(f"{unread[0]}: has no effect without --vllm colocate")
        return self

    @property
    def has_synchronised_reference(self) -> bool:
        """Whether the training updates the reference model."""
        return bool(self.beta and self.sync_steps)


class TrainTeacherSettings(PolicySettings, ColumnSettings, RewardSettings):
    """Settings of :func:`rlt_data.training.teacher.train_teacher`."""

    command = "train-teacher rl"
    first_flags: ClassVar[tuple[str, ...]] = (
        "model",
        "student",
        "out",
        "steps",
        "questions",
        "group",
        "max_tokens",
        "lambda_",
        "dry_run",
    )

    model: WarmTeacherName = field(..., MODEL, f"Initial teacher: {MODEL_HELP}", affects="rows", by_content=True)
    student: StudentName = field(
        ..., MODEL, f"Frozen student that computes the reward: {MODEL_HELP}", affects="rows", by_content=True
    )
    student_dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        "auto", MODEL, "Data type of the student's weights.", affects="rows"
    )
    student_device: str = field(
        "auto",
        MODEL,
        "Device of the student: cpu; cuda:N (process i of a machine uses GPU N + i); offload: the policy's GPU while "
        "it scores, otherwise the CPU; auto: the policy's device.",
        affects="speed",
    )
    student_url: Annotated[tuple[str, ...], SEVERAL] = field(
        (),
        SERVER,
        "Base URL of a server that runs the student, such as http://host:8000/v1; repeatable.",
        affects="speed",
    )
    served_temperature: float = field(
        1.0,
        SERVER,
        "Temperature of the server's prompt log-probs; see docs/engines.md.",
        affects="speed",
        gt=0,
    )
    kl: Literal["k1", "k3"] = field("k1", REWARD, "KL estimator on the sampled tokens.", affects="rows")

    @field_validator("student_device")
    @classmethod
    def _is_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|offload|cuda:\d+", value):
            raise ValueError("must be auto, cpu, offload, or a GPU such as cuda:1")
        return value

    @property
    def student_gpu(self) -> int | None:
        """N of ``--student-device cuda:N``; None for other devices."""
        kind, _, number = self.student_device.partition(":")
        return int(number) if kind == "cuda" else None

    @field_validator("student_url")
    @classmethod
    def _are_base_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return base_urls(urls, "--student-url")

    @model_validator(mode="after")
    def _student_runs_somewhere(self) -> TrainTeacherSettings:
        if not self.student_url:
            if self.not_default("served_temperature"):
                raise ValueError("served_temperature: has no effect without --student-url")
        elif unread := self.not_default("student_device", "student_dtype"):
            raise ValueError(f"{unread[0]}: has no effect with --student-url")
        elif self.temperature != self.served_temperature:
            raise ValueError(served_temperature_error(self.temperature, self.served_temperature))
        return self


class TrainSolverSettings(PolicySettings):
    """Settings of :func:`rlt_data.training.solver.train_solver`."""

    command = "train-solver"
    first_flags: ClassVar[tuple[str, ...]] = (
        "model",
        "benchmark",
        "out",
        "steps",
        "questions",
        "group",
        "max_tokens",
        "dry_run",
    )

    benchmark: Literal["countdown", "gsm8k", "math"] = field(
        "math", INPUT, "Layout of the rows and how answers are graded.", affects="rows"
    )
    question_column: str | None = field(
        None, INPUT, "Column with the question. Default: the benchmark's.", affects="rows", by_content=True
    )
    answer_column: str | None = field(
        None, INPUT, "Column with the correct answer. Default: the benchmark's.", affects="rows", by_content=True
    )
    unformatted_reward: float = field(
        -1.0, REWARD, "Reward of an answer without thought and solution in their tags.", affects="rows"
    )
    wrong_reward: float = field(-0.5, REWARD, "Reward of a wrong answer in its tags.", affects="rows")
    correct_reward: float = field(1.0, REWARD, "Reward of a correct answer in its tags.", affects="rows")

    @model_validator(mode="after")
    def _both_columns_are_named(self) -> TrainSolverSettings:
        refuse_single_column(self.question_column, self.answer_column)
        return self
