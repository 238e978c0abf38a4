"""The format: system texts, tags, separators and worked examples, loaded from YAML."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path

from pydantic import Field, model_validator

from rlt_data.errors import InputError, SettingsError
from rlt_data.formats.spans import OPEN
from rlt_data.settings import Settings, parse_settings, parse_yaml

#: Names of the built-in formats.
BUILT_IN = ("rlt", "rlt-shots", "think", "native")


class Shot(Settings):
    """A worked example shown before the problem, for models that follow examples but not instructions."""

    question: str
    solution: str
    explanation: str


class Format(Settings):
    """Texts and tags that render a problem for teacher, student and solver.

    The teacher's message starts with the prefill: the solution in its tags, the separator, the opening explanation tag
    and the padding. The teacher continues it. The student's message is the thought (the text between the explanation
    tags, padding included) in its tags, the separator, and the solution in its tags; or, with ``native``, thought and
    solution as the student's chat template writes them. The solver, a student at test time, sees only the question.
    """

    name: str
    teacher_system: str
    student_system: str
    solver_system: str | None = Field(None, description="System text of the solver. Default: the student's.")
    question_template: str = Field(
        "{question}", description="User message of student and solver; {question} is replaced by the question."
    )
    native: bool = Field(
        False,
        description="Write the thought in the reasoning markup of the student's chat template, without padding, and "
        "the solution as plain text.",
    )
    explanation_tags: tuple[str, str]
    thought_tags: tuple[str, str]
    solution_tags: tuple[str, str]
    thought_prefix: str = Field("", description="Text before the opening thought tag of the student's message.")
    separator: str = Field("\n\n", description="Text between solution and explanation, or thought and solution.")
    padding: str = Field("\n\n", description="Text after the opening explanation tag, at the end of the prefill.")
    solution_padding: str = Field(
        "", description="Text on both sides of the solution, so that no token spans the solution and a tag."
    )
    shots: tuple[Shot, ...] = ()

    @model_validator(mode="after")
    def _check_tags(self) -> Format:
        for field in ("explanation_tags", "thought_tags", "solution_tags"):
            opening, closing = getattr(self, field)
            if not opening.strip() or not closing.strip() or opening == closing:
                raise ValueError(f"{field}: must be two different, non-empty tags such as ['<a>', '</a>']")
        if self.question_template.count("{question}") != 1:
            raise ValueError("question_template: must contain {question} once")
        for shot in self.shots:
            if reason := self.problem_with(shot.question, shot.solution):
                raise ValueError(f"shots: {reason}")
            if self.explanation_tags[1] in shot.explanation:
                raise ValueError("shots: an explanation contains the closing explanation tag")
        return self

    @property
    def hash(self) -> str:
        """Hash of everything that changes a rendered text, as 16 hex digits. The name does not change it."""
        content = self.model_dump(mode="json", exclude={"name"})
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()

    @property
    def boundary(self) -> str:
        """The text between solution and explanation in the teacher's prefill."""
        return self.solution_tags[1] + self.separator + self.explanation_tags[0]

    def problem_with(self, question: str, solution: str, *, needs_solution: bool = True) -> str | None:
        """Return why a problem cannot be rendered in this format, or None if it can."""
        if not question.strip():
            return "the question is empty"
        inner = self.bare_solution(solution)
        if needs_solution and not inner.strip():
            return "the solution is empty"
        for name, text in (("question", question), ("solution", inner)):
            for tag in (*self.solution_tags, self.boundary):
                if tag in text:
                    return f"the {name} contains the tag {tag!r} of the format {self.name!r}"
            if OPEN in text:
                return f"the {name} contains the noncharacter U+FDD0, which rlt-data uses itself"
            if any("\ud800" <= char <= "\udfff" for char in text):
                return f"the {name} contains half of a surrogate pair (invalid Unicode)"
        return None

    def bare_solution(self, solution: str) -> str:
        """Remove solution tags that enclose the complete solution, as in data of this format."""
        opening, closing = self.solution_tags
        stripped = solution.strip()
        if stripped.startswith(opening) and stripped.endswith(closing) and len(stripped) >= len(opening + closing):
            return stripped[len(opening) : -len(closing)]
        return solution

    def solution_content(self, solution: str) -> str:
        """Return the text between the solution tags."""
        solution = self.bare_solution(solution)
        if self.solution_padding:
            solution = solution.strip("\n")
        return self.solution_padding + solution + self.solution_padding

    def split_message(self, text: str) -> tuple[str, str] | None:
        """Return thought and solution of a student's message in the tags of this format, or None for other texts."""
        tags = map(re.escape, (*self.thought_tags, *self.solution_tags))
        shape = r"\s*{}(.*?){}\s*{}(.*?){}\s*".format(*tags)
        match = re.fullmatch(shape, text.removeprefix(self.thought_prefix), re.S)
        return (match[1].strip(), match[2].strip()) if match else None

    def student_question(self, question: str) -> str:
        """Return the user message of student and solver."""
        return self.question_template.replace("{question}", question)

    @property
    def solver_text(self) -> str:
        """The system text of the solver."""
        return self.student_system if self.solver_system is None else self.solver_system

    def completion_of(self, explanation: str) -> str:
        """Return what a teacher that writes this explanation generates after the prefill."""
        return explanation.strip() + self.padding + self.explanation_tags[1]


def load_format(name_or_file: str) -> Format:
    """Load a built-in format by name, or one from a YAML file.

    Raises:
        SettingsError: the name is neither built-in nor a file, or a key is unknown, missing or wrong.
        InputError: the file is not YAML.
    """
    return _load(name_or_file, ())


def _load(name_or_file: str, extending: tuple[str, ...]) -> Format:
    """Load a format; ``extending`` are the formats that extend it, the direct one last."""
    if name_or_file in extending:
        raise SettingsError(f"{extending[-1]}: extends {name_or_file!r}, which extends it in turn")
    extending = (*extending, name_or_file)
    if name_or_file in BUILT_IN:
        text = resources.files(__package__).joinpath(f"{name_or_file}.yaml").read_text(encoding="utf-8")
        return _parse(text, extending)
    try:
        text = Path(name_or_file).read_text(encoding="utf-8-sig")
    except (OSError, TypeError, ValueError) as error:  # ValueError: not a valid file name
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"{name_or_file}: not UTF-8 at byte {error.start + 1}") from None
        raise SettingsError(
            f"--format: {name_or_file!r} is neither a built-in format ({', '.join(BUILT_IN)}) nor a YAML file"
        ) from None
    return _parse(text, extending)


def model_format(folder: Path) -> Format | None:
    """Return the format in ``format.yaml`` in a model's folder, or None if the file does not exist.

    Raises:
        SettingsError: a key is unknown, missing or wrong.
        InputError: the file is not YAML.
    """
    file = folder / "format.yaml"
    return load_format(str(file)) if file.is_file() else None


def _parse(text: str, extending: tuple[str, ...]) -> Format:
    source = extending[-1]
    data = parse_yaml(text, source)
    if data is None:
        raise InputError(f"{source}: a format must be a YAML mapping with keys such as name and teacher_system")
    if "extends" in data:
        data = _load(str(data.pop("extends")), extending).model_dump(mode="json") | data
    return parse_settings(Format, data, where=source)
