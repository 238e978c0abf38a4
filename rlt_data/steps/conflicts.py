"""Conflicts between the steps of a pipeline, found from settings and tokenizers before a model is loaded."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl

from rlt_data.errors import ModelError, SettingsError, did_you_mean
from rlt_data.inputs.files import file_type
from rlt_data.settings import (
    CurateSettings,
    DistillSettings,
    GenerateSettings,
    ModelSettings,
    PipelineSettings,
    ScoreSettings,
)
from rlt_data.settings.base import is_url
from rlt_data.signals.choose import check_signals, declared_columns, default_signals, is_yaml
from rlt_data.signals.expressions import Expression, columns_in
from rlt_data.signals.own import expressions_of
from rlt_data.signals.registry import NEEDS, SIGNALS
from rlt_data.steps.own_teachers import NO_TEACHER, has_other_teachers, own_teacher
from rlt_data.steps.rank import MEASURES
from rlt_data.storage.rows import OF_QUESTIONS, OWN
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SCHEMAS


def refuse_conflicts(settings: PipelineSettings) -> None:
    """Check the steps of a pipeline against each other.

    Raises:
        SettingsError: one line for each conflict between settings, with the cheapest remedy first.
        RunFolderError: the run folder has scores of other settings.
        ModelError: a later step's model does not exist, its chat template would change the text, or its engine cannot
            run here.
    """
    conflicts = [
        *_dry_runs(settings),
        *_score_conflicts(settings.generate, settings.score),
        *_rank_conflicts(settings),
        *_distill_conflicts(settings),
        *_signal_conflicts(settings.curate),
        *_missing_files(settings.curate, settings.distill),
        *_column_conflicts(settings),
    ]
    if conflicts:
        raise SettingsError("\n".join(conflicts))
    if settings.score:
        _refuse_engine(settings.score)
    if settings.generate and settings.score:
        _refuse_recorded_scores(settings.score)
    if settings.score and (settings.generate or settings.distill):
        _check_models(settings.generate, settings.score, settings.distill)


def _dry_runs(settings: PipelineSettings) -> list[str]:
    """Refuse dry runs, because the steps after them would lack rows."""
    sections = {"generate": settings.generate, "score": settings.score}
    return [
        f"{name}.dry_run: a pipeline computes its steps; use rlt-data {name} --dry-run"
        for name, section in sections.items()
        if section and section.dry_run
    ]


def _key(section: str, name: str, value: str = "") -> str:
    return f"{section}.{name}: {value}" if value else f"{section}.{name}"


def _score_run(score: ScoreSettings) -> str:
    return score.out or str(score.input)


def _score_conflicts(generate: GenerateSettings | None, score: ScoreSettings | None) -> list[str]:
    if score is None:
        return []
    from rlt_data.steps.teacher_source import refuse_conflicting_options, remedies  # imports torch

    key = partial(_key, "score")
    try:
        refuse_conflicting_options(score, key)
    except SettingsError as error:
        return [str(error)]
    if generate is None or score.input != generate.out:
        return []
    stored_at = generate.temperature or 1.0
    if score.temperature == stored_at or score.kl == "full":
        return []
    differs = f"score.temperature {score.temperature:g} differs from that of the stored log-probs, {stored_at:g}"
    if score.teacher is None:
        ways = remedies(score, {stored_at: [generate.teacher]}, generate.teacher, key)
        return [f"{differs} (generate.temperature): {ways}"]
    if score.teacher != "none" and score.teacher_logprobs == "trace":
        free, costly = key("temperature", f"{stored_at:g}"), key("teacher_logprobs", "auto")
        return [f"{differs} (generate.temperature): set {free} (free), or set {costly} (one extra forward pass)"]
    return []


def _rank_conflicts(settings: PipelineSettings) -> list[str]:
    score, rank = settings.score, settings.rank
    if rank is None:
        return []
    if score is None:
        if settings.generate is None or _may_have(rank.input, "scores"):
            return []
        return [f"rank: {rank.input} has no scores, and this pipeline makes none: add a score section"]
    if rank.input != _score_run(score):
        if _may_have(rank.input, "scores"):
            return []
        out = _score_run(score)
        return [f"rank.in: {rank.input} has no scores, because score writes to {out}: set rank.in: {out}"]
    if score.teacher == "none" and score.reward == "rlt" and rank.by == "reward":
        return [
            "rank.by: without a teacher (score.teacher: none), scores have no reward: set rank.by: "
            "reward_without_entropy (free), or name score.teacher"
        ]
    return []


def _distill_conflicts(settings: PipelineSettings) -> list[str]:
    """Check ``distill`` against the number of traces per question, the buckets and the ranked run."""
    distill, rank, generate = settings.distill, settings.rank, settings.generate
    if distill is None:
        return []
    if rank is None:
        if not (generate or settings.score) or _may_have(distill.input, "ranks"):
            return []
        return [f"distill: {distill.input} has no ranks, and this pipeline makes none: add a rank section"]
    if distill.input != rank.input:
        if _may_have(distill.input, "ranks"):
            return []
        return [
            f"distill.in: {distill.input} has no ranks, because rank writes to {rank.input}: set distill.in: "
            f"{rank.input}"
        ]
    kind, _, text = distill.select.partition(":")
    number = int(text or 0)
    if kind == "bucket" and rank.buckets != "ranks":
        if number > int(rank.buckets):
            return [
                f"distill.select: {distill.select}, but rank.buckets makes only {rank.buckets} buckets: set "
                f"distill.select: bucket:{rank.buckets} (free), or rank.buckets: {number} (free)"
            ]
    elif generate and number > generate.n and not _may_have(distill.input, "traces"):
        return [
            f"distill.select: {distill.select}, but generate.n makes only {generate.n} traces per question: set "
            f"distill.select: {kind}:{generate.n} (free), or generate.n: {number} (more samples)"
        ]
    return []


def _signal_conflicts(curate: CurateSettings | None) -> list[str]:
    try:
        if curate:
            check_signals(curate)
    except SettingsError as error:
        return [re.sub(r"--(?=\w)", "curate.", str(error))]
    return []


def _missing_files(curate: CurateSettings | None, distill: DistillSettings | None) -> list[str]:
    """Check that the files exist that signals and ``distill`` read."""
    against = curate.against if curate else ()
    files = [("curate.against", name) for name in against if file_type(Path(name)) and not set("*?[") & set(name)]
    files += [("curate.reviews", curate.reviews)] if curate and curate.reviews else []
    files += [("distill.ids", distill.ids)] if distill and distill.ids else []
    missing = [f"{key}: {name}: no such file" for key, name in files if not (is_url(name) or Path(name).exists())]
    run = curate and curate.evaluation
    if run and not is_url(run) and not RunFolder.exists_at(run):
        missing.append(f"curate.evaluation: {run}: no such run folder")
    return missing


def _column_conflicts(settings: PipelineSettings) -> list[str]:
    """Check expressions: that their columns will exist, in a table, a signal or the run, and that their types fit."""
    rank, distill, curate = settings.rank, settings.distill, settings.curate
    types: dict[str, pl.DataType | None] = dict.fromkeys([*OF_QUESTIONS, *OWN], pl.String())
    for table in ("traces", "scores", "ranks"):
        types |= pl.DataFrame(SCHEMAS[table].empty_table()).schema
    for name in (curate.signals or default_signals(curate)) if curate else ():
        if (columns := declared_columns(name)) is None:
            return []  # a function names its columns when it runs
        types |= columns
    used: list[tuple[str, Expression]] = []

    def use(run: str, key: str, text: str, kind: Literal["condition", "number", "any"]) -> None:
        used.append((run, Expression(text, key, kind, columns_in(text, key), ())))

    if curate:
        for name in filter(is_yaml, curate.signals):
            for column, text in expressions_of(Path(name)).items():
                use(str(curate.out or curate.input), f"curate.signals: {name}: {column}", text, "any")
    if rank:
        use(rank.input, "rank.by", rank.by, "number")
        for text in rank.where:
            use(rank.input, "rank.where", text, "condition")
    if distill:
        for text in distill.where:
            use(distill.input, "distill.where", text, "condition")
        if distill.per:
            use(distill.input, "distill.per", distill.per, "any")
        for name in distill.columns:
            use(distill.input, "distill.columns", f'"{name}"', "any")
    return [
        conflict for run, expression in used for conflict in _expression_conflicts(run, expression, types, settings)
    ]


def _expression_conflicts(
    run: str, expression: Expression, types: Mapping[str, pl.DataType | None], settings: PipelineSettings
) -> list[str]:
    key, columns = expression.option, expression.columns
    missing = [name for name in columns if name not in types and not _may_have_column(run, name)]
    if missing:
        return [f"{key}: {_missing_column(name, types, settings.curate)}" for name in missing]
    of_ranks = set(SCHEMAS["ranks"].names) - set(SCHEMAS["scores"].names)
    if key.startswith("rank.") and of_ranks & set(columns):
        return [f"{key}: {expression.text}: ranks cannot depend on earlier ranks"]
    known = {name: type for name in columns if (type := types.get(name)) is not None}
    if len(known) < len(columns):
        return []
    try:
        value = expression.evaluate(pl.DataFrame({name: [None, None] for name in known}, known))
    except SettingsError as error:
        return [str(error)]
    if key == "distill.columns" and value.dtype.is_nested():
        return [f"{key}: {columns[0]} has a list per trace; only columns with single values can be added"]
    return [
        f"{key}: {column} is null, because this pipeline does not compute it: add {measure} to score.measures"
        for column, measure in MEASURES.items()
        if settings.score and column in columns and measure not in settings.score.measures
    ]


def _may_have_column(run: str, name: str) -> bool:
    """Return whether a run has a column in a signal from earlier; URLs are not read and may have it."""
    signals = RunFolder(run).signals if not is_url(run) and RunFolder.exists_at(run) else {}
    return is_url(run) or any(name in entry["columns"] for entry in signals.values())


def _missing_column(name: str, known: Collection[str], curate: CurateSettings | None) -> str:
    for signal in SIGNALS.values():
        if name in signal.columns:
            ways = []
            if curate and curate.signals:
                ways.append(f"add {signal.name} to curate.signals")
            if (needed := NEEDS.get(signal.name)) and not (curate and getattr(curate, needed)):
                ways.append(f"set curate.{needed}")
            return (
                f"{name} is a column of the signal {signal.name}, which the run does not have and this pipeline does "
                f"not compute: {' and '.join(ways) or 'add a curate section'}"
            )
    return f"no column {name!r}{did_you_mean(name, known)}"


def _may_have(run: str, table: str) -> bool:
    """Return whether a run has rows of a table from earlier; URLs are not read and may have them."""
    return is_url(run) or (RunFolder.exists_at(run) and bool(RunFolder(run).parts(table)))


def _refuse_recorded_scores(score: ScoreSettings) -> None:
    """Refuse settings that differ from those of scores in the run, apart from models and formats.

    Whether scores have the traces' own teachers, or none, is checked too.
    """
    if not RunFolder.exists_at(_score_run(score)):
        return
    run = RunFolder(_score_run(score))
    before = run.step("score").get("depends_on", {})
    depends_on = before | score.depends_on()
    run.refuse_other_settings("score", {"depends_on": depends_on})

    def teacher_of(trace: Mapping[str, Any]) -> str:
        return own_teacher(trace, score.temperature) if score.teacher is None else NO_TEACHER

    if score.teacher in (None, NO_TEACHER) and has_other_teachers(run, before, teacher_of):
        run.refuse_other_settings("score", {"depends_on": depends_on | {"teacher": score.teacher}})


def _refuse_engine(score: ScoreSettings) -> None:
    """Refuse scores whose engine cannot run on this machine, or does not read a setting."""
    from rlt_data.engines import choose_engine  # imports torch
    from rlt_data.steps.provenance import recorded_engine

    run = _score_run(score)
    recorded = recorded_engine(RunFolder(run).step("score")) if RunFolder.exists_at(run) else None
    try:
        choose_engine(score, recorded, quiet=True)
    except (ModelError, SettingsError) as error:
        raise type(error)(f"score: {error}") from None


def _check_models(generate: GenerateSettings | None, score: ScoreSettings, distill: DistillSettings | None) -> None:
    """Check that the models of later steps exist, and that their chat templates keep the format's text."""
    from rlt_data.engines import find_checkpoint, open_tokenizer
    from rlt_data.formats import Format, Views, find_format, load_format
    from rlt_data.steps.export_texts import check_rendering
    from rlt_data.steps.provenance import recorded_format
    from rlt_data.steps.score import refuse_other_explanations

    template = open_tokenizer(find_checkpoint(score.student, tokenizer_only=True), score)[1]

    def format_of(name: str, model: str, settings: ModelSettings) -> Format:
        if name != "auto":
            return load_format(name)
        checkpoint = find_checkpoint(model, tokenizer_only=True)
        return find_format(name, open_tokenizer(checkpoint, settings)[1], checkpoint.folder, template)

    trace_format = None
    if generate and score.input == generate.out:
        trace_format = format_of(generate.format, generate.teacher, generate)
    elif isinstance(score.input, str) and RunFolder.exists_at(score.input):
        trace_format = recorded_format(RunFolder(score.input), "generate")
    if trace_format and score.format == "auto":
        format = trace_format
    else:
        format = format_of(score.format, score.student, score)
        if trace_format:
            refuse_other_explanations(format, trace_format, partial(_key, "score"))
    views = Views(format, template)
    views.check()
    if distill and not distill.tokenizer:
        check_rendering(distill.shape, views.rendering, "distill.shape:")
    if score.teacher not in (None, "none"):
        open_tokenizer(find_checkpoint(str(score.teacher), tokenizer_only=True), score)
    if distill and distill.tokenizer:
        template = open_tokenizer(find_checkpoint(distill.tokenizer, tokenizer_only=True), ModelSettings())[1]
        Views(format.model_copy(update={"shots": ()}), template).check()
