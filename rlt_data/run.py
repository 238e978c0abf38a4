"""A run as users see it: tables to read, and the steps that process it as methods."""

from __future__ import annotations

import io
from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from rlt_data.calls import call_step, documented, make_settings
from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.progress import Progress, choose_progress
from rlt_data.settings import (
    CurateSettings,
    DistillSettings,
    InputSettings,
    PushSettings,
    RankSettings,
    ReportSettings,
    ScoreSettings,
    StatsSettings,
)
from rlt_data.storage.backends import open_folder
from rlt_data.storage.paths import StoragePath, storage_path
from rlt_data.storage.run import RunFolder

if TYPE_CHECKING:
    import datasets
    import polars as pl

    from rlt_data.publish.push import PushSummary
    from rlt_data.reporting.report import ReportSummary
    from rlt_data.statistics import Stats


class Run:
    """A run folder, on a disk or in an object store.

    Methods that add to the run return the run, so calls chain: ``run.score(student="nano").rank()``.

    Args:
        path: the folder, or its URL.

    Attributes:
        summary: what the last step did: rows, failed rows, tokens, seconds. None before the first step.

    Raises:
        RunFolderError: the folder does not exist or is no run, or parts of its tables are missing or damaged.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        try:
            location = storage_path(fspath(path) or None)  # type: ignore[arg-type]
            self._folder = RunFolder.existing(location.absolute())  # stays valid if the working directory changes
        except (TypeError, ValueError):
            raise RunFolderError(f"takes the path or the URL of a run folder, not {path!r}") from None
        self.summary: Any = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> StoragePath:
        """The folder."""
        return self._folder.path

    @property
    def info(self) -> dict[str, Any]:
        """The content of run.json: settings, models and versions of each step."""
        return self._folder.info

    def scan(self, table: str | None = None) -> pl.LazyFrame:
        """Return a table lazily, or all tables joined: one row per trace.

        Args:
            table: questions, traces, scores, ranks, answers, grades or signal_NAME. None: one row per trace, with its
                question, score, rank and signals.

        Raises:
            RunFolderError: the run has no such table, or parts of it are missing or damaged.
        """
        return self._folder.scan(self._known(table))

    def to_dataset(self, table: str | None = None) -> datasets.Dataset:
        """Return what :meth:`scan` returns as a ``datasets.Dataset``."""
        import datasets
        from polars import CompatLevel

        return datasets.Dataset(self.scan(table).collect().to_arrow(compat_level=CompatLevel.oldest()))

    def _known(self, table: str | None) -> str | None:
        if table is not None and table not in self._folder.tables:
            raise SettingsError(f"table: takes {', '.join(self._folder.tables)} (got {table!r})")
        return table

    def stats(self, *, where: str | Sequence[str] = ()) -> Stats:
        """Compute the figures of the run, as :func:`rlt_data.stats` does."""
        from rlt_data.signals.matching import find_matching
        from rlt_data.statistics import stats

        settings = StatsSettings(input=str(self.path), where=where)
        return stats(self._folder, matching=find_matching(self._folder, settings.where))

    @documented(ScoreSettings, method=True, leave_out=InputSettings.model_fields)
    def score(self, *, progress: bool | Progress = False, **settings: Any) -> Run:
        """Score the traces by how much they help a student, and how natural it finds them (the RLT reward).

        Returns:
            The run with its scores.
        """
        return self._extended("score", settings, progress)

    @documented(CurateSettings, method=True, leave_out=[*InputSettings.model_fields, "format", "out"])
    def curate(self, *, progress: bool | Progress = False, **settings: Any) -> Run:
        """Check traces and questions. Findings are columns; no row is deleted.

        Returns:
            The run with its signals.
        """
        return self._extended("curate", settings, progress)

    @documented(RankSettings, method=True)
    def rank(self, *, progress: bool | Progress = False, **settings: Any) -> Run:
        """Rank the traces of each question by reward, and sort them into buckets.

        Returns:
            The run with its ranks.
        """
        return self._extended("rank", settings, progress)

    @documented(DistillSettings, method=True)
    def distill(self, *, progress: bool | Progress = False, **settings: Any) -> datasets.Dataset:
        """Choose traces and write them as a data set in the student's format.

        Returns:
            The rows to train on; ``run.summary.out`` is the folder, which also has those of ``holdout``.
        """
        self.summary = self._call("distill", settings, progress)
        return read_dataset(self.summary.out)

    @documented(PushSettings, method=True)
    def push(self, *, progress: bool | Progress = False, **settings: Any) -> PushSummary:
        """Publish the distilled data set on the Hugging Face Hub, with a card.

        Returns:
            What was published.
        """
        return self._call("push", settings, progress)  # type: ignore[no-any-return]

    @documented(ReportSettings, method=True)
    def report(self, *, progress: bool | Progress = False, **settings: Any) -> ReportSummary:
        """Write an HTML page about the run.

        Returns:
            What was written.
        """
        from rlt_data.reporting.report import report

        return report(make_settings(ReportSettings, (str(self.path),), settings), choose_progress(progress))

    def _extended(self, step: str, settings: dict[str, Any], progress: bool | Progress) -> Run:
        summary = self._call(step, settings, progress)
        if summary.run != self.path:
            return run_of(summary)
        self.summary = summary
        return self

    def _call(self, step: str, settings: dict[str, Any], progress: bool | Progress) -> Any:
        return call_step(step, (str(self.path),), settings, progress)


def run_of(summary: Any) -> Run:
    """Return the run of a step's summary, with the summary. After a dry run, its folder need not exist."""
    if getattr(summary, "plan", None):
        run = Run.__new__(Run)
        run._folder = RunFolder(summary.run.absolute())
    else:
        run = Run(str(summary.run))
    run.summary = summary
    return run


def read_dataset(folder: StoragePath) -> datasets.Dataset:
    """Return the split ``train`` of a data set that ``distill`` wrote, on a disk or in a store."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = open_folder(folder / "data")
    files = sorted(name for name in data.list_files("") if name.startswith("train-"))
    return datasets.Dataset(pa.concat_tables(pq.read_table(io.BytesIO(data.read(file))) for file in files))
