"""Output folder of a training: training.json, checkpoints and the trained model."""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from rlt_data.engines import Checkpoint, find_checkpoint, open_tokenizer
from rlt_data.engines.config import describe_device, pick_device, stored_dtype
from rlt_data.errors import RunFolderError, SettingsError, first_line
from rlt_data.formats import ChatTemplate, ControlTokens, Format, Tokenizer
from rlt_data.progress import Progress, is_main_process
from rlt_data.settings import FineTuneSettings, ModelSettings, PolicySettings, TrainingSettings
from rlt_data.settings.base import name_of_input
from rlt_data.steps.provenance import versions
from rlt_data.storage.changes import changed_keys
from rlt_data.storage.outputs import lock_folder, write_file, write_json
from rlt_data.training.checkpoints import (
    RECORD,
    STATE,
    checkpoint_recorder,
    checkpoints,
    file_records,
    find_damage,
    find_weights_damage,
    last_complete_checkpoint,
    step_of,
)
from rlt_data.training.sharding import check_sharding

logger = logging.getLogger(__name__)

#: Files of a checkpoint that belong to the model, and exceptions that belong to the training.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
_TRAINING_FILES = {STATE, "zero_to_fp32.py", "zero_to_torch.py", RECORD}
#: Transformers' names of the optimizers.
_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
#: Settings that only determine how many steps a training has.
_LENGTH = {"steps", "epochs", "max_steps"}
#: Metrics to log, where the trainer reports them, and their format.
_LOGGED = {
    "loss": "loss {:.4f}",
    "reward": "reward {:.4f}",
    "eval_reward": "held-out reward {:.4f}",
    "kl": "KL to the reference {:.4f}",
    "well_formed": "well-formed {:.2f}",
    "completion_tokens": "tokens {:.1f}",
    "copied": "copied {:.2f}",
    "repeated": "repeated {:.2f}",
    "grad_norm": "gradient norm {:.3f}",
    "learning_rate": "learning rate {:.2e}",
}


