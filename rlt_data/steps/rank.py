"""Rank traces within their question and sort them into buckets: scores in, ranks out.

Order within a question: well-formed traces (closed, not truncated, not empty, no stray tag) before all others; then
those with a finite value before NaN and missing ones; then the larger value; equal values by fewer explanation
tokens, then by trace id. So ranks are 1, 2, 3, ... without gaps, and the same whatever the order of rows.

With ``ranks`` a trace's bucket is its rank. With N quantiles, the values of all well-formed traces of the data set
are cut into N equal shares and bucket 1 holds the largest; equal values share a bucket, and traces that are not
well-formed, or have no finite value, have none.

Parts hold whole questions, so ranking needs a few parts in memory at a time, whatever the size of the data set.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.progress import SILENT, Progress, task
from rlt_data.settings import RankSettings
from rlt_data.storage.errorlog import failures
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import RANKS, SCORES

logger = logging.getLogger(__name__)

#: Parts that are ranked together.
PARTS_AT_A_TIME = 64

#: Flaws by their column of scores; the first that holds is the one that is named.
_FLAWS = {"empty": "empty", "holds tag": "holds_tag", "truncated": "truncated"}


@dataclass(frozen=True)
class RankSummary:
    """What ranking gave.

    Attributes:
        run: the run folder.
        rows: ranked traces.
        questions: questions they belong to.
        table: one row per bucket: bucket (null for none), rows, mean_value, mean_thought_tokens, well_formed (share).
        seconds: time spent.
    """

    run: StoragePath
    rows: int
    questions: int
    table: pl.DataFrame
    seconds: float


def rank(settings: RankSettings, progress: Progress = SILENT) -> RankSummary:
    """Rank the scored traces of a run; the library side of ``rlt-data rank``.

    An earlier ranking of the run is replaced.

    Raises:
        RunFolderError: there are no scores, traces lack theirs, or they were made by more than one kind of settings.
        SettingsError: no trace has a value to rank by.
    """
    run = RunFolder.existing(settings.input)
    began = time.monotonic()
    parts = run.parts("scores")
    if not parts:
        raise RunFolderError(f"{run.path}: there are no scores to rank; run rlt-data score first")
    with run.locked():
        _refuse_missing_scores(run)
        edges = None if settings.buckets == "ranks" else _edges(run, parts, settings)
        rows = questions = 0
        sums: list[pl.DataFrame] = []
        makers: set[str] = set()
        with task(progress, "rank", len(parts)), run.replacing("ranks", made_from=["scores"]) as ranks:
            for chunk in _chunks(parts):
                ranked = _ranked(_scores(run, chunk, settings), edges)
                makers.update(ranked["scored_by"].unique())
                if len(makers) > 1:
                    raise RunFolderError(
                        f"{run.path}: its scores were made by {len(makers)} kinds of settings (students, temperatures "
                        "or reward settings), which do not compare; score into separate run folders"
                    )
                for (part,), frame in ranked.partition_by("part", as_dict=True, maintain_order=True).items():
                    ranks.write(int(part), frame.select(RANKS.names).to_arrow().cast(RANKS))
                rows += len(ranked)
                questions += ranked["question_id"].n_unique()
                sums.append(bucket_sums(ranked))
                progress.advance(len(chunk))
            table = bucket_table(sums)
            if table["mean_value"].is_null().all():
                raise SettingsError(
                    f"--by: no trace has a {settings.by}"
                    + (
                        "; scored without a teacher, rank with --by reward_without_entropy"
                        if settings.by == "reward"
                        else ""
                    )
                )
            entry = {"settings": settings.model_dump(mode="json", by_alias=True), "rows": rows, "questions": questions}
            ranks.record("rank", entry)
    logger.info("rank: %d traces of %d questions", rows, questions)
    return RankSummary(run.path, rows, questions, table, time.monotonic() - began)


def _refuse_missing_scores(run: RunFolder) -> None:
    """Refuse to choose among the traces of a run that is not scored to its end."""
    failed = sum(entry["step"] == "score" for entry in failures(run))
    missing = run.count("traces") - run.count("scores") - failed
    if missing > 0:
        raise RunFolderError(
            f"{run.path}: {missing:,} traces have no score yet; run rlt-data score to its end before ranking"
        )


def _chunks(parts: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(parts), PARTS_AT_A_TIME):
        yield parts[start : start + PARTS_AT_A_TIME]


def _scores(run: RunFolder, parts: list[int], settings: RankSettings) -> pl.DataFrame:
    """Read scores, in order, with the number of their part and the value to rank by (null where it is not finite)."""
    columns = [name for name in RANKS.names if name in SCORES.names]
    frames = []
    for part in parts:
        frame = pl.DataFrame(run.read("scores", part, [*columns, *_FLAWS.values(), "well_formed", settings.by]))
        frames.append(frame.with_columns(pl.lit(part).alias("part")))
    value = pl.col(settings.by)
    first_flaw = pl.coalesce(pl.when(column).then(pl.lit(flaw)) for flaw, column in _FLAWS.items())
    return pl.concat(frames).with_columns(
        pl.when(value.is_finite()).then(value).alias("value"),
        pl.when(~pl.col("well_formed")).then(pl.coalesce(first_flaw, pl.lit("unclosed"))).alias("flaw"),
    )


def _ranked(scores: pl.DataFrame, edges: list[float] | None) -> pl.DataFrame:
    question = pl.col("question_id")
    ranked = (
        scores.with_columns(question.rle_id().alias("place"))
        .sort(
            ["place", "well_formed", "value", "thought_tokens", "trace_id"],
            descending=[False, True, True, False, False],
            nulls_last=True,
        )
        .with_columns(
            pl.int_range(1, pl.len() + 1).over("place").cast(pl.Int32).alias("rank"),
            pl.len().over("place").cast(pl.Int32).alias("traces"),
        )
    )
    bucket = pl.col("rank")
    if edges is not None:
        above = sum((pl.col("value") < edge).cast(pl.Int32) for edge in edges)
        bucket = pl.when(pl.col("well_formed") & pl.col("value").is_not_null()).then(pl.lit(1, pl.Int32) + above)
    return ranked.with_columns(bucket.alias("bucket"))


def _edges(run: RunFolder, parts: list[int], settings: RankSettings) -> list[float]:
    """Return the values between the quantiles, ascending."""
    number = int(settings.buckets)
    frames = [_scores(run, chunk, settings).filter("well_formed")["value"].drop_nulls() for chunk in _chunks(parts)]
    values = pl.concat(frames)
    if values.is_empty():
        return []
    return [float(values.quantile(i / number, "linear") or 0.0) for i in range(1, number)]


def bucket_sums(ranked: pl.DataFrame) -> pl.DataFrame:
    """Add up ranked traces by bucket: columns bucket, value, thought_tokens and well_formed."""
    return ranked.group_by("bucket").agg(
        pl.len().alias("rows"),
        pl.col("value").sum().alias("value"),
        pl.col("value").count().alias("values"),
        pl.col("thought_tokens").cast(pl.Int64).sum(),
        pl.col("well_formed").sum().cast(pl.Int64),
    )


def bucket_table(sums: list[pl.DataFrame]) -> pl.DataFrame:
    """Make the table of buckets of sums over shares of the traces."""
    total = pl.concat(sums).group_by("bucket").sum()
    value = pl.when(pl.col("values") > 0).then(pl.col("value") / pl.col("values"))
    return total.select(
        "bucket",
        "rows",
        value.alias("mean_value"),
        (pl.col("thought_tokens") / pl.col("rows")).alias("mean_thought_tokens"),
        (pl.col("well_formed") / pl.col("rows")).alias("well_formed"),
    ).sort("bucket", nulls_last=True)
