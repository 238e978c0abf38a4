"""The backend for a path or URL."""

from __future__ import annotations

from pathlib import Path

from rlt_data.storage.folder import Folder
from rlt_data.storage.local import LocalFolder
from rlt_data.storage.objects import ObjectFolder
from rlt_data.storage.paths import StoragePath, storage_path


def open_folder(path: str | StoragePath) -> Folder:
    """Return the backend for a path or URL; nothing is created.

    Raises:
        RunFolderError: the URL has an unknown protocol or is malformed, or the package for its protocol is missing.
    """
    found = storage_path(path)
    return LocalFolder(found) if isinstance(found, Path) else ObjectFolder(found)