@dataclass(frozen=True)
class TrainingRun:
    """Output folder of a training.

    Args:
        out: path of the folder.
        depends_on: everything that determines the trained weights; compared when training resumes.
        provenance: further content of training.json, from :func:`training_provenance`; not compared.
        steps: total number of optimizer steps.

    Raises:
        RunFolderError: the folder contains other files, or a training with other settings or data, with more steps, or
            with fewer steps that cannot be continued exactly.
    """

    out: Path
    depends_on: dict[str, Any]
    provenance: dict[str, Any]
    steps: int

    def __post_init__(self) -> None:
        out = self.out
        if out.exists() and not out.is_dir():
            raise RunFolderError(f"{out}: is a file; --out must be a folder")
        if (recorded := self._recorded()) is None:
            if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
                raise RunFolderError(f"{out}: exists and contains no training; choose another --out")
            return
        changed = changed_keys(recorded.get("depends_on", {}), self.depends_on)
        if not set(changed) <= _LENGTH:
            raise RunFolderError(
                f"{out}: contains a training with other settings or data ({', '.join(changed)} differ); "
                "continue it with the same settings, or choose another --out"
            )
        if self._planned(recorded) != self.steps:
            self._check_length(self._planned(recorded))

    def _planned(self, recorded: dict[str, Any]) -> int:
        """Return the number of steps that training.json records."""
        return int(recorded.get("plan", {}).get("steps", self.steps))

    def _check_length(self, planned: int) -> None:
        """Check that continuing a training of ``planned`` steps gives the weights of training all steps at once."""
        contains = f"{self.out}: contains a training of {planned} steps"
        if planned > self.steps:
            raise RunFolderError(f"{contains}, which is more than {self.steps}; choose another --out")
        schedule = self.depends_on["schedule"]
        if schedule != "constant" or self.depends_on["warmup"]:
            reason = "--warmup-ratio" if schedule == "constant" else f"--schedule {schedule}"
            raise RunFolderError(
                f"{contains}; with {reason}, the learning rate depends on the number of steps, so it cannot be "
                f"continued to {self.steps}; start another training with --model {self.out} and another --out"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for writing, in the main process.

        Raises:
            RunFolderError: another training is writing to it.
        """
        with lock_folder(self.out) if is_main_process() else nullcontext():
            yield

    @property
    def finished(self) -> dict[str, Any] | None:
        """Content of training.json if the training is finished and its model intact, else None.

        Raises:
            RunFolderError: more steps are required, or the model is missing or damaged, and no checkpoint is left to
                continue from.
        """
        recorded = self._recorded()
        if not recorded or "steps" not in recorded:
            return None
        if (planned := self._planned(recorded)) < self.steps:
            if not checkpoints(self.out):
                raise RunFolderError(
                    f"{self.out}: contains a training of {planned} steps, but no checkpoint to continue it from; train "
                    f"its model with --model {self.out} and another --out"
                )
            if is_main_process():
                logger.info("%s: continuing a training of %d steps to %d", self.out, planned, self.steps)
            return None
        weights = recorded.get("weights")
        defect = find_damage(self.out, weights) if weights else find_weights_damage(self.out)
        if defect is None:
            return recorded
        if not checkpoints(self.out):
            raise RunFolderError(
                f"{self.out}: the training is finished, but {defect}, and no checkpoint is left to restore the model "
                "from; restore the file, or remove the folder to train again"
            )
        if is_main_process():
            logger.warning("%s: %s; restoring the model from the last checkpoint", self.out, defect)
        return None

    def _recorded(self) -> dict[str, Any] | None:
        file = self.out / "training.json"
        if not file.is_file():
            return None
        try:
            recorded = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{file}: cannot be read ({first_line(error)}); choose another --out") from None
        if not isinstance(recorded, dict) or not all(
            isinstance(recorded.get(key, {}), dict) for key in ("depends_on", "plan", "weights")
        ):
            raise RunFolderError(f"{file}: was not written by rlt-data; choose another --out")
        return recorded

    def record(self, **content: Any) -> None:
        """Write training.json with ``depends_on``, the provenance, ``content``, and earlier numbers of steps."""
        if is_main_process():
            recorded = self._recorded() or {}
            previous = recorded.get("previous_steps", [])
            if (planned := self._planned(recorded)) != self.steps:
                previous = [*previous, planned]
            content |= {"previous_steps": previous} if previous else {}
            write_json(self.out / "training.json", {"depends_on": self.depends_on, **self.provenance, **content})

    def record_end(self, **content: Any) -> None:
        """Write training.json of a finished training, with sizes and hashes of the trained weights."""
        if is_main_process():
            folders = [self.out, self.out / "best"]
            weights = file_records(self.out, [file for folder in folders for file in folder.glob("*.safetensors")])
            self.record(**content, weights=weights)

    def train(
        self,
        trainer: Any,
        tokenizer: Any,
        progress: Progress,
        *,
        settings: TrainingSettings,
        base: Checkpoint,
        dtype: torch.dtype,
        format: Format | None = None,
    ) -> None:
        """Train from the last complete checkpoint to the end, and save the model.

        Args:
            trainer: Transformers trainer.
            tokenizer: tokenizer to save with the model.
            progress: receives every optimizer step.
            settings: settings of the training.
            base: initial model.
            dtype: dtype of the saved weights, from :func:`saved_dtype`.
            format: format to save with the model; ``--format auto`` then uses it for this model.

        Raises:
            RunFolderError: all checkpoints are damaged.
        """
        from accelerate.utils import broadcast_object_list
        from transformers import TrainerState
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        check_sharding(trainer)
        # Only in the main process: verification reads complete checkpoints and removes damaged ones.
        checkpoint = [last_complete_checkpoint(self.out) if trainer.args.process_index == 0 else None]
        last = broadcast_object_list(checkpoint)[0]
        trainer.add_callback(checkpoint_recorder(settings.keep_checkpoints))
        if is_main_process():
            logger.info(
                "train: %d processes, the first on %s", trainer.args.world_size, describe_device(trainer.args.device)
            )
        progress.start("train", self.steps, step_of(last) if last else 0)
        try:
            if last and step_of(last) == self.steps:
                # Transformers would do another step if this one is within an epoch.
                trainer.state = TrainerState.load_from_json(str(last / STATE))
                if trainer.args.should_save:
                    copy_model(last, self.out)
            else:
                trainer.train(resume_from_checkpoint=str(last) if last else None)
                trainer.save_model(str(self.out))
        finally:
            progress.finish()
        if trainer.args.should_save:
            complete_model(self.out, base, dtype, format)
            tokenizer.save_pretrained(str(self.out))
            lines = "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
            write_file(self.out / "metrics.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))


def training_provenance(settings: FineTuneSettings | PolicySettings, **models: Checkpoint | None) -> dict[str, Any]:
    """Return command, explicit settings, and the names of models and data, for training.json.

    Resuming does not compare them, so folders may be moved and models renamed.

    Args:
        settings: settings of the training; defaults are left out, values from a preset or ``--defaults`` are not.
        models: checkpoints by role.
    """
    name = name_of_input(settings.input)
    on_hub = name == settings.input and not glob.has_magic(name) and not Path(name).exists()
    off_by_default = {name for name, field in type(settings).model_fields.items() if field.default is False}
    explicit = settings.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return {
        "command": settings.command,
        "settings": {key: value for key, value in explicit.items() if value is not False or key not in off_by_default},
        "models": {role: {"name": model.name, "revision": model.revision} for role, model in models.items() if model},
        "data": {"name": name, "on_hub": on_hub},
        "versions": versions("trl"),
    }


def saved_dtype(settings: TrainingSettings, config: Any) -> torch.dtype:
    """Return the dtype of the saved model: bfloat16 if trained in bfloat16, else the dtype of the base model.

    Args:
        settings: settings of the training.
        config: Transformers configuration of the base model.
    """
    return torch.bfloat16 if settings.dtype == "bfloat16" else stored_dtype(config)


def loaded_dtype(settings: TrainingSettings, config: Any) -> torch.dtype:
    """Return the dtype in which the base model is loaded; frozen weights have the saved model's.

    Args:
        settings: settings of the training.
        config: Transformers configuration of the base model.
    """
    return saved_dtype(settings, config) if settings.lora_rank else getattr(torch, settings.dtype)


def lora_config(settings: TrainingSettings) -> Any:
    """Return PEFT's configuration of the adapters, None without adapters."""
    if not settings.lora_rank:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise missing_dependency("peft for --lora-rank", error) from None
    rank = settings.lora_rank
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def model_arguments(settings: TrainingSettings, config: Any) -> dict[str, Any]:
    """Return the trainer's arguments for adapters and a base model in 4 bits.

    Args:
        settings: settings of the training.
        config: Transformers configuration of the base model.
    """
    quantization = None
    if settings.load_in_4bit:
        from transformers import BitsAndBytesConfig

        on_gpu = pick_device(settings.device).type == "cuda"
        quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if on_gpu else loaded_dtype(settings, config),
        )
    return {"peft_config": lora_config(settings), "quantization_config": quantization}


