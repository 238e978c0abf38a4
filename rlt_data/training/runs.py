"""A training's folder: what it was made by, its checkpoints, and the trained model."""

from __future__ import annotations

import json
import logging
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
from rlt_data.engines.config import pick_device, stored_dtype
from rlt_data.errors import RunFolderError, SettingsError, first_line
from rlt_data.formats import ChatTemplate, Format, Tokenizer
from rlt_data.progress import Progress, is_main_process
from rlt_data.settings import FineTuneSettings, ModelSettings, PolicySettings, TrainingSettings
from rlt_data.steps.provenance import versions
from rlt_data.storage.changes import changed_keys
from rlt_data.storage.outputs import lock_folder, write_file, write_json
from rlt_data.training.checkpoints import (
    RECORD,
    checkpoints,
    damage,
    described,
    last_whole_checkpoint,
    sealing,
    step_of,
    weights_damage,
)

logger = logging.getLogger(__name__)

#: What of a checkpoint belongs to the model and not to the training.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
_TRAINING_FILES = {"trainer_state.json", RECORD}
#: What is logged of a step where a trainer knows it, and how.
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
    """A training's folder.

    Args:
        out: the folder.
        depends_on: everything that the trained weights depend on.
        made: what else training.json says of their making; see :func:`making`.

    Raises:
        RunFolderError: the folder holds something else, or a training with other settings or data.
    """

    out: Path
    depends_on: dict[str, Any]
    made: dict[str, Any]

    def __post_init__(self) -> None:
        out = self.out
        if out.exists() and not out.is_dir():
            raise RunFolderError(f"{out}: is a file; --out takes a folder")
        if (recorded := self._recorded()) is None:
            if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
                raise RunFolderError(f"{out}: is there already and holds no training; choose another --out")
            return
        before = recorded.get("depends_on", {})
        if before != self.depends_on:
            changed = ", ".join(changed_keys(before, self.depends_on))
            raise RunFolderError(
                f"{out}: holds a training with other settings or data ({changed} differ); "
                "use the same to continue it, or another --out"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing, in the first of the processes of a training.

        Raises:
            RunFolderError: another training is writing to it.
        """
        with lock_folder(self.out) if is_main_process() else nullcontext():
            yield

    @property
    def finished(self) -> dict[str, Any] | None:
        """What was recorded of the training when it came to its end; None before, or if the model is to be made again.

        Raises:
            RunFolderError: the model is missing or damaged, and there is no checkpoint to make it from again.
        """
        found = self._recorded()
        if not found or "steps" not in found:
            return None
        recorded = found.get("weights")
        problem = damage(self.out, recorded) if recorded else weights_damage(self.out)
        if problem is None:
            return found
        if not checkpoints(self.out):
            raise RunFolderError(
                f"{self.out}: the training is finished, but {problem}, and no checkpoint is left to make the model "
                "from; restore the file, or remove the folder to train again"
            )
        if is_main_process():
            logger.warning("%s: %s; making the model again from the last checkpoint", self.out, problem)
        return None

    def _recorded(self) -> dict[str, Any] | None:
        file = self.out / "training.json"
        if not file.is_file():
            return None
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{file}: cannot be read ({first_line(error)}); choose another --out") from None
        if not isinstance(found, dict) or not all(
            isinstance(found.get(key, {}), dict) for key in ("depends_on", "weights")
        ):
            raise RunFolderError(f"{file}: not what a training of rlt-data writes; choose another --out")
        return found

    def record(self, **content: Any) -> None:
        """Write training.json: what the training depends on, how it was made, and more."""
        if is_main_process():
            write_json(self.out / "training.json", {"depends_on": self.depends_on, **self.made, **content})

    def record_end(self, **content: Any) -> None:
        """Write training.json at the end, with the files that hold the trained weights."""
        if is_main_process():
            folders = [self.out, self.out / "best"]
            weights = described(self.out, [file for folder in folders for file in folder.glob("*.safetensors")])
            self.record(**content, weights=weights)

    def train(
        self,
        trainer: Any,
        tokenizer: Any,
        steps: int,
        progress: Progress,
        *,
        settings: TrainingSettings,
        dtype: torch.dtype,
        format: Format | None = None,
    ) -> None:
        """Train from the last whole checkpoint to the end, and save the model.

        Args:
            trainer: a Transformers trainer.
            tokenizer: saved with the model.
            steps: how many there are in all.
            progress: told of every step.
            settings: of the training.
            dtype: type of the saved weights, see :func:`saved_dtype`.
            format: saved with the model, which is shown problems in it from then on.

        Raises:
            RunFolderError: checkpoints are damaged, and none is left to continue from.
        """
        from accelerate.utils import broadcast_object_list
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        check_sharding(trainer)
        # One process looks, because looking reads every byte of a checkpoint and removes what is damaged.
        found = [last_whole_checkpoint(self.out) if trainer.args.process_index == 0 else None]
        last = broadcast_object_list(found)[0]
        trainer.add_callback(sealing(settings.keep_checkpoints))
        progress.start("train", steps, step_of(last) if last else 0)
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            progress.finish()
        trainer.save_model(str(self.out))
        if trainer.args.should_save:
            store_as(self.out, dtype)
            tokenizer.save_pretrained(str(self.out))
            lines = "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
            write_file(self.out / "metrics.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))
            if format:
                save_format(format, self.out)


def training_provenance(settings: FineTuneSettings | PolicySettings, **models: Checkpoint | None) -> dict[str, Any]:
    """Return what is told of a training's making: the command, and the names of models and data.

    A folder that is moved, or a model of another name, is no other training, so nothing of this is compared.

    Args:
        settings: those that were given are kept, with what a preset or recipe stands for.
        models: by their roles.
    """
    unsaid = {name for name, field in type(settings).model_fields.items() if field.default is False}
    given = settings.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return {
        "command": settings.command,
        "settings": {key: value for key, value in given.items() if value is not False or key not in unsaid},
        "models": {role: {"name": each.name, "revision": each.revision} for role, each in models.items() if each},
        "data": {"name": settings.input, "on_hub": not Path(settings.input).exists()},
        "versions": versions("trl"),
    }


def check_sharding(trainer: Any) -> None:
    """Refuse ways to shard a model in which the trainer would not save all of it.

    Raises:
        SettingsError: the file given to accelerate has to be changed.
    """
    fsdp = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if fsdp is not None and "FULL_STATE_DICT" not in str(fsdp.state_dict_type):
        raise SettingsError(
            "fsdp_state_dict_type: the trainer saves no model with this value; set FULL_STATE_DICT, as "
            "recipes/accelerate/fsdp2.yaml does"
        )
    deepspeed = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3 and getattr(trainer.args, "sync_ref_model", False):
        raise SettingsError(
            "--sync-steps: checkpoints cannot hold a reference model that DeepSpeed ZeRO-3 shards; use FSDP2 "
            "(recipes/accelerate/fsdp2.yaml), or --sync-steps 0"
        )


def saved_dtype(settings: TrainingSettings, config: Any) -> torch.dtype:
    """Return the type in which a trained model is saved: that of its beginning, or bfloat16 if it was trained in it.

    With LoRA it is also the type of the frozen weights.

    Args:
        settings: of the training.
        config: configuration of the model it begins from.
    """
    return torch.bfloat16 if settings.dtype == "bfloat16" else stored_dtype(config)


def store_as(folder: Path, dtype: torch.dtype) -> None:
    """Rewrite the weights of a saved model in a type; adapters stay as they are."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    size = 0
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        weights = load_file(file)
        if any(each.is_floating_point() and each.dtype != dtype for each in weights.values()):
            weights = {name: each.to(dtype) if each.is_floating_point() else each for name, each in weights.items()}
            write_file(file, partial(save_file, weights, metadata=metadata))
        size += sum(each.nbytes for each in weights.values())
    config, index = folder / "config.json", folder / "model.safetensors.index.json"
    if size and config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        for part in [content, *(each for each in content.values() if isinstance(each, dict))]:
            if "dtype" in part or part is content:
                part["dtype"] = str(dtype).removeprefix("torch.")
        write_json(config, content)
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["metadata"]["total_size"] = size
        write_json(index, content)


def save_format(format: Format, folder: Path) -> None:
    """Put a format beside a model; ``--format auto`` finds it there."""
    text = yaml.safe_dump(format.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
    write_file(folder / "format.yaml", lambda path: path.write_text(text, encoding="utf-8"))


def copy_model(checkpoint: Path, folder: Path) -> None:
    """Copy the model out of a checkpoint, without what belongs to the training."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _MODEL_FILES:
        for file in checkpoint.glob(pattern):
            if file.name not in _TRAINING_FILES:
                shutil.copy2(file, folder / file.name)


def trainer_arguments(
    settings: TrainingSettings, accumulation: int, steps: int, *, checkpoints: bool = False
) -> dict[str, Any]:
    """Return what all trainings tell a Transformers trainer.

    Args:
        settings: see there.
        accumulation: forward passes of a process for each step.
        steps: of the whole training.
        checkpoints: there must be one at the end.
    """
    device = pick_device(settings.device)
    return {
        "output_dir": str(settings.out),
        "use_cpu": device.type == "cpu",
        "bf16": device.type == "cuda",
        "model_init_kwargs": {"dtype": settings.dtype},
        "trust_remote_code": settings.trust_remote_code,
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "activation_checkpointing": settings.activation_checkpointing,
        # A training without a checkpoint on its way needs none at its end, where the model itself is saved.
        "save_strategy": "steps" if settings.save_steps <= steps or checkpoints else "no",
        "save_steps": settings.save_steps,
        "logging_steps": max(1, steps // 100),
        "report_to": settings.log_to,
        "disable_tqdm": True,
    }


def find_base_model(settings: TrainingSettings) -> tuple[Checkpoint, Tokenizer, ChatTemplate]:
    """Find the model that a training begins from; nothing of its weights is loaded.

    Raises:
        ModelError: there is no such model, or its tokenizer cannot be used.
        SettingsError: ``--chat-template`` names no file, or the package for ``--log-to`` is not installed.
    """
    if settings.log_to != "none" and find_spec(settings.log_to) is None:
        raise SettingsError(f"--log-to: {settings.log_to} is not installed; pip install {settings.log_to}")
    checkpoint = find_checkpoint(settings.model)
    return checkpoint, *open_tokenizer(checkpoint, base_model_settings(settings))


def base_model_settings(settings: TrainingSettings) -> ModelSettings:
    """Return how the model of a training is opened."""
    return ModelSettings(
        device=settings.device,
        chat_template=settings.chat_template,
        trust_remote_code=settings.trust_remote_code,
    )


def recent_mean(trainer: Any, name: str) -> float | None:
    """Return the mean of the last ten values that were logged under a name, None if there are none."""
    values = [float(entry[name]) for entry in trainer.state.log_history if name in entry][-10:]
    return sum(values) / len(values) if values else None


def pad_token(tokenizer: Any) -> Any:
    """Return the tokenizer with a padding token; the end-of-text token where it has none of its own."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def missing_dependency(package: str, error: ImportError) -> SettingsError:
    """Say which package a training needs."""
    return SettingsError(f"training needs {package} ({error}); pip install 'rlt-data[train]'")


def progress_callback(progress: Progress) -> Any:
    """Return a callback that tells of every step, and notes the figures that are logged."""
    from transformers import TrainerCallback

    class ProgressCallback(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            progress.advance()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            values = [text.format(float(logs[name])) for name, text in _LOGGED.items() if logs.get(name) is not None]
            if values and state.is_world_process_zero:
                logger.info("step %d: %s", state.global_step, ", ".join(values))

    return ProgressCallback()
