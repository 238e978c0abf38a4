"""Trainings in two processes on a CPU, sharded or not.

PyTorch and DeepSpeed can shard on a CPU, but accelerate shards only on GPUs. :func:`shard_on_cpu` lets it treat the CPU
as it treats a GPU. ``accelerate launch ... -m tests.training.processes train-student ...`` runs a command so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.children import Child
from tests.engines.serving import unused_port
from tests.killing import environment

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "recipes" / "accelerate"


def shard_on_cpu() -> None:
    """Let accelerate shard models in this process, although it has no GPU."""
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    from accelerate.state import DistributedType, PartialState

    start: Any = PartialState.__init__

    def start_without_cpu(state: PartialState, cpu: bool = False, **options: Any) -> None:
        start(state, **options)

    changed: Any = PartialState
    changed.__init__ = start_without_cpu
    changed._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        # It would compile an operation on shared memory.
        import_module("deepspeed.comm.torch").__dict__["build_shm_op"] = lambda: None


def variables_of(name: str) -> dict[str, str]:
    """Return the environment variables that ``accelerate launch`` sets for a file of recipes/accelerate."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    options = ["--config_file", str(SHIPPED / f"{name}.yaml"), "--num_processes", "2", "--mixed_precision", "no", "x"]
    arguments, defaults, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(options))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, variables = prepare_deepspeed_cmd_env(arguments)
    else:
        variables = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in variables.items() if os.environ.get(key) != value}


def forked(
    monkeypatch: pytest.MonkeyPatch,
    *arguments: Any,
    variables: Mapping[str, str] | None = None,
    prepare: Callable[[], object] | None = None,
) -> list[Child]:
    """Start a command in two processes with the environment that torchrun gives them.

    Args:
        monkeypatch: sets environment variables while the processes start.
        arguments: the command.
        variables: further environment variables.
        prepare: a function to call in each process before the command.
    """
    common = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": unused_port()}
    children = []
    with monkeypatch.context() as patch:
        for rank in range(2):
            for name, value in {**common, **(variables or {}), "RANK": rank, "LOCAL_RANK": rank}.items():
                patch.setenv(name, str(value))
            children.append(Child(*arguments, prepare=prepare))
    return children


def finished(children: list[Child]) -> str:
    """Wait until processes end, which must succeed, and return what they print."""
    assert [child.wait() for child in children] == [0] * len(children), [child.stderr for child in children]
    return "".join(child.stdout for child in children)


def launched(
    launcher: list[Any], *arguments: Any, module: str = "rlt_data.cli.main"
) -> subprocess.CompletedProcess[str]:
    """Run a command with accelerate or torchrun."""
    command = [sys.executable, "-m", *launcher, "-m", module, *arguments]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        list(map(str, command)),
        env=environment() | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


if __name__ == "__main__":
    from rlt_data.cli.main import main

    shard_on_cpu()
    main()
