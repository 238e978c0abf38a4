"""Rank the traces of each question and sort them into buckets: scores in, ranks out.

Within a question, traces are sorted by these criteria in turn:

1. well-formed traces (closed, not truncated, not empty, no stray tag) before all others
2. finite values before NaN and missing ones
3. larger values
4. fewer explanation tokens
5. trace id

Ranks are therefore 1, 2, 3, ... without gaps and do not depend on the order of the rows.

The value is a column or an expression over the columns of the run (``--by``). ``--lambda`` and ``--alpha`` compute the
reward again from its terms, without a model. Traces that do not satisfy ``--where`` get no rank.

With ``--buckets ranks``, a trace's bucket is its rank. With ``--buckets N``, the values of all well-formed traces are
cut into N quantiles, and bucket 1 contains the largest. Equal values share a bucket. Traces that are not well-formed or
have no finite value get no bucket.

A part contains all traces of its questions, so only a few parts are in memory at a time.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import polars as pl

from rlt_data.errors import RunFolderError, SettingsError, first_few
from rlt_data.progress import SILENT, Progress, task
from rlt_data.settings import RankSettings
from rlt_data.signals.expressions import Expression, parse_expression
from rlt_data.signals.funnel import Funnel, FunnelStep
from rlt_data.steps.makers import has_imports, recorded_makers
from rlt_data.steps.own_teachers import teachers_by_scored_by
from rlt_data.storage.errorlog import failures
from rlt_data.storage.paths import StoragePath
from rlt_data.storage.rows import columns_of, read_rows
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import RANKS, SCORES, SIGNAL_PREFIX

logger = logging.getLogger(__name__)

#: Parts in memory at the same time.
PARTS_AT_A_TIME = 64

#: Columns of scores by flaw. A trace with several flaws gets the first.
_FLAWS = {"empty": "empty", "holds tag": "holds_tag", "control token": "control_token", "truncated": "truncated"}

#: Columns that contain the mean log-prob of an explanation, which misranks traces of several teachers: longer steps and
#: plainer words have higher log-probs (Local Naturalness, arXiv 2510.03988).
_MISRANKING = {"thought_logprob_mean", "perplexity", "reward_without_entropy"}
#: Columns that are null for traces scored without a teacher.
_OF_TEACHER = {"reward", "r_kl", "kl_mean", "kl_max"}
#: Values of ``score --measures`` by their columns.
MEASURES = {"ifd": "ifd", "local_logprob_mean": "local", "leak_drop": "leak"}


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
        funnel: what the conditions of ``where`` did.
        notes: what to know about the ranking.
    """

    run: StoragePath
    rows: int
    questions: int
    table: pl.DataFrame
    missing_traces: int
    seconds: float
    funnel: list[FunnelStep] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rank(settings: RankSettings, progress: Progress = SILENT) -> RankSummary:
    """Rank the scored traces of a run; implements ``rlt-data rank``.

    Replaces an earlier ranking of the run.

    Raises:
        RunFolderError: the run has no scores, traces without a score, or scores of different settings.
        SettingsError: an expression is wrong, or not all origins have values to rank by.
    """
    run = RunFolder.existing(settings.input)
    began = time.monotonic()
    parts = run.parts("scores")
    if not parts:
        raise RunFolderError(f"{run.path}: has no scores to rank; run rlt-data score first")
    with run.locked():
        refuse_missing_scores(run, "rlt-data score")
        scores = _Scores(run, settings)
        edges = None if settings.buckets == "ranks" else _edges(_Scores(run, settings), parts, settings)
        rows = questions = 0
        values: Counter[str | None] = Counter()
        valued: Counter[str | None] = Counter()
        sums: list[pl.DataFrame] = []
        scored_by: set[str] = set()
        comparable = teachers_by_scored_by(run.step("score").get("depends_on", {}))
        with task(progress, "rank", len(parts)), run.replacing("ranks", made_from=scores.sources) as ranks:
            for chunk in part_chunks(parts):
                ranked = _ranked(scores.read(chunk), edges)
                for origin, count, with_value in _counts_by_origin(ranked):
                    values[origin] += count
                    valued[origin] += with_value
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
            if not rows:
                raise SettingsError(f"--where: no trace satisfies {' and '.join(settings.where)}")
            _refuse_missing_values(run, scores.value, values, valued)
            table = bucket_table(sums)
            entry = {"settings": settings.model_dump(mode="json", by_alias=True), "rows": rows, "questions": questions}
            ranks.record("rank", entry)
    logger.info("rank: %d traces of %d questions", rows, questions)
    notes = []
    if missing := values.total() - valued.total():
        notes.append(f"{missing:,} of {rows:,} traces have no value and rank below those that have one")
    if len(values) > 1 and (named := sorted(_MISRANKING & set(scores.value.columns))):
        notes.append(
            f"{named[0]} contains the mean log-prob of the explanation, which is known to misrank traces of several "
            "origins (arXiv 2510.03988); docs/measures.md explains other measures, such as --by=-rsr"
        )
    seconds = time.monotonic() - began
    return RankSummary(run.path, rows, questions, table, count_missing_traces(run), seconds, scores.funnel.steps, notes)


def _counts_by_origin(ranked: pl.DataFrame) -> list[tuple[str | None, int, int]]:
    """Return each origin with its number of traces and of values."""
    return list(ranked.group_by("origin").agg(pl.len(), pl.col("value").count()).iter_rows())


