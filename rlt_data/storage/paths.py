"""Paths of run folders, on a disk or in an object store that fsspec supports, such as S3 or Google Cloud Storage.

A path on a disk is a ``pathlib.Path``. A path in a store is a ``UPath``, which has the same methods.
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

if TYPE_CHECKING:  # at run time only URLs need this slow import
    from upath import UPath

#: A path on a disk or in an object store.
StoragePath: TypeAlias = "Path | UPath"

#: Extras of rlt-data that install the packages for common stores, by protocol.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
#: Protocols of stores in which an object becomes visible only when its upload is complete.
_ATOMIC_UPLOADS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"}


def storage_path(name: str | StoragePath) -> StoragePath:
    """Return the path for a name or URL.

    Listings of a store are not cached, because other machines may write to it.

    Raises:
        RunFolderError: the URL has an unknown protocol, needs a missing package, or cannot be the URL of a folder.
    """
    if not isinstance(name, (str, Path)):
        return type(name)(name, use_listings_cache=False)
    if not is_url(str(name)):
        if re.match(r"(s3|gs):/", str(name)):  # pathlib.Path removes the second slash of a URL
            raise RunFolderError(f"{name}: a URL needs two slashes after its protocol; give it as a str, not as a Path")
        return Path(name)
    protocol, location = str(name).split("://", 1)
    if protocol in ("file", "local"):
        return Path(location)
    if "::" in protocol or set(location) & set("*?[") or not location.strip("/"):
        raise RunFolderError(f"{name}: the URL of a run folder must be PROTOCOL://FOLDER without any of :: * ? [")
    return _in_store(str(name).rstrip("/"), protocol)


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
            f"{url}: unknown protocol {protocol}://; use a folder, or a URL with s3://, gs:// or another protocol of "
            "fsspec"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that UPath has no special class for a rare protocol
        return UPath(url, use_listings_cache=False)


@contextlib.contextmanager
def disk_errors(path: StoragePath) -> Iterator[None]:
    """Turn errors of the operating system or of a store into DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"cannot write {path}: {refusal(error)}. Its previous content is unchanged.") from None


def refusal(error: OSError) -> str:
    """Return the message of an error, without the path."""
    return error.strerror or first_line(error)


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of a store's library into OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - every library has other error types
        raise OSError(first_line(error)) from None


def uploads_atomically(path: UPath) -> bool:
    """Return whether an object of this store becomes visible only when its upload is complete."""
    return path.protocol in _ATOMIC_UPLOADS
