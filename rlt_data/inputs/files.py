"""Find the files that an input names: files, folders, shell patterns, and data sets for the ``datasets`` library."""

from __future__ import annotations

import glob
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import xxhash

from rlt_data.errors import InputError, SettingsError, one_line
from rlt_data.settings import InputSettings
from rlt_data.settings.base import is_url, name_of_input

#: Types of files by their suffix.
_TYPES = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet"}
_COMPRESSED = (".gz", ".zst")

#: Files that only a folder written by ``datasets`` has.
_DATASET_FILES = ("dataset_dict.json", "state.json", "dataset_infos.json")

#: What files, decompressors and Arrow raise for damaged content and for values that Python cannot represent.
_UNREADABLE = (OSError, EOFError, ValueError, ArithmeticError, LookupError, zlib.error, pa.ArrowException)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SPLITS = {
    "train": re.compile(r"(?<![a-z])train(ing)?(?![a-z])"),
    "validation": re.compile(r"(?<![a-z])(val|valid|validation|dev)(?![a-z])"),
    "test": re.compile(r"(?<![a-z])(test|testing|eval|evaluation)(?![a-z])"),
}

#: Names that a notice lists at most.
_LISTED = 5


@dataclass(frozen=True)
class Source:
    """One file, or one data set that ``datasets`` reads.

    Attributes:
        name: path or Hub id.
        kind: file, folder (a data set on this machine) or hub.
        label: short name for the locations of its records; empty if the input has no other source.
    """

    name: str
    kind: Literal["file", "folder", "hub"]
    label: str = ""


@dataclass(frozen=True)
class Sources:
    """The sources of an input in their order, and a line for each choice that was made."""

    sources: tuple[Source, ...]
    notices: tuple[str, ...] = ()


def find_sources(settings: InputSettings) -> Sources:
    """Return the files and data sets that an input names.

    A folder stands for all its files of known types, also in subfolders, in sorted order; hidden files are skipped. A
    file that is named twice is read once.

    Raises:
        InputError: a file does not exist, or is no data file.
        SettingsError: a setting has no effect on this input.
    """
    found: list[Source] = []
    notices: list[str] = []
    for name in [settings.input] if isinstance(settings.input, str) else settings.input:
        found += _sources_of(name, settings, notices)
    sources: dict[str, Source] = {}
    for source in found:
        key = source.name if source.kind == "hub" else os.path.realpath(source.name)
        if sources.setdefault(key, source) is not source:
            notices.append(f"{source.name}: is named twice and read once")
    _refuse_unread(settings, list(sources.values()))
    return Sources(tuple(_labelled(list(sources.values()))), tuple(notices))


def _sources_of(name: str, settings: InputSettings, notices: list[str]) -> list[Source]:
    """Return the sources of one name, and add to the notices."""
    if not name.strip():
        raise InputError("--in: is empty; name a file, a folder, or a data set on the Hub (ORG/NAME)")
    if is_url(name):
        raise InputError(f"{name}: input must be on this machine; only run folders can be URLs")
    path = Path(name)
    with readable(path):
        if path.is_dir():
            return _in_folder(path, settings, notices)
        if path.exists():
            return [_file(path)]
    if glob.has_magic(name):
        return _matching(name, settings, notices)
    if _HUB_ID.fullmatch(name) and not path.suffix:
        return [Source(name, "hub")]
    raise InputError(f"{name}: no such file or folder (name a data set on the Hub as ORG/NAME)")


def _file(path: Path) -> Source:
    if file_type(path) is None:
        raise InputError(
            f"{path}: unknown file type; expected .jsonl (also .gz or .zst), .json, .csv, .tsv or .parquet"
        )
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: is not a regular file; inputs are read several times, so write the rows to a file")
    return Source(str(path), "file")


def file_type(path: Path) -> str | None:
    """Return the type of a file by its suffix: jsonl, json, csv or parquet; None if it is another."""
    name = path.name.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return _TYPES.get(name.rpartition(".")[2]) if "." in name else None


def _matching(pattern: str, settings: InputSettings, notices: list[str]) -> list[Source]:
    """Return the sources that a shell pattern such as ``data/*.jsonl`` matches; files of unknown types are skipped."""
    paths = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise InputError(f"{pattern}: no such file, and no file matches this pattern")
    folders = {path for path in paths if path.is_dir()}
    paths = [path for path in paths if not folders & set(path.parents)]  # ** matches folders and their files
    skipped = [path for path in paths if path not in folders and not file_type(path)]
    if len(skipped) == len(paths):
        raise InputError(f"{pattern}: matches only files of unknown types: {_listed(map(str, skipped))}")
    _note_skipped(pattern, list(map(str, skipped)), notices)
    sources = []
    for path in paths:
        if path not in skipped:
            sources += _in_folder(path, settings, notices) if path in folders else [_file(path)]
    return sources


