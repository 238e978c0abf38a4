"""Turn records of the common layouts into rows: question, solution, and a trace if the record has one.

A preset is a function of a record (docs/extending.md). It returns the fields of :class:`Row` that it finds, and raises
:class:`BadRow` to reject the record.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlt_data.errors import InputError, one_line
from rlt_data.plugins import PRESETS
from rlt_data.settings import InputSettings

Fields = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One problem of the input, with a trace (``explanation`` or ``completion``) if the record has one."""

    question: str
    solution: str
    answer: str | None = None
    explanation: str | None = None
    completion: str | None = None
    finish_reason: str | None = None
    source_id: str | None = None
    has_id: bool = False
    meta: str | None = None


class BadRow(Exception):
    """A record that cannot become a row; the message says why."""


_TAGGED = [
    re.compile(
        r"<\|begin_of_thought\|>(?P<thought>.*?)<\|end_of_thought\|>\s*<\|begin_of_solution\|>(?P<solution>.*)", re.S
    ),
    re.compile(r"<think>(?P<thought>.*?)</think>(?P<solution>.*)", re.S),
]
_SOLUTION_ENDS = ("<|end_of_solution|>", "</answer>")


def _columns(**names: str) -> Callable[[Fields], Fields]:
    return lambda data: {field: data.get(column) for field, column in names.items()}


def gsm8k(data: Fields) -> Fields:
    """Remove the calculator annotations from a GSM8K answer and spell out its final answer."""
    solution, marker, final = str(data.get("answer")).rpartition("####")
    if not marker:
        raise BadRow("answer: no '####' before the final answer")
    solution = re.sub(r"<<.*?>>", "", solution).strip()
    return {
        "question": data.get("question"),
        "solution": f"{solution}\nThe answer is {final.strip()}.",
        "answer": final.strip(),
    }


def s1k(data: Fields) -> Fields:
    """Use the first thinking trajectory of an s1K record as its explanation."""
    trajectories = data.get("thinking_trajectories") or [None]
    thought = trajectories[0] if isinstance(trajectories, list) else trajectories
    return {"question": data.get("question"), "solution": data.get("solution"), "explanation": thought}


def _conversation(column: str, role: str, text: str) -> Callable[[Fields], Fields]:
    def read(data: Fields) -> Fields:
        return _from_turns(data.get(column), column, role, text)

    return read


def prompt_completion(data: Fields) -> Fields:
    """Read prompt and completion, two texts or two lists of chat messages."""
    if isinstance(data.get("prompt"), list) and isinstance(data.get("completion"), list):
        return _from_turns([*data["prompt"], *data["completion"]], "prompt", "role", "content")
    return {"question": data.get("prompt"), "solution": data.get("completion")}


def _from_turns(turns: Any, column: str, role: str, text: str) -> Fields:
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) and role in turn for turn in turns):
        raise BadRow(f"{column}: expected a list of objects with {role!r} and {text!r}")
    questions = [turn.get(text) for turn in turns if turn[role] in ("user", "human")]
    answers = [turn for turn in turns if turn[role] in ("assistant", "gpt")]
    if len(questions) != 1 or len(answers) != 1:
        raise BadRow(f"{column}: expected one question and one answer, got {len(questions)} and {len(answers)}")
    thought = answers[0].get("reasoning_content") or answers[0].get("thinking")
    solution = answers[0].get(text)
    if isinstance(solution, str):
        for pattern in _TAGGED:
            if match := pattern.search(solution):
                thought, solution = match["thought"].strip(), match["solution"]
                break
        for tag in _SOLUTION_ENDS:
            solution = solution.partition(tag)[0]
        solution = solution.replace("<answer>", "").strip()
    return {"question": questions[0], "solution": solution, "explanation": thought}


question_solution = _columns(question="question", solution="solution", answer="answer")
question_answer = _columns(question="question", solution="answer", answer="answer")
math_problem = _columns(question="problem", solution="solution", answer="answer")
sharegpt = _conversation("conversations", "from", "value")
messages = _conversation("messages", "role", "content")

#: Fields that a preset may return.
_FIELDS = ("question", "solution", "answer", "explanation", "completion")

#: What ``auto`` chooses if flags name the columns.
_COLUMNS_ONLY = "columns"


