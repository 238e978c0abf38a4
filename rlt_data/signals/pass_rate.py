"""Pass rate: the share of a solver's answers to a question that are correct, from a run of ``evaluate``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import polars as pl

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.progress import Progress
from rlt_data.settings import CurateSettings
from rlt_data.signals.base import Column, Signal
from rlt_data.storage.run import RunFolder

logger = logging.getLogger(__name__)


def _evaluation(settings: CurateSettings) -> RunFolder:
    run = RunFolder.existing(str(settings.evaluation))
    if not run.parts("grades"):
        raise RunFolderError(f"--evaluation: {run.path} has no graded answers; name a run of rlt-data evaluate")
    if run.count("grades") != run.count("answers"):
        raise RunFolderError(f"--evaluation: {run.path} is unfinished; run rlt-data evaluate again first")
    return run


def _content(settings: CurateSettings) -> str:
    return _evaluation(settings).digest("grades")


def _compute(frames: Iterable[pl.DataFrame], settings: CurateSettings, progress: Progress) -> Iterator[pl.DataFrame]:
    rates = _rates(_evaluation(settings))
    known = 0
    for frame in frames:
        rows = frame.with_columns(pl.col("question").str.strip_chars()).join(
            rates, on="question", how="left", maintain_order="left"
        )
        known += rows["pass_rate"].count()
        yield rows
        progress.advance(len(frame))
    if not known:
        raise SettingsError(
            f"--evaluation: {settings.evaluation} has none of the questions of this run; run rlt-data evaluate on them"
        )


def _rates(run: RunFolder) -> pl.DataFrame:
    """Return the pass rate by question text."""
    frames = []
    for part in run.parts("grades"):
        grades = pl.DataFrame(run.read("grades", part, ["question_id", "correct"]))
        questions = pl.DataFrame(run.read("questions", part, ["question_id", "question"]))
        frames.append(grades.join(questions, on="question_id").select(pl.col("question").str.strip_chars(), "correct"))
    return pl.concat(frames).group_by("question").agg(pl.col("correct").mean().alias("pass_rate"))


SIGNAL = Signal(
    name="pass_rate",
    level="question",
    columns={"pass_rate": Column(pl.Float64, "share of the solver's answers that are correct; null: not evaluated")},
    reads=("question",),
    compute=_compute,
    whole=True,
    content=_content,
)
