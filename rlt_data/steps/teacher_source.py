"""The source of the teacher's log-probs when scoring: stored with the traces, a forward pass, or none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from rlt_data.engines import Model, find_checkpoint, open_tokenizer
from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.formats import Format, Tokenizer, Views, encode
from rlt_data.scoring import (
    Alignment,
    StudentTokens,
    TeacherTokens,
    align_tokens,
    teacher_tokens_from_ids,
    teacher_tokens_from_text,
)
from rlt_data.settings import ScoreSettings
from rlt_data.storage.run import RunFolder


class TeacherSource:
    """The source of the teacher's log-probs: stored with the traces, a forward pass of its model, or none.

    Args:
        settings: the step's settings.
        student: the student, for its tokenizer.
        model: the teacher's model, if the user named one.
        format: the format of the traces.
        run: the run that contains the traces.

    Attributes:
        used: whether scores have a teacher's term.
        model: the teacher's model, or None.
        fingerprint: identifies the teacher, or the teachers, whose log-probs are used; ``none`` without one.

    Raises:
        SettingsError: some traces lack usable log-probs and no teacher was named.
    """

    def __init__(
        self, settings: ScoreSettings, student: Model, model: Model | None, format: Format, run: RunFolder
    ) -> None:
        self.used = settings.teacher != "none"
        self.model = model
        self._format = format
        self._views = Views(format, model.template) if model else None
        self._settings = settings
        self._student = student
        self._generated_by = run.step("generate").get("models", {}).get("teacher", {})
        self.fingerprint = self._check(run) if self.used else "none"

    def _check(self, run: RunFolder) -> str:
        """Return whose log-probs will be used; raise if some traces will have none."""
        traces = lacking = 0
        teachers = set()
        for part in run.parts("traces"):
            columns = ["logprob_temperature", "teacher"]
            for row in run.read("traces", part, columns).to_pylist():
                traces += 1
                lacking += not self._stored(row)
                teachers.add(row["teacher"])
        if not traces:
            raise RunFolderError(f"{run.path}: there are no traces to score")
        if lacking and self.model and self._settings.teacher_logprobs == "trace":
            raise SettingsError(
                f"--teacher-logprobs trace: {lacking} of {traces} traces have no usable log-probs of this teacher; "
                "leave the option out to compute them"
            )
        if self.model:
            return self.model.identity.fingerprint
        if self._settings.kl == "full":
            raise SettingsError(
                "--kl full: compares whole distributions, so it needs the teacher's checkpoint (--teacher)"
            )
        if lacking:
            way = "name the teacher's checkpoint"
            if self._settings.engine == "server":
                way = "score with another --engine and the teacher's checkpoint"
            raise SettingsError(
                f"--teacher: {lacking} of {traces} traces have no teacher log-probs at temperature "
                f"{self._settings.temperature}; {way}, or say 'none' to score without the teacher's term (and rank "
                "with --by reward_without_entropy)"
            )
        return "+".join(sorted(teachers))

    def tokens(
        self, traces: Sequence[dict[str, Any]], problems: Sequence[tuple[str, str]]
    ) -> Sequence[TeacherTokens | None]:
        """Return the teacher's tokens of traces; None without a teacher.

        Args:
            traces: rows of the traces table.
            problems: question and solution of each.
        """
        if not self.used:
            return [None] * len(traces)
        if self.model is None or self._views is None:
            return [teacher_tokens_from_ids(trace["prefill_token_ids"], trace["token_ids"]) for trace in traces]
        prompts = {problem: self._views.teacher_prompt(*problem) for problem in dict.fromkeys(problems)}
        encoded = dict(zip(prompts, encode(self.model.tokenizer, list(prompts.values())), strict=True))
        tokens = []
        for trace, problem in zip(traces, problems, strict=True):
            generated = trace["teacher"] == self.model.identity.fingerprint and trace["token_ids"] is not None
            if generated:
                prompt = None if self._stored(trace) else encoded[problem]
                tokens.append(teacher_tokens_from_ids(trace["prefill_token_ids"], trace["token_ids"], prompt))
            else:
                tokens.append(
                    teacher_tokens_from_text(self.model.tokenizer, self._format, prompts[problem], trace["completion"])
                )
        return tokens

    def align(self, student: StudentTokens, teacher: TeacherTokens) -> Alignment:
        """Align the explanation's tokens of teacher and student."""
        return align_tokens(student, teacher, self._tokenizer, self._format, same_tokenizer=self._same_tokenizer)

    def _stored(self, trace: dict[str, Any]) -> bool:
        """Whether the log-probs stored with a trace are used."""
        if self._settings.teacher_logprobs == "compute" or self._settings.kl == "full":
            return False
        if trace["teacher"] is None or trace["logprob_temperature"] != self._settings.temperature:
            return False
        return self.model is None or bool(trace["teacher"] == self.model.identity.fingerprint)

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