def prepare_quantized(model: Any) -> None:
    """Make a training of adapters over 4-bit weights exact, so that it resumes with the same weights.

    TRL converts the adapters to bfloat16, but PEFT loads them from a checkpoint in float32; here, they stay in float32.
    On some CPUs, bitsandbytes repacks 4-bit weights for inference, through which no gradient flows.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def complete_model(folder: Path, base: Checkpoint, dtype: torch.dtype, format: Format | None) -> None:
    """Complete a trained model as the trainer saved it.

    Args:
        folder: folder of the model or of an adapter.
        base: initial model; an adapter names it.
        dtype: dtype of the weights; adapters are unchanged.
        format: format of the model's texts, saved as ``format.yaml``.
    """
    _cast_weights(folder, dtype)
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        # The trainer names the base model's folder in the local cache.
        path = Path(base.name)
        name = str(path.resolve()) if path.exists() else base.name
        content = json.loads(adapter.read_text(encoding="utf-8"))
        write_json(adapter, content | {"base_model_name_or_path": name, "revision": base.revision})
    if format:
        save_format(format, folder)


def _cast_weights(folder: Path, dtype: torch.dtype) -> None:
    """Convert the weights of a saved model to a dtype."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    size = 0
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        weights = load_file(file)
        if any(tensor.is_floating_point() and tensor.dtype != dtype for tensor in weights.values()):
            weights = {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()
            }
            write_file(file, partial(save_file, weights, metadata=metadata))
        size += sum(tensor.nbytes for tensor in weights.values())
    config, index = folder / "config.json", folder / "model.safetensors.index.json"
    if size and config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        for section in [content, *(value for value in content.values() if isinstance(value, dict))]:
            if "dtype" in section or section is content:
                section["dtype"] = str(dtype).removeprefix("torch.")
        write_json(config, content)
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["metadata"]["total_size"] = size
        write_json(index, content)


