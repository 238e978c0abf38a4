"""A run folder: tables that grow durably, can be read at any moment, and end up byte for byte the same.

    RUN/run.json                         what made each table (settings, fingerprints, versions)
    RUN/<table>/part-00000.parquet       rows of 256 questions, sorted; replaced as a whole
    RUN/manifests/<table>.json           the table's parts, with rows, sizes and checksums
    RUN/journal/<table>/00000/*.parquet  rows of a part that is not complete yet, a few seconds of work in each file
    RUN/errors.jsonl                     rows that failed
    RUN/run.log                          what happened when

Rows are added to the journal, whose files appear whole, so ``kill -9`` costs at most the seconds since the last one.
When all rows of a part are there, its journal is merged into the part. A kill between the two leaves rows in both
places; reading takes each key once. A part is checked against the manifest when a process first reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rlt_data.errors import RltDataError, RunFolderError
from rlt_data.storage.backends import open_folder
from rlt_data.storage.changes import describe_changes
from rlt_data.storage.folder import STAGING, Changed, FileState, checksum, json_text
from rlt_data.storage.manifest import Manifest, Part
from rlt_data.storage.parquet import write_rows
from rlt_data.storage.paths import StoragePath, refusal
from rlt_data.storage.schemas import KEYS, QUESTIONS_PER_PART, SCHEMAS, TABLE_OF_STEP, VERSION, to_table

if TYPE_CHECKING:
    import datasets

#: How often a table is read again because its files changed meanwhile.
_READINGS = 5
#: The layout without manifests.
_FIRST_LAYOUT = 1
_SEGMENT = re.compile(r"(\d+)/(?:seg-([0-9a-f]{32})|[0-9a-f]{32})\.parquet")
_PART = re.compile(r"part-(\d{5,})\.parquet")
#: Files that a reader of ``RUN/<table>/*.parquet`` sees.
_TABLE_FILE = re.compile(r"[^.].*\.parquet")


def content_hash(*parts: Any) -> str:
    """Return 32 hex digits over JSON-serialisable parts; equal for equal content, in every process and version."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def part_name(part: int) -> str:
    """Return the name of a part's file."""
    return f"part-{part:05d}.parquet"


@dataclass
class _Files:
    """The files of a table, as they were when last looked at.

    Attributes:
        manifest: of its parts.
        own: parts whose file is there.
        journal: names of the files of each part's journal.
    """

    manifest: Manifest
    own: set[int]
    journal: dict[int, list[str]]


