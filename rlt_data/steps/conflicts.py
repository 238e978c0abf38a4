"""Conflicts between the steps of a pipeline, found from settings and tokenizers before a model is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from rlt_data.errors import SettingsError
from rlt_data.settings import (
    DistillSettings,
    GenerateSettings,
    ModelSettings,
    PipelineSettings,
    ScoreSettings,
)
from rlt_data.settings.base import is_url
from rlt_data.signals.choose import declared_columns, default_signals
from rlt_data.signals.expressions import columns_in
from rlt_data.signals.registry import SIGNALS
from rlt_data.steps.own_teachers import NO_TEACHER, has_other_teachers, own_teacher
from rlt_data.storage.rows import OF_QUESTIONS, OWN
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SCHEMAS


def refuse_conflicts(settings: PipelineSettings) -> None:
    """Check the steps of a pipeline against each other.

    Raises:
        SettingsError: one line for each conflict between settings, with the cheapest remedy first.
        RunFolderError: the run folder has scores of other settings.
        ModelError: a later step's model does not exist, or its chat template would change the text.
    """
    conflicts = [
        *_score_conflicts(settings.generate, settings.score),
        *_rank_conflicts(settings),
        *_distill_conflicts(settings),
        *_column_conflicts(settings),
    ]
    if conflicts:
        raise SettingsError("\n".join(conflicts))
    if settings.generate and settings.score:
        _refuse_recorded_scores(settings.score)
    if settings.score and (settings.generate or settings.distill):
        _check_models(settings.generate, settings.score, settings.distill)


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


def _column_conflicts(settings: PipelineSettings) -> list[str]:
    """Check that the columns of expressions will exist: in a table of the pipeline, its signals, or the run."""
    rank, distill, curate = settings.rank, settings.distill, settings.curate
    known = {name for table in ("traces", "scores", "ranks") for name in SCHEMAS[table].names} | {*OF_QUESTIONS, *OWN}
    for name in (curate.signals or default_signals(curate)) if curate else ():
        if (columns := declared_columns(name)) is None:
            return []  # a function names its columns when it runs
        known |= columns
    used: list[tuple[str, str, str]] = []
    if rank:
        used += [(rank.input, "rank.where", text) for text in rank.where] + [(rank.input, "rank.by", rank.by)]
    if distill:
        used += [(distill.input, "distill.where", text) for text in distill.where]
        used += [(distill.input, "distill.per", distill.per)] if distill.per else []
        used += [(distill.input, "distill.columns", f'"{name}"') for name in distill.columns]
    return [
        f"{key}: {_missing_column(name, known)}"
        for run, key, text in used
        for name in columns_in(text, key)
        if name not in known and not _may_have_column(run, name)
    ]


def _may_have_column(run: str, name: str) -> bool:
    """Return whether a run has a column in a signal from earlier; URLs are not read and may have it."""
    signals = RunFolder(run).signals if not is_url(run) and RunFolder.exists_at(run) else {}
    return is_url(run) or any(name in entry["columns"] for entry in signals.values())


def _missing_column(name: str, known: Collection[str]) -> str:
    for signal in SIGNALS.values():
        if name in signal.columns:
            return (
                f"{name} is a column of the signal {signal.name}, which the run does not have and this pipeline does "
                f"not compute: add {signal.name} to curate.signals"
            )
    near = difflib.get_close_matches(name, known, 1)
    return f"no column {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


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
