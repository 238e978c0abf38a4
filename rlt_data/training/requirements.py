"""What the settings of a training need: packages, a GPU, and a launch that supports them."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from rlt_data.engines.config import pick_device
from rlt_data.errors import SettingsError
from rlt_data.progress import is_main_process
from rlt_data.settings import TrainingSettings
from rlt_data.training.launch import sharding, uses_deepspeed

logger = logging.getLogger(__name__)


def check_requirements(settings: TrainingSettings) -> None:
    """Check that this machine and the launch allow what the settings ask for.

    Raises:
        SettingsError: a package or a GPU is missing, or the sharding does not support the optimizer or 4-bit weights.
    """
    if settings.log_to != "none" and find_spec(settings.log_to) is None:
        raise SettingsError(f"--log-to: {settings.log_to} is not installed; pip install {settings.log_to}")
    if uses_deepspeed() and find_spec("deepspeed") is None:
        refuse_here(
            settings, "accelerate is configured to use DeepSpeed, which is not installed; pip install deepspeed"
        )
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


def missing_dependency(package: str, error: ImportError) -> SettingsError:
    """Return the error that names a missing package and how to install it."""
    return SettingsError(f"training needs {package} ({error}); pip install 'rlt-data[train]'")