class RunFolder:
    """A run folder, on the local disk or in a store.

    Args:
        path: the folder, or its URL.

    Attributes:
        folder: the files.
        path: the folder.

    Raises:
        RunFolderError: the folder was written by a newer layout, or the URL leads nowhere.
    """

    def __init__(self, path: str | StoragePath) -> None:
        self.folder = open_folder(path)
        self.path = self.folder.path
        self._tables: dict[str, _Files] = {}
        self._is_locked = False
        version = self.info.get("version", VERSION)
        if version not in (_FIRST_LAYOUT, VERSION):
            raise RunFolderError(
                f"{self.path}: written with layout version {version}; this rlt-data reads version {VERSION}"
            )

    @classmethod
    def existing(cls, path: str | StoragePath) -> RunFolder:
        """Open a run folder that must be there.

        Raises:
            RunFolderError: there is no folder, it is not a run, or parts of its tables are missing or foreign.
        """
        folder = open_folder(path)
        try:
            folder.recover()
            if folder.exists("run.json"):
                run = cls(folder.path)
                if folder.on_disk:
                    for table in SCHEMAS:
                        run.parts(table)
                return run
            wrong = "not a run folder (it has no run.json)" if folder.exists() else "no such run folder"
        except OSError as error:
            wrong = f"cannot be read: {refusal(error)}"
        raise RunFolderError(f"{path}: {wrong}")

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether there is a run folder on the disk that can be reached."""
        try:
            return (Path(path) / "run.json").is_file()
        except OSError:
            return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; on a disk the lock ends with the process, however that ends.

        In a store it ends some time after a process that was killed (see locks.py).

        Raises:
            RunFolderError: another process holds it.
            DiskError: the folder cannot be created or written.
        """
        with self.folder.lock():
            self._tables.clear()
            if self.info.get("version") == _FIRST_LAYOUT:
                self._write_first_manifests()
            there = self.folder.sizes("manifests")
            for table in SCHEMAS:
                if f"{table}.json" in there:
                    self._settle(table)
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    # What made the tables

    @property
    def info(self) -> dict[str, Any]:
        """The content of run.json, empty for a new folder."""
        file = self.path / "run.json"
        try:
            info = json.loads(self.folder.read("run.json"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise RunFolderError(f"{file}: cannot be read: {refusal(error)}") from None
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{file}: not JSON: {error}") from None
        steps = info.get("steps", {}) if isinstance(info, dict) else None
        if not isinstance(steps, dict) or not all(isinstance(entry, dict) for entry in steps.values()):
            raise RunFolderError(f"{file}: not the run.json of a run")
        return dict(info)

    def step(self, name: str) -> dict[str, Any]:
        """Return what run.json says of a step, empty if it has not run."""
        return dict(self.info.get("steps", {}).get(name, {}))

    def record(self, step: str, entry: dict[str, Any]) -> None:
        """Put an entry for a step into run.json; keys that are there and not in the entry stay."""
        self.write_json("run.json", self._recorded(step, entry))

    def _recorded(self, step: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        info: dict[str, Any] = {"version": VERSION, "questions_per_part": QUESTIONS_PER_PART, "steps": {}} | self.info
        info["steps"][step] = info["steps"].get(step, {}) | entry
        return info

    def refuse_other_settings(
        self, step: str, depends_on: dict[str, Any], entry: Mapping[str, Any] | None = None
    ) -> None:
        """Refuse to add rows to a step that has rows or failures of other settings.

        Args:
            step: the step's name.
            depends_on: everything that its rows depend on.
            entry: the step's complete entry for run.json, whose model and format names the message uses.

        Raises:
            RunFolderError: the step ran with other settings; the message names each difference.
        """
        before = self.step(step)
        if not self.parts(TABLE_OF_STEP[step]) and not self.folder.exists("errors.jsonl"):
            return  # an earlier start made nothing, for example because its model could not be loaded
        if before.get("depends_on", depends_on) != depends_on:
            differences = describe_changes(before, {**(entry or {}), "depends_on": depends_on})
            raise RunFolderError(
                f"{self.path}: the {step} step of this run was made with other settings ({differences}). "
                "Use the same settings to continue it, or choose another --out."
            )

    # Files

    def write_file(self, name: str, write: Callable[[Path], object]) -> None:
        """Make a file of the run appear whole; see :meth:`rlt_data.storage.folder.Folder.write`."""
        self.folder.write(name, write)

    def write_json(self, name: str, content: Any) -> None:
        """Make a JSON file of the run appear whole."""
        self.folder.write(name, lambda path: path.write_text(json_text(content), encoding="utf-8"))

    @property
    def logs(self) -> Path | None:
        """Folder for the output of engine processes; None where that cannot be in the run's folder."""
        return self.folder.on_disk / "logs" if self.folder.on_disk else None

    # Reading tables

    def parts(self, table: str) -> list[int]:
        """Return the numbers of the parts that have rows, in order.

        Raises:
            RunFolderError: parts are missing, truncated or foreign, or the store cannot be listed.
        """
        files = self._files(table, again=True)
        return sorted(files.own | files.journal.keys())

    def part_file(self, table: str, part: int) -> StoragePath:
        """Return where a part's file is or will be."""
        return self.path / table / part_name(part)

    def files(self, table: str, part: int) -> list[StoragePath]:
        """Return the files that hold rows of a part at the moment: its own, and those of its journal."""
        return [self.path / name for name in self._names(self._files(table), table, part)]

    def part_state(self, table: str, part: int) -> object:
        """Return a value that changes when the rows of a part do."""
        files = self._files(table)
        own = files.manifest.parts[part].state if part in files.own else None
        return own, tuple(files.journal.get(part, ()))

    def last_written(self, table: str) -> list[tuple[Path, float]]:
        """Return a table's files with their times, the latest first; none in a store, which has no cheap times."""
        times = []
        for part in self.parts(table) if self.folder.on_disk else ():
            for file in self.files(table, part):
                with contextlib.suppress(FileNotFoundError):
                    times.append((Path(str(file)), file.stat().st_mtime))
        return sorted(times, key=lambda found: -found[1])

    def read(self, table: str, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part, journal included, each key once, in the order of questions and samples.

        Raises:
            RunFolderError: a file of the part is damaged, or not the one that was written.
        """
        key = KEYS[table]
        schema = SCHEMAS[table]
        sort_by = [key] if table == "questions" else [key, "question_id", "sample_index"]
        wanted = list(dict.fromkeys([*(columns or schema.names), *sort_by]))
        names, pieces = self._pieces(table, part, wanted)
        if not pieces:
            return to_table(table, []).select(list(columns or schema.names))
        rows = pa.concat_tables(pieces)
        if names != [f"{table}/{part_name(part)}"]:
            rows = self._in_order(table, part, rows)
        return rows.select(list(columns or schema.names))

    def count(self, table: str) -> int:
        """Return the number of rows of a table."""
        files = self._files(table, again=True)
        whole = sum(files.manifest.parts[part].state.rows for part in files.own - files.journal.keys())
        return whole + sum(len(self.read(table, part, [KEYS[table]])) for part in files.journal)

    def keys(self, table: str, part: int) -> set[str]:
        """Return the keys of the rows that a part has."""
        return set(self.read(table, part, [KEYS[table]]).column(0).to_pylist())

    def join(self, traces: pl.DataFrame, table: str, part: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Join another table to traces, in their order.

        Args:
            traces: rows of a part, with their ``trace_id``.
            table: the table, ``scores`` or ``ranks``.
            part: number of the part.
            columns: those to take; None: all. Those that the traces have already stay as they are.

        Returns:
            The traces; where one has no row in the table the new columns are null, and everywhere if the table is out
            of date.
        """
        wanted = SCHEMAS[table].names if columns is None else list(dict.fromkeys(["trace_id", *columns]))
        read = self.read(table, part, wanted) if self.is_current(table) else to_table(table, []).select(wanted)
        rows = pl.DataFrame(read)
        new = [name for name in rows.columns if name not in traces.columns]
        return traces.join(rows.select("trace_id", *new), on="trace_id", how="left", maintain_order="left")

    def join_questions(self, traces: pl.DataFrame, part: int) -> pl.DataFrame:
        """Join their questions to traces; ``meta`` is the trace's, or the question's where it has none.

        Args:
            traces: rows of a part, with their ``question_id`` and ``meta``.
            part: number of the part.
        """
        questions = pl.DataFrame(self.read("questions", part)).drop("source_id").rename({"meta": "question_meta"})
        joined = traces.join(questions, on="question_id", how="left", maintain_order="left")
        return joined.with_columns(pl.coalesce("meta", "question_meta").alias("meta")).drop("question_meta")

    def scan(self, table: str | None = None) -> pl.LazyFrame:
        """Return a table lazily, or all tables joined.

        Args:
            table: its name; None: one row for each trace, with its question, and its score and rank where it has them.
                ``meta`` is the trace's, or the question's where it has none.

        Raises:
            RunFolderError: parts are missing, damaged or foreign; or there are no such tables.
        """
        if table is not None:
            return self._scan(table)
        questions = self._scan("questions").drop("source_id").rename({"meta": "question_meta"})
        rows = self._scan("traces").join(questions, on="question_id", how="left", maintain_order="left")
        rows = rows.with_columns(pl.coalesce("meta", "question_meta").alias("meta")).drop("question_meta")
        for more in ("scores", "ranks"):
            if self.parts(more) and self.is_current(more):
                names = ["trace_id", *(name for name in SCHEMAS[more].names if name not in rows.collect_schema())]
                rows = rows.join(self._scan(more).select(names), on="trace_id", how="left", maintain_order="left")
        return rows

    def to_dataset(self, table: str | None = None) -> datasets.Dataset:
        """Return what :meth:`scan` returns as a ``datasets.Dataset``."""
        import datasets

        return datasets.Dataset(self.scan(table).collect().to_arrow(compat_level=pl.CompatLevel.oldest()))

    def _scan(self, table: str) -> pl.LazyFrame:
        parts = self.parts(table)
        if not parts:
            raise RunFolderError(f"{self.path}: has no {table} yet")
        files = self._files(table)
        for part in files.own - files.journal.keys():
            self._pieces(table, part, [KEYS[table]])  # checks it
        frames: list[pl.LazyFrame] = []
        for growing, group in groupby(parts, key=lambda part: part in files.journal):
            if growing:
                frames += [pl.DataFrame(self.read(table, part)).lazy() for part in group]
            else:
                names = [f"{table}/{part_name(part)}" for part in group]
                frames.append(pl.scan_pyarrow_dataset(self.folder.dataset(names, SCHEMAS[table])))
        return pl.concat(frames)

    def digest(self, table: str, *, again: bool = False) -> str:
        """Return a hash of the content of a table; ``again``: as it is now, not as it was when first looked at."""
        files = self._files(table, again=again)
        journal = sorted(name for names in files.journal.values() for name in names)
        return content_hash(files.manifest.digest, journal) if journal else files.manifest.digest

    def is_current(self, table: str) -> bool:
        """Return whether a table that is made as a whole was made from the tables that are there now."""
        made_from = self._files(table).manifest.made_from
        if not made_from and table == "ranks":  # written in the first layout
            return self.count("ranks") == self.count("scores")
        return all(self.digest(source) == digest for source, digest in made_from.items())

    def _names(self, files: _Files, table: str, part: int) -> list[str]:
        own = [f"{table}/{part_name(part)}"] if part in files.own else []
        return [*own, *files.journal.get(part, ())]

    def _pieces(self, table: str, part: int, columns: list[str]) -> tuple[list[str], list[pa.Table]]:
        """Read the files of a part as they are."""
        schema = pa.schema([SCHEMAS[table].field(name) for name in columns])
        whole = len(columns) == len(SCHEMAS[table])
        seen: object = None
        for _ in range(_READINGS):
            files = self._files(table)
            names = self._names(files, table, part)
            try:
                return names, self.folder.read_tables(names, schema, _expected(files, table, part), whole=whole)
            except FileNotFoundError:  # the process that writes has merged a journal meanwhile
                self._tables.pop(table, None)
            except Changed as changed:
                listed = files.manifest.parts.get(part)
                if seen == listed:
                    raise RunFolderError(
                        f"{self.path / str(changed)}: is damaged, or not the file that rlt-data wrote (its checksum "
                        "differs); restore it from a copy"
                    ) from None
                seen = listed
                self._tables.pop(table, None)
                with contextlib.suppress(OSError, RltDataError):
                    self.folder.recover()  # a table that is being replaced has its parts before their manifest
        raise RunFolderError(f"{self.path / table}: changes while it is read; read it again later")

    def _in_order(self, table: str, part: int, rows: pa.Table) -> pa.Table:
        first: dict[str, int] = {}
        for index, key in enumerate(rows[KEYS[table]].to_pylist()):
            first.setdefault(key, index)
        rows = rows.take(list(first.values()))
        if table == "questions":
            return rows
        questions = self.read("questions", part, ["question_id"]).column(0)
        place = pc.index_in(rows["question_id"], value_set=questions.combine_chunks())
        ordered = pa.table({"place": place, "sample": rows["sample_index"], "key": rows[KEYS[table]]})
        order = [("place", "ascending"), ("sample", "ascending"), ("key", "ascending")]
        return rows.take(pc.sort_indices(ordered, sort_keys=order))

    # Which files there are

    def _files(self, table: str, *, again: bool = False) -> _Files:
        """Return the files of a table as they were when last looked at, with what this process has written since.

        Args:
            table: the table.
            again: look again, unless the lock makes sure that no other process writes.
        """
        if table in self._tables and (self._is_locked or not again):
            return self._tables[table]
        wrong = ""
        for _ in range(_READINGS):
            found, wrong = self._look(table)
            if not wrong:
                self._tables[table] = found
                return found
            with contextlib.suppress(OSError, RltDataError):
                self.folder.recover()  # a process may have been killed while it replaced the table
        if self.folder.exists(f".{table}{STAGING}/commit"):
            wrong = f"{self.path / table}: is being replaced; read it again later"
        raise RunFolderError(wrong)

    def _look(self, table: str) -> tuple[_Files, str]:
        """Look at the files of a table, and say what is wrong with them; empty if nothing is."""
        try:
            # Journals before the parts that they are merged into, so that no row is missed between the two.
            journal: dict[int, list[str]] = {}
            for name in self.folder.below(f"journal/{table}"):
                if segment := _SEGMENT.fullmatch(name):
                    journal.setdefault(int(segment[1]), []).append(f"journal/{table}/{name}")
            manifest = self._read_manifest(table)
            sizes = {name: size for name, size in self.folder.sizes(table).items() if _TABLE_FILE.fullmatch(name)}
        except OSError as error:
            raise RunFolderError(f"{self.path / table}: cannot be listed: {refusal(error)}") from None
        own = {number for number in manifest.parts if part_name(number) in sizes}
        return _Files(manifest, own, journal), self._problem(table, manifest, sizes)

    def _problem(self, table: str, manifest: Manifest, sizes: Mapping[str, int]) -> str:
        folder = self.path / table
        for number, part in manifest.parts.items():
            name = part_name(number)
            if name not in sizes:
                if not part.is_new:
                    return f"{folder / name}: is missing; restore it from a copy"
            elif sizes[name] not in {state.bytes for state in part.states}:
                return (
                    f"{folder / name}: is truncated, or not the file that rlt-data wrote "
                    f"({sizes[name]:,} bytes instead of {part.state.bytes:,}); restore it from a copy"
                )
        if foreign := sorted(sizes.keys() - {part_name(number) for number in manifest.parts}):
            return f"{folder / foreign[0]}: is not a part of this table (rlt-data did not write it); move it away"
        return ""

    def _read_manifest(self, table: str) -> Manifest:
        name = _manifest_name(table)
        try:
            return Manifest.from_text(self.folder.read(name).decode())
        except (FileNotFoundError, NotADirectoryError):
            return self._first_manifest(table) if self.info.get("version") == _FIRST_LAYOUT else Manifest()
        except ValueError as error:
            raise RunFolderError(f"{self.path / name}: cannot be read: {error}") from None

    # Writing tables

    def write_part(self, table: str, part: int, rows: pa.Table) -> None:
        """Write a whole part, in place of what was there."""
        self._write_part(table, part, lambda path: write_rows(path, rows), len(rows))

    def _write_part(self, table: str, part: int, write: Callable[[Path], object], rows: int) -> None:
        if table not in self._tables:
            self._settle(table)  # a write that failed may have left either state of its part
        files = self._files(table)

        def ready(file: Path) -> None:
            files.manifest.put(part, FileState(rows, file.stat().st_size, checksum(file)))
            self._save(table, files.manifest)

        try:
            self.folder.write(f"{table}/{part_name(part)}", write, ready)
        except BaseException:
            self._tables.pop(table, None)  # what is on the disk counts
            raise
        files.own.add(part)

    def add_segment(self, table: str, part: int, rows: pa.Table) -> None:
        """Make rows of an incomplete part durable."""
        prefix = f"journal/{table}/{part:05d}"
        name = self.folder.write_named(prefix, lambda path: write_rows(path, rows), _segment_name)
        self._files(table).journal.setdefault(part, []).append(f"{prefix}/{name}")

    def compact(self, table: str, part: int) -> None:
        """Merge the journal of a part into its file."""
        journal = self._files(table).journal
        if part in journal:
            self.write_part(table, part, self.read(table, part))
            self.folder.remove(journal.pop(part))

    def compact_all(self, table: str) -> None:
        """Merge the journals of all parts of a table, at the end of a step."""
        for part in self.parts(table):
            self.compact(table, part)
        self._settle(table)

    @contextlib.contextmanager
    def replacing(self, table: str, made_from: Sequence[str] = ()) -> Iterator[NewTable]:
        """Write a table anew; what was there is replaced when the block ends, and stays if it raises.

        Args:
            table: the table.
            made_from: tables that it is made from. It is out of date once one of them changes.
        """
        manifest = Manifest(made_from={name: self.digest(name) for name in made_from})
        if foreign := [name for name in self.folder.below(table) if not _PART.fullmatch(name)]:
            raise RunFolderError(
                f"{self.path / table / foreign[0]}: is not a part of this table, whose folder is replaced as a whole; "
                "move it away"
            )
        files = [_manifest_name(table), "run.json"]
        with self.folder.replace(table, folders=[table], files=files) as fresh:
            new = NewTable(fresh, table, manifest)
            yield new
            _write_text(fresh / _manifest_name(table), manifest.text())
            if new.entry:
                _write_text(fresh / "run.json", json_text(self._recorded(*new.entry)))
        self._tables.pop(table, None)

    def adopt(self, table: str, source: RunFolder) -> None:
        """Take over a table of another run, by hard links where the disk allows; parts are never changed in place."""
        for part in source.parts(table):
            self.adopt_part(table, part, source, part)
        self._settle(table)

    def adopt_part(self, table: str, part: int, source: RunFolder, its_part: int) -> None:
        """Take over one part of another run, if that has rows of the table, as this part."""
        rows, mine = source._rows_if_whole(table, its_part), self._files(table).manifest.parts.get(part)
        if rows is None:
            if its_part in source._files(table).journal:
                self.write_part(table, part, source.read(table, its_part))
        elif mine is None or mine.state.xxh3 != source._files(table).manifest.parts[its_part].state.xxh3:
            self._write_part(table, part, lambda path: source.export_part(table, its_part, path), rows)

    def export_part(self, table: str, part: int, path: Path) -> None:
        """Write a part to a Parquet file on the disk; as a hard link where possible, so it must not be changed."""
        if self._rows_if_whole(table, part) is None:
            write_rows(path, self.read(table, part))
        else:
            self._pieces(table, part, [KEYS[table]])  # checks it
            self.folder.fetch(f"{table}/{part_name(part)}", path)

    def _rows_if_whole(self, table: str, part: int) -> int | None:
        """Return the rows of a part all of which are in its own file, else None."""
        files = self._files(table)
        whole = part in files.own and part not in files.journal
        return files.manifest.parts[part].state.rows if whole else None

    def _save(self, table: str, manifest: Manifest) -> None:
        text = manifest.text()
        self.folder.write(_manifest_name(table), lambda path: path.write_text(text, encoding="utf-8"))

    def _settle(self, table: str) -> None:
        """Make the manifest list the part files as they are, after a kill or at the end of a step."""
        files = self._files(table, again=True)
        if files.manifest.settled:
            return
        for number, part in list(files.manifest.parts.items()):
            if number not in files.own:
                del files.manifest.parts[number]
            elif part.earlier:
                found = self.folder.examine(f"{table}/{part_name(number)}")
                is_earlier = found != part.state and part.earlier.matches(found.bytes, found.xxh3)
                files.manifest.parts[number] = Part(part.earlier if is_earlier else part.state)
        files.manifest.settle()
        self._save(table, files.manifest)

    # Runs of the first layout, which had no manifests

    def _first_manifest(self, table: str) -> Manifest:
        """List the parts of a run of the first layout; their checksums are not known.

        Raises:
            RunFolderError: rows are missing.
        """
        parts = {}
        for name, size in self.folder.sizes(table).items():
            if found := _PART.fullmatch(name):
                parts[int(found[1])] = Part(FileState(self.folder.count_rows(f"{table}/{name}"), size, ""))
        manifest = Manifest(parts)
        recorded = {
            TABLE_OF_STEP.get(step, "ranks" if step == "rank" else ""): entry
            for step, entry in self.info.get("steps", {}).items()
        }
        rows = recorded.get(table, {}).get("rows", 0)
        if manifest.rows < rows and not self.folder.below(f"journal/{table}"):
            raise RunFolderError(
                f"{self.path / table}: has {manifest.rows:,} rows, run.json counts {rows:,}; parts are missing"
            )
        if table == "questions" and sorted(parts) != list(range(len(parts))):
            raise RunFolderError(f"{self.path / table}: parts are missing between those that are there")
        return manifest

    def _write_first_manifests(self) -> None:
        """Give a run of the first layout manifests, and its traces the column that they lack.

        Other programs read a table only if all its files have the same columns.
        """
        for table in SCHEMAS:
            self._settle(table)  # an earlier start may have been killed here
            files = self._files(table)
            for number in files.own if self.folder.on_disk else ():  # a store would have to send every file
                files.manifest.parts[number] = Part(self.folder.examine(f"{table}/{part_name(number)}"))
            if files.own:
                self._save(table, files.manifest)
            for number in files.own if table == "traces" else ():
                self.write_part(table, number, self.read(table, number))
            self._settle(table)
        self.write_json("run.json", self.info | {"version": VERSION})


class NewTable:
    """A table that is written anew; see :meth:`RunFolder.replacing`.

    Attributes:
        entry: a step, and what run.json will say of it.
    """

    def __init__(self, folder: Path, table: str, manifest: Manifest) -> None:
        self._folder = folder / table
        self._folder.mkdir()
        self._manifest = manifest
        self.entry: tuple[str, Mapping[str, Any]] | None = None

    def write(self, part: int, rows: pa.Table) -> None:
        """Write a part."""
        path = self._folder / part_name(part)
        write_rows(path, rows)
        self._manifest.parts[part] = Part(FileState(len(rows), path.stat().st_size, checksum(path)))

    def record(self, step: str, entry: Mapping[str, Any]) -> None:
        """Put an entry for the step into run.json, at the moment at which the table is replaced."""
        self.entry = step, entry


def _expected(files: _Files, table: str, part: int) -> dict[str, list[FileState]]:
    """Return the states that the files of a part may have."""
    expected = {}
    if part in files.own:
        expected[f"{table}/{part_name(part)}"] = files.manifest.parts[part].states
    for name in files.journal.get(part, ()):
        segment = _SEGMENT.fullmatch(name.removeprefix(f"journal/{table}/"))
        if segment and segment[2]:
            expected[name] = [FileState(-1, -1, segment[2])]
    return expected


def _segment_name(file: Path) -> str:
    return f"seg-{checksum(file)}.parquet"


def _manifest_name(table: str) -> str:
    return f"manifests/{table}.json"


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
