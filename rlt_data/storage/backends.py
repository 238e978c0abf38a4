"""Choose the backend of a path or URL."""

from __future__ import annotations

from pathlib import Path

from rlt_data.storage.folder import Folder
from rlt_data.storage.local import LocalFolder
from rlt_data.storage.objects import ObjectFolder
from rlt_data.storage.paths import StoragePath, storage_path


def open_folder(path: str | StoragePath) -> Folder:
    """Return the backend of a path or URL, without creating anything.

    Raises:
        RunFolderError: the URL is malformed, its protocol is unknown, or the package for the protocol is missing.
    """
    location = storage_path(path)
    return LocalFolder(location) if isinstance(location, Path) else ObjectFolder(location)
