"""Read the folder of a finished training, and choose the files to publish."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlt_data.errors import RunFolderError
from rlt_data.libraries import hub_id
from rlt_data.publish.redact import public_name, redact_paths

#: Files of the model. Checkpoints, optimizer states, samples and logs are not published.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "format.yaml")
_RECORDS = ("training.json", "metrics.jsonl")
#: Kind of model, by the command that trained it.
_KINDS = {
    "train-teacher warmup": "warmed-up-teacher",
    "train-teacher rl": "teacher",
    "train-student": "student",
    "train-solver": "solver",
}
_EXCLUDED = {"trainer_state.json", "training.json", "rlt-data.json"}
#: Endings of config keys whose values are paths. Other values of a tokenizer's config can look like paths too.
_PATH_KEYS = ("name_or_path", "_file")


@dataclass(frozen=True)
class TrainedModel:
    """A model that a training of rlt-data wrote.

    Attributes:
        folder: the folder of the weights: that of the training, or ``best`` in it.
        recorded: the content of training.json, without local paths.
        entries: the lines of metrics.jsonl.
        config: the content of config.json or adapter_config.json.
        base: Hub id of the base model, if known.
        data: Hub ids of the training data, if known.
    """

    folder: Path
    recorded: dict[str, Any]
    entries: list[dict[str, Any]]
    config: dict[str, Any]
    base: str | None = None
    data: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """``teacher``, ``warmed-up-teacher``, ``solver`` or ``student``; ``fine-tuned`` if the kind is not recorded."""
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
        """Whether the folder has a prompt format."""
        return (self.folder / "format.yaml").is_file()

    @property
    def is_adapter(self) -> bool:
        """Whether the folder has LoRA adapters instead of a complete model."""
        return (self.folder / "adapter_config.json").is_file()

    @property
    def is_best(self) -> bool:
        """Whether the weights are those of the best checkpoint, not of the last step."""
        return not (self.folder / "training.json").is_file()


def training_folder(folder: Path) -> Path | None:
    """Return the folder with a model's training.json: its own, or the parent of ``best``; None without one."""
    candidates = [folder, folder.parent] if folder.name == "best" else [folder]
    return next((candidate for candidate in candidates if (candidate / "training.json").is_file()), None)


def read_model(folder: Path, base: str | None = None, data: Sequence[str] = ()) -> TrainedModel:
    """Read the folder of a finished training.

    Args:
        folder: the folder of the weights.
        base: Hub id of the base model; default: the recorded one, if the training loaded it from the Hub.
        data: Hub ids of the training data; default: the recorded one, if the training loaded it from the Hub.

    Raises:
        RunFolderError: the training is not finished, a file is missing or damaged, or the base of an adapter is not on
            the Hub.
    """
    training = training_folder(folder)
    assert training is not None
    recorded = _read_json(training / "training.json")
    if not isinstance(recorded.get("depends_on"), dict):
        raise RunFolderError(f"{training / 'training.json'}: was not written by a training of rlt-data")
    if "steps" not in recorded:
        raise RunFolderError(f"{training}: the training is not finished; run its command again to continue it")
    if not list(folder.glob("*.safetensors")):
        raise RunFolderError(f"{folder}: has no weights (*.safetensors)")
    names = ("config.json", "adapter_config.json")
    config = next((_read_json(folder / name) for name in names if (folder / name).is_file()), {})
    base_entry, rows = recorded.get("models", {}).get("model", {}), recorded.get("data", {})
    base = base or (base_entry["name"] if base_entry.get("revision") else hub_id(base_entry.get("name", "")))
    base = base or hub_id(str(config.get("base_model_name_or_path")))
    if not base and (folder / "adapter_config.json").is_file():
        raise RunFolderError(
            f"{folder}: is an adapter for {base_entry.get('name')}, which is not on the Hub; push that model first, "
            "and name it with --base-model"
        )
    data = data or ([rows["name"]] if rows.get("on_hub") else [])
    return TrainedModel(folder, redact_paths(recorded), _entries(training / "metrics.jsonl"), config, base, data)


def write_model(model: TrainedModel, root: Path) -> dict[str, Path]:
    """Return the files to publish by their names, after rewriting those that contain local paths.

    Args:
        model: the model.
        root: an empty folder for the rewritten files.
    """
    matches = {file.name: file for pattern in _MODEL_FILES for file in sorted(model.folder.glob(pattern))}
    training = training_folder(model.folder) or model.folder
    files = {name: file for name, file in matches.items() if name not in _EXCLUDED}
    files |= {name: training / name for name in _RECORDS if (training / name).is_file()}
    rewritten: dict[str, Any] = {"training.json": model.recorded}
    for name in files:
        if name.endswith("config.json"):
            content = _read_json(files[name])
            public = _public_config(content)
            if "base_model_name_or_path" in content and model.base:
                public["base_model_name_or_path"] = model.base
            if public != content:
                rewritten[name] = public
    for name, content in rewritten.items():
        files[name] = root / name
        files[name].write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return files


def _public_config(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: public_name(value) if isinstance(value, str) and key.endswith(_PATH_KEYS) else value
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
        raise RunFolderError(f"{file}: cannot be read: not a JSON object")
    return content
