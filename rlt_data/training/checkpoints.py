"""Training checkpoints, each with a record of its files that is verified before training resumes.

The record is written after all files of the checkpoint are synced to disk, so a checkpoint with a record is complete.
Checkpoints of earlier versions have no record; their files are checked one by one.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlt_data.errors import RunFolderError
from rlt_data.storage.folder import checksum
from rlt_data.storage.local import synchronise
from rlt_data.storage.outputs import write_json
from rlt_data.storage.paths import disk_errors

logger = logging.getLogger(__name__)

#: File in each checkpoint that records the other files.
RECORD = "checkpoint.json"
_NAME = re.compile(r"checkpoint-(\d+)")
#: State files that resuming needs, and their names in multi-process training.
_STATES = {"optimizer.pt": "optimizer*", "scheduler.pt": "scheduler*.pt", "rng_state.pth": "rng_state*.pth"}
#: The file that the trainer writes last.
STATE = "trainer_state.json"


def checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints of a training, latest first."""
    folders = [path for path in out.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step of a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def file_records(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Sync files to disk, and return the size and hash of each by its path relative to ``folder``."""
    records = {}
    for file in sorted(files):
        synchronise(file)
        records[file.relative_to(folder).as_posix()] = _file_record(file)
    return records


def _file_record(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "xxh3_128": checksum(path)}


def record_checkpoint(checkpoint: Path) -> None:
    """Write the record of a complete checkpoint.

    Raises:
        DiskError: the disk is full or fails.
    """
    with disk_errors(checkpoint):
        files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != RECORD]
        content = file_records(checkpoint, files)
        for folder in {path.parent for path in files} | {checkpoint.parent}:
            synchronise(folder)
    write_json(checkpoint / RECORD, {"files": content})


def find_damage(folder: Path, files: dict[str, Any]) -> str | None:
    """Compare files with their records; return the first difference as text, or None."""
    for name, recorded in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            current = _file_record(path)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if current != recorded:
            return f"{name} has changed or is incomplete"
    return None


def find_weights_damage(folder: Path) -> str | None:
    """Check that a folder's weight files can be opened; return the first defect as text, or None."""
    from safetensors import SafetensorError, safe_open

    for file in (weights := sorted(folder.glob("*.safetensors"))):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError):
            return f"{file.name} is truncated or damaged"
    return None if weights else "the weights are missing (no *.safetensors)"


def last_complete_checkpoint(out: Path) -> Path | None:
    """Return the latest complete checkpoint, and remove later ones that are damaged or unfinished.

    Raises:
        RunFolderError: all checkpoints are damaged.
    """
    last, damaged, unfinished = None, dict[Path, str](), list[Path]()
    for path in checkpoints(out):
        if not (path / RECORD).is_file() and _json(path / STATE) is None:
            unfinished.append(path)
        elif defect := _checkpoint_damage(path):
            damaged[path] = defect
        else:
            last = path
            break
    if damaged and last is None:
        defects = "; ".join(f"{path.name}: {defect}" for path, defect in damaged.items())
        raise RunFolderError(
            f"{out}: cannot continue, every checkpoint is damaged ({defects}); restore the files, or remove the "
            "checkpoints to train from the start"
        )
    for path, defect in damaged.items():
        logger.warning("removing the damaged checkpoint %s (%s); continuing from %s", path, defect, last)
    for path in [*unfinished, *damaged]:
        shutil.rmtree(path, ignore_errors=True)
    return last


def _checkpoint_damage(checkpoint: Path) -> str | None:
    if not (checkpoint / RECORD).is_file():
        return _damage_without_record(checkpoint)
    record = _json(checkpoint / RECORD)
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        return f"{RECORD} cannot be read"
    return find_damage(checkpoint, record["files"])


def _damage_without_record(checkpoint: Path) -> str | None:
    if (checkpoint / "latest").is_file():  # DeepSpeed has another layout
        return None
    sharded = any(path.is_dir() for path in checkpoint.glob("pytorch_model_fsdp*"))
    if not sharded and (defect := find_weights_damage(checkpoint)):
        return defect
    for name, pattern in _STATES.items():
        files = list(checkpoint.glob(pattern))
        if not files:
            return f"{name} is missing"
        for file in files:
            if file.is_file() and not zipfile.is_zipfile(file):  # torch.save writes zip files
                return f"{file.name} is truncated or damaged"
    return None


def _json(path: Path) -> Any:
    """Return the content of a JSON file, or None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def checkpoint_recorder(keep: int) -> Any:
    """Return a callback that records each checkpoint, and then removes all but the last ``keep``.

    The trainer itself would remove old checkpoints before the new one is on disk.
    """
    from transformers import TrainerCallback
    from transformers.trainer_utils import rotate_checkpoints

    class CheckpointRecorder(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            from accelerate import PartialState

            PartialState().wait_for_everyone()  # every process writes some of the files
            if args.should_save:
                record_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")
                rotate_checkpoints(args.output_dir, keep, state.best_model_checkpoint, use_mtime=True)

    return CheckpointRecorder()
