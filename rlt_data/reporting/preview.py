"""Show what teacher, student and solver see for one row, without loading weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rlt_data.engines import find_checkpoint, open_tokenizer
from rlt_data.errors import InputError
from rlt_data.formats import ControlTokens, Format, Problem, Tokenizer, Views, choose_format, encode, load_format
from rlt_data.formats.spans import unmarked
from rlt_data.formats.views import read_completion
from rlt_data.inputs.check import CheckReport, examined_rows
from rlt_data.inputs.rows import Row
from rlt_data.settings import ModelSettings, PreviewSettings
from rlt_data.settings.base import name_of_input
from rlt_data.steps.provenance import recorded_format
from rlt_data.storage.run import RunFolder

#: Explanation that is shown for a row without a trace.
NO_TRACE = "[explanation]"


@dataclass(frozen=True)
class Preview:
    """What the models see for one row.

    Attributes:
        source_id: id of the row.
        format: name of the format.
        teacher_prompt: text that the teacher continues; None without a teacher.
        served_prompt: the student's prompt: the generation prompt of its chat template for the question.
        student_text: text that the student is scored and trained on; begins with ``served_prompt``.
        solver_prompt: text that the student continues when it is evaluated.
        thought: characters [start, end) of ``student_text`` that are scored as thought.
        solution: characters [start, end) of ``student_text`` that are scored as solution.
        student_tokens: token ids of ``student_text``.
        problem: why the row cannot be used with these models, or None.
        special: ranges of special tokens in each text, by the name of the text.
    """

    source_id: str | None
    format: str
    teacher_prompt: str | None
    served_prompt: str
    student_text: str
    solver_prompt: str
    thought: tuple[int, int]
    solution: tuple[int, int]
    student_tokens: list[int]
    problem: str | None
    special: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the preview as JSON content, as ``preview --json`` prints it."""
        return {name: value for name, value in asdict(self).items() if name != "special"}


def preview(settings: PreviewSettings) -> Preview:
    """Show what teacher, student and solver see for a row, as ``rlt-data preview`` does.

    Raises:
        InputError: the input has no such row.
        ModelError: a model does not exist, or its chat template does not fit the format.
    """
    run = RunFolder(settings.input) if isinstance(settings.input, str) and RunFolder.exists_at(settings.input) else None
    models = _model_settings(settings, run)
    name = settings.student
    checkpoint = find_checkpoint(name, tokenizer_only=True)
    tokenizer, template = open_tokenizer(checkpoint, models)
    format = _recorded(run, settings) or choose_format(settings.format, template, name, checkpoint.folder, template)
    as_text = models.control_tokens == "text"
    views = Views(format, template, ControlTokens(tokenizer, template, name, as_text=as_text))
    views.check()
    row = _row_of_run(run, settings, format) if run else _row_of_input(settings, format)
    problem = Problem(row.question, row.solution, row.system)
    completion = row.completion if row.completion is not None else format.completion_of(row.explanation or NO_TRACE)
    explanation = views.read(completion)
    student = views.student(problem, explanation.text)
    reason = views.problem_with(problem, explanation.text)
    texts = {"served_prompt": views.served_prompt(problem), "student_text": student.marked}
    texts["solver_prompt"] = views.solver_prompt(row.question, row.system)
    special = {label: _special(tokenizer, text) for label, text in texts.items()}
    teacher_prompt = None
    if settings.teacher:
        teacher_tokenizer, teacher = open_tokenizer(find_checkpoint(settings.teacher, tokenizer_only=True), models)
        control = ControlTokens(teacher_tokenizer, teacher, settings.teacher, as_text=as_text)
        teacher_views = Views(format, teacher, control)
        teacher_views.check_teacher()
        marked = teacher_views.teacher_prompt(problem)
        special["teacher_prompt"] = _special(teacher_tokenizer, marked)
        teacher_prompt = unmarked(marked)
        reason = reason or teacher_views.problem_with(problem)
    return Preview(
        source_id=row.source_id,
        format=format.name,
        teacher_prompt=teacher_prompt,
        served_prompt=unmarked(texts["served_prompt"]),
        student_text=student.text,
        solver_prompt=unmarked(texts["solver_prompt"]),
        thought=student.thought,
        solution=student.solution,
        student_tokens=encode(tokenizer, [student.marked])[0].ids.tolist(),
        problem=reason,
        special=special,
    )


def _model_settings(settings: PreviewSettings, run: RunFolder | None) -> ModelSettings:
    """Return the settings for opening tokenizers: those of the run's scores, with the flags that were given."""
    names = ("chat_template", "template_option", "template_date", "control_tokens", "trust_remote_code")
    recorded = run.step("score").get("settings", {}) if run else {}
    values = {name: recorded[name] for name in names if name in recorded}
    return ModelSettings.model_validate(
        values | {name: getattr(settings, name) for name in settings.not_default(*names)}
    )


def _recorded(run: RunFolder | None, settings: PreviewSettings) -> Format | None:
    """Return the format of a run, or the one that ``--format`` names."""
    if settings.format != "auto":
        return load_format(settings.format)
    return (recorded_format(run, "score") or recorded_format(run, "generate")) if run else None


def _row_of_input(settings: PreviewSettings, format: Format) -> Row:
    report = CheckReport(name_of_input(settings.input))
    for row in examined_rows(settings.as_input(), format, report):
        if settings.key in (None, row.source_id):
            return row
    listed = f"; the first bad row is {': '.join(report.bad_rows[0])}" if report.bad_rows else ""
    wanted = "no usable row" if settings.key is None else f"no usable row with id {settings.key!r}"
    raise InputError(f"{report.source}: {wanted}{listed}")


def _row_of_run(run: RunFolder | None, settings: PreviewSettings, format: Format) -> Row:
    from rlt_data.reporting.browse import find

    assert run is not None
    shown = find(run, settings.key)
    texts = {name: shown.question[name] for name in ("question", "solution", "system", "source_id")}
    completion = shown.traces[0]["completion"] if shown.traces else None
    if shown.traces and shown.traces[0]["solution"] is not None:
        texts["solution"] = shown.traces[0]["solution"]
    if completion is not None and format.explanation_tags[1] not in completion:
        completion = format.completion_of(read_completion(format, completion).text)
    return Row(**texts, completion=completion)


def _special(tokenizer: Tokenizer, marked: str) -> list[tuple[int, int]]:
    """Return the character ranges of special tokens in a text."""
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    [encoding] = encode(tokenizer, [marked])
    pairs = zip(encoding.ids.tolist(), encoding.offsets.tolist(), strict=True)
    return [(start, end) for id, (start, end) in pairs if id in special and end > start]
