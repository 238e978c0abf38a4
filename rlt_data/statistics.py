"""The statistics of a run, computed in one place for the terminal, the report page and the cards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any

import polars as pl

from rlt_data.signals.matching import Matching
from rlt_data.steps.rank import bucket_sums, bucket_table
from rlt_data.storage.data_set import DataSet, read_data_set
from rlt_data.storage.errorlog import failures
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.rows import columns_of, read_rows
from rlt_data.storage.run import RunFolder

#: Score columns whose distribution is shown.
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

#: The finish reason or origin of traces that have none.
UNKNOWN = "unknown"
#: Boolean score columns, shown as shares of the scored traces.
FLAGS = ("closed", "truncated", "empty", "holds_tag", "control_token", "well_formed")
#: Columns whose means the table by origin shows, as far as the run has them.
MEASURES = (
    "reward",
    "reward_without_entropy",
    "r_ss",
    "r_kl",
    "thought_tokens",
    "thought_logprob_mean",
    "perplexity",
    "token_rank_mean",
    "rsr",
    "ifd",
    "local_logprob_mean",
)
#: Columns of the table ``ranks`` that statistics use.
OF_RANKS = ("rank", "bucket", "value", "flaw")


@dataclass(frozen=True)
class Stats:
    """The statistics of a run.

    Attributes:
        run: path or URL of the run folder.
        rows: row counts by table.
        finish_reasons: number of traces by finish reason; "unknown" for imported traces without one.
        by_origin: the result of :func:`by_origin`.
        completion_tokens: total number of sampled tokens.
        shares: share of the scored traces for each of :data:`FLAGS`.
        terms: one row for each of :data:`TERMS`: term, mean, std, min, q25, median, q75, max (null without values).
        buckets: the table that ``rank`` prints; empty if the run has no current ranks.
        ranks_outdated: whether scores or signals have changed since the run was ranked, so that its ranks are left out.
        failed: number of rows in errors.jsonl by step.
        steps: the entries of run.json by step.
        matching: the traces that these figures are about; None: all traces of the run. ``failed`` and ``steps`` are
            always those of the run.
    """

    run: StoragePath
    rows: dict[str, int]
    finish_reasons: dict[str, int]
    by_origin: pl.DataFrame
    completion_tokens: int
    shares: dict[str, float]
    terms: pl.DataFrame
    buckets: pl.DataFrame
    ranks_outdated: bool
    failed: dict[str, int]
    steps: dict[str, Any] = field(repr=False)
    matching: Matching | None = None

    @property
    def origins(self) -> dict[str, int]:
        """Number of traces by origin; "unknown" for those without one."""
        return dict(self.by_origin.select("origin", "traces").iter_rows())

    @property
    def tokens_per_second(self) -> dict[str, float]:
        """Throughput by step over all completed starts, without the time to load models."""
        work = {step: entry.get("work") for step, entry in self.steps.items()}
        return {step: total["tokens"] / total["seconds"] for step, total in work.items() if total and total["seconds"]}


def stats(
    run: RunFolder | str | PathLike[str],
    scores: pl.DataFrame | None = None,
    matching: Matching | None = None,
    data_set: DataSet | None = None,
) -> Stats:
    """Compute the statistics of a run.

    Args:
        run: the run, or its path or URL.
        scores: the result of :func:`scored` for this run and these traces, if it is already loaded.
        matching: the traces to compute them for. None: all.
        data_set: the data set of the run, if it is already loaded.

    Raises:
        RunFolderError: the run does not exist.
    """
    run = run if isinstance(run, RunFolder) else RunFolder.existing(fspath(run))
    if not run.info:
        run = RunFolder.existing(run.path)
    rows = {table: run.count(table) for table in ("questions", "traces", "scores", "ranks")}
    reasons: Counter[str] = Counter()
    tokens = questions = 0
    for part in run.parts("traces"):
        columns = ["trace_id", "question_id", "finish_reason", "completion_tokens"]
        traces = pl.DataFrame(run.read("traces", part, columns))
        traces = matching.of(traces, part) if matching else traces
        questions += traces["question_id"].n_unique()
        reasons.update(traces["finish_reason"].fill_null(UNKNOWN).to_list())
        tokens += int(traces["completion_tokens"].sum() or 0)
    scores = scored(run, matching=matching) if scores is None else scores
    ranked = scores.filter(pl.col("rank").is_not_null())
    if matching:
        rows = {"questions": questions, "traces": matching.count, "scores": len(scores), "ranks": len(ranked)}
    return Stats(
        run=run.path,
        rows=rows,
        finish_reasons=dict(sorted(reasons.items())),
        by_origin=by_origin(run, data_set or read_data_set(run), matching),
        completion_tokens=tokens,
        shares={flag: float(scores[flag].sum()) / len(scores) for flag in FLAGS} if len(scores) else {},
        terms=pl.concat([_distribution(scores, term) for term in TERMS]),
        buckets=bucket_table([bucket_sums(ranked)]) if len(ranked) else pl.DataFrame(),
        ranks_outdated=bool(run.parts("ranks")) and not run.is_current("ranks"),
        failed=dict(Counter(entry["step"] for entry in failures(run))),
        steps=run.info.get("steps", {}),
        matching=matching,
    )


def by_origin(run: RunFolder, data_set: DataSet | None, matching: Matching | None = None) -> pl.DataFrame:
    """Compare the origins of a run's traces.

    Args:
        run: the run.
        data_set: its data set.
        matching: the traces to compare. None: all.

    Returns:
        One row per origin ("unknown" for traces without one), sorted by name: ``origin``, ``traces``, the mean of each
        of :data:`MEASURES` that the run has, and the shares ``well_formed``, ``selected`` (in the data set in
        RUN/dataset) and ``correct`` (of the traces whose answer was graded), as far as they are known.
    """
    known = columns_of(run)
    means = [name for name in (*MEASURES, "well_formed") if name in known]
    verdicts = ["answer_verdict"] if "answer_verdict" in known else []
    selected = data_set.keys.select("trace_id", selected=True).unique() if data_set else None
    sums = []
    for part in run.parts("traces"):
        rows = read_rows(run, part, ["origin", *means, *verdicts], known)
        rows = matching.of(rows, part) if matching else rows
        rows = rows.with_columns(pl.col("origin").fill_null(UNKNOWN), pl.col(means).cast(pl.Float64))
        if selected is not None:
            rows = rows.join(selected, on="trace_id", how="left").with_columns(pl.col("selected").fill_null(False))
        for name in verdicts:
            graded = pl.when(pl.col(name).is_in(["correct", "wrong"])).then(pl.col(name) == "correct")
            rows = rows.with_columns(graded.alias("correct"))
        values = [*means, *(name for name in ("selected", "correct") if name in rows.columns)]
        finite = [pl.when(pl.col(name).cast(pl.Float64).is_finite()).then(pl.col(name)).alias(name) for name in values]
        sums.append(
            rows.select("origin", *finite)
            .group_by("origin")
            .agg(pl.len().alias("traces"), pl.col(values).sum(), pl.col(values).count().name.suffix(" count"))
            .cast(dict.fromkeys(values, pl.Float64))
        )
    if not sums:
        return pl.DataFrame(schema={"origin": pl.String, "traces": pl.Int64})
    total = pl.concat(sums).group_by("origin").sum().sort("origin")
    values = [name for name in total.columns if f"{name} count" in total.columns]
    table = total.select(
        "origin",
        pl.col("traces").cast(pl.Int64),
        *(pl.when(pl.col(f"{name} count") > 0).then(pl.col(name) / pl.col(f"{name} count")) for name in values),
    )
    return table.select(name for name in table.columns if table[name].count())


def scored(run: RunFolder, *extra: str, matching: Matching | None = None) -> pl.DataFrame:
    """Return the score columns that the statistics are computed from.

    Args:
        run: the run.
        extra: further columns of scores.
        matching: the traces to return. None: all.

    Returns:
        One row per score, with the extra columns, :data:`TERMS`, :data:`FLAGS` and :data:`OF_RANKS`. The last are null
        if the run is not ranked.
    """
    columns = list(dict.fromkeys([*extra, *TERMS, *FLAGS, *OF_RANKS]))
    tables = columns_of(run)
    known = [name for name in columns if name in tables]
    frames = []
    for part in run.parts("scores"):
        rows = read_rows(run, part, known, tables, of="scores")
        frames.append((matching.of(rows, part) if matching else rows).select(known))
    if not frames:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.Float64))
    return pl.concat(frames).with_columns(pl.lit(None).alias(name) for name in columns if name not in known)


def figure(value: Any) -> str:
    """Return a value as cards and pages show it."""
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
