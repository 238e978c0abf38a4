"""Arguments and callbacks that the trainers of all trainings share."""

from __future__ import annotations

import logging
from typing import Any

import torch

from rlt_data.engines.config import pick_device
from rlt_data.progress import Progress
from rlt_data.settings import TrainingSettings
from rlt_data.training.launch import world_size

logger = logging.getLogger(__name__)

#: Transformers' names of the optimizers.
_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
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


def use_one_gpu(arguments: Any) -> Any:
    """Let a process train on one GPU, although it sees several, and return the trainer's arguments.

    Transformers would copy the model to all visible GPUs (``DataParallel``), and one may be the student's.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


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


def recent_mean(trainer: Any, name: str) -> float | None:
    """Return the mean of the last ten logged values of a metric, or None if it was never logged."""
    values = [float(entry[name]) for entry in trainer.state.log_history if name in entry][-10:]
    return sum(values) / len(values) if values else None
