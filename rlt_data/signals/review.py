"""Review: the verdicts of people on traces, from a file with the columns ``trace_id`` and ``review``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from rlt_data.errors import InputError
from rlt_data.inputs.files import digest_of, find_sources
from rlt_data.inputs.read import read_records
from rlt_data.progress import Progress
from rlt_data.settings import CurateSettings, InputSettings
from rlt_data.signals.base import Column, Signal


def _source(settings: CurateSettings) -> InputSettings:
    if not Path(str(settings.reviews)).exists():
        raise InputError(f"--reviews: {settings.reviews}: no such file")
    return InputSettings(input=str(settings.reviews))


def _content(settings: CurateSettings) -> str | None:
    return digest_of(find_sources(_source(settings)))


def _compute(frames: Iterable[pl.DataFrame], settings: CurateSettings, progress: Progress) -> Iterator[pl.DataFrame]:
    reviews = _reviews(settings)
    unknown = dict.fromkeys(reviews)
    for frame in frames:
        for key in unknown.keys() & set(frame["trace_id"]):
            del unknown[key]
        texts = [reviews.get(key) for key in frame["trace_id"]]
        yield frame.with_columns(pl.Series("review", texts, pl.String))
        progress.advance(len(frame))
    if unknown:
        raise InputError(
            f"--reviews: {settings.reviews}: {len(unknown)} of {len(reviews)} ids are no traces of this run, such as "
            f"{next(iter(unknown))}"
        )


def _reviews(settings: CurateSettings) -> dict[str, str]:
    """Return the reviews by trace. Rows without a review are left out, so a file may list all traces of a run."""
    reviews: dict[str, str] = {}
    for record in read_records(_source(settings)):
        where = f"--reviews: {settings.reviews}: {record.location}"
        data = record.data or {}
        if record.reason or not {"trace_id", "review"} <= data.keys():
            raise InputError(f"{where}: {record.reason or 'needs the columns trace_id and review'}")
        key, review = data["trace_id"], data["review"]
        if review is None or review == "":
            continue
        if not isinstance(key, str) or not isinstance(review, str | int | float | bool):
            raise InputError(f"{where}: trace_id must be a text, and review a text, a number, true or false")
        if reviews.setdefault(key.strip(), str(review)) != str(review):
            raise InputError(f"{where}: {key} has another review in an earlier row")
    if not reviews:
        raise InputError(f"--reviews: {settings.reviews}: has no reviews")
    return reviews


SIGNAL = Signal(
    name="review",
    level="trace",
    columns={"review": Column(pl.String, "what a reviewer said about the trace; null: not reviewed")},
    reads=(),
    compute=_compute,
    whole=True,
    content=_content,
)
