"""Settings of the trainings."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from rlt_data.settings.base import (
    INPUT,
    MODEL,
    MODEL_HELP,
    OUTPUT,
    REWARD,
    SAMPLING,
    TRAINING,
    LocalName,
    Settings,
    StudentName,
    WarmTeacherName,
    field,
)
from rlt_data.settings.steps import FormatSettings, InputSettings, RewardSettings


class TrainingSettings(Settings):
    """What every training takes.

    Attributes:
        command: what follows ``rlt-data`` on its command line.
    """

    command: ClassVar[str]

    model: StudentName = field(..., MODEL, f"Where the model begins: {MODEL_HELP}", affects="rows", by_content=True)
    out: LocalName = field(..., OUTPUT, "Folder of the trained model and its checkpoints.", affects="output")
    learning_rate: float = field(1e-5, TRAINING, "Largest learning rate.", affects="rows", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = field(
        "cosine", TRAINING, "How the learning rate falls.", affects="rows"
    )
    warmup: float = field(
        0.0, TRAINING, "Share of the steps in which the learning rate rises.", affects="rows", ge=0, lt=1
    )
    weight_decay: float = field(0.0, TRAINING, "AdamW's weight decay.", affects="rows", ge=0)
    adam_beta1: float = field(0.9, TRAINING, "AdamW's first beta.", affects="rows", ge=0, lt=1)
    adam_beta2: float = field(0.999, TRAINING, "AdamW's second beta.", affects="rows", ge=0, lt=1)
    max_grad_norm: float = field(1.0, TRAINING, "Gradients are clipped to this norm.", affects="rows", gt=0)
    micro_batch_size: int = field(1, TRAINING, "Rows of one forward pass of one process.", affects="speed", ge=1)
    leave_out_long: bool = field(
        False, TRAINING, "Leave rows out that are too long instead of stopping.", affects="rows"
    )
    activation_checkpointing: bool = field(
        True, TRAINING, "Compute activations again instead of keeping them.", affects="rows"
    )
    seed: int = field(0, TRAINING, "Seed of everything random.", affects="rows")
    dtype: Literal["float32", "bfloat16"] = field(
        "float32",
        MODEL,
        "Type of the weights in training. The model is saved in the type of the one it begins from.",
        affects="rows",
    )
    device: str = field("auto", MODEL, "auto, cpu, cuda, mps.", affects="speed")
    chat_template: str | None = field(
        None, MODEL, "Jinja file, or 'plain' for ours; default: the model's own.", affects="rows", by_content=True
    )
    trust_remote_code: bool = field(False, MODEL, "Run Python code that comes with a checkpoint.", affects="speed")
    save_steps: int = field(100, OUTPUT, "Steps between two checkpoints.", affects="rows", ge=1)
    keep_checkpoints: int = field(2, OUTPUT, "Checkpoints to keep.", affects="output", ge=1)
    log_to: Literal["none", "tensorboard", "trackio", "wandb"] = field(
        "none", OUTPUT, "Where curves go.", affects="output"
    )
    dry_run: bool = field(
        False, OUTPUT, "Check everything and show the plan, without loading weights.", affects="output"
    )

    def depends_on(self, **content: Any) -> dict[str, Any]:
        """Return what the trained weights depend on; recorded trainings have the names of fields, not keys."""
        keys = {info.alias: name for name, info in type(self).model_fields.items() if info.alias}
        return {keys.get(key, key): value for key, value in super().depends_on().items()} | content


class FineTuneSettings(TrainingSettings):
    """How a model is fine-tuned on texts."""

    input: str = field(
        ..., INPUT, "Rows to train on: file, folder or Hub data set id.", affects="rows", by_content=True, alias="in"
    )
    epochs: int = field(3, TRAINING, "Times to go through the data.", affects="rows", ge=1)
    max_steps: int | None = field(None, TRAINING, "End after this many steps instead.", affects="rows", ge=1)
    batch_size: int = field(32, TRAINING, "Rows of a step, over all processes.", affects="rows", ge=1)
    max_length: int = field(16_384, TRAINING, "Longest row, in tokens.", affects="rows", ge=8)
    packing: bool = field(
        False, TRAINING, "Put several rows into one sequence; they do not see each other.", affects="rows"
    )
    lora_rank: int = field(
        0, TRAINING, "Train LoRA adapters of this rank on all linear layers; 0: all weights.", affects="rows", ge=0
    )


#: Released and published values (docs/training.md has their sources) by preset.
_STRATOS = {"learning_rate": 1e-5, "epochs": 3, "batch_size": 96, "max_length": 16_384, "warmup": 0.1}
_S1 = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 16, "max_length": 20_000, "warmup": 0.05} | {
    "weight_decay": 1e-4,
    "adam_beta2": 0.95,
}
STUDENT_PRESETS: dict[str, dict[str, Any]] = {"7b-17k": _STRATOS, "32b-17k": _STRATOS, "7b-1k": _S1, "32b-1k": _S1}


class TrainStudentSettings(FineTuneSettings):
    """Settings of :func:`rlt_data.training.sft.train_student`; a preset's values are those that are not given."""

    command = "train-student"
    preset: Literal["none", "7b-1k", "7b-17k", "32b-1k", "32b-17k"] = field(
        "none", None, "Published values.", affects="rows", by_content=True
    )
    warmup: float = field(
        0.1, TRAINING, "Share of the steps in which the learning rate rises.", affects="rows", ge=0, lt=1
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, data: Any) -> Any:
        return STUDENT_PRESETS.get(str(data.get("preset")), {}) | data if isinstance(data, dict) else data


