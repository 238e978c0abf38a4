"""Select ranked traces for a data set: conditions first, then the choice among the traces that remain.

1. ``--ids``, or ``--select rank:K`` and ``bucket:K``, which mean this trace or none
2. well-formed, with a solution, not contaminated, ``--where``, no duplicates
3. ``--max-tokens``, then ``--select`` best, top:K or random among the remaining traces of each question
4. ``--cap``, then ``--limit``, which draw questions by a seeded hash

The funnel counts what each of them drops.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import polars as pl

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.progress import Progress
from rlt_data.settings import DistillSettings
from rlt_data.signals.expressions import Expression, parse_expression, stale_signals
from rlt_data.signals.funnel import Funnel
from rlt_data.signals.registry import command_of
from rlt_data.steps.rank import part_chunks
from rlt_data.storage.rows import columns_of, read_rows
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash

#: Columns of the selected traces, after their keys.
_COLUMNS = ("source_id", "rank", "bucket", "value", "flaw", "thought_tokens", "origin")
#: Columns with the text of a trace, which pairs compare without white space.
_TEXT = ("completion", "trace_solution")
#: Default conditions over signals: columns of which none may have a finding, and how to get them.
_SIGNALS = {
    "contaminated": (("contaminated",), "NOT {}", "rlt-data curate RUN --against FILE"),
    "duplicate": (("question_duplicate_of", "trace_duplicate_of"), "{} IS NULL", "rlt-data curate RUN"),
}
_QUESTION = ["part", "position"]


class Selection:
    """Selects traces part by part.

    Args:
        run: a ranked run.
        settings: settings of the step.
        lengths: returns the tokens of the rows of some selected traces, for ``max_tokens``.
        ids: the traces to select. None: all.

    Attributes:
        funnel: what each condition drops.
        fallbacks: questions whose best trace was too long and that got another trace.

    Raises:
        SettingsError: an expression is wrong.
        RunFolderError: a signal that decides what is selected is out of date.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: DistillSettings,
        lengths: Callable[[pl.DataFrame], list[int]],
        ids: Iterable[str] | None = None,
    ) -> None:
        self.funnel = Funnel()
        self.fallbacks = 0
        self._run = run
        self._settings = settings
        self._lengths = lengths
        self._tables = columns_of(run)
        self._kind, _, number = settings.select.partition(":")
        self._quota = {"best": 1, "random": 1, "rank": 1, "top": int(number or 0)}.get(self._kind, math.inf)
        self._ids = None if ids is None else pl.DataFrame({"trace_id": list(ids)}, schema={"trace_id": pl.String})
        self._conditions: dict[str, Expression] = {}
        if self._kind in ("rank", "bucket"):
            self._add(f"--select {settings.select}", f"{self._kind} = {int(number)}", "--select")
        self._add_well_formed()
        if run.scan("scores").select(pl.col("solution_tokens").min()).collect().item() == 0:
            # A row without a solution would teach to answer with nothing.
            self._add("has a solution", "solution_tokens > 0", "--select")
        self._add_signal("contaminated")
        for text in settings.where:
            # A column such as contaminated must not take the place of the default condition of this name.
            self._add(f"--where {text}" if text in ("ranked", *_SIGNALS) else text, text, "--where")
        self._add_signal("duplicate")  # last, so that it keeps a member that fulfils the other conditions
        self._per = parse_expression(run, settings.per, "--per", "any") if settings.per is not None else None
        self._some_unranked = run.count("ranks") < run.count("traces")
        self._stand_ins = self._find_stand_ins()
        self._flaws: Counter[str] = Counter()
        self._clusters = 0

    @property
    def tables(self) -> list[str]:
        """The tables that decide what is selected."""
        expressions = [*self._conditions.values(), *([self._per] if self._per else [])]
        return list(dict.fromkeys(["ranks", *(table for expression in expressions for table in expression.tables)]))

    # Conditions

    def _add(self, name: str, text: str, option: str) -> None:
        self._conditions[name] = parse_expression(self._run, text, option)

    def _add_well_formed(self) -> None:
        """Accept traces without a flaw, and those whose only flaws ``include`` names."""
        include = [name for name in ("truncated", "control-token") if name in self._settings.include]
        accepted = ["flaw IS NULL"]
        if "truncated" in include:  # flaw is the first of empty, holds tag, control token, truncated and unclosed
            accepted.append("flaw = 'truncated'")
        if "control-token" in include:
            complete = "(closed OR truncated)" if "truncated" in include else "closed AND NOT truncated"
            accepted.append(f"flaw = 'control token' AND {complete}")
        self._well_formed = " or ".join(["well-formed", *include])
        if self._ids is None:
            self._add(self._well_formed, " OR ".join(accepted), "--include")

    def _add_signal(self, name: str) -> None:
        """Add a default condition over signals, or note in :meth:`chosen` why it does not apply."""
        columns, clean, _ = _SIGNALS[name]
        if self._ids is not None or name in self._settings.include:
            return
        for stale in stale_signals(self._run):
            if set(columns) & self._run.signals[stale]["columns"].keys():
                raise RunFolderError(
                    f"{self._run.path}: the signal {stale} does not cover all rows; run {command_of(stale)} again, or "
                    f"add --include {name} to select without it"
                )
        known = [column for column in columns if column in self._tables]
        if known:
            self._add(name, " AND ".join(clean.format(column) for column in known), f"--include {name}")

    def _skip_default_conditions(self) -> None:
        if self._ids is not None:
            self.funnel.skip(self._well_formed, "not applied with --ids")
        for name, (_, _, command) in _SIGNALS.items():
            if self._ids is not None:
                self.funnel.skip(name, "not applied with --ids")
            elif name in self._settings.include:
                self.funnel.skip(name, f"not applied with --include {name}")
            elif name not in self._conditions:
                self.funnel.skip(name, f"not computed; {command}")

    def _traces(self, part: int, *more: str) -> pl.DataFrame:
        """Return the traces of a part with the columns that decide, and more columns."""
        expressions = [*self._conditions.values(), *([self._per] if self._per else [])]
        columns = [name for expression in expressions for name in expression.columns]
        return read_rows(self._run, part, [*_COLUMNS, *columns, *more], self._tables)

    def _eligible(self, part: int) -> pl.DataFrame:
        """Return the traces of a part that fulfil all conditions."""
        compared = _TEXT if self._settings.shape == "preference" else ()
        traces = self._traces(part, *compared)
        rows = traces.filter(pl.col("rank").is_not_null())
        if self._some_unranked:
            self.funnel.count("ranked", traces, rows)
        if self._ids is not None:
            named = rows.join(self._ids, on="trace_id", how="semi", maintain_order="left")
            self.funnel.count("--ids", rows, named)
            rows = named
        for name, condition in self._conditions.items():
            before = rows
            if name == "duplicate":
                rows = self._without_duplicates(before)
                self.funnel.count(name, before, rows)
            else:
                rows = self.funnel.filter(before, name, condition)
            if name == self._well_formed:
                self._flaws += Counter(before["flaw"].drop_nulls()) - Counter(rows["flaw"].drop_nulls())
        kept = ["trace_id", "question_id", *_COLUMNS]
        if self._per:
            rows = rows.with_columns(_as_text(self._per, rows).alias("per"))
            kept.append("per")
        if compared:
            text = pl.struct(pl.col(name).str.replace_all(r"\s", "") for name in compared)
            rows = rows.with_columns(text.hash().alias("text"))
            kept.append("text")
        position = pl.col("question_id").rle_id().alias("position")
        return rows.select(kept).with_columns(pl.lit(part).alias("part"), position)

    # Duplicates

    def _find_stand_ins(self) -> dict[str, str]:
        """Return the question that stands in for the one that represents its cluster, if another condition drops it.

        It is the one with the smallest id whose traces fulfil all other conditions. A contaminated question has none.
        """
        name = "question_duplicate_of"
        if "duplicate" not in self._conditions or name not in self._tables:
            return {}
        parts = self._run.parts(self._tables[name])
        columns = [self._run.read(self._tables[name], part, [name]).column(0).unique() for part in parts]
        representatives = {key for column in columns for key in column.to_pylist() if key is not None}
        present: set[str] = set()
        others: dict[str, str] = {}
        for part in self._run.parts("traces") if representatives else ():
            rows = self._traces(part)
            if condition := self._conditions.get("contaminated"):
                contaminated = rows.filter(~condition.evaluate(rows))
                present.update(representatives.intersection(contaminated["question_id"]))
            rows = rows.filter(pl.col("rank").is_not_null())
            for key, condition in self._conditions.items():
                rows = rows if key == "duplicate" else rows.filter(condition.evaluate(rows))
            present.update(representatives.intersection(rows["question_id"]))
            for question, cluster in rows.select("question_id", name).drop_nulls().unique().iter_rows():
                others[cluster] = min(question, others.get(cluster, question))
        return {cluster: question for cluster, question in others.items() if cluster not in present}

    def _without_duplicates(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Keep one member of each cluster: the one that represents it, or else one that stands in for it."""
        kept = rows
        if "question_duplicate_of" in rows.columns:
            cluster = pl.coalesce("question_duplicate_of", "question_id")
            kept = kept.filter(pl.col("question_id") == cluster.replace(self._stand_ins))
        if "trace_duplicate_of" in rows.columns:
            cluster = pl.coalesce("trace_duplicate_of", "trace_id")
            first = pl.col("trace_id").sort_by(pl.col("trace_duplicate_of").is_not_null(), "trace_id").first()
            kept = kept.filter(pl.col("trace_id") == first.over("question_id", cluster))
            self._clusters += kept["trace_duplicate_of"].count()
        return kept

    def _remark(self) -> None:
        flaws = ", ".join(f"{flaw} {count:,}" for flaw, count in sorted(self._flaws.items()))
        if flaws:
            self.funnel.remark(self._well_formed, flaws)
        if clusters := self._clusters + len(self._stand_ins):
            self.funnel.remark(
                "duplicate",
                f"{clusters:,} clusters keep another member, because another condition drops the representative",
            )

    # Choosing

    def chosen(self, progress: Progress) -> Iterator[pl.DataFrame]:
        """Yield the selected traces of several parts at a time.

        Their columns are trace_id, question_id, source_id, rank, bucket, value, flaw, thought_tokens, origin, part,
        position (of the question in its part), and rejected_id for pairs.
        """
        chosen = self._chosen(progress)
        if self._settings.cap:
            cap = self._settings.cap
            first = pl.int_range(pl.len()).over("per") < cap
            chosen = self._drawn(chosen, f"--per {self._settings.per} --cap {cap}", lambda rows: rows.filter(first))
        if self._settings.limit:
            limit = self._settings.limit
            chosen = self._drawn(chosen, f"--limit {limit}", lambda rows: rows.head(limit))
        return chosen

    def _chosen(self, progress: Progress) -> Iterator[pl.DataFrame]:
        for chunk in part_chunks(self._run.parts("traces")):
            yield self._choose(pl.concat([self._eligible(part) for part in chunk]))
            progress.advance(len(chunk))
        self._skip_default_conditions()
        self._remark()

    def _choose(self, eligible: pl.DataFrame) -> pl.DataFrame:
        eligible = eligible.sort(*_QUESTION, "rank")
        in_turn = eligible
        if self._kind == "random":
            order = [content_hash(self._settings.seed, key) for key in eligible["trace_id"]]
            in_turn = eligible.with_columns(pl.Series("order", order, pl.String))
            in_turn = in_turn.sort(*_QUESTION, "order").drop("order")
        if self._settings.max_tokens:
            in_turn = self._without_too_long(in_turn)
        chosen = in_turn
        if self._kind in ("best", "top", "random"):
            chosen = in_turn.filter(pl.int_range(pl.len()).over(_QUESTION) < int(self._quota))
            self.funnel.count(f"--select {self._settings.select}", in_turn, chosen)
        chosen = chosen.sort(*_QUESTION, "rank")
        return self._with_rejected(chosen, eligible) if self._settings.shape == "preference" else chosen

    def _without_too_long(self, in_turn: pl.DataFrame) -> pl.DataFrame:
        """Drop the traces that exceed ``max_tokens``, as far as they come before those that are selected."""
        turns = in_turn.with_columns(pl.int_range(pl.len()).over(_QUESTION).alias("turn"))
        counts: Counter[str] = Counter()
        skipped: set[str] = set()
        too_long: list[str] = []
        for (_,), frame in turns.partition_by("turn", as_dict=True).items():  # all first traces, then all second ...
            if self._quota is not math.inf:
                full = [key for key, count in counts.items() if count >= self._quota]
                frame = frame.filter(~pl.col("question_id").is_in(full))
            fits = pl.Series(self._lengths(frame), dtype=pl.Int64) <= int(self._settings.max_tokens or 0)
            for key in frame.filter(fits)["question_id"]:
                counts[key] += 1
                self.fallbacks += key in skipped and self._kind in ("best", "top", "random")
                skipped.discard(key)
            skipped.update(frame.filter(~fits)["question_id"])
            too_long += frame.filter(~fits)["trace_id"].to_list()
        short = in_turn.filter(~pl.col("trace_id").is_in(too_long))
        self.funnel.count(f"--max-tokens {self._settings.max_tokens}", in_turn, short)
        return short

    def _with_rejected(self, chosen: pl.DataFrame, eligible: pl.DataFrame) -> pl.DataFrame:
        """Add ``rejected_id``, a worse eligible trace of the question; drop those without one or with an equal text."""
        kind, _, number = self._settings.rejected.partition(":")
        pool = eligible.filter(pl.col("rank") == int(number)) if kind == "rank" else eligible
        names = {"trace_id": "rejected_id", "rank": "rejected_rank", "text": "rejected_text"}
        last = [pl.col(name).last().alias(rejected) for name, rejected in names.items()]
        worse = pool.sort(*_QUESTION, "rank").group_by(_QUESTION, maintain_order=True).agg(*last)
        pairs = chosen.join(worse, on=_QUESTION, how="inner", maintain_order="left")
        pairs = pairs.filter(pl.col("rejected_rank") > pl.col("rank"), pl.col("rejected_text") != pl.col("text"))
        pairs = pairs.drop("rejected_rank", "rejected_text", "text")
        self.funnel.count(f"--rejected {self._settings.rejected}", chosen, pairs)
        return pairs

    def _drawn(
        self, chosen: Iterator[pl.DataFrame], name: str, keep: Callable[[pl.DataFrame], pl.DataFrame]
    ) -> Iterator[pl.DataFrame]:
        """Keep some rows, by the seeded hash of their questions and then by rank.

        The draw is independent of the order of the questions and the size of the parts.
        """
        kept: pl.DataFrame | None = None
        for frame in chosen:
            self.funnel.count(name, frame, frame)
            draws = {key: draw(self._settings.seed, key) for key in frame["question_id"].unique()}
            drawn = pl.col("question_id").replace_strict(draws, return_dtype=pl.String)
            frame = frame.with_columns(drawn.alias("draw"))
            before = (frame if kept is None else pl.concat([kept, frame])).sort("draw", "rank")
            kept = keep(before)
            self.funnel.drop(name, before, kept)
        if kept is not None:
            yield kept.drop("draw").sort(*_QUESTION, "rank")


def _as_text(per: Expression, rows: pl.DataFrame) -> pl.Series:
    values = per.evaluate(rows)
    if not (values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.String, pl.Null)):
        raise SettingsError(f"--per: {per.text}: must be one number or text for each trace, not {values.dtype}")
    return values.cast(pl.String)  # the same type in each part, also where all values are null


def held_out(
    chosen: Iterable[pl.DataFrame], settings: DistillSettings
) -> tuple[list[pl.DataFrame], list[pl.DataFrame]]:
    """Divide the selected traces by question into those of the splits train and test.

    The questions of ``test`` are those with the smallest seeded hash, as with ``limit``.

    Raises:
        SettingsError: no question is left for the split ``train``.
    """
    frames = list(chosen)
    questions = {key for frame in frames for key in frame["question_id"]}
    holdout = settings.holdout or 0
    number = int(holdout) if holdout >= 1 else max(1, round(holdout * len(questions)))
    if questions and number >= len(questions):
        raise SettingsError(
            f"--holdout: {settings.holdout:g} leaves no question for training; the selection has {len(questions)}"
        )
    drawn = sorted(questions, key=lambda key: draw(settings.seed, key))[:number]
    is_test = pl.col("question_id").is_in(drawn)
    return [frame.filter(~is_test) for frame in frames], [frame.filter(is_test) for frame in frames]


def draw(seed: int, question_id: str) -> str:
    """Return a hash of a question that puts the questions in random order."""
    return hashlib.blake2b(f"{seed}/{question_id}".encode(), digest_size=8).hexdigest()
