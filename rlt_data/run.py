"""A run as users see it: its tables to read, and the steps that work on it as methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlt_data.progress import SILENT, Progress
from rlt_data.settings import ReportSettings, parse_settings
from rlt_data.steps.registry import STEPS
from rlt_data.storage.paths import StoragePath, absolute_path
from rlt_data.storage.run import RunFolder

if TYPE_CHECKING:
    import datasets
    import polars as pl

    from rlt_data.publish.push import PushSummary
    from rlt_data.reporting.report import ReportSummary
    from rlt_data.statistics import Stats
    from rlt_data.steps.distill import DistillSummary
    from rlt_data.steps.provenance import StepSummary
    from rlt_data.steps.rank import RankSummary


class Run:
    """A run folder, on a disk or in an object store.

    The steps take the keys of their settings as keyword arguments (``lambda_`` for ``lambda``), such as
    ``run.score(student="nano")`` and ``run.rank(by="r_ss")``.

    Args:
        path: the folder, or its URL.

    Raises:
        RunFolderError: there is no such run, or parts of its tables are missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self._run = RunFolder.existing(absolute_path(path))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> StoragePath:
        """The folder."""
        return self._run.path

    @property
    def info(self) -> dict[str, Any]:
        """The content of run.json: settings, models and versions of every step."""
        return self._run.info

    def scan(self, table: str | None = None) -> pl.LazyFrame:
        """Return a table lazily, or all tables joined: one row per trace.

        Args:
            table: questions, traces, scores, ranks, answers or grades.

        Raises:
            RunFolderError: the run has no such table, or parts of it are missing or damaged.
        """
        return self._run.scan(table)

    def to_dataset(self, table: str | None = None) -> datasets.Dataset:
        """Return what :meth:`scan` returns as a ``datasets.Dataset``."""
        return self._run.to_dataset(table)

    def stats(self) -> Stats:
        """Compute the figures of the run; see :func:`rlt_data.stats`."""
        from rlt_data.statistics import stats

        return stats(self._run)

    def score(self, *, progress: Progress = SILENT, **settings: Any) -> StepSummary:
        """Score the traces; see :class:`rlt_data.ScoreSettings`."""
        return self._work("score", settings, progress)  # type: ignore[no-any-return]

    def rank(self, *, progress: Progress = SILENT, **settings: Any) -> RankSummary:
        """Rank the scored traces; see :class:`rlt_data.RankSettings`."""
        return self._work("rank", settings, progress)  # type: ignore[no-any-return]

    def distill(self, *, progress: Progress = SILENT, **settings: Any) -> DistillSummary:
        """Write a distillation data set; see :class:`rlt_data.DistillSettings`."""
        return self._work("distill", settings, progress)  # type: ignore[no-any-return]

    def push(self, *, progress: Progress = SILENT, **settings: Any) -> PushSummary:
        """Publish the distilled data set; see :class:`rlt_data.PushSettings`."""
        return self._work("push", settings, progress)  # type: ignore[no-any-return]

    def report(self, *, progress: Progress = SILENT, **settings: Any) -> ReportSummary:
        """Write an HTML page about the run; see :class:`rlt_data.ReportSettings`."""
        from rlt_data.reporting.report import report

        return report(parse_settings(ReportSettings, {"in": str(self.path), **settings}), progress)

    def _work(self, name: str, settings: dict[str, Any], progress: Progress) -> Any:
        step = STEPS[name]
        keys = {key.rstrip("_"): value for key, value in settings.items()}
        return step.load()(parse_settings(step.settings, {"in": str(self.path), **keys}), progress)
