"""The teacher's log-probs for scoring: stored with the traces, computed by a forward pass, or none.

Without ``--teacher``, the KL of each trace is relative to its own teacher, whose log-probs are stored with the trace;
traces without them get no KL. With ``--teacher``, that model is the teacher of all traces.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import polars as pl

from rlt_data.engines import Model, find_checkpoint, open_tokenizer
from rlt_data.errors import RunFolderError, SettingsError, first_few
from rlt_data.formats import Format, Problem, Tokenizer, Views, encode
from rlt_data.scoring import (
    Alignment,
    StudentTokens,
    TeacherTokens,
    align_tokens,
    teacher_tokens_from_ids,
    teacher_tokens_from_text,
)
from rlt_data.settings import ScoreSettings
from rlt_data.settings.base import flag_of
from rlt_data.steps.makers import recorded_makers
from rlt_data.steps.own_teachers import NO_TEACHER, join_teachers
from rlt_data.storage.run import RunFolder

logger = logging.getLogger(__name__)

#: Name of the origin of traces that have none.
UNKNOWN = "unknown"


class NameSetting(Protocol):
    """Writes a setting, optionally with a value, as the user would."""

    def __call__(self, name: str, value: str = "") -> str:
        """Return for example ``--teacher none`` or ``score.teacher: none``."""


def flag(name: str, value: str = "") -> str:
    """Write a setting as a command-line flag."""
    return f"{flag_of(name)} {value}".rstrip()


def refuse_conflicting_options(settings: ScoreSettings, key: NameSetting = flag) -> None:
    """Check the settings that concern the teacher's log-probs against each other.

    Args:
        settings: settings of the score step.
        key: writes a setting in messages.

    Raises:
        SettingsError: a setting has no effect, or needs another one.
    """
    if settings.teacher == "none":
        if settings.not_default("kl"):
            raise SettingsError(f"{key('kl')}: has no effect with {key('teacher', 'none')}")
    elif settings.teacher is None:
        if settings.kl == "full":
            raise SettingsError(f"{key('kl')}: full compares complete distributions and needs {key('teacher')}")
        if settings.teacher_logprobs == "compute":
            raise SettingsError(f"{key('teacher_logprobs')}: compute needs {key('teacher')}, the model to compute with")


def remedies(
    settings: ScoreSettings,
    stored_at: Mapping[float, Collection[str]],
    teacher: str | None = None,
    key: NameSetting = flag,
) -> str:
    """List the ways to score traces that lack teacher log-probs at the requested temperature, cheapest first.

    Args:
        settings: settings of the score step.
        stored_at: temperatures of the stored log-probs, each with the origins of its traces.
        teacher: name of the model that generated the traces, if there is only one.
        key: writes a setting in the message.
    """
    ways = []
    for at, origins in sorted(stored_at.items()):
        if settings.engine != "server" or settings.served_temperature == at:
            only = f", KL only for traces of {_names(origins)}" if len(stored_at) > 1 else ""
            ways.append(f"set {key('temperature', f'{at:g}')} (free{only})")
    named = key("teacher", teacher or "")
    if settings.engine == "server":
        ways.append(f"use another {key('engine')} with {named} (one extra forward pass)")
    else:
        ways.append(f"name {named} (one extra forward pass)")
    ways.append(f"set {key('teacher', 'none')} (no KL term; rank by reward_without_entropy)")
    return ", ".join(ways[:-1]) + f", or {ways[-1]}"


class TeacherSource:
    """The source of the teacher's log-probs.

    Args:
        settings: settings of the score step.
        student: the student.
        model: the teacher, if the user named one.
        format: format of the traces.
        run: the run with the traces.

    Attributes:
        used: whether scores include the teacher's term.
        model: the teacher, or None.
        fingerprint: the teachers of all scores, joined by :func:`rlt_data.steps.own_teachers.join_teachers`.

    Raises:
        SettingsError: no trace has usable log-probs and no teacher is named.
    """

    def __init__(
        self, settings: ScoreSettings, student: Model, model: Model | None, format: Format, run: RunFolder
    ) -> None:
        self.used = settings.teacher != "none"
        self.model = model
        self._format = format
        self._views = Views(format, model.template, model.control) if model else None
        self._settings = settings
        self._student = student
        makers = recorded_makers(run).values()
        self._own = {
            str(maker["depends_on"]["teacher"]): maker["models"]["teacher"]
            for maker in makers
            if "teacher" in maker.get("depends_on", {}) and "teacher" in maker.get("models", {})
        }
        self._tokenizers: dict[str, tuple[Tokenizer, bool]] = {}
        self.fingerprint = self._check(run) if self.used else NO_TEACHER

    def _check(self, run: RunFolder) -> str:
        """Return the fingerprint; raise if no trace has usable log-probs, and report how many traces lack them."""
        kinds = _kinds_of_traces(run)
        traces = sum(kind["len"] for kind in kinds)
        if not traces:
            raise RunFolderError(f"{run.path}: has no traces to score")
        unusable = [kind for kind in kinds if not self._stored(kind)]
        lacking = sum(kind["len"] for kind in unusable)
        stored_at: dict[float, set[str]] = {}
        for kind in kinds:
            if self._is_teacher(kind["teacher"]) and kind["logprob_temperature"] is not None:
                stored_at.setdefault(kind["logprob_temperature"], set()).add(kind["origin"] or UNKNOWN)
        if self.model:
            if lacking and self._settings.teacher_logprobs == "trace":
                all_stored = all(self._is_teacher(kind["teacher"]) and kind["logprob_temperature"] for kind in kinds)
                free = f"use --temperature {min(stored_at):g} (free), or " if all_stored and len(stored_at) == 1 else ""
                raise SettingsError(
                    f"--teacher-logprobs trace: {lacking} of {traces} traces have no usable log-probs of this teacher; "
                    f"{free}omit the option to compute them (one extra forward pass)"
                )
            return self.model.identity.fingerprint
        at = f"have no teacher log-probs at temperature {self._settings.temperature:g}"
        if lacking == traces:
            teachers = [teacher["name"] for teacher in self._own.values()]
            teacher = teachers[0] if len(teachers) == 1 else None
            raise SettingsError(
                f"--temperature: {lacking} of {traces} traces {at}; {remedies(self._settings, stored_at, teacher)}"
            )
        if lacking:
            logger.warning(
                "%d of %d traces %s; their r_kl and reward are null: %s",
                lacking,
                traces,
                at,
                first_few([_describe_kind(kind) for kind in unusable]),
            )
        return join_teachers({self.teacher_of(kind) for kind in kinds})

    def teacher_of(self, trace: Mapping[str, Any]) -> str:
        """Return the fingerprint of the teacher that the KL of a trace is relative to, or ``none``.

        Args:
            trace: ``teacher`` and ``logprob_temperature`` of the trace.
        """
        if not self.used:
            return NO_TEACHER
        if self.model:
            return self.model.identity.fingerprint
        return str(trace["teacher"]) if self._stored(trace) else NO_TEACHER

    def tokens(self, traces: Sequence[dict[str, Any]], problems: Sequence[Problem]) -> Sequence[TeacherTokens | None]:
        """Return the teacher's tokens of each trace; None for a trace without KL.

        Args:
            traces: rows of the traces table.
            problems: problem of each trace.
        """
        if not self.used:
            return [None] * len(traces)
        if self.model is None or self._views is None:
            return [
                teacher_tokens_from_ids(trace["prefill_token_ids"], trace["token_ids"]) if self._stored(trace) else None
                for trace in traces
            ]
        prompts = {problem: self._views.teacher_prompt(problem) for problem in dict.fromkeys(problems)}
        encoded = dict(zip(prompts, encode(self.model.tokenizer, list(prompts.values())), strict=True))
        tokens = []
        for trace, problem in zip(traces, problems, strict=True):
            if self._is_teacher(trace["teacher"]) and trace["token_ids"] is not None:
                prompt = None if self._stored(trace) else encoded[problem]
                tokens.append(teacher_tokens_from_ids(trace["prefill_token_ids"], trace["token_ids"], prompt))
            else:
                tokens.append(
                    teacher_tokens_from_text(
                        self.model.tokenizer, self._format, prompts[problem], trace["completion"], self._views.mark
                    )
                )
        return tokens

    def align(self, trace: Mapping[str, Any], student: StudentTokens, teacher: TeacherTokens) -> Alignment:
        """Align the explanation's tokens of teacher and student."""
        fingerprint = self.teacher_of(trace)
        if fingerprint not in self._tokenizers:
            self._tokenizers[fingerprint] = self._open_tokenizer(fingerprint)
        tokenizer, same = self._tokenizers[fingerprint]
        return align_tokens(student, teacher, tokenizer, self._format, same_tokenizer=same)

    def _open_tokenizer(self, fingerprint: str) -> tuple[Tokenizer, bool]:
        """Return a teacher's tokenizer, and whether it is the student's."""
        own = self._own.get(fingerprint, {})
        same = (
            self.model.identity.tokenizer if self.model else own.get("tokenizer")
        ) == self._student.identity.tokenizer
        if self.model:
            return self.model.tokenizer, same
        if same:
            return self._student.tokenizer, same
        return open_tokenizer(find_checkpoint(own["name"], tokenizer_only=True), self._settings)[0], same

    def _stored(self, trace: Mapping[str, Any]) -> bool:
        """Return whether to use the log-probs that are stored with a trace."""
        if self._settings.teacher_logprobs == "compute" or self._settings.kl == "full":
            return False
        return self._is_teacher(trace["teacher"]) and trace["logprob_temperature"] == self._settings.temperature

    def _is_teacher(self, fingerprint: str | None) -> bool:
        """Return whether a trace's teacher is the named one, or any if none is named."""
        return fingerprint is not None and (self.model is None or fingerprint == self.model.identity.fingerprint)


def _kinds_of_traces(run: RunFolder) -> list[dict[str, Any]]:
    """Return each combination of origin, teacher and temperature of the log-probs, with its number of traces."""
    columns = ["origin", "teacher", "logprob_temperature"]
    parts = [pl.DataFrame(run.read("traces", part, columns)) for part in run.parts("traces")]
    counts = [rows.group_by(columns).len() for rows in parts]
    if not counts:
        return []
    return pl.concat(counts).group_by(columns).agg(pl.col("len").sum()).sort(columns).to_dicts()


def _describe_kind(kind: Mapping[str, Any]) -> str:
    at = kind["logprob_temperature"]
    return f"{kind['len']} of {kind['origin'] or UNKNOWN!r}" + ("" if at is None else f" (stored at {at:g})")


def _names(origins: Collection[str]) -> str:
    return " and ".join(map(repr, sorted(origins)))
