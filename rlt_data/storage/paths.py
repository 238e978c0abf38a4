"""Places of run folders: on a disk, or in a store that fsspec reaches, such as S3 or Google Cloud Storage.

A place on a disk is a ``pathlib.Path``, one in a store a ``UPath``, which names files in the same way. What the two do
differently is here, in locks.py (who may write), listing.py (which files there are) and parquet.py (reading them):

- A file appears whole by a rename on a disk, and by the end of its upload in a store.
- A store has no folders to make, to rename or to clear, and nothing is appended to an object.
- The libraries behind stores raise errors of many kinds; they come out of here as OSError, as those of a disk do.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rlt_data.errors import DiskError, RltDataError, RunFolderError, first_line
from rlt_data.settings.base import is_url

if TYPE_CHECKING:  # at run time only a URL costs the import
    from upath import UPath

#: A place on a disk, or in a store.
Place: TypeAlias = "Path | UPath"

#: Stands in a folder of a store while its files are replaced one after the other.
UNFINISHED = ".unfinished"

#: Extras that bring the packages of the usual stores, by protocol.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
#: Protocols of stores in which nobody sees an object before all of it is there.
_WHOLE_OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"}


def place(name: str | Place) -> Place:
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
def disk_errors(path: Place) -> Iterator[None]:
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


# Looking and reading; all raise OSError


def exists(path: Place) -> bool:
    """Whether there is a file or a folder."""
    if isinstance(path, Path):
        return path.exists()
    try:
        with store_errors():
            path.fs.info(path.path)
    except FileNotFoundError:
        return False
    return True


def is_folder(path: Place) -> bool:
    """Whether there is a folder; in a store that is a name with which others begin."""
    return path.is_dir() if isinstance(path, Path) else exists(path)


def read_bytes(path: Place) -> bytes:
    """Return the content of a file."""
    if isinstance(path, Path):
        return path.read_bytes()
    with store_errors():
        return bytes(path.fs.cat_file(path.path))


def names_in(folder: Place) -> set[str]:
    """Return the names of the files and folders in a folder; none if it is not there, its own if it is a file."""
    if isinstance(folder, Path):
        if folder.is_dir():
            return {path.name for path in folder.iterdir()}
        return {folder.name} if folder.exists() else set()
    return {name.partition("/")[0] for name in names_below(folder)}


def names_below(folder: UPath) -> list[str]:
    """Return all names that begin with a folder's, without it: ``part-00000.parquet``, ``00000/4f.parquet``."""
    try:
        with store_errors():
            found = folder.fs.find(folder.path)
    except FileNotFoundError:
        return []
    return [name.removeprefix(folder.path).lstrip("/") for name in found]


def writable(folder: Place) -> bool:
    """Whether files can be written to a folder; of a store only trying tells, and it is said to be."""
    return not isinstance(folder, Path) or os.access(folder, os.W_OK)


# Writing


def write_file(path: Place, write: Callable[[Path], object]) -> None:
    """Make a file appear whole.

    On a disk it is written beside its place, synchronised, renamed, and the folder synchronised. For a store it is
    written to a temporary file and uploaded.

    Raises:
        DiskError: the disk is full or the folder cannot be written; nothing has changed.
    """
    with disk_errors(path):
        if isinstance(path, Path):
            _write_on_disk(path, write)
        else:
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / path.name
                write(temporary)
                upload(temporary, path)


def write_json(path: Place, content: Any) -> None:
    """Make a JSON file appear whole; see :func:`write_file`."""
    write_file(path, json_writer(content))


