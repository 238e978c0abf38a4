"""Paths of run folders: on a disk, or in an object store that fsspec reaches, such as S3 or Google Cloud Storage.

A path on a disk is a ``pathlib.Path``, one in a store a ``UPath``, which joins names in the same way.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from rlt_data.errors import DiskError, RunFolderError, first_line
from rlt_data.settings.base import is_url

if TYPE_CHECKING:  # at run time only a URL costs the import
    from upath import UPath

#: A place on a disk, or in a store.
StoragePath: TypeAlias = "Path | UPath"

#: Extras that bring the packages of the usual stores, by protocol.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
#: Protocols of stores in which nobody sees an object before all of it is there.
_WHOLE_OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"}


def storage_path(name: str | StoragePath) -> StoragePath:
    """Return where a name or URL leads.

    What a store once listed is not remembered by its library, for other machines write there too.

    Raises:
        RunFolderError: the URL is of an unknown protocol, needs a package that is not there, or is none of a folder.
    """
    if not isinstance(name, (str, Path)):
        return type(name)(name, use_listings_cache=False)
    if not is_url(str(name)):
        if re.match(r"(s3|gs):/", str(name)):  # what a Path makes of a URL
            raise RunFolderError(f"{name}: a URL has two slashes after its protocol, and is no Path")
        return Path(name)
    protocol, rest = str(name).split("://", 1)
    if protocol in ("file", "local"):
        return Path(rest)
    if "::" in protocol or set(rest) & set("*?[") or not rest.strip("/"):
        raise RunFolderError(f"{name}: the URL of a run folder is PROTOCOL://FOLDER, and holds none of :: * ? [")
    return _in_store(str(name).rstrip("/"), protocol)


def absolute_path(name: str | StoragePath) -> StoragePath:
    """Return a path or URL that stays valid when the working directory changes."""
    path = storage_path(name)
    return path.absolute() if isinstance(path, Path) else path


def _in_store(url: str, protocol: str) -> UPath:
    import fsspec
    from upath import UPath

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'rlt-data[{extra}]'" if extra else first_line(error)
        raise RunFolderError(f"{url}: the package for {protocol}:// is not installed: {remedy}") from None
    except ValueError:
        raise RunFolderError(
            f"{url}: unknown protocol {protocol}://; takes s3://, gs:// and others that fsspec knows, or a folder"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it has no class of its own for a rare protocol
        return UPath(url, use_listings_cache=False)


@contextlib.contextmanager
def disk_errors(path: StoragePath) -> Iterator[None]:
    """Turn the refusals of the operating system, or of a store, into DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"cannot write {path}: {refusal(error)}. What was there before is unchanged.") from None


def refusal(error: OSError) -> str:
    """Return what an error says, without the place."""
    return error.strerror or first_line(error)


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn what a store's library raises into OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - every library has its own kinds
        raise OSError(first_line(error)) from None


def has_whole_objects(path: UPath) -> bool:
    """Whether nobody sees an object of this store before all of it is uploaded."""
    return path.protocol in _WHOLE_OBJECTS