def save_format(format: Format, folder: Path) -> None:
    """Save a format in a model's folder, where ``--format auto`` finds it."""
    text = yaml.safe_dump(format.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
    write_file(folder / "format.yaml", lambda path: path.write_text(text, encoding="utf-8"))


def copy_model(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint's model files to a folder, without the training state."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _MODEL_FILES:
        for file in checkpoint.glob(pattern):
            if file.name not in _TRAINING_FILES:
                shutil.copy2(file, folder / file.name)


def trainer_arguments(
    settings: TrainingSettings, dtype: torch.dtype, accumulation: int, steps: int, *, checkpoints: bool = False
) -> dict[str, Any]:
    """Return the Transformers trainer arguments that all trainings share.

    Args:
        settings: hyperparameters and the output folder.
        dtype: dtype in which the model is loaded, from :func:`loaded_dtype`.
        accumulation: forward passes of each process per optimizer step.
        steps: total number of optimizer steps.
        checkpoints: whether to save a checkpoint even in a short training.
    """
    device = pick_device(settings.device)
    placement: dict[str, Any] = {}
    if device.type == "cuda" and world_size() == 1:
        placement = {"device_map": {"": 0}}  # by default, TRL spreads the layers over all GPUs of the machine
    return {
        "output_dir": str(settings.out),
        "use_cpu": device.type == "cpu",
        "bf16": device.type == "cuda",
        "model_init_kwargs": {"dtype": dtype, **placement},
        "trust_remote_code": settings.trust_remote_code,
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "optim": _OPTIMIZERS[settings.optimizer],
        "learning_rate": settings.learning_rate,
        # Transformers ignores the warm-up of "constant".
        "lr_scheduler_type": "constant_with_warmup"
        if settings.schedule == "constant" and settings.warmup
        else settings.schedule,
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "activation_checkpointing": settings.activation_checkpointing,
        # A training too short for a checkpoint needs none at its end: the model itself is saved.
        "save_strategy": "steps" if settings.save_steps <= steps or checkpoints else "no",
        "save_steps": settings.save_steps,
        "logging_steps": max(1, steps // 100),
        "report_to": settings.log_to,
        "disable_tqdm": True,
    }


def find_base_model(settings: TrainingSettings) -> tuple[Checkpoint, Tokenizer, ChatTemplate, ControlTokens]:
    """Return the base model's checkpoint, tokenizer, chat template and control tokens, without loading weights.

    Raises:
        ModelError: the model does not exist, or its tokenizer is unusable.
        SettingsError: the ``--chat-template`` file is missing, or a package or GPU that a setting needs.
    """
    if settings.log_to != "none" and find_spec(settings.log_to) is None:
        raise SettingsError(f"--log-to: {settings.log_to} is not installed; pip install {settings.log_to}")
    _check_bitsandbytes(settings)
    checkpoint = find_checkpoint(settings.model)
    tokenizer, template = open_tokenizer(checkpoint, base_model_settings(settings))
    control = ControlTokens(tokenizer, template, checkpoint.name, as_text=settings.control_tokens == "text")
    return checkpoint, tokenizer, template, control


def _check_bitsandbytes(settings: TrainingSettings) -> None:
    flag = "--load-in-4bit" if settings.load_in_4bit else f"--optimizer {settings.optimizer}"
    if not settings.load_in_4bit and settings.optimizer == "adamw":
        return
    if find_spec("bitsandbytes") is None:
        refuse_here(settings, f"{flag}: bitsandbytes is not installed; pip install 'rlt-data[bitsandbytes]'")
    if settings.optimizer.startswith("paged") and pick_device(settings.device).type != "cuda":
        refuse_here(settings, f"--optimizer {settings.optimizer}: paging needs CUDA; use {settings.optimizer[6:]}")
    if sharding() == "fsdp":
        raise SettingsError(f"{flag}: FSDP cannot shard the tensors of bitsandbytes; use torchrun, or omit this flag")


def refuse_here(settings: TrainingSettings, reason: str) -> None:
    """Refuse a training that this machine cannot run; a dry run only warns, because it may plan for another machine.

    Raises:
        SettingsError: not a dry run.
    """
    if not settings.dry_run:
        raise SettingsError(reason)
    if is_main_process():
        logger.warning("%s", reason)


def world_size() -> int:
    """Return the number of processes that ``accelerate launch`` or torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding() -> str | None:
    """Return how ``accelerate launch`` shards the weights over the processes: fsdp, zero3 or None."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp"
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    return "zero3" if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" and stage == "3" else None


def keeps_shards_in_main_memory() -> bool:
    """Return whether FSDP keeps weights, gradients and optimizer in main memory."""
    return sharding() == "fsdp" and os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true"


def use_one_gpu(arguments: Any) -> Any:
    """Let a process train on one GPU, although it sees several, and return the trainer's arguments.

    Transformers would copy the model to all visible GPUs (``DataParallel``), and one may be the student's.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def base_model_settings(settings: TrainingSettings) -> ModelSettings:
    """Return the settings with which a training opens its base model."""
    return ModelSettings(
        device=settings.device,
        chat_template=settings.chat_template,
        template_option=settings.template_option,
        template_date=settings.template_date,
        control_tokens=settings.control_tokens,
        trust_remote_code=settings.trust_remote_code,
    )


def recent_mean(trainer: Any, name: str) -> float | None:
    """Return the mean of the last ten logged values of a metric, or None if it was never logged."""
    values = [float(entry[name]) for entry in trainer.state.log_history if name in entry][-10:]
    return sum(values) / len(values) if values else None


def with_pad_token(tokenizer: Any) -> Any:
    """Set the tokenizer's missing padding token to its end-of-text token, and return the tokenizer."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def missing_dependency(package: str, error: ImportError) -> SettingsError:
    """Return the error that names a missing package and how to install it."""
    return SettingsError(f"training needs {package} ({error}); pip install 'rlt-data[train]'")


def progress_callback(progress: Progress) -> Any:
    """Return a callback that reports every step, and logs the metrics."""
    from transformers import TrainerCallback

    class ProgressCallback(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            progress.advance()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            metrics = [text.format(float(logs[name])) for name, text in _LOGGED.items() if logs.get(name) is not None]
            if metrics and state.is_world_process_zero:
                logger.info("step %d: %s", state.global_step, ", ".join(metrics))

    return ProgressCallback()
