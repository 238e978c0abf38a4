"""Choose the engine that ``--engine auto`` stands for."""

from __future__ import annotations

import logging
from typing import TypeVar

import torch

from rlt_data.engines.gpus import unusable_gpu
from rlt_data.engines.vllm.version import check_version, installed_version, is_for_cpus
from rlt_data.errors import ModelError, SettingsError
from rlt_data.settings import ModelSettings
from rlt_data.settings.base import declared

logger = logging.getLogger(__name__)

AnySettings = TypeVar("AnySettings", bound=ModelSettings)


def choose_engine(settings: AnySettings, recorded: str | None = None, *, quiet: bool = False) -> AnySettings:
    """Return the settings with the engine that ``auto`` stands for; unchanged if they name an engine.

    Only this machine counts. With ``--ray``, the machines of the cluster may differ from it.

    Args:
        settings: settings of a step.
        recorded: the engine of the rows that the step continues; None for a new run.
        quiet: do not report the choice.

    Raises:
        ModelError: this machine cannot run vLLM, which the settings or the recorded rows name. A dry run, which
            plans for other machines too, only warns if the settings name it.
        SettingsError: a setting has no effect with the chosen engine.
    """
    if settings.engine == "vllm" and not settings.ray:
        try:
            check_version(installed_version())
            if obstacle := _why_not_vllm(named=True):
                raise ModelError(f"--engine vllm: {obstacle}; --engine transformers runs without vLLM")
        except ModelError as error:
            if not getattr(settings, "dry_run", False):
                raise
            if not quiet:
                logger.warning("on this machine, the step would fail: %s", error)
    if settings.engine != "auto":
        return settings
    engine, reason = (recorded, "the engine of the rows so far") if recorded else _choose(settings)
    if recorded == "vllm" and not settings.ray and (obstacle := _why_not_vllm(named=True)):
        raise ModelError(
            f"--engine: the run was made with vllm, which cannot run here ({obstacle}); {_remedy(settings)}"
        )
    try:
        chosen = settings.with_engine(engine)
    except SettingsError as error:
        raise SettingsError(f"{error} (--engine auto is {engine}: {reason}; --engine names another)") from None
    if not quiet:
        logger.info("engine: %s (%s)", engine, reason)
    return chosen


def _choose(settings: ModelSettings) -> tuple[str, str]:
    """Return an engine for a new run, and why."""
    if flag := settings.needs_transformers:
        return "transformers", f"for {flag}"
    if obstacle := _why_not_vllm(named=False):
        return "transformers", obstacle
    return "vllm", f"vLLM {installed_version()} and a GPU"


def _why_not_vllm(*, named: bool) -> str | None:
    """Return why vLLM cannot run on this machine; None if it can.

    Args:
        named: whether the user or the recorded rows name vLLM. A build for CPUs is used only then.
    """
    version = installed_version()
    for_cpus = version is not None and is_for_cpus()
    if not torch.cuda.is_available() and not (for_cpus and named):
        return (unusable_gpu() if named else None) or "PyTorch sees no CUDA or ROCm GPU"
    if version is None:
        return "vLLM is not installed"
    try:
        check_version(version)
    except ModelError as error:
        return str(error).removeprefix("--engine vllm: ")
    return "the installed vLLM is a build for CPUs" if for_cpus and not named else None


def _remedy(settings: ModelSettings) -> str:
    """Return how to continue without the recorded engine."""
    if declared(type(settings).model_fields["engine"])["affects"] == "speed":
        return "--engine transformers continues it with equal results"
    return "other engines draw other samples, so --engine transformers needs another --out"
