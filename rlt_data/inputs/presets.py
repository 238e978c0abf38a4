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
from decimal import Decimal
from typing import Any

from rlt_data.errors import InputError, one_line
from rlt_data.inputs.thoughts import UnclosedThoughtError, split_thought
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
    origin: str | None = None
    meta: str | None = None


class BadRow(Exception):
    """A record that cannot become a row; the message says why."""


#: A solution whose last line is ``#### final answer``.
_GSM8K_ANSWER = re.compile(r"(?P<solution>.*)^#### *(?P<final>\S[^\n]{0,99}?)\s*", re.S | re.M)


#: A calculator annotation such as ``<<3*4=12>>``, unlike the shifts in ``1 << 2 = 4, and 16 >> 2 = 4``.
_CALCULATOR_MARK = re.compile(r"<<(?!\s)(?:(?!, )[^<>\n])*=(?:(?!, )[^<>\n])*(?<!\s)>>")


#: Columns that have the question, the first that exists.
_QUESTIONS = ("question", "problem", "prompt")


def _columns(**names: str) -> Callable[[Fields], Fields]:
    return lambda data: {field: data.get(column) for field, column in names.items()}


def gsm8k(data: Fields) -> Fields:
    """Remove the calculator annotations from a GSM8K answer and spell out its final answer."""
    match = _GSM8K_ANSWER.fullmatch(str(data.get("answer")))
    if not match:
        raise BadRow("answer: no '####' before the final answer")
    solution = _CALCULATOR_MARK.sub("", match["solution"]).strip()
    final = match["final"]
    return {"question": data.get("question"), "solution": f"{solution}\nThe answer is {final}.", "answer": final}


def generations(data: Fields) -> Fields:
    """Read a record with several generations of a model, each of which is a trace."""
    solution = data["solution"] if data.get("solution") is not None else data.get("answer")
    return _question_only(data) | {"solution": solution, "explanations": data.get("generations")}


def _question_only(data: Fields) -> Fields:
    return {"question": next((data[column] for column in _QUESTIONS if column in data), None)}


def messages(data: Fields) -> Fields:
    """Read one question and one answer from the chat in column ``messages``."""
    return _from_turns(data.get("messages"), "messages")


def sharegpt(data: Fields) -> Fields:
    """Read one question and one answer from the chat in column ``conversations``."""
    return _from_turns(data.get("conversations"), "conversations")


def prompt_completion(data: Fields) -> Fields:
    """Read prompt and completion, two texts or two lists of chat messages.

    The completion is the trace if the record also has a solution.
    """
    if isinstance(data.get("prompt"), list) and isinstance(data.get("completion"), list):
        return _from_turns([*data["prompt"], *data["completion"]], "prompt")
    if isinstance(data.get("solution"), str):
        return _columns(question="prompt", solution="solution", completion="completion")(data)
    return {"question": data.get("prompt"), "solution": data.get("completion")}


def instruction_output(data: Fields) -> Fields:
    """Read an Alpaca record; its input follows the instruction."""
    parts = [data.get("instruction"), data.get("input")]
    question = "\n\n".join(part for part in parts if isinstance(part, str) and part.strip())
    return {"question": question or None, "solution": data.get("output")}


def verl(data: Fields) -> Fields:
    """Read a record of verl: a chat as prompt, and the ground truth of the reward model."""
    reward_model = data.get("reward_model")
    truth = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    return {"question": data.get("prompt"), "solution": truth, "answer": truth}


#: Names of the speaker, the text and the thought in a turn of a chat.
_SPEAKERS, _TEXTS, _THOUGHTS = ("role", "from"), ("content", "value"), ("reasoning_content", "reasoning", "thinking")
_USERS, _ASSISTANTS = ("user", "human"), ("assistant", "gpt", "model")


def _from_turns(chat: Any, column: str) -> Fields:
    turns = _turns(chat)
    if turns is None:
        raise BadRow(f"{column}: expected a list of objects with 'role' and 'content', or 'from' and 'value'")
    questions = [turn for turn in turns if _first(turn, _SPEAKERS) in _USERS]
    answers = [turn for turn in turns if _first(turn, _SPEAKERS) in _ASSISTANTS]
    if len(questions) != 1 or len(answers) != 1:
        raise BadRow(f"{column}: expected one question and one answer, got {len(questions)} and {len(answers)}")
    return {
        "question": _content(questions[0]),
        "solution": _content(answers[0]),
        "explanation": _first(answers[0], _THOUGHTS),
    }


