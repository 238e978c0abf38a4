"""Review: what people say about traces, from a file with the columns ``trace_id`` and ``review``."""

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
    found = 0
    for frame in frames:
        texts = [reviews.get(key) for key in frame["trace_id"]]
        found += len(texts) - texts.count(None)
        yield frame.with_columns(pl.Series("review", texts, pl.String))
        progress.advance(len(frame))
    if found < len(reviews):
        raise InputError(f"{settings.reviews}: {len(reviews) - found} of {len(reviews)} ids are no traces of this run")


def _reviews(settings: CurateSettings) -> dict[str, str]:
    reviews: dict[str, str] = {}
    for record in read_records(_source(settings)):
        data = record.data or {}
        key, review = data.get("trace_id"), data.get("review")
        if not isinstance(key, str) or not isinstance(review, str | int | float | bool):
            raise InputError(f"{record.location}: needs the columns trace_id and review")
        if reviews.setdefault(key, str(review)) != str(review):
            raise InputError(f"{record.location}: another review of the trace {key}; it must have one")
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
