"""Checkpoints of a training: each ends with a record of its files, which is verified before a training continues.

The record is written when all files of the checkpoint have reached the disk, so a checkpoint with a record is complete,
whatever stopped the training. Checkpoints without one, of earlier versions, are examined file by file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from rlt_data.errors import RunFolderError
from rlt_data.storage.outputs import write_json
from rlt_data.storage.paths import disk_errors

logger = logging.getLogger(__name__)

#: Record of a checkpoint's files, in its folder.
RECORD = "checkpoint.json"
_NAME = re.compile(r"checkpoint-(\d+)")
#: States that a training continues with, and how several processes name them.
_STATES = {"optimizer.pt": "optimizer*", "scheduler.pt": "scheduler*.pt", "rng_state.pth": "rng_state*.pth"}
#: What the trainer writes last.
_STATE = "trainer_state.json"


def checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints of a training, the latest first."""
    found = [path for path in out.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step of a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def described(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return size and hash of files by their names in a folder; all of them are on the disk afterwards."""
    return {file.relative_to(folder).as_posix(): _described(file) for file in sorted(files)}


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_128)
        size = os.fstat(file.fileno()).st_size
        os.fsync(file.fileno())
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def seal(checkpoint: Path) -> None:
    """Record the files of a checkpoint that has just been written.

    Raises:
        DiskError: the disk is full or failed.
    """
    with disk_errors(checkpoint):
        files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != RECORD]
        content = described(checkpoint, files)
        for folder in {path.parent for path in files} | {checkpoint.parent}:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    write_json(checkpoint / RECORD, {"files": content})


def damage(folder: Path, files: dict[str, Any]) -> str | None:
    """Say which of the recorded files is not what was recorded; None if all are."""
    for name, recorded in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            found = _described(path)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != recorded:
            return f"the content of {name} has changed, or part of it was never written"
    return None


def weights_damage(folder: Path) -> str | None:
    """Say what is wrong with the weights in a folder, as far as can be seen without a record; None if nothing is."""
    from safetensors import SafetensorError, safe_open

    for file in (weights := sorted(folder.glob("*.safetensors"))):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError):
            return f"{file.name} is cut off or damaged"
    return None if weights else "there are no weights (no *.safetensors)"


def last_whole_checkpoint(out: Path) -> Path | None:
    """Return the latest complete checkpoint; later ones, damaged or never finished, are removed.

    Raises:
        RunFolderError: checkpoints are damaged, and none is left to continue from.
    """
    last, damaged, unfinished = None, dict[Path, str](), list[Path]()
    for path in checkpoints(out):
        if not (path / RECORD).is_file() and _json(path / _STATE) is None:
            unfinished.append(path)
        elif problem := _damage(path):
            damaged[path] = problem
        else:
            last = path
            break
    if damaged and last is None:
        problems = "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
        raise RunFolderError(
            f"{out}: no checkpoint is left to continue from ({problems}); restore its files, or remove the checkpoints "
            "to train from the start again"
        )
    for path, problem in damaged.items():
        logger.warning("%s is damaged and is removed (%s); continuing from %s", path, problem, last)
    for path in [*unfinished, *damaged]:
        shutil.rmtree(path, ignore_errors=True)
    return last


def _damage(checkpoint: Path) -> str | None:
    if not (checkpoint / RECORD).is_file():
        return _seen_damage(checkpoint)
    record = _json(checkpoint / RECORD)
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        return f"{RECORD} cannot be read"
    return damage(checkpoint, record["files"])


def _seen_damage(checkpoint: Path) -> str | None:
    """Examine a checkpoint without a record."""
    if (checkpoint / "latest").is_file():  # DeepSpeed's own layout
        return None
    sharded = any(path.is_dir() for path in checkpoint.glob("pytorch_model_fsdp*"))
    if not sharded and (problem := weights_damage(checkpoint)):
        return problem
    for name, pattern in _STATES.items():
        found = list(checkpoint.glob(pattern))
        if not found:
            return f"{name} is missing"
        for file in found:
            if file.is_file() and not zipfile.is_zipfile(file):  # what torch.save writes is one
                return f"{file.name} is cut off or damaged"
    return None


def _json(path: Path) -> Any:
    """Return what a JSON file holds, None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sealing(keep: int) -> Any:
    """Return a callback that records each checkpoint, and then removes the oldest but so many.

    The trainer would remove earlier checkpoints before the new one is on the disk.
    """
    from transformers import TrainerCallback
    from transformers.trainer_utils import rotate_checkpoints

    class Sealing(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            from accelerate import PartialState

            PartialState().wait_for_everyone()  # each process writes files of its own
            if args.should_save:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
                rotate_checkpoints(args.output_dir, keep, state.best_model_checkpoint, use_mtime=True)

    return Sealing()