def json_writer(content: Any) -> Callable[[Path], object]:
    """Return a function that writes JSON to a file, for :func:`write_file`."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")


def _write_on_disk(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(temporary)
        _synchronise(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _synchronise(path.parent)


def upload(file: Path, path: UPath, *, new: bool = False) -> None:
    """Put a file from the disk into a store.

    Args:
        file: what to upload.
        path: where to.
        new: refuse if something is there; as one step with the writing where the store can do that.

    Raises:
        FileExistsError: it is to be new and is not.
        OSError: the store refuses it or is out of reach.
    """
    fs, target, whole = path.fs, path.path, path.protocol in _WHOLE_OBJECTS
    with store_errors():
        if not whole:  # such as sftp: folders of another machine, where half a file can be seen
            fs.makedirs(path.parent.path, exist_ok=True)
        if new:
            fs.put_file(str(file), target, mode="create")
        elif whole:
            fs.put_file(str(file), target)
        else:
            fresh = f"{path.parent.path.rstrip('/')}/.{path.name}.{uuid.uuid4().hex[:8]}.tmp"
            fs.put_file(str(file), fresh)
            fs.mv(fresh, target)


def copy_file(source: Place, target: Path) -> None:
    """Copy a file to the disk, as a hard link where that goes; files of a run are never changed in place."""
    if not isinstance(source, Path):
        with store_errors():
            source.fs.get_file(source.path, str(target))
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove_objects(paths: Sequence[UPath]) -> None:
    """Remove files of a store."""
    if paths:
        with store_errors():
            paths[0].fs.rm([path.path for path in paths])


def remove_folder(folder: Place, files: Sequence[Place]) -> None:
    """Remove a folder with all that is in it; in a store that is the files that are named."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        remove_objects([file for file in files if not isinstance(file, Path)])


def remove_empty(folder: Place) -> None:
    """Remove a folder if it is empty; a store has none that is."""
    if isinstance(folder, Path):
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def appending(path: Place, *, before: Callable[[], None]) -> Iterator[Path]:
    """Hand out a file on the disk; what is written to its end comes to the end of a file.

    In a store it does so when the block ends, however it ends.

    Args:
        path: the file.
        before: is called before the file is written in a store.

    Raises:
        DiskError: it cannot be written; not in place of what the block raises.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        more = Path(folder) / path.name
        try:
            yield more
        except BaseException:
            with contextlib.suppress(RltDataError):
                _append(path, more, before)
            raise
        _append(path, more, before)


def _append(path: UPath, more: Path, before: Callable[[], None]) -> None:
    with disk_errors(path):
        before()
        earlier = read_bytes(path) if exists(path) else b""
        added = more.read_bytes() if more.exists() else b""
    write_file(path, lambda temporary: temporary.write_bytes(earlier + added))


def is_unfinished(folder: Place) -> bool:
    """Whether a folder in a store was being replaced when its process was killed; see :func:`new_folder`."""
    return not isinstance(folder, Path) and UNFINISHED in names_in(folder)


@contextlib.contextmanager
def new_folder(final: Place, *, replace: bool = True, before_each: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Hand out a folder on the disk to fill, which takes the place of another when the block ends.

    On a disk that is one rename. A store gets one file after the other, those of inner folders first, and then loses
    the files that are left of the earlier folder; meanwhile :data:`UNFINISHED` stands there, and stays if that is
    never completed. The earlier folder stays as it is if the block raises.

    Args:
        final: the folder.
        replace: whether there may be an earlier one.
        before_each: is called before every upload.

    Raises:
        DiskError: it cannot be written.
    """
    if isinstance(final, Path):
        with _new_folder_on_disk(final, replace=replace) as fresh:
            yield fresh
        return
    with tempfile.TemporaryDirectory() as folder:
        with disk_errors(final):
            yield Path(folder)
            if not replace and names_in(final) and not is_unfinished(final):
                raise FileExistsError("something came to be there meanwhile")
        try:
            _upload_folder(Path(folder), final, before_each)
        except OSError as error:
            raise DiskError(f"cannot write all of {final}: {refusal(error)}. Do this step again.") from None


@contextlib.contextmanager
def _new_folder_on_disk(final: Path, *, replace: bool) -> Iterator[Path]:
    fresh, earlier = final.parent / f".{final.name}.new.tmp", final.parent / f".{final.name}.old.tmp"
    with disk_errors(final):
        for leftover in (fresh, earlier):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            yield fresh
            for file in fresh.rglob("*"):
                if file.is_file():
                    _synchronise(file)
            if replace and final.exists():
                final.rename(earlier)
            fresh.rename(final)
            _synchronise(final.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(earlier, ignore_errors=True)


def _upload_folder(folder: Path, final: UPath, before_each: Callable[[], None]) -> None:
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    earlier = set(names_below(final)) - {file.as_posix() for file in files} - {UNFINISHED}
    mark = folder / UNFINISHED
    mark.touch()
    # What describes a folder stands at its top and comes last: run.json, the README of a data set.
    for file in [Path(UNFINISHED), *sorted(files, key=lambda file: (len(file.parts) == 1, file))]:
        before_each()
        upload(folder / file, final / file.as_posix())
    remove_objects([final / name for name in sorted(earlier)])
    remove_objects([final / UNFINISHED])


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
