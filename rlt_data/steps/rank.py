"""Rank the traces of each question and sort them into buckets: scores in, ranks out.

Within a question, traces are sorted by these criteria in turn:

1. well-formed traces (closed, not truncated, not empty, no stray tag) before all others
2. finite values before NaN and missing ones
3. larger values
4. fewer explanation tokens
5. trace id

Ranks are therefore 1, 2, 3, ... without gaps and do not depend on the order of the rows.

With ``--buckets ranks``, a trace's bucket is its rank. With ``--buckets N``, the values of all well-formed traces are
cut into N quantiles, and bucket 1 contains the largest. Equal values share a bucket. Traces that are not well-formed or
have no finite value get no bucket.

A part contains all traces of its questions, so only a few parts are in memory at a time.
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
from rlt_data.steps.makers import has_imports, recorded_makers
from rlt_data.steps.own_teachers import teachers_by_scored_by
from rlt_data.storage.errorlog import failures
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import RANKS, SCORES

logger = logging.getLogger(__name__)

#: Parts in memory at the same time.
PARTS_AT_A_TIME = 64

#: Columns of scores by flaw. A trace with several flaws gets the first.
_FLAWS = {"empty": "empty", "holds tag": "holds_tag", "control token": "control_token", "truncated": "truncated"}


@dataclass(frozen=True)
class RankSummary:
    """Result of ranking.

    Attributes:
        run: run folder.
        rows: ranked traces.
        questions: questions with ranked traces.
        table: one row per bucket: bucket (null for none), rows, mean_value, mean_thought_tokens, well_formed (share).
        missing_traces: traces that an unfinished ``generate`` has not made yet.
        seconds: time spent.
    """

    run: StoragePath
    rows: int
    questions: int
    table: pl.DataFrame
    missing_traces: int
    seconds: float


def rank(settings: RankSettings, progress: Progress = SILENT) -> RankSummary:
    """Rank the scored traces of a run; implements ``rlt-data rank``.

    Replaces an earlier ranking of the run.

    Raises:
        RunFolderError: the run has no scores, traces without a score, or scores of different settings.
        SettingsError: no trace has a value to rank by.
    """
    run = RunFolder.existing(settings.input)
    began = time.monotonic()
    parts = run.parts("scores")
    if not parts:
        raise RunFolderError(f"{run.path}: has no scores to rank; run rlt-data score first")
    with run.locked():
        refuse_missing_scores(run, "rlt-data score")
        edges = None if settings.buckets == "ranks" else _edges(run, parts, settings)
        rows = questions = 0
        sums: list[pl.DataFrame] = []
        scored_by: set[str] = set()
        comparable = teachers_by_scored_by(run.step("score").get("depends_on", {}))
        with task(progress, "rank", len(parts)), run.replacing("ranks", made_from=["scores"]) as ranks:
            for chunk in part_chunks(parts):
                ranked = _ranked(_scores(run, chunk, settings), edges)
                scored_by.update(ranked["scored_by"].unique())
                if len(scored_by) > 1 and not scored_by <= comparable.keys():
                    raise RunFolderError(
                        f"{run.path}: the scores come from {len(scored_by)} different settings (students, temperatures "
                        "or reward settings) and cannot be compared; score into separate run folders"
                    )
                for (part,), frame in ranked.partition_by("part", as_dict=True, maintain_order=True).items():
                    ranks.write(int(part), frame.select(RANKS.names).to_arrow().cast(RANKS))
                rows += len(ranked)
                questions += ranked["question_id"].n_unique()
                sums.append(bucket_sums(ranked))
                progress.advance(len(chunk))
            table = bucket_table(sums)
            if table["mean_value"].is_null().all():
                remedy = (
                    ": the traces were scored with --teacher none, or the function of --reward returned None;"
                    " --by reward_without_entropy ranks them"
                )
                raise SettingsError(f"--by: no trace has a {settings.by}" + remedy * (settings.by == "reward"))
            entry = {"settings": settings.model_dump(mode="json", by_alias=True), "rows": rows, "questions": questions}
            ranks.record("rank", entry)
    logger.info("rank: %d traces of %d questions", rows, questions)
    return RankSummary(run.path, rows, questions, table, count_missing_traces(run), time.monotonic() - began)


def refuse_missing_scores(run: RunFolder, command: str) -> None:
    """Raise RunFolderError if a run has traces that are neither scored nor in errors.jsonl.

    Args:
        run: the run.
        command: what to run first, for the message.
    """
    failed = sum(entry["step"] == "score" for entry in failures(run))
    missing = run.count("traces") - run.count("scores") - failed
    if missing > 0:
        raise RunFolderError(f"{run.path}: {missing:,} traces have no score; run {command} first")


def count_missing_traces(run: RunFolder) -> int:
    """Return the number of traces that ``generate`` has neither made nor logged as failed, over all makers."""
    makers = recorded_makers(run)
    samples = {made_by: entry.get("settings", {}).get("n") for made_by, entry in makers.items()}
    pooled = len(makers) > 1 or has_imports(run)
    failed: dict[str, set[str]] = {made_by: set() for made_by in makers}
    for failure in failures(run):
        if failure["step"] == "generate":
            made_by = failure.get("made_by") or next(iter(makers), "")  # earlier versions had one maker
            failed.setdefault(made_by, set()).add(failure["key"])
    # If every trace is ranked, the ranks have the same questions and sample indices, and are much smaller.
    table = "ranks" if not pooled and run.count("ranks") == run.count("traces") else "traces"
    columns = ["question_id", "sample_index", *(["made_by"] if pooled else [])]
    missing = dict.fromkeys((made_by for made_by, count in samples.items() if count is not None), 0)
    for part in run.parts("questions") if missing else ():
        questions = run.keys("questions", part)
        traces = pl.DataFrame(run.read(table, part, columns))
        for made_by in missing:
            # A failure has the key of its question if none of the question's traces can be made, else of its trace.
            possible = questions - failed[made_by]
            failed[made_by] -= questions
            own = traces.filter(pl.col("made_by") == made_by) if pooled else traces
            existing = own.filter(pl.col("question_id").is_in(possible), pl.col("sample_index") < samples[made_by])
            missing[made_by] += samples[made_by] * len(possible) - len(existing)
    return sum(max(count - len(failed[made_by]), 0) for made_by, count in missing.items())


def part_chunks(parts: list[int]) -> Iterator[list[int]]:
    """Yield the parts in chunks of at most :data:`PARTS_AT_A_TIME`."""
    for start in range(0, len(parts), PARTS_AT_A_TIME):
        yield parts[start : start + PARTS_AT_A_TIME]


def _scores(run: RunFolder, parts: list[int], settings: RankSettings) -> pl.DataFrame:
    """Read the scores of parts, with columns ``part``, ``value`` (null unless finite) and ``flaw``."""
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
        scores.with_columns(question.rle_id().alias("position"))
        .sort(
            ["position", "well_formed", "value", "thought_tokens", "trace_id"],
            descending=[False, True, True, False, False],
            nulls_last=True,
        )
        .with_columns(
            pl.int_range(1, pl.len() + 1).over("position").cast(pl.Int32).alias("rank"),
            pl.len().over("position").cast(pl.Int32).alias("traces"),
        )
    )
    bucket = pl.col("rank")
    if edges is not None:
        above = sum((pl.col("value") < edge).cast(pl.Int32) for edge in edges)
        bucket = pl.when(pl.col("well_formed") & pl.col("value").is_not_null()).then(pl.lit(1, pl.Int32) + above)
    return ranked.with_columns(bucket.alias("bucket"))


def _edges(run: RunFolder, parts: list[int], settings: RankSettings) -> list[float]:
    """Return the values that separate the quantiles, ascending."""
    number = int(settings.buckets)
    frames = [_scores(run, chunk, settings).filter("well_formed")["value"].drop_nulls() for chunk in part_chunks(parts)]
    values = pl.concat(frames)
    if values.is_empty():
        return []
    return [float(values.quantile(i / number, "linear") or 0.0) for i in range(1, number)]


def bucket_sums(ranked: pl.DataFrame) -> pl.DataFrame:
    """Sum ranked traces by bucket; columns bucket, rows, value, values, thought_tokens and well_formed."""
    return ranked.group_by("bucket").agg(
        pl.len().alias("rows"),
        pl.col("value").sum().alias("value"),
        pl.col("value").count().alias("values"),
        pl.col("thought_tokens").cast(pl.Int64).sum(),
        pl.col("well_formed").sum().cast(pl.Int64),
    )


def bucket_table(sums: list[pl.DataFrame]) -> pl.DataFrame:
    """Combine the sums of several chunks of traces into the table of :class:`RankSummary`."""
    total = pl.concat(sums).group_by("bucket").sum()
    value = pl.when(pl.col("values") > 0).then(pl.col("value") / pl.col("values"))
    return total.select(
        "bucket",
        "rows",
        value.alias("mean_value"),
        (pl.col("thought_tokens") / pl.col("rows")).alias("mean_thought_tokens"),
        (pl.col("well_formed") / pl.col("rows")).alias("well_formed"),
    ).sort("bucket", nulls_last=True)