class RowReader:
    """Turns records into rows by the preset and the column flags.

    Args:
        settings: the preset and the column flags. The preset ``auto`` is chosen by the first record.
        first: the first record.
        source: the input, for messages.

    Raises:
        InputError: a named column does not exist, or no preset fits the columns.
        SettingsError: the preset cannot be loaded.
    """

    def __init__(self, settings: InputSettings, first: Fields, source: str) -> None:
        self._settings = settings
        named = {
            "question": settings.question_column,
            "solution": settings.solution_column,
            "answer": settings.answer_column,
            "explanation": settings.explanation_column,
            "completion": settings.completion_column,
            "source_id": settings.id_column,
        }
        self._named = {field: column for field, column in named.items() if column}
        flags = [(f"--{field.replace('source_id', 'id')}-column", column) for field, column in self._named.items()]
        for flag, column in [*flags, *(("--keep", column) for column in settings.keep)]:
            if column not in first:
                raise InputError(f"{source}: {flag}: no column {column!r}; the columns are {_list(first)}")
        self.preset = settings.preset if settings.preset != "auto" else self._detect(first)
        if self.preset is None:
            missing = " and ".join(
                f"--{field}-column" for field in ("question", "solution") if field not in self._named
            )
            raise InputError(f"{source}: no preset fits the columns {_list(first)}; name them with {missing}")
        self._read = self._question_only if self.preset == _COLUMNS_ONLY else self._loaded(self.preset)

    def _detect(self, first: Fields) -> str | None:
        columns = set(first)
        if {"question", "solution"} <= self._named.keys():
            return _COLUMNS_ONLY
        if "conversations" in columns:
            return "bespoke" if "begin_of_solution" in str(first["conversations"]) else "sharegpt"
        if "messages" in columns:
            return "messages"
        for preset, required in (
            ("s1k", {"question", "solution", "thinking_trajectories"}),
            ("question-solution", {"question", "solution"}),
            ("math", {"problem", "solution"}),
            ("question-answer", {"question", "answer"}),
            ("prompt-completion", {"prompt", "completion"}),
        ):
            if required <= columns:
                return "gsm8k" if preset == "question-answer" and "####" in str(first["answer"]) else preset
        if columns & {"question", "problem", "prompt"} and "solution" in self._named:
            return _COLUMNS_ONLY
        return None

    def _loaded(self, preset: str) -> Callable[[Fields], Fields]:
        """Return the function of a preset; errors in a user's function reject the record."""
        function = PRESETS.load(preset)
        if preset in PRESETS.built_in:
            return function

        def read(data: Fields) -> Fields:
            try:
                fields = function(data)
            except BadRow:
                raise
            except Exception as error:  # noqa: BLE001 - the user's code
                raise BadRow(f"the preset raised {type(error).__name__}: {one_line(error)}") from error
            if not isinstance(fields, dict) or not fields.keys() <= set(_FIELDS):
                shown = _list(fields) if isinstance(fields, dict) else type(fields).__name__
                raise BadRow(f"the preset returned {shown}, not a dict of {', '.join(_FIELDS)}")
            return dict(fields)

        return read

    def __call__(self, data: Fields, number: int) -> Row:
        """Return the row of a record.

        Args:
            data: the columns of the record.
            number: index of the record in the input; the ``source_id`` of a record without an id.

        Raises:
            BadRow: a field is missing, empty, too long or of the wrong type.
        """
        fields = self._read(data)
        if "explanation" in data and "explanation" not in fields:
            fields["explanation"] = data["explanation"]
        if "completion" in data and self.preset != "prompt-completion":
            fields["completion"] = data["completion"]
        fields |= {field: data.get(column) for field, column in self._named.items()}
        source_id = fields.pop("source_id", None)
        source_id = data.get("id") if source_id is None else source_id
        texts = {field: _text(field, value) for field, value in fields.items()}
        for field, text in texts.items():
            self._check(field, text)
        if texts.get("completion") is not None and texts.get("explanation") is not None:
            texts["explanation"] = None  # the completion includes it
        reason = data.get("finish_reason")
        meta = {column: data.get(column) for column in self._settings.keep}
        return Row(
            **texts,  # type: ignore[arg-type]
            source_id=str(number) if source_id is None else str(source_id),
            has_id=source_id is not None,
            finish_reason=reason if reason in ("stop", "eos", "length") else None,
            meta=json.dumps(meta, ensure_ascii=False, sort_keys=True, default=str) if meta else None,
        )

    def _question_only(self, data: Fields) -> Fields:
        question = next((data[column] for column in ("question", "problem", "prompt") if column in data), None)
        return {"question": question}

    def _check(self, field: str, text: str | None) -> None:
        if text is None:
            if field in ("question", "solution"):
                raise BadRow(f"{field}: missing")
            return
        if field in ("question", "solution"):
            if not text.strip():
                raise BadRow(f"{field}: empty")
            if "\0" in text:
                raise BadRow(f"{field}: contains a NUL character")
        if len(text) > self._settings.max_chars:
            raise BadRow(f"{field}: {len(text):,} characters, --max-chars is {self._settings.max_chars:,}")
        if re.search("[\ud800-\udfff]", text):
            raise BadRow(f"{field}: contains half of a surrogate pair (invalid Unicode)")


def _text(field: str, value: Any) -> str | None:
    if isinstance(value, float) and math.isnan(value):  # how pandas writes a missing value
        return None
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isinf(value):
        raise BadRow(f"{field}: must be a finite number, not {value}")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and field != "question":
        return str(value)
    raise BadRow(f"{field}: expected text, got {type(value).__name__}")


def _list(columns: Mapping[str, Any]) -> str:
    return ", ".join(repr(column) for column in columns)
