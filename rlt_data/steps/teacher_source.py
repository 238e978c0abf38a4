"""The teacher's log-probs for scoring: stored with the traces, computed by a forward pass, or none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

from rlt_data.engines import Model, find_checkpoint, open_tokenizer
from rlt_data.errors import RunFolderError, SettingsError
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
from rlt_data.storage.run import RunFolder


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
    settings: ScoreSettings, stored_at: float | None, teacher: str | None = None, key: NameSetting = flag
) -> str:
    """List the ways to score traces that lack teacher log-probs at the requested temperature, cheapest first.

    Args:
        settings: settings of the score step.
        stored_at: temperature of the log-probs stored with all traces; None if they have none, or several.
        teacher: name of the model that generated the traces, if known.
        key: writes a setting in the message.
    """
    ways = []
    if stored_at is not None and (settings.engine != "server" or settings.served_temperature == stored_at):
        ways.append(f"set {key('temperature', f'{stored_at:g}')} (free)")
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
        fingerprint: identifies the teachers whose log-probs are used, joined by ``+``; ``none`` without a teacher.

    Raises:
        SettingsError: traces lack usable log-probs and no teacher is named.
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
        self._generated_by = run.step("generate").get("models", {}).get("teacher", {})
        self.fingerprint = self._check(run) if self.used else "none"

    def _check(self, run: RunFolder) -> str:
        """Return the fingerprint; raise if a trace has no usable log-probs."""
        traces = lacking = 0
        teachers, temperatures = set(), set()
        for part in run.parts("traces"):
            columns = ["logprob_temperature", "teacher"]
            for row in run.read("traces", part, columns).to_pylist():
                traces += 1
                lacking += not self._stored(row)
                teachers.add(row["teacher"])
                temperatures.add(row["logprob_temperature"] if self._is_teacher(row["teacher"]) else None)
        if not traces:
            raise RunFolderError(f"{run.path}: has no traces to score")
        stored_at = temperatures.pop() if len(temperatures) == 1 else None
        if lacking and self.model and self._settings.teacher_logprobs == "trace":
            free = f"use --temperature {stored_at:g} (free), or " if stored_at else ""
            raise SettingsError(
                f"--teacher-logprobs trace: {lacking} of {traces} traces have no usable log-probs of this teacher; "
                f"{free}omit the option to compute them (one extra forward pass)"
            )
        if self.model:
            return self.model.identity.fingerprint
        if lacking:
            raise SettingsError(
                f"--temperature: {lacking} of {traces} traces have no teacher log-probs at temperature "
                f"{self._settings.temperature}; {remedies(self._settings, stored_at, self._generated_by.get('name'))}"
            )
        return "+".join(sorted(teachers))

    def tokens(self, traces: Sequence[dict[str, Any]], problems: Sequence[Problem]) -> Sequence[TeacherTokens | None]:
        """Return the teacher's tokens of each trace; None without a teacher.

        Args:
            traces: rows of the traces table.
            problems: problem of each trace.
        """
        if not self.used:
            return [None] * len(traces)
        if self.model is None or self._views is None:
            return [teacher_tokens_from_ids(trace["prefill_token_ids"], trace["token_ids"]) for trace in traces]
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

    def align(self, student: StudentTokens, teacher: TeacherTokens) -> Alignment:
        """Align the explanation's tokens of teacher and student."""
        return align_tokens(student, teacher, self._tokenizer, self._format, same_tokenizer=self._same_tokenizer)

    def _stored(self, trace: dict[str, Any]) -> bool:
        """Return whether to use the log-probs that are stored with a trace."""
        if self._settings.teacher_logprobs == "compute" or self._settings.kl == "full":
            return False
        return self._is_teacher(trace["teacher"]) and trace["logprob_temperature"] == self._settings.temperature

    def _is_teacher(self, fingerprint: str | None) -> bool:
        """Return whether a trace's teacher is the named one, or any if none is named."""
        return fingerprint is not None and (self.model is None or fingerprint == self.model.identity.fingerprint)

    @cached_property
    def _same_tokenizer(self) -> bool:
        tokenizer = self.model.identity.tokenizer if self.model else self._generated_by.get("tokenizer")
        return bool(tokenizer == self._student.identity.tokenizer)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if self.model:
            return self.model.tokenizer
        if self._same_tokenizer:
            return self._student.tokenizer
        checkpoint = find_checkpoint(self._generated_by["name"], tokenizer_only=True)
        return open_tokenizer(checkpoint, self._settings)[0]
