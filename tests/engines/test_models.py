"""The cache of fingerprints, and which files count as weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from rlt_data.engines import Checkpoint, find_checkpoint, open_model, open_tokenizer
from rlt_data.engines import open as opening
from rlt_data.engines.models import cache_folder, file_hash, tokenizer_fingerprint, weights_fingerprint
from rlt_data.settings import ModelSettings


class Counting:
    """A tokenizer that counts how often it is hashed."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = open_tokenizer(Checkpoint("m", folder), ModelSettings())[0]
        self.hashed = 0

    @property
    def backend_tokenizer(self) -> Any:
        self.hashed += 1
        return self.tokenizer.backend_tokenizer


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLT_DATA_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny(), tmp_path / "model"))


def entries() -> list[Path]:
    return list((cache_folder() / "fingerprints").iterdir())


def _rewrite(file: Path) -> None:
    file.write_text(file.read_text().replace("a", "b", 1))  # the same size


def _touch(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def test_the_fingerprint_of_a_tokenizer_is_the_one_in_existing_runs(folder: Path) -> None:
    tokenizer = Counting(folder)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for part in ("truncation", "padding", "post_processor"):
        del content[part]
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode() + b"\0", digest_size=8).hexdigest()
    checkpoint = Checkpoint("m", folder)
    for given in (None, checkpoint, checkpoint):
        assert tokenizer_fingerprint(tokenizer, given) == digest
    assert tokenizer.hashed == 3  # the last one came from the cache


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: _rewrite(folder / "tokenizer.json"),
        lambda folder: _touch(folder / "tokenizer_config.json"),
        lambda folder: _touch(folder / "config.json"),  # names the class of the tokenizer
        lambda folder: (folder / "added_tokens.json").write_text("{}"),
        lambda folder: (folder / "tokenizer_config.json").rename(folder / "other.json"),
    ],
)
def test_a_changed_file_is_noticed(folder: Path, change: Callable[[Path], object]) -> None:
    tokenizer, checkpoint = Counting(folder), Checkpoint("m", folder)
    tokenizer_fingerprint(tokenizer, checkpoint)
    change(folder)
    tokenizer_fingerprint(tokenizer, checkpoint)
    assert tokenizer.hashed == 2
    tokenizer_fingerprint(tokenizer, checkpoint)
    assert tokenizer.hashed == 2


def test_a_changed_vocabulary_has_another_fingerprint(folder: Path) -> None:
    before = open_model(str(folder), ModelSettings()).identity
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 402, "content": "<|new|>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    after = open_model(str(folder), ModelSettings()).identity
    assert after.tokenizer != before.tokenizer and after.weights == before.weights


def test_weights_are_no_part_of_a_tokenizer(folder: Path) -> None:
    tokenizer, checkpoint = Counting(folder), Checkpoint("m", folder)
    tokenizer_fingerprint(tokenizer, checkpoint)
    _touch(folder / "model.safetensors")
    tokenizer_fingerprint(tokenizer, checkpoint)
    assert tokenizer.hashed == 1


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"0 0 ", b"{stamp}", b"{stamp} 0123", b"{stamp} ../../etc/pw"]
)
def test_a_damaged_entry_is_computed_again(folder: Path, content: bytes) -> None:
    tokenizer, checkpoint = Counting(folder), Checkpoint("m", folder)
    fingerprint = tokenizer_fingerprint(tokenizer, checkpoint)
    weights = file_hash(folder / "model.safetensors")
    undamaged = {entry: entry.read_text() for entry in entries()}
    for entry, text in undamaged.items():
        entry.write_bytes(content.replace(b"{stamp}", text.rpartition(" ")[0].encode()))
    assert tokenizer_fingerprint(tokenizer, checkpoint) == fingerprint and tokenizer.hashed == 2
    assert file_hash(folder / "model.safetensors") == weights
    assert {entry: entry.read_text() for entry in entries()} == undamaged


def test_a_cache_that_cannot_be_written_costs_only_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLT_DATA_CACHE", str(tmp_path / "file"))
    tokenizer, checkpoint = Counting(folder), Checkpoint("m", folder)
    assert tokenizer_fingerprint(tokenizer, checkpoint) == tokenizer_fingerprint(tokenizer, checkpoint)
    assert tokenizer.hashed == 2


def test_several_processes_may_fill_the_cache_at_once(folder: Path) -> None:
    tokenizers = [Counting(folder) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda each: tokenizer_fingerprint(each, Checkpoint("m", folder)), tokenizers))
    [entry] = entries()  # and no temporary file
    assert found == {entry.read_text().rpartition(" ")[2]}


def test_code_of_a_checkpoint_may_change_a_tokenizer_unseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Checkpoint | None] = []
    monkeypatch.setattr(opening, "tokenizer_fingerprint", lambda _, checkpoint: given.append(checkpoint) or "f" * 16)
    for trust in (True, False):
        open_model(str(folder), ModelSettings(trust_remote_code=trust))
    assert given == [None, Checkpoint(str(folder), folder)]


def test_mistrals_second_copy_of_the_weights_is_neither_downloaded_nor_hashed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights_fingerprint(Checkpoint("m", folder))
    for name in ("consolidated.safetensors", "consolidated-00001-of-00002.safetensors"):
        shutil.copy(folder / "model.safetensors", folder / name)
    assert weights_fingerprint(Checkpoint("m", folder)) == before

    def snapshot_download(name: str, revision: str | None, **patterns: list[str]) -> str:
        target = tmp_path / "snapshot"
        target.mkdir(exist_ok=True)
        for file in filter_repo_objects([file.name for file in folder.iterdir()], **patterns):
            shutil.copy(folder / file, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    checkpoint = find_checkpoint("mistral/model")
    assert weights_fingerprint(checkpoint) == before
    assert [file.name for file in checkpoint.folder.glob("*.safetensors")] == ["model.safetensors"]

    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")  # no second look at the copies
    (checkpoint.folder / "model.safetensors").unlink()
    assert {file.suffix for file in find_checkpoint("mistral/model").folder.iterdir()} >= {".bin", ".json"}
    assert not list(checkpoint.folder.glob("*.safetensors"))
