"""Write the report of a run, or of two runs on the same questions, as one HTML file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.progress import SILENT, Progress, task
from rlt_data.reporting.build import write_page
from rlt_data.reporting.collect import ListedTraces, source_name
from rlt_data.reporting.overview import overview
from rlt_data.settings import ReportSettings
from rlt_data.signals.matching import Matching, find_matching
from rlt_data.storage.data_set import read_data_set
from rlt_data.storage.outputs import write_file
from rlt_data.storage.run import RunFolder


@dataclass(frozen=True)
class ReportSummary:
    """The result of writing a report.

    Attributes:
        out: path of the file.
        size: its size in bytes.
        questions: number of listed questions.
        traces: number of listed traces.
        all_traces: number of traces without a limit.
        per_token: whether a run was scored with ``--per-token``, so that its explanations are coloured.
        seconds: duration.
        matching: the traces that satisfy ``where``, by the name of their run; empty without conditions.
    """

    out: Path
    size: int
    questions: int
    traces: int
    all_traces: int
    per_token: bool
    seconds: float
    matching: Mapping[str, Matching] = field(default_factory=dict)


def report(settings: ReportSettings, progress: Progress = SILENT) -> ReportSummary:
    """Write the report of a run, as ``rlt-data report`` does.

    Raises:
        RunFolderError: a run does not exist or has no traces.
        SettingsError: the two runs have no questions in common.
        DiskError: the file cannot be written.
    """
    began = time.monotonic()
    runs = _sources(settings)
    found = {name: find_matching(run, settings.where) for name, run in runs.items()}
    matching = {name: traces for name, traces in found.items() if traces}
    data_sets = {name: read_data_set(run) for name, run in runs.items()}
    selection = ListedTraces(runs, settings.limit, matching=matching, data_sets=data_sets)
    if not selection.selected and matching:
        raise SettingsError(f"--where: {'; '.join(map(str, matching.values()))}; there is nothing to show")
    if not selection.selected:
        raise SettingsError(f"--against: {settings.input} and {settings.against} have no questions in common")
    title = settings.title or " against ".join(runs)
    traces = sum(question.traces for question in selection.selected)
    out = Path(settings.out)
    with task(progress, "figures", 1):
        overview_html = overview(runs, _note(selection, traces, matching), matching, data_sets)
        progress.advance()
    with task(progress, "report", len(selection.selected)):
        write_file(out, lambda file: write_page(file, title, overview_html, selection, progress))
    per_token = any(run.step("score").get("settings", {}).get("per_token") for run in runs.values())
    return ReportSummary(
        out,
        out.stat().st_size,
        len(selection.selected),
        traces,
        selection.traces,
        per_token,
        time.monotonic() - began,
        matching,
    )


def _sources(settings: ReportSettings) -> Mapping[str, RunFolder]:
    """Open the runs of a report, by their folder names, or by their paths if the names are equal.

    Raises:
        RunFolderError: a run does not exist or has no traces.
        SettingsError: both are the same run.
    """
    runs = [RunFolder.existing(path) for path in (settings.input, settings.against) if path]
    for run in runs:
        if not run.parts("traces"):
            raise RunFolderError(
                f"{run.path}: has no traces; run rlt-data generate, or rlt-data score on a file with traces"
            )
    names = [source_name(run) for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    if len(set(names)) < len(names):
        raise SettingsError(f"--against: {settings.against} is the same run")
    return dict(zip(names, runs, strict=True))


def _note(selection: ListedTraces, traces: int, matching: Mapping[str, Matching]) -> str:
    """Return a note if the report does not show or list all traces."""
    found = [f"{name}: {matches}" if len(matching) > 1 else str(matches) for name, matches in matching.items()]
    notes = [f"This page is about these traces only: {'; '.join(found)}."] if found else []
    if traces < selection.traces:
        which = "these" if found else "all"
        notes.append(
            f"Statistics and plots cover {which} traces. The list has {traces:,} of {selection.traces:,} traces: "
            f"{which} traces of {len(selection.selected):,} of {selection.questions:,} questions, sampled by the hash "
            "of the question."
        )
    return " ".join(notes)
