"""Where scoring takes the teacher's log-probs from: the traces, a second pass, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlt_data.engines import Model, find_checkpoint, open_tokenizer
from rlt_data.engines.results import problem_with_logprobs
from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.formats import Format, Tokenizer, Views, encode
from rlt_data.scoring.tokens import TeacherReading, read_sampled, read_written
from rlt_data.settings import ScoreSettings
from rlt_data.storage.run import Run


class TeacherLogprobs:
    """Where the teacher's log-probs come from: the traces, a second pass, or nowhere.

    Args:
        settings: the step's settings.
        student: the student, for its tokenizer.
        model: the teacher's model, if one was named.
        format: the format the traces were made in.
        run: the run that holds the traces.

    Raises:
        SettingsError: some traces lack usable log-probs and no teacher was named.
    """

    def __init__(self, settings: ScoreSettings, student: Model, model: Model | None, format: Format, run: Run) -> None:
        self.wanted = settings.teacher != "none"
        self.model = model
        self.format = format
        self.views = Views(format, model.template) if model else None
        self._settings = settings
        self._student = student
        self._made_by = run.step("generate").get("models", {}).get("teacher", {})
        self._tokenizer: Tokenizer | None = None
        self.fingerprint = "none"
        if self.wanted:
            self.fingerprint = self._check(run)

    def _check(self, run: Run) -> str:
        """Find out whose log-probs will be used, and refuse if some will be missing."""
        traces = lacking = 0
        makers = set()
        for part in run.parts("traces"):
            columns = ["logprob_temperature", "teacher"]
            for row in run.read("traces", part, columns).to_pylist():
                traces += 1
                lacking += not self.stored(row)
                makers.add(row["teacher"])
        if not traces:
            raise RunFolderError(f"{run.path}: there are no traces to score")
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
        return "+".join(sorted(makers))

    def stored(self, trace: dict[str, Any]) -> bool:
        """Whether the log-probs that came with a trace can be used."""
        if self._settings.teacher_logprobs == "compute" or self._settings.kl == "full":
            return False
        usable = trace["teacher"] is not None and trace["logprob_temperature"] == self._settings.temperature
        if usable and self.model:
            usable = trace["teacher"] == self.model.identity.fingerprint
        if not usable and self.model and self._settings.teacher_logprobs == "trace":
            return False
        return bool(usable)

    @property
    def same_tokenizer(self) -> bool:
        """Whether teacher and student speak the same tokens."""
        theirs = self.model.identity.tokenizer if self.model else self._made_by.get("tokenizer")
        return bool(theirs == self._student.identity.tokenizer)

    @property
    def tokenizer(self) -> Tokenizer:
        """The teacher's tokenizer."""
        if self.model:
            return self.model.tokenizer
        if self.same_tokenizer:
            return self._student.tokenizer
        if self._tokenizer is None:
            checkpoint = find_checkpoint(self._made_by["name"], tokenizer_only=True)
            self._tokenizer, _ = open_tokenizer(checkpoint, self._settings)
        return self._tokenizer

    def read(self, traces: Sequence[dict[str, Any]], problems: Sequence[tuple[str, str]]) -> list[TeacherReading]:
        """Read traces as the teacher sees them."""
        if self.model is None or self.views is None:
            return [_read_stored(trace) for trace in traces]
        prompts = {problem: self.views.teacher_prompt(*problem) for problem in dict.fromkeys(problems)}
        encoded = dict(zip(prompts, encode(self.model.tokenizer, list(prompts.values())), strict=True))
        readings = []
        for trace, problem in zip(traces, problems, strict=True):
            own = trace["teacher"] == self.model.identity.fingerprint
            if self.stored(trace):
                readings.append(_read_stored(trace))
            elif own and trace["token_ids"] is not None:
                readings.append(read_sampled(trace, encoded[problem]))
            else:
                completion = trace["completion"]
                readings.append(read_written(self.model.tokenizer, self.format, prompts[problem], completion))
        return readings


def _read_stored(trace: dict[str, Any]) -> TeacherReading:
    """Read a trace that brought its log-probs along; earlier versions stored whatever a server sent."""
    reading = read_sampled(trace, None)
    stored = np.asarray([*(trace["prefill_logprobs"] or ()), *(trace["logprobs"] or ())], np.float32)
    if problem := problem_with_logprobs(stored, len(reading.content_ids)):
        reason = f"the trace was stored with {problem}; --teacher-logprobs compute does not use stored ones"
        return replace(reading, problem=reason)
    return reading
