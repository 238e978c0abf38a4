"""Write files and folders outside a run atomically: a page, a data set, a merged run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from rlt_data.storage.backends import open_folder
from rlt_data.storage.folder import Write, json_text
from rlt_data.storage.local import LocalFolder
from rlt_data.storage.paths import StoragePath

AnyPath = TypeVar("AnyPath", Path, StoragePath)


def write_file(path: Path, write: Write) -> None:
    """Write a file on the disk atomically.

    Raises:
        RunFolderError: another process is writing the file.
        DiskError: the disk is full or the folder cannot be written; nothing has changed.
    """
    path = _resolve_link(path)
    with LocalFolder(path.parent).replace(path.name, files=[path.name]) as staging:
        write(staging / path.name)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file on the disk atomically; see :func:`write_file`."""
    write_file(path, lambda file: file.write_text(json_text(content), encoding="utf-8"))


def lock_folder(path: Path) -> AbstractContextManager[None]:
    """Hold the write lock of a folder on the disk, while other libraries write to it.

    Raises:
        RunFolderError: another process holds the lock.
        DiskError: the folder cannot be created or written.
    """
    return LocalFolder(path).lock()


@contextlib.contextmanager
def new_folder(path: StoragePath) -> Iterator[Path]:
    """Yield an empty folder on the disk, which replaces ``path`` when the block ends.

    The old folder stays if the block raises.

    Raises:
        RunFolderError: another process is writing the folder.
        DiskError: the folder cannot be written; nothing has changed.
    """
    path = _resolve_link(path)
    with open_folder(path.parent).replace(path.name, folders=[path.name]) as staging:
        (staging / path.name).mkdir()
        yield staging / path.name


def _resolve_link(path: AnyPath) -> AnyPath:
    """Return the target of a symbolic link, or any other path unchanged, so that messages show it as given."""
    return path.resolve() if path.is_symlink() else path
