"""Read data sets with the ``datasets`` library: folders that it wrote or that name splits, and the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlt_data.errors import InputError, one_line
from rlt_data.inputs.files import Source, path_of, reason_of
from rlt_data.libraries import quiet_bars
from rlt_data.settings import InputSettings


def read_dataset(source: Source, settings: InputSettings) -> Iterator[dict[str, Any]]:
    """Yield the rows of the split and subset that the settings name.

    Raises:
        InputError: the data set cannot be read, or has no such split.
    """
    shards = _load_folder(Path(source.name), settings) if source.kind == "folder" else _load_hub(source.name, settings)
    for shard in shards:
        try:
            for data in shard.rows:
                yield dict(data)
        except Exception as error:  # noqa: BLE001 - datasets raises many types of errors while it reads
            raise InputError(f"{shard.name}: cannot be read: {_dataset_error(error)}") from None


@dataclass(frozen=True)
class _Shard:
    """The rows of one file of a data set, or all rows if the files are not known; ``name`` is for messages."""

    name: str
    rows: Iterable[dict[str, Any]]


def _dataset_error(error: Exception) -> str:
    from datasets.table import CastError

    if isinstance(error, CastError):
        return f"its columns differ from those of the first file: {error.details()}"
    return reason_of(error)


def _load_folder(path: Path, settings: InputSettings) -> Iterable[_Shard]:
    import datasets

    folder = str(path.resolve())  # datasets names a data set after its folder, so "." does not work
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return [_Shard(str(path), _split_of(datasets.load_from_disk(folder), str(path), settings))]
        builder = datasets.load_dataset_builder(folder, settings.subset)
        # Streamed, because the cache of datasets goes by folder name and could return the rows of another folder.
        rows = _split_of(builder.as_streaming_dataset(), str(path), settings)
        files = [str(file) for file in (builder.config.data_files or {}).get(settings.split, ())]
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - datasets raises many types of errors for a wrong folder
        reason = "its files are empty" if isinstance(error, StopIteration) else reason_of(error)
        raise InputError(f"{path_of(error) or path}: cannot be read as a data set: {reason}") from None
    if rows.num_shards != len(files):
        return [_Shard(str(path), rows)]
    return [_Shard(file, rows.shard(len(files), number)) for number, file in enumerate(files)]


@quiet_bars(data=True)
def _load_hub(name: str, settings: InputSettings) -> Iterable[_Shard]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, settings.subset, revision=settings.revision)
    except Exception as error:  # noqa: BLE001 - the network, the permissions or the name; the message says which
        raise InputError(
            f"{name}: no such file, and no data set of that name could be loaded from the Hub: {one_line(error)}"
        ) from None
    return [_Shard(name, _split_of(loaded, name, settings))]


def _split_of(loaded: Any, name: str, settings: InputSettings) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if settings.split not in loaded:
        raise InputError(f"{name}: no split {settings.split!r}; available for --split: {', '.join(map(str, loaded))}")
    return loaded[settings.split]