def _turns(chat: Any) -> list[Mapping[str, Any]] | None:
    """Return the turns of a chat, or None if the value is no chat."""
    if isinstance(chat, Mapping) and all(isinstance(values, list) for values in chat.values()):
        chat = [dict(zip(chat, values, strict=False)) for values in zip(*chat.values(), strict=False)]
    if not isinstance(chat, list) or not chat:
        return None
    return chat if all(isinstance(turn, Mapping) and _first(turn, _SPEAKERS) for turn in chat) else None


def _first(turn: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((turn[key] for key in keys if turn.get(key)), None)


def _content(turn: Mapping[str, Any]) -> Any:
    """Return the text of a turn, whose content may be a list of parts."""
    content = _first(turn, _TEXTS)
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        return "".join(str(part["text"]) for part in content)
    return content


question_solution = _columns(question="question", solution="solution", answer="answer")
question_answer = _columns(question="question", solution="answer", answer="answer")
math_problem = _columns(question="problem", solution="solution", answer="answer")
s1k = _columns(question="question", solution="solution", explanations="thinking_trajectories")

#: Fields that a preset may return. ``explanations`` is a list of texts, and makes a row of each.
_FIELDS = ("question", "solution", "answer", "explanation", "explanations", "completion", "origin")

#: Columns that name the author of a trace unless ``--origin-column`` does; the first that has text in the row counts.
_ORIGINS = ("origin", "generator", "generated_by", "model_name", "model")

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
        if settings.origin_column:
            flags.append(("--origin-column", settings.origin_column))
        for flag, column in [*flags, *(("--keep", column) for column in settings.keep)]:
            if column not in first and _value(first, column) is None:
                raise InputError(f"{source}: {flag}: no column {column!r}; the columns are {_list(first)}")
        self.preset = settings.preset if settings.preset != "auto" else self._detect(first)
        if self.preset is None:
            missing = " and ".join(
                f"--{field}-column" for field in ("question", "solution") if field not in self._named
            )
            raise InputError(f"{source}: no preset fits the columns {_list(first)}; name them with {missing}")
        self._origins = (settings.origin_column,) if settings.origin_column else _ORIGINS
        self._read = _question_only if self.preset == _COLUMNS_ONLY else self._loaded(self.preset)

    def _detect(self, first: Fields) -> str | None:
        columns = set(first)
        if {"question", "solution"} <= self._named.keys():
            return _COLUMNS_ONLY
        if isinstance(first.get("generations"), list) and columns & {*_QUESTIONS} and columns & {"solution", "answer"}:
            return "generations"
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
            ("verl", {"prompt", "reward_model"}),
            ("instruction-output", {"instruction", "output"}),
        ):
            if required <= columns:
                is_gsm8k = preset == "question-answer" and _GSM8K_ANSWER.fullmatch(str(first["answer"]))
                return "gsm8k" if is_gsm8k else preset
        if columns & {*_QUESTIONS} and "solution" in self._named:
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

    def __call__(self, data: Fields, number: int) -> list[Row]:
        """Return the rows of a record: one, or one for each of its traces.

        Args:
            data: the columns of the record.
            number: index of the record in the input; the ``source_id`` of a record without an id.

        Raises:
            BadRow: a field is missing, empty, too long or of the wrong type.
        """
        fields = self._read(data)
        traces = fields.pop("explanations", None)
        if not isinstance(traces, list) or self._named.keys() & {"explanation", "completion"}:
            if traces is not None and not isinstance(traces, list):
                fields["explanation"] = traces
            return [self._row(fields, data, number)]
        rows = []
        for index, text in enumerate(traces):
            if not isinstance(text, str) or not text.strip():
                continue
            # A list with a value for each trace has one for this trace.
            own = {
                column: data[column][index]
                for column in ("finish_reasons", *self._origins, *self._settings.keep)
                if isinstance(data.get(column), list) and len(data[column]) == len(traces)
            }
            own["finish_reason"] = own.get("finish_reasons", data.get("finish_reason"))
            try:
                split_thought(text)
            except UnclosedThoughtError as error:
                text, own["finish_reason"] = error.thought, "length"
            rows.append(self._row({**fields, "explanation": text}, data, number, own))
        return rows or [self._row(fields, data, number)]

    def _row(self, fields: Fields, data: Fields, number: int, own: Fields | None = None) -> Row:
        """Return one row; ``own`` has the finish reason, origin and kept columns of its trace, of several."""
        if "explanation" in data and "explanation" not in fields:
            fields["explanation"] = data["explanation"]
        if "completion" in data and self.preset != "prompt-completion":
            fields["completion"] = data["completion"]
        if "answer" in data and "answer" not in fields and self.preset in PRESETS.built_in:
            fields["answer"] = data["answer"]
        fields |= {field: _value(data, column) for field, column in self._named.items()}
        kept = {**data, **(own or {})}
        if fields.get("origin") is None:
            fields["origin"] = self._origin(kept)
        fields["question"] = _with_options(_question(fields.get("question")), data)
        if "answer" in fields:
            fields["answer"] = _answer(fields["answer"])
        source_id = fields.pop("source_id", None)
        source_id = data.get("id") if source_id is None else source_id
        texts = {field: _text(field, value) for field, value in fields.items()}
        _split_thoughts(texts)
        for field, text in texts.items():
            self._check(field, text)
        if texts.get("completion") is not None and texts.get("explanation") is not None:
            texts["explanation"] = None  # the completion includes it
        reason = kept.get("finish_reason")
        meta = {column: _finite(_value(kept, column)) for column in self._settings.keep}
        return Row(
            **texts,  # type: ignore[arg-type]
            source_id=str(number) if source_id is None else str(source_id),
            has_id=source_id is not None,
            finish_reason=_FINISH_REASONS.get(reason) if isinstance(reason, str) else None,
            meta=json.dumps(meta, ensure_ascii=False, sort_keys=True, default=_as_json) if meta else None,
        )

    def _origin(self, data: Fields) -> Any:
        if self._settings.origin_column:
            return _value(data, self._settings.origin_column) or None
        values = (data.get(column) for column in _ORIGINS)  # which may hold anything but names
        return next((value for value in values if isinstance(value, str) and value.strip()), None)

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