def _in_folder(folder: Path, settings: InputSettings, notices: list[str]) -> list[Source]:
    """Return the files of a folder, or the folder itself if it is a data set for ``datasets``."""
    paths = [str(path.relative_to(folder)) for path in _walk(folder)]
    if not paths:
        raise InputError(f"{folder}: the folder is empty")
    files = [path for path in paths if file_type(Path(path))]
    splits = [split for split, word in _SPLITS.items() if any(word.search(path.lower()) for path in files)]
    if _is_dataset(folder):
        return [Source(str(folder), "folder")]
    if len(splits) > 1 or settings.not_default("split", "subset"):
        word = _SPLITS.get(settings.split)
        if others := [path for path in files if word is None or not word.search(path.lower())]:
            notices.append(f"{folder}: only the split {settings.split!r} is read (--split), not {_listed(others)}")
        return [Source(str(folder), "folder")]
    skipped = [path for path in paths if path not in files]
    if not files:
        raise InputError(f"{folder}: has only files of unknown types: {_listed(skipped)}")
    _note_skipped(str(folder), skipped, notices)
    return [_file(folder / path) for path in files]


def _is_dataset(folder: Path) -> bool:
    """Return whether ``datasets`` wrote a folder, or its README configures it."""
    if any((folder / name).exists() for name in _DATASET_FILES):
        return True
    readme = folder / "README.md"
    with readable(readme):
        text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    header = re.match(r"\ufeff?---\s*\n(.*?)\n---", text, re.S)
    return header is not None and re.search(r"^configs\s*:", header[1], re.M) is not None


def _walk(folder: Path) -> list[Path]:
    """Return the files in a folder and its subfolders, sorted, without hidden ones and without loops of links."""
    files: list[Path] = []
    visited: set[str] = set()
    with readable(folder):
        for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            visited.add(os.path.realpath(root))
            folders[:] = [
                name for name in folders if name[0] != "." and os.path.realpath(os.path.join(root, name)) not in visited
            ]
            files += [Path(root, name) for name in names if name[0] != "."]
    return sorted(files, key=lambda path: path.parts)


def _raise(error: OSError) -> None:
    raise error


def _note_skipped(name: str, skipped: list[str], notices: list[str]) -> None:
    if skipped:
        notices.append(f"{name}: skipped files of unknown types: {_listed(skipped)}")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _labelled(sources: list[Source]) -> Iterator[Source]:
    """Give several sources labels: the last part of their paths, or the whole path if that is not unique."""
    if len(sources) == 1:
        yield sources[0]
        return
    last = [source.name if source.kind == "hub" else Path(source.name).name for source in sources]
    names = last if len(set(last)) == len(last) else [source.name for source in sources]
    for source, label in zip(sources, names, strict=True):
        yield Source(source.name, source.kind, label)


def _refuse_unread(settings: InputSettings, sources: list[Source]) -> None:
    """Raise SettingsError if a setting for data sets is given and no source reads it."""
    kinds = {source.kind for source in sources}
    for kind, names in (({"folder", "hub"}, ("split", "subset")), ({"hub"}, ("revision",))):
        if not kinds & kind and (unread := settings.not_default(*names)):
            is_folder = isinstance(settings.input, str) and Path(settings.input).is_dir()
            what = "which is a folder" if is_folder else "which is a file" if len(sources) == 1 else "which are files"
            raise SettingsError(f"--{unread[0]}: has no effect on {name_of_input(settings.input)}, {what}")


def digest_of(sources: Sources) -> str | None:
    """Return a hash of the bytes of all files, or None if a source is not a file."""
    if any(source.kind != "file" for source in sources.sources):
        return None
    digests = [_file_digest(Path(source.name)) for source in sources.sources]
    return digests[0] if len(digests) == 1 else xxhash.xxh3_128("".join(digests).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with readable(path), path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors of reading a file or folder into InputError."""
    try:
        yield
    except _UNREADABLE as error:
        raise InputError(f"{path_of(error) or path}: cannot be read: {reason_of(error)}") from None


def path_of(error: BaseException) -> str | None:
    """Return the file that an error is about, or None if it does not say."""
    filename = getattr(error, "filename", None)
    return filename if isinstance(filename, str) else None


def reason_of(error: BaseException) -> str:
    """Return an error as one line, without the file that it is about."""
    return getattr(error, "strerror", None) or one_line(error)
