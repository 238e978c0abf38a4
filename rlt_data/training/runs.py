"""Output folder of a training: training.json, checkpoints and the trained model."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlt_data.engines import Checkpoint
from rlt_data.engines.config import describe_device
from rlt_data.errors import ModelError, RunFolderError, first_line
from rlt_data.formats import Format
from rlt_data.progress import Progress, is_main_process
from rlt_data.settings import FineTuneSettings, PolicySettings, TrainingSettings
from rlt_data.settings.base import name_of_input
from rlt_data.steps.provenance import versions
from rlt_data.storage.changes import changed_keys
from rlt_data.storage.outputs import lock_folder, write_file, write_json
from rlt_data.training.checkpoints import (
    STATE,
    checkpoint_recorder,
    checkpoints,
    file_records,
    find_damage,
    find_weights_damage,
    last_complete_checkpoint,
    step_of,
)
from rlt_data.training.memory import Memory
from rlt_data.training.models import complete_model, copy_model
from rlt_data.training.sharding import check_sharding

logger = logging.getLogger(__name__)

#: Settings that only determine how many steps a training has.
_LENGTH = {"steps", "epochs", "max_steps"}


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


@contextmanager
def memory_errors(estimated: Memory) -> Iterator[None]:
    """Turn PyTorch's error that the GPU is full into one line, with what was estimated and what would fit.

    Raises:
        ModelError: the GPU has too little memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"the training ran out of memory; checkpoints are kept; {estimated.verdict}; docs/gpus.md lists what needs "
            f"less ({first_line(error)})"
        ) from None
