"""Find out why PyTorch cannot use the GPU of this machine, from files and PyTorch's build alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from rlt_data.errors import first_line

#: Oldest NVIDIA driver for each major version of CUDA.
#: Source: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVER = {12: 525, 13: 580}

#: Variables with which users choose GPUs, and those of ROCm alone. A value without a GPU's number or name chooses none.
_CHOICES, _CHOICES_OF_ROCM = ("CUDA_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_CHOOSES_A_GPU = re.compile(r"\s*(\d|GPU-|MIG-)", re.I)

#: Files of the drivers. A container without access to a GPU has no device files, whatever driver its host has.
_NVIDIA_DEVICES, _NVIDIA_DRIVER, _AMD_DEVICE = "/dev/nvidia[0-9]*", "/proc/driver/nvidia/version", "/dev/kfd"


def unusable_gpu(root: Path = Path("/")) -> str | None:
    """Return why PyTorch cannot use this machine's GPU, and a remedy.

    Args:
        root: the root of the file system.

    Returns:
        None if PyTorch can use a GPU, there is none, or the user has hidden it (such as with CUDA_VISIBLE_DEVICES=).
        AMD GPUs count only with a ROCm build of PyTorch, because most processors of AMD contain one.
    """
    choices = _CHOICES + (_CHOICES_OF_ROCM if torch.version.hip else ())
    if torch.cuda.is_available() or any(not _CHOOSES_A_GPU.match(os.environ.get(name, "0")) for name in choices):
        return None
    build = f"PyTorch {torch.__version__}"
    if torch.version.hip:
        if not (root / _AMD_DEVICE[1:]).exists():
            return None
        return f"this machine has an AMD GPU, but {build} (ROCm {torch.version.hip}) cannot use it: {_cuda_error()}"
    if not any(root.glob(_NVIDIA_DEVICES[1:])):
        return None
    driver = _driver_version(root / _NVIDIA_DRIVER[1:])
    gpu = f"this machine has an NVIDIA GPU (driver {driver or 'of unknown version'})"
    if torch.version.cuda is None:
        return f"{gpu}, but {build} is a build for CPUs; install one for CUDA (docs/engines.md, Versions and drivers)"
    oldest = OLDEST_DRIVER.get(int(torch.version.cuda.split(".")[0]))
    if driver and oldest and int(driver.split(".")[0]) < oldest:
        return (
            f"{gpu}, but {build} is built for CUDA {torch.version.cuda}, which needs driver {oldest} or newer; update "
            "the driver, or install a build for an older CUDA (docs/engines.md, Versions and drivers)"
        )
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    choice = "" if chosen is None else f" with CUDA_VISIBLE_DEVICES={chosen}"
    return f"{gpu}, but {build} (CUDA {torch.version.cuda}) cannot use it{choice}: {_cuda_error()}"


def _driver_version(file: Path) -> str | None:
    """Return the version in the NVIDIA driver's file, such as 535.161.07; None if it has none."""
    match = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", file.read_text(errors="replace")) if file.is_file() else None
    return match[0] if match else None


def _cuda_error() -> str:
    """Return what CUDA or ROCm says when PyTorch starts it."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "it finds no device"