def _refuse_missing_values(
    run: RunFolder, value: Expression, rows: Counter[str | None], valued: Counter[str | None]
) -> None:
    """Raise SettingsError if no trace, or none of some origin, has a value to rank by."""
    without = sorted(str(origin or "unknown") for origin in rows if not valued[origin])
    if not without:
        return
    by = f"--by: {value.text}" if value.option == "--by" else value.option
    why = ""
    if measures := [measure for column, measure in MEASURES.items() if column in value.columns]:
        why = f" (score --measures {measures[0]} computes it)"
    if _OF_TEACHER & set(value.columns):
        is_own = run.step("score").get("settings", {}).get("reward", "rlt") != "rlt"
        why = " (traces have none if they were scored without log-probs of a teacher or without a solution"
        why += ", or if the function of --reward returned None)" if is_own else ")"
    if len(without) == len(rows):
        remedy = _known_for_all(run, rows, ("reward_without_entropy", "r_ss", "rsr"))
        raise SettingsError(f"{by}: no trace has a finite value{why}" + (f"; {remedy} ranks them" if remedy else ""))
    missing = rows.total() - valued.total()
    remedy = _known_for_all(run, rows, ("r_ss", "rsr"))
    raise SettingsError(
        f"{by}: no trace of {first_few(without)} has a finite value, {missing:,} of {rows.total():,} traces{why}; "
        + (f"{remedy} ranks by what all origins have, and " if remedy else "")
        + "--where selects origins"
    )


def _known_for_all(run: RunFolder, origins: Collection[str | None], columns: Sequence[str]) -> str | None:
    """Return ``--by`` with the first column of which all origins have values; None if there is none."""
    frames = (pl.DataFrame(run.read("scores", part, ["origin", *columns])) for part in run.parts("scores"))
    counts = pl.concat(frame.group_by("origin").agg(pl.col(columns).count()) for frame in frames)
    counts = counts.group_by("origin").sum().filter(pl.col("origin").is_in(list(origins), nulls_equal=True))
    column = next((name for name in columns if (counts[name] > 0).all()), None)
    return column and ("--by=-rsr" if column == "rsr" else f"--by {column}")


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


class _Scores:
    """Reads the scores to rank.

    Args:
        run: a scored run.
        settings: settings of the step.

    Attributes:
        value: what is ranked by.
        funnel: what the conditions of ``where`` do.

    Raises:
        SettingsError: an expression is wrong.
    """

    def __init__(self, run: RunFolder, settings: RankSettings) -> None:
        self._run = run
        self.value = _value(run, settings)
        self._conditions = [parse_expression(run, text, "--where") for text in settings.where]
        self.funnel = Funnel()
        for expression in (self.value, *self._conditions):
            if "ranks" in expression.tables:
                raise SettingsError(f"{expression.option}: {expression.text}: ranks cannot depend on earlier ranks")

    @property
    def sources(self) -> list[str]:
        """The tables that the ranks depend on."""
        tables = [table for expression in (self.value, *self._conditions) for table in expression.tables]
        return ["scores", *sorted({table for table in tables if table.startswith(SIGNAL_PREFIX)})]

    def read(self, parts: Sequence[int]) -> pl.DataFrame:
        """Read the scores of parts, with columns ``part``, ``value`` (null unless finite) and ``flaw``."""
        ours = [name for name in RANKS.names if name in SCORES.names]
        columns = [*ours, *_FLAWS.values(), "well_formed"]
        needed = [*columns, *(name for expression in (self.value, *self._conditions) for name in expression.columns)]
        tables = columns_of(self._run)
        rows = pl.concat(
            read_rows(self._run, part, needed, tables, of="scores").with_columns(part=part) for part in parts
        )
        for condition in self._conditions:
            rows = self.funnel.filter(rows, condition.text, condition)
        value = self.value.evaluate(rows)
        first_flaw = pl.coalesce(pl.when(column).then(pl.lit(flaw)) for flaw, column in _FLAWS.items())
        return rows.select(*columns, "part", value.set(~value.is_finite(), None).alias("value")).with_columns(
            pl.when(~pl.col("well_formed")).then(pl.coalesce(first_flaw, pl.lit("unclosed"))).alias("flaw"),
        )


def _value(run: RunFolder, settings: RankSettings) -> Expression:
    """Return what to rank by; with ``lambda`` or ``alpha``, the reward computed again from its terms."""
    if settings.lambda_ is None and settings.alpha is None:
        return parse_expression(run, settings.by, "--by", "number")
    scored_with = run.step("score").get("settings", {})
    option = "--lambda" if settings.alpha is None else "--alpha"
    if scored_with.get("reward", "rlt") != "rlt":
        raise SettingsError(
            f"{option}: the scores have the reward of {scored_with['reward']}; use --by with an expression"
        )
    lambda_ = scored_with.get("lambda", 3.0) if settings.lambda_ is None else settings.lambda_
    alpha = scored_with.get("alpha", 0.01) if settings.alpha is None else settings.alpha
    weight, alpha_kl = scored_with.get("solution_weight", 1.0), scored_with.get("alpha_kl")
    alpha_kl = alpha if alpha_kl is None else alpha_kl
    text = (  # in the order of scoring.reward, so that the values are equal to the last bit
        f"{weight!r} * (solution_logprob_mean + {alpha!r} * solution_logprob_min) "
        f"- {lambda_!r} * (kl_mean + {alpha_kl!r} * kl_max) + penalty"
    )
    return parse_expression(run, text, option, "number")


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


def _edges(scores: _Scores, parts: list[int], settings: RankSettings) -> list[float]:
    """Return the values that separate the quantiles, ascending."""
    number = int(settings.buckets)
    frames = [scores.read(chunk).filter("well_formed")["value"].drop_nulls() for chunk in part_chunks(parts)]
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