class WarmUpSettings(FineTuneSettings, InputSettings, FormatSettings):
    """Settings of :func:`rlt_data.training.teacher.warm_up`; defaults are those of the authors' teacher."""

    command = "train-teacher warmup"
    epochs: int = field(10, TRAINING, "Times to go through the data.", affects="rows", ge=1)
    batch_size: int = field(16, TRAINING, "Rows of a step, over all processes.", affects="rows", ge=1)
    warmup: float = field(
        0.05, TRAINING, "Share of the steps in which the learning rate rises.", affects="rows", ge=0, lt=1
    )
    weight_decay: float = field(1e-4, TRAINING, "AdamW's weight decay.", affects="rows", ge=0)
    adam_beta2: float = field(0.95, TRAINING, "AdamW's second beta.", affects="rows", ge=0, lt=1)


#: What TRL does if it is not told otherwise, where that differs from the authors' trainer.
_TRL = {"loss": "dapo", "beta": 0.0, "sync_steps": 0, "bias_corrected_kl": True, "vllm_correction": True}


class PolicySettings(TrainingSettings, InputSettings, FormatSettings):
    """How a model is trained by GRPO; the defaults are those of the authors' teacher."""

    recipe: Literal["paper", "trl"] = field(
        "paper",
        None,
        "Where loss, KL and reference model are not given: the authors' choices, or TRL's defaults.",
        affects="rows",
    )
    steps: int = field(125, TRAINING, "Optimizer steps.", affects="rows", ge=1)
    questions: int = field(16, TRAINING, "Questions of a step.", affects="rows", ge=1)
    group: int = field(
        64, TRAINING, "Samples of each question, whose rewards are normalised together.", affects="rows", ge=2
    )
    learning_rate: float = field(1e-6, TRAINING, "Largest learning rate.", affects="rows", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = field(
        "constant", TRAINING, "How the learning rate falls.", affects="rows"
    )
    temperature: float = field(0.7, SAMPLING, "Of sampling, and of all log-probs.", affects="rows", gt=0)
    top_p: float = field(1.0, SAMPLING, "Nucleus sampling.", affects="rows", gt=0, le=1)
    top_k: int = field(0, SAMPLING, "Sample from the k likeliest tokens; 0: from all.", affects="rows", ge=0)
    max_tokens: int = field(16_384, SAMPLING, "Longest sample.", affects="rows", ge=1)
    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = field(
        "grpo", TRAINING, "How token losses are averaged; grpo: over each sample, then over samples.", affects="rows"
    )
    scale_rewards: Literal["group", "batch", "none"] = field(
        "group", TRAINING, "Deviation by which advantages are divided.", affects="rows"
    )
    epsilon: float = field(
        0.2, TRAINING, "Clipping of the probability ratio; idle with one update a batch.", affects="rows", gt=0
    )
    beta: float = field(0.04, TRAINING, "Weight of the KL to the reference model; 0: none.", affects="rows", ge=0)
    bias_corrected_kl: bool = field(False, TRAINING, "Weight that KL by the probability ratio.", affects="rows")
    sync_steps: int = field(
        32, TRAINING, "Steps between two updates of the reference model; 0: it stays.", affects="rows", ge=0
    )
    sync_mixup: float = field(
        0.9, TRAINING, "Share of the policy in the updated reference model.", affects="rows", gt=0, le=1
    )
    vllm: Literal["none", "colocate", "server"] = field(
        "none", SAMPLING, "Sample with vLLM, on the training GPUs or on a server.", affects="rows"
    )
    vllm_url: str | None = field(None, SAMPLING, "Address of the vLLM server.", affects="rows")
    vllm_memory: float = field(0.3, SAMPLING, "Share of GPU memory for colocated vLLM.", affects="speed", gt=0, lt=1)
    vllm_tensor_parallel: int = field(1, SAMPLING, "GPUs that share one colocated vLLM.", affects="rows", ge=1)
    vllm_correction: bool = field(
        False, TRAINING, "Correct for differences between vLLM's log-probs and training's.", affects="rows"
    )
    batch_tokens: int | None = field(
        None, MODEL, "Tokens scored at a time; default: 4096 on CPU, else 16384.", affects="rows", ge=1
    )
    batch_size: int | None = field(
        None, MODEL, "Samples generated at a time; default: what fits, 32 on CPU.", affects="rows", ge=1
    )
    save_steps: int = field(25, OUTPUT, "Steps between two checkpoints.", affects="rows", ge=1)
    held_out: int = field(
        64, INPUT, "Questions that are kept out of training, to choose the best checkpoint by.", affects="rows", ge=0
    )
    sample_rows: int = field(16, OUTPUT, "Samples of each checkpoint that are kept as a table.", affects="output", ge=0)

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

    command = "train-teacher rl"
    model: WarmTeacherName = field(
        ..., MODEL, f"Where the teacher begins: {MODEL_HELP}", affects="rows", by_content=True
    )
    student: StudentName = field(
        ..., MODEL, f"Frozen student that rewards: {MODEL_HELP}", affects="rows", by_content=True
    )
    student_dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        "auto", MODEL, "Type of the student.", affects="rows"
    )
    kl: Literal["k1", "k3"] = field("k1", REWARD, "Estimate of the KL on the sampled tokens.", affects="rows")


class TrainSolverSettings(PolicySettings):
    """Settings of :func:`rlt_data.training.solver.train_solver`."""

    command = "train-solver"
    benchmark: Literal["countdown", "gsm8k", "math"] = field(
        "math", INPUT, "What the rows are and how answers are graded.", affects="rows"
    )
    unformatted_reward: float = field(
        -1.0, REWARD, "Of an answer that is not thought and solution in their tags.", affects="rows"
    )
    wrong_reward: float = field(-0.5, REWARD, "Of a wrong answer in its tags.", affects="rows")
    correct_reward: float = field(1.0, REWARD, "Of a right answer in its tags.", affects="rows")

    @model_validator(mode="after")
    def _only_what_is_read_is_given(self) -> TrainSolverSettings:
        columns = ("solution_column", "explanation_column", "completion_column", "id_column", "keep")
        if wrong := self.not_default("preset", "max_chars", *columns):
            raise ValueError(
                f"{wrong[0]}: has no effect; --benchmark says what rows hold, or --question-column and --answer-column"
            )
        return self