#: The names that APIs use, and ours.
_FINISH_REASONS = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "STOP"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "MAX_TOKENS", "max_output_tokens"), "length"),
    "eos": "eos",
}


def _value(data: Fields, column: str) -> Any:
    """Return the value of a column, or of a nested field by its dotted name such as ``reward_model.ground_truth``."""
    if column in data:
        return data[column]
    value: Any = data
    for key in column.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _question(value: Any) -> Any:
    """Return the text of a question, which may be a chat with one turn of the user."""
    turns = _turns(value)
    users = [turn for turn in turns if _first(turn, _SPEAKERS) in _USERS] if turns else []
    return _content(users[0]) if len(users) == 1 else value


def _with_options(question: Any, data: Fields) -> Any:
    """Append the options of a multiple-choice question, with letters or with the labels of the record."""
    options: Any = next((data[column] for column in ("options", "choices") if data.get(column)), None)
    labels = None
    if isinstance(options, Mapping):
        options, labels = options.get("text"), options.get("label")
    if not isinstance(question, str) or not isinstance(options, list) or len(options) > len(_LETTERS):
        return question
    if not all(isinstance(option, str) for option in options):
        return question
    lines = [line.strip() for line in question.splitlines()]
    if all(any(line.endswith(option) and len(line) < len(option) + 8 for line in lines) for option in options):
        return question  # it lists them already
    if not isinstance(labels, list) or len(labels) != len(options):
        # An answer that is a number is the index of an option.
        is_index = isinstance(data.get("answer"), int)
        labels = list(map(str, range(len(options)))) if is_index else list(_LETTERS[: len(options)])
    lines = [f"{label}. {option}" for label, option in zip(labels, options, strict=True)]
    return question.rstrip() + "\n\n" + "\n".join(lines)


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _answer(value: Any) -> Any:
    """Return an answer as text if it is a list, an object or a truth value, which texts and numbers are not."""
    if isinstance(value, list) and all(isinstance(item, (str, int, float, Decimal)) for item in value):
        return ", ".join(map(str, value)) or None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, (list, Mapping)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value or None if isinstance(value, str) else value


def _split_thoughts(texts: dict[str, str | None]) -> None:
    """Move the thought of a solution into the explanation, and remove thought tags around an explanation."""
    for field in ("solution", "explanation"):
        text = texts.get(field)
        if text is None:
            continue
        try:
            thought, rest = split_thought(text)
        except UnclosedThoughtError as error:
            raise BadRow(f"{field}: {error}") from None
        if field == "explanation":
            texts["explanation"] = thought or rest
        elif rest != text:
            texts["solution"] = rest
            if not texts.get("explanation") and not texts.get("completion"):
                texts["explanation"] = thought


def _text(field: str, value: Any) -> str | None:
    if isinstance(value, (float, Decimal)) and math.isnan(value):  # how pandas writes a missing value
        return None
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (float, Decimal)) and math.isinf(value):
        raise BadRow(f"{field}: must be a finite number, not {value}")
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and field != "question":
        return str(value)
    raise BadRow(f"{field}: expected text, got {type(value).__name__}")


def _finite(value: Any) -> Any:
    """Return None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, (float, Decimal)) and not math.isfinite(value) else value


def _as_json(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


def _list(columns: Mapping[str, Any]) -> str:
    return ", ".join(repr(column) for column in columns)
