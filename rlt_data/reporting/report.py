"""A page about a run, or two runs on the same questions: figures, plots, and every trace to read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.progress import SILENT, Progress, task
from rlt_data.reporting.build import write_page
from rlt_data.reporting.collect import TraceSelection, source_name
from rlt_data.reporting.overview import overview
from rlt_data.settings import ReportSettings
from rlt_data.storage.outputs import write_file
from rlt_data.storage.run import RunFolder


@dataclass(frozen=True)
class ReportSummary:
    """What was written.

    Attributes:
        out: the file.
        size: its bytes.
        questions: questions whose traces it holds.
        traces: their traces.
        all_traces: traces of the runs that it could hold.
        per_token: whether explanations are coloured token by token.
        seconds: time spent.
    """

    out: Path
    size: int
    questions: int
    traces: int
    all_traces: int
    per_token: bool
    seconds: float


def report(settings: ReportSettings, progress: Progress = SILENT) -> ReportSummary:
    """Write a run's page; the library side of ``rlt-data report``.

    Raises:
        RunFolderError: a run is not there, or has no traces.
        SettingsError: the two runs have no question in common.
        DiskError: the file cannot be written.
    """
    began = time.monotonic()
    runs = _sources(settings)
    collection = TraceSelection(runs, settings.limit)
    if not collection.chosen:
        raise SettingsError(f"--against: {settings.input} and {settings.against} have no question in common")
    title = settings.title or " against ".join(runs)
    shown = sum(each.traces for each in collection.chosen)
    out = Path(settings.out)
    with task(progress, "figures", 1):
        above = overview(runs, _note_on(collection, shown))
        progress.advance()
    with task(progress, "report", len(collection.chosen)):
        write_file(out, lambda file: write_page(file, title, above, collection, progress))
    per_token = any(run.step("score").get("settings", {}).get("per_token") for run in runs.values())
    return ReportSummary(
        out, out.stat().st_size, len(collection.chosen), shown, collection.traces, per_token, time.monotonic() - began
    )


def _sources(settings: ReportSettings) -> Mapping[str, RunFolder]:
    """Open the runs of a report by the names of their sources: of their folders, with more of the path if need be.

    Raises:
        RunFolderError: a run is not there, or has no traces.
    """
    runs = [RunFolder.existing(path) for path in (settings.input, settings.against) if path]
    for run in runs:
        if not run.parts("traces"):
            raise RunFolderError(f"{run.path}: no traces yet; run rlt-data generate, or score a file that has some")
    names = [source_name(run) for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    if len(set(names)) < len(names):
        raise SettingsError(f"--against: {settings.against} is the run itself")
    return dict(zip(names, runs, strict=True))


def _note_on(collection: TraceSelection, shown: int) -> str:
    """Say which traces can be read, if not all of them."""
    if shown == collection.traces:
        return ""
    return (
        f"Figures and plots are of all traces. To read there are {shown:,} of {collection.traces:,}: all traces of "
        f"{len(collection.chosen):,} of {collection.questions:,} questions, which their ids draw."
    )
