"""The texts of a distilled row: what the student was scored on, in pieces and as a whole."""

from __future__ import annotations

import logging
from typing import Any

from rlt_data.errors import ModelError, SettingsError
from rlt_data.formats import Format, Problem, Views
from rlt_data.formats.template import Reasoning
from rlt_data.formats.views import StudentMessage, student_message
from rlt_data.settings import DistillSettings, ModelSettings
from rlt_data.steps.export_shapes import RENDERED, Texts
from rlt_data.storage.run import RunFolder

logger = logging.getLogger(__name__)


class ExportTexts:
    """Builds the texts of distilled rows for one student.

    Args:
        run: a run with scores.
        settings: settings of the step; ``tokenizer`` names another student than the one that scored.
        format: format of the scored traces.

    Attributes:
        thought_key: key of the thought in messages; empty if the thought is part of the content.
        views: the student's views, if the shape or ``--tokenizer`` needs them.

    Raises:
        ModelError: the student's chat template does not fit the format, or its tokenizer cannot be opened.
        SettingsError: the student's chat template would drop the thought from rows of this shape.
    """

    def __init__(self, run: RunFolder, settings: DistillSettings, format: Format) -> None:
        self._format = format.model_copy(update={"shots": ()})
        scored = run.step("score")
        facts: dict[str, Any] = scored.get("templates", {}).get("student") or {}
        rendering: dict[str, str] = scored.get("messages") or {}
        self.tokenizer: Any = None
        self.views: Views | None = None
        if settings.tokenizer or settings.shape in RENDERED:
            self.tokenizer, self.views = _open_student(run, settings, self._format)
            facts = {
                "merges_system": self.views.template.merges_system,
                "reasoning": vars(self.views.template.reasoning) if self.views.template.reasoning else None,
            }
            rendering = self.views.rendering
        self._merges_system = bool(facts.get("merges_system"))
        reasoning = facts.get("reasoning") if format.native else None
        self._reasoning = Reasoning(**reasoning) if reasoning else None
        self.thought_key = (self._reasoning.key or "") if self._reasoning else ""
        check_rendering(settings.shape, rendering)

    def of(self, row: dict[str, Any]) -> Texts:
        """Return the texts of a row.

        Args:
            row: ``question``, ``solution``, ``system`` and ``explanation`` of a trace, and for preference rows
                ``rejected`` and ``rejected_solution``, the explanation and the own solution of a worse one, whose
                solution is ``question_solution`` if it has none.

        Returns:
            ``system``: system text, empty if there is none or the student has no system role. ``user``: user message,
            with the system text if there is no system role. ``question``, ``solution``, ``explanation``: as stored.
            ``message``: the assistant's message, with the thought in tags. ``content``, ``thought``, ``thought_key``:
            the message without the thought, the thought, and the key under which the student's template reads it;
            without such a key, content is the message and the others are empty. ``prompt``, ``completion``: the served
            prompt and the learned text, for shapes with rendered texts. ``rejected``: the message of the worse trace.
        """
        format = self._format
        system = format.student_system if row["system"] is None else row["system"]
        user = format.student_question(row["question"])
        if self._merges_system and system.strip():
            system, user = "", f"{system}\n\n{user}"
        message = self._message(row["solution"], row["explanation"])
        rejected = ""
        if row.get("rejected") is not None:
            solution = row["rejected_solution"]
            solution = row["question_solution"] if solution is None else solution
            rejected = self._message(solution, row["rejected"]).inline(self._reasoning)
        texts = {
            "system": system if system.strip() else "",
            "user": user,
            "question": row["question"],
            "solution": row["solution"],
            "explanation": row["explanation"],
            "message": message.inline(self._reasoning),
            "thought": message.thought if self.thought_key else "",
            "thought_key": self.thought_key,
            "prompt": "",
            "completion": "",
            "rejected": rejected,
        }
        texts["content"] = message.solution if self.thought_key else texts["message"]
        if self.views:
            texts["prompt"] = self.views.served_prompt(Problem.of(row))
            texts["completion"] = message.text + self.views.template.end
        return texts

    def _message(self, solution: str, explanation: str) -> StudentMessage:
        return student_message(self._format, self._reasoning, solution, explanation)


def _open_student(run: RunFolder, settings: DistillSettings, format: Format) -> tuple[Any, Views]:
    from rlt_data.engines import find_checkpoint, open_tokenizer  # imports torch

    entry = run.step("score")
    recorded = entry.get("settings", {})
    names = ("chat_template", "template_option", "template_date")
    model_settings = ModelSettings.model_validate({key: recorded[key] for key in names if key in recorded})
    student = entry.get("models", {}).get("student", {})
    name = settings.tokenizer or student.get("name")
    if name is None:
        raise SettingsError(f"--shape {settings.shape}: the run records no student; name it with --tokenizer")
    try:
        tokenizer, template = open_tokenizer(find_checkpoint(name, tokenizer_only=True), model_settings)
    except (ModelError, SettingsError) as error:
        if settings.tokenizer:
            raise
        raise SettingsError(
            f"--shape {settings.shape}: needs the tokenizer of the student that scored the run ({error}); name it with "
            "--tokenizer"
        ) from None
    if not settings.tokenizer and template.identity != student["chat_template"]:
        raise SettingsError(
            f"--shape {settings.shape}: the run was scored with another chat template than {name} has, or by an "
            "earlier version of rlt-data; name the student with --tokenizer"
        )
    views = Views(format, template)
    views.check()
    return tokenizer, views


def check_rendering(shape: str, rendering: dict[str, str], key: str = "--shape") -> None:
    """Refuse or announce rows that the student's chat template renders differently from the scored text.

    Args:
        shape: the shape of the rows.
        rendering: :attr:`rlt_data.formats.Views.rendering` of the student.
        key: the setting, for messages.

    Raises:
        SettingsError: the template drops the thought.
    """
    found = rendering.get("messages" if shape == "messages" else "inline", "equal")
    if shape not in ("messages", "sharegpt", "bespoke") or found == "equal":
        return
    if found == "drops":
        raise SettingsError(
            f"{key} {shape}: the student's chat template drops the thought from such rows; use {key} "
            "prompt-completion, which has the text that was scored"
        )
    logger.warning(
        "the student's chat template renders %s rows differently from the text that was scored, because it writes "
        "assistant's messages differently from its generation prompt; --shape prompt-completion has the scored text",
        shape,
    )
