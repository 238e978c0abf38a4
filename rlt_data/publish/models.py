"""The folder of a finished training: which of its files are published, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlt_data.errors import RunFolderError
from rlt_data.publish.redact import hub_id, public_name, redact_paths

#: What belongs to the model; checkpoints, optimizer states, samples and logs do not.
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "format.yaml")
_RECORDS = ("training.json", "metrics.jsonl")
#: What a command trains.
_KINDS = {
    "train-teacher warmup": "warmed-up-teacher",
    "train-teacher rl": "teacher",
    "train-student": "student",
    "train-solver": "solver",
}
_NOT_OURS = {"trainer_state.json", "training.json", "rlt-data.json"}
#: Names of a tokenizer may look like places, so only these keys are read as such.
_PLACES = ("name_or_path", "_file")


@dataclass(frozen=True)
class TrainedModel:
    """A model that a training made.

    Attributes:
        folder: its folder: that of the training, or ``best`` in it.
        recorded: training.json, without places of the machine.
        entries: lines of metrics.jsonl.
        config: config.json, or adapter_config.json.
        base: Hub id of the model it began from, where that is known.
        data: Hub ids of what it was trained on, likewise.
    """

    folder: Path
    recorded: dict[str, Any]
    entries: list[dict[str, Any]]
    config: dict[str, Any]
    base: str | None = None
    data: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """``teacher`` and ``solver`` by GRPO, ``warmed-up-teacher``, ``student``; ``fine-tuned`` where nothing says."""
        settings, command = self.recorded["depends_on"], self.recorded.get("command")
        if command in _KINDS:
            return _KINDS[command]
        if "benchmark" in settings:
            return "solver"
        if "lambda_" in settings:
            return "teacher"
        return "fine-tuned" if self.has_format else "student"

    @property
    def has_format(self) -> bool:
        """Whether a format lies beside it."""
        return (self.folder / "format.yaml").is_file()

    @property
    def is_adapter(self) -> bool:
        """Whether it is adapters for another model."""
        return (self.folder / "adapter_config.json").is_file()

    @property
    def is_best(self) -> bool:
        """Whether it is the checkpoint that did best, not the last one."""
        return not (self.folder / "training.json").is_file()


def training_folder(folder: Path) -> Path | None:
    """Return where a model's training.json lies: beside it, or above the folder ``best``."""
    places = [folder, folder.parent] if folder.name == "best" else [folder]
    return next((place for place in places if (place / "training.json").is_file()), None)


def read_model(folder: Path, base: str | None = None, data: Sequence[str] = ()) -> TrainedModel:
    """Read what a training wrote.

    Args:
        folder: of the model.
        base: Hub id of the model it began from; default: what the training recorded, if it came from the Hub.
        data: Hub ids of what it was trained on; default: likewise.

    Raises:
        RunFolderError: the training is not finished, or its files are not there.
    """
    training = training_folder(folder)
    assert training is not None
    recorded = _read_json(training / "training.json")
    if not isinstance(recorded.get("depends_on"), dict):
        raise RunFolderError(f"{training / 'training.json'}: not what a training of rlt-data writes")
    if "steps" not in recorded:
        raise RunFolderError(f"{training}: the training is not finished; run its command again, which continues it")
    if not list(folder.glob("*.safetensors")):
        raise RunFolderError(f"{folder}: there are no weights (no *.safetensors)")
    names = ("config.json", "adapter_config.json")
    config = next((_read_json(folder / name) for name in names if (folder / name).is_file()), {})
    began, rows = recorded.get("models", {}).get("model", {}), recorded.get("data", {})
    base = base or (began["name"] if began.get("revision") else hub_id(began.get("name", "")))
    base = base or hub_id(str(config.get("base_model_name_or_path")))
    data = data or ([rows["name"]] if rows.get("on_hub") else [])
    return TrainedModel(folder, redact_paths(recorded), _entries(training / "metrics.jsonl"), config, base, data)


def write_model(model: TrainedModel, root: Path) -> dict[str, Path]:
    """Return the files of a model by their names; those that name places of this machine are written anew.

    Args:
        model: the model.
        root: an empty folder.
    """
    found = {file.name: file for pattern in _PATTERNS for file in sorted(model.folder.glob(pattern))}
    training = training_folder(model.folder) or model.folder
    files = {name: file for name, file in found.items() if name not in _NOT_OURS}
    files |= {name: training / name for name in _RECORDS if (training / name).is_file()}
    changed: dict[str, Any] = {"training.json": model.recorded}
    for name in files:
        if name.endswith("config.json"):
            content = _read_json(files[name])
            public = _public_config(content)
            if "base_model_name_or_path" in content and model.base:
                public["base_model_name_or_path"] = model.base
            if public != content:
                changed[name] = public
    for name, content in changed.items():
        files[name] = root / name
        files[name].write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return files


def _public_config(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: public_name(value) if isinstance(value, str) and key.endswith(_PLACES) else value
        for key, value in content.items()
    }


def _entries(metrics: Path) -> list[dict[str, Any]]:
    if not metrics.is_file():
        return []
    try:
        return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise RunFolderError(f"{metrics}: cannot be read: {error}") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{file}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RunFolderError(f"{file}: cannot be read: no JSON object")
    return content
