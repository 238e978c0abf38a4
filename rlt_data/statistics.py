"""The figures of a run, from its tables: one function for every place that shows them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any

import polars as pl

from rlt_data.steps.rank import bucket_sums, bucket_table
from rlt_data.storage.errorlog import failures
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.run import RunFolder

#: Columns of scores whose distribution is shown.
TERMS = (
    "reward",
    "reward_without_entropy",
    "r_ss",
    "r_kl",
    "penalty",
    "solution_logprob_mean",
    "solution_logprob_min",
    "kl_mean",
    "kl_max",
    "thought_tokens",
    "solution_tokens",
)

#: Shares of traces.
FLAGS = ("closed", "truncated", "empty", "holds_tag", "well_formed")
#: What a ranking says of a trace.
OF_RANKS = ("rank", "bucket", "value", "flaw")


@dataclass(frozen=True)
class Stats:
    """The figures of a run.

    Attributes:
        run: the run folder.
        rows: rows by table.
        finish_reasons: traces by why they ended; "unknown" for imported ones that do not say.
        completion_tokens: sampled tokens in all.
        shares: share of the scored traces that are closed, truncated, empty, hold a tag, are well-formed.
        terms: one row per reward term: term, mean, std, min, q25, median, q75, max (null without values).
        buckets: the table that ``rank`` printed; empty without ranks that are up to date.
        ranks_outdated: the scores have changed since the run was ranked, so its ranks are left out.
        failed: rows in errors.jsonl by step.
        steps: what run.json says of each step.
    """

    run: StoragePath
    rows: dict[str, int]
    finish_reasons: dict[str, int]
    completion_tokens: int
    shares: dict[str, float]
    terms: pl.DataFrame
    buckets: pl.DataFrame
    ranks_outdated: bool
    failed: dict[str, int]
    steps: dict[str, Any] = field(repr=False)

    @property
    def tokens_per_second(self) -> dict[str, float]:
        """Throughput by step, over all its starts that came to their end, models loaded."""
        work = {step: entry.get("work") for step, entry in self.steps.items()}
        return {step: each["tokens"] / each["seconds"] for step, each in work.items() if each and each["seconds"]}


def stats(run: RunFolder | str | PathLike[str], scores: pl.DataFrame | None = None) -> Stats:
    """Compute the figures of a run.

    Args:
        run: the run, or its folder or URL.
        scores: what :func:`scored` returns of it, where that is at hand.

    Raises:
        RunFolderError: there is no such run.
    """
    run = run if isinstance(run, RunFolder) else RunFolder.existing(fspath(run))
    if not run.info:
        run = RunFolder.existing(run.path)
    rows = {table: run.count(table) for table in ("questions", "traces", "scores", "ranks")}
    reasons: Counter[str] = Counter()
    tokens = 0
    for part in run.parts("traces"):
        traces = pl.DataFrame(run.read("traces", part, ["finish_reason", "completion_tokens"]))
        reasons.update(traces["finish_reason"].fill_null("unknown").to_list())
        tokens += int(traces["completion_tokens"].sum() or 0)
    scores = scored(run) if scores is None else scores
    ranked = scores.filter(pl.col("rank").is_not_null())
    return Stats(
        run=run.path,
        rows=rows,
        finish_reasons=dict(sorted(reasons.items())),
        completion_tokens=tokens,
        shares={flag: float(scores[flag].sum()) / len(scores) for flag in FLAGS} if len(scores) else {},
        terms=pl.concat([_distribution(scores, term) for term in TERMS]),
        buckets=bucket_table([bucket_sums(ranked)]) if len(ranked) else pl.DataFrame(),
        ranks_outdated=not run.is_current("ranks"),
        failed=dict(Counter(entry["step"] for entry in failures(run))),
        steps=run.info.get("steps", {}),
    )


def scored(run: RunFolder, *more: str) -> pl.DataFrame:
    """Return what the figures of a run are made of.

    Args:
        run: the run.
        more: further columns of scores.

    Returns:
        A row for each score: the further columns, :data:`TERMS`, :data:`FLAGS`, and :data:`OF_RANKS`, which are null
        where the run is not ranked.
    """
    columns = list(dict.fromkeys([*more, *TERMS, *FLAGS]))
    frames = [
        run.join(pl.DataFrame(run.read("scores", part, ["trace_id", *columns])), "ranks", part, OF_RANKS)
        for part in run.parts("scores")
    ]
    if not frames:
        return pl.DataFrame(schema=dict.fromkeys((*columns, *OF_RANKS), pl.Float64))
    return pl.concat(frames).drop("trace_id")


def figure(value: Any) -> str:
    """Return a figure as cards and pages show it."""
    if value is None:
        return "–"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _distribution(scores: pl.DataFrame, term: str) -> pl.DataFrame:
    values = pl.col(term).cast(pl.Float64)
    return scores.select(
        pl.lit(term).alias("term"),
        values.mean().alias("mean"),
        values.std().alias("std"),
        values.min().alias("min"),
        values.quantile(0.25, "linear").alias("q25"),
        values.median().alias("median"),
        values.quantile(0.75, "linear").alias("q75"),
        values.max().alias("max"),
    )
