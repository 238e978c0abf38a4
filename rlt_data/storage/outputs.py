"""Files and folders outside a run: a page, a data set, a merged run. Each appears whole, written by one process."""

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
    """Make a file on the disk appear whole.

    Raises:
        RunFolderError: another process is writing it.
        DiskError: the disk is full or the folder cannot be written; nothing has changed.
    """
    path = _followed(path)
    with LocalFolder(path.parent).replace(path.name, files=[path.name]) as fresh:
        write(fresh / path.name)


def write_json(path: Path, content: Any) -> None:
    """Make a JSON file appear whole; see :func:`write_file`."""
    write_file(path, lambda file: file.write_text(json_text(content), encoding="utf-8"))


def lock_folder(path: Path) -> AbstractContextManager[None]:
    """Hold a folder on the disk for writing, while other libraries write to it.

    Raises:
        RunFolderError: another process holds it.
        DiskError: it cannot be created or written.
    """
    return LocalFolder(path).lock()


@contextlib.contextmanager
def new_folder(path: StoragePath) -> Iterator[Path]:
    """Hand out a folder on the disk to fill; when the block ends it takes the place of ``path``.

    What was there stays if the block raises.

    Raises:
        RunFolderError: another process is writing it.
        DiskError: it cannot be written; nothing has changed.
    """
    path = _followed(path)
    with open_folder(path.parent).replace(path.name, folders=[path.name]) as fresh:
        (fresh / path.name).mkdir()
        yield fresh / path.name


def _followed(path: AnyPath) -> AnyPath:
    """Return where a symbolic link points to; other paths as they are, for messages."""
    return path.resolve() if path.is_symlink() else path
