"""Turn records into rows: by a preset, the column flags, and rules for thoughts, options, answers and numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from rlt_data.errors import InputError, one_line
from rlt_data.inputs.chats import only_question
from rlt_data.inputs.options import with_options
from rlt_data.inputs.own import OwnDataSet
from rlt_data.inputs.presets import ANSWERS, QUESTIONS, detect, only, reply_with_thought, solution_candidates
from rlt_data.inputs.rows import BadRow, Columns, Fields, Found, Row, question_id, value_at
from rlt_data.inputs.suspicions import may_have_traces
from rlt_data.inputs.thoughts import UnclosedThoughtError, split_thought
from rlt_data.plugins import PRESETS
from rlt_data.settings import InputSettings

#: Fields that a preset may return. ``explanations`` is a list of texts, and makes a row of each.
_FIELDS = ("question", "solution", "system", "answer", "explanation", "explanations", "completion", "origin")

#: Columns that name the author of a trace unless ``--origin-column`` does; the first that has text in the row counts.
_ORIGINS = ("origin", "generator", "generated_by", "model_name", "model")

#: Columns that have the system text of a record, the first that has one.
_SYSTEM_COLUMNS = ("system", "system_prompt")

#: The finish reasons of APIs, and ours.
_FINISH_REASONS = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "STOP"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "MAX_TOKENS", "max_output_tokens"), "length"),
    "eos": "eos",
}


class RowReader:
    """Turns records into rows by the preset and the column flags.

    Args:
        settings: the preset and the column flags. The preset ``auto`` is chosen by the first record.
        first: the first record.
        source: the input, for messages.
        own: how the data set was made, if it is one of ours.
        replies: whether a reply with a thought is the solution of records that have an answer but no other solution.
            False for runs of earlier versions, whose questions have the answer as their solution.

    Attributes:
        preset: name of the preset.
        found: the fields of the last record, with their origins.

    Raises:
        InputError: a named column does not exist, or no preset fits the columns.
        SettingsError: the preset cannot be loaded.
    """

    def __init__(
        self,
        settings: InputSettings,
        first: Columns,
        source: str,
        own: OwnDataSet | None = None,
        *,
        replies: bool = True,
    ) -> None:
        self._settings = settings
        named = {
            "question": settings.question_column,
            "solution": settings.own_solution_column or settings.solution_column,
            "answer": settings.answer_column,
            "explanation": settings.explanation_column,
            "completion": settings.completion_column,
            "source_id": settings.id_column,
        }
        self._named = {field: column for field, column in named.items() if column}
        self._own_solution = settings.own_solution_column is not None
        flags = [(self._flag(field), column) for field, column in self._named.items()]
        if settings.origin_column:
            flags.append((_flag("origin"), settings.origin_column))
        for flag, column in [*flags, *(("--keep", column) for column in settings.keep)]:
            if column not in first and value_at(first, column) is None:
                raise InputError(f"{source}: {flag}: no column {column!r}; the columns are {_list(first)}")
        preset = settings.preset if settings.preset != "auto" else detect(first, self._named.keys())
        self._reply = None
        if replies and settings.preset == "auto" and preset in (None, "question-answer"):
            self._reply = self._reply_in(first)
            preset = "columns" if self._reply else preset
        if preset is None:
            raise InputError(f"{source}: {_unfitting(first, self._named)}")
        self.preset: str = preset
        self._origins = (settings.origin_column,) if settings.origin_column else _ORIGINS
        self.found: Fields = {}
        self._own = own
        self._all_named = preset == "columns" and {"question", "solution"} <= self._named.keys()
        self._is_built_in = preset in PRESETS.built_in
        self._read: Callable[[Columns], Fields] = PRESETS.load(preset)
        if self._all_named:
            self._read = lambda _: {}
        elif not self._is_built_in:
            self._read = self._checked(self._read)

    def _flag(self, field: str) -> str:
        """Return the flag that names the column of a field."""
        return _flag("own_solution" if field == "solution" and self._own_solution else field)

    def _reply_in(self, first: Columns) -> str | None:
        """Return the reply that has trace and solution, unless another column has one of them or the question."""
        traces = {"explanation", "completion"}
        if self._named.keys() & {"solution", *traces} or first.keys() & traces:
            return None
        return reply_with_thought(first) if "question" in self._named or only(first, QUESTIONS) else None

    def _checked(self, function: Callable[[Columns], Any]) -> Callable[[Columns], Fields]:
        """Return the function of a plug-in's preset with its result as fields; its errors reject the record."""

        def read(data: Columns) -> Fields:
            try:
                fields = function(data)
            except BadRow:
                raise
            except Exception as error:  # noqa: BLE001 - the user's code
                raise BadRow(f"the preset raised {type(error).__name__}: {one_line(error)}") from error
            if not isinstance(fields, dict) or not fields.keys() <= set(_FIELDS):
                shown = _list(fields) if isinstance(fields, dict) else type(fields).__name__
                raise BadRow(f"the preset returned {shown}, not a dict of {', '.join(_FIELDS)}")
            return {field: Found(value) for field, value in fields.items()}

        return read

    def __call__(self, data: Columns, number: int) -> list[Row]:
        """Return the rows of a record: one, or one for each of its traces.

        Args:
            data: the columns of the record.
            number: index of the record in the input; the ``source_id`` of a record without an id.

        Raises:
            BadRow: a field is missing, empty, too long or of the wrong type.
        """
        fields = self._read(data)
        several = self._several(fields.pop("explanations", None), fields, data)
        if several is None:
            return [self._row(fields, data, number)]
        if not isinstance(several.value, list):
            return [self._row({**fields, "explanation": several}, data, number)]
        traces, rows = several.value, []
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
            trace = several.changed(text, "each item is a trace")
            rows.append(self._row({**fields, "explanation": trace}, data, number, own))
        return rows or [self._row(fields, data, number)]

    def _several(self, found: Found | None, fields: Fields, data: Columns) -> Found | None:
        """Return the list of a record's traces: that of the named column, of the preset, or of ``explanation``."""
        if "explanation" in self._named:
            column, rule = self._named["explanation"], _flag("explanation")
        elif "completion" in self._named:
            return None
        elif found or "explanation" in fields:
            return found
        else:
            column, rule = "explanation", "column name"
        value = value_at(data, column)
        return Found(value, column, rule) if isinstance(value, list) else None

    def _row(self, fields: Fields, data: Columns, number: int, own: Columns | None = None) -> Row:
        """Return one row; ``own`` has finish reason, origin and kept columns of its trace if the record has several."""
        kept = {**data, **(own or {})}
        self.found = self._fields(fields, data, number) | self._origin(fields, kept)
        source_id = self.found["source_id"]
        texts = {field: _text(field, found) for field, found in self.found.items() if field != "source_id"}
        solution = texts.get("solution")
        texts["solution"] = solution if solution and solution.strip() else ""
        for field, text in texts.items():
            self._check(field, text)
        if texts.get("completion") is not None and texts.get("explanation") is not None:
            texts["explanation"] = None  # the completion includes it
        reason = kept.get("finish_reason")
        meta = {column: _finite(value_at(kept, column)) for column in self._settings.keep}
        return Row(
            **texts,  # type: ignore[arg-type]
            source_id=str(source_id.value),
            has_id=source_id.column is not None,
            finish_reason=_FINISH_REASONS.get(reason) if isinstance(reason, str) else None,
            meta=json.dumps(meta, ensure_ascii=False, sort_keys=True, default=_as_json) if meta else None,
            own_solution=bool(texts["solution"]) and self.found["solution"].own,
        )

    def _origin(self, fields: Fields, data: Columns) -> Fields:
        """Return who wrote the trace, as field ``origin``, or no field if nothing names the author."""
        if column := self._settings.origin_column:
            return {"origin": Found(value_at(data, column) or None, column, _flag("origin"))}
        if fields.get("origin", Found(None)).value is not None:
            return {}
        column = next((name for name in _ORIGINS if _is_text(data.get(name))), None)  # others may hold anything
        return {"origin": Found(data[column], column, "column name")} if column else {}

    def _fields(self, fields: Fields, data: Columns, number: int) -> Fields:
        """Complete the fields of the preset by the other columns, the flags and the rules."""
        fields = dict(fields)
        if self._reply:
            fields["solution"] = Found(data.get(self._reply), self._reply, "reply with a thought")
        if "completion" in data and "completion" not in fields and self.preset != "prompt-completion":
            fields["completion"] = Found(data["completion"], "completion", "column name")
        if "explanation" not in fields and not isinstance(data.get("explanation"), list):
            fields["explanation"] = Found(data.get("explanation"), "explanation", "column name")
        if self._is_built_in and "answer" not in fields and not self._all_named:
            if answer := "answer" if "answer" in data else only(data, ANSWERS):
                fields["answer"] = Found(data[answer], answer, "column name")
        for field, column in self._named.items():
            value = value_at(data, column)
            if field != "explanation" or not isinstance(value, list):  # a list has been split into its traces
                fields[field] = Found(value, column, self._flag(field))
        if "solution" in fields and (self._own_solution or self._named.keys() & {"explanation", "completion"}):
            fields["solution"] = replace(fields["solution"], own=self._own_solution)  # another column has the trace
        question = only_question(fields.get("question", Found(None)))
        fields |= question | {"question": with_options(question["question"], data)}
        if self._is_built_in and "system" not in fields:
            if system := next((name for name in _SYSTEM_COLUMNS if _is_text(data.get(name))), None):
                fields["system"] = Found(data[system], system, "column name")
        elif isinstance(fields.get("system", Found(None)).value, str) and not _is_text(fields["system"].value):
            del fields["system"]
        if self._settings.system == "format":
            fields.pop("system", None)
        if "answer" in fields:
            fields["answer"] = _answer(fields["answer"])
        if "solution" in fields:
            fields["solution"] = _solution(fields["solution"])
        if fields.get("source_id", Found(None)).value is None:
            fields["source_id"] = Found(number, None, "row number")
            if data.get("id") is not None:
                fields["source_id"] = Found(data["id"], "id", "column name")
        fields = _split_thoughts(self._own.undo(fields, data) if self._own else fields)
        if "solution" in fields and (author := self._author(fields, data)):
            fields["solution"] = replace(fields["solution"], own=author == "trace")
        return fields

    def _author(self, fields: Fields, data: Columns) -> str | None:
        """Return whose the solution of a row of rlt-data is, trace or question; None for other rows.

        The solution is the question's if the row's ``question_id`` depends on it.
        """
        question, system, solution = (
            fields.get(name, Found(None)).value for name in ("question", "system", "solution")
        )
        key, system = data.get("question_id"), None if system is None else str(system)
        if key and key == question_id(str(question), "", system):
            return "trace"
        is_reference = key and key == question_id(str(question), str(solution), system)
        return "question" if is_reference or self._own else None

    def _check(self, field: str, text: str | None) -> None:
        if text is None:
            if field == "question":
                raise BadRow("question: missing")
            return
        if field == "question" and not text.strip():
            raise BadRow("question: empty")
        if field in ("question", "solution", "system") and "\0" in text:
            raise BadRow(f"{field}: contains a NUL character")
        if len(text) > self._settings.max_chars:
            raise BadRow(f"{field}: {len(text):,} characters, --max-chars is {self._settings.max_chars:,}")
        if re.search("[\ud800-\udfff]", text):
            raise BadRow(f"{field}: contains half of a surrogate pair (invalid Unicode)")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _flag(field: str) -> str:
    return f"--{field.replace('source_id', 'id').replace('_', '-')}-column"


def _unfitting(first: Columns, named: Mapping[str, str]) -> str:
    """Return why no preset fits, and the flags that are needed."""
    candidates = {"question": [name for name in QUESTIONS if name in first], "solution": solution_candidates(first)}
    unknown = {field: names for field, names in candidates.items() if field not in named and len(names) != 1}
    reasons = [f"{' or '.join(map(repr, names))} may be the {field}" for field, names in unknown.items() if names]
    flags = " and ".join(map(_flag, unknown))
    traces = [f"{name!r} may have traces (--explanation-column)" for name in first if may_have_traces(name, first)]
    return "; ".join([f"no preset fits the columns {_list(first)}", *reasons, f"name them with {flags}", *traces])


def _answer(found: Found) -> Found:
    """Return an answer as text if it is a list, an object or a truth value, which texts and numbers are not."""
    value = found.value
    if isinstance(value, list) and all(isinstance(item, (str, int, float, Decimal)) for item in value):
        return found.changed(", ".join(map(str, value)) or None, "items joined by commas")
    if isinstance(value, bool):
        return found.changed(str(value), "as text")
    if isinstance(value, (list, Mapping)):
        return found.changed(json.dumps(value, ensure_ascii=False, default=str), "as JSON")
    return found.changed(None, "empty") if value == "" else found


def _solution(found: Found) -> Found:
    """Return the only item of a list of solutions, and an answer that is the solution as text."""
    if isinstance(found.value, list) and len(found.value) == 1 and isinstance(found.value[0], str):
        return found.changed(found.value[0], "only item of the list")
    return _answer(found) if found.column in ANSWERS and isinstance(found.value, (list, bool)) else found


def _split_thoughts(fields: Fields) -> Fields:
    """Move the thought of a solution into the explanation, and remove thought tags around an explanation.

    What follows the thought of a trace in the same text is the trace's own solution, unless there is a reference.
    """
    for field in ("solution", "explanation", "completion"):
        found = fields.get(field, Found(None))
        if not isinstance(found.value, str):
            continue
        try:
            thought, rest = split_thought(found.value)
        except UnclosedThoughtError as error:
            if field == "completion":
                continue  # a truncated trace
            raise BadRow(f"{field}: {error}") from None
        if rest == found.value:
            continue
        after = found.changed(rest, "text after the thought")
        if field == "solution":
            traces = [fields[name] for name in ("explanation", "completion") if fields.get(name, Found(None)).value]
            same = all(trace.column is not None and trace.column == found.column for trace in traces)
            fields["solution"] = replace(after, own=found.own or (thought is not None and same))
            if not traces:
                fields["explanation"] = found.changed(thought, "thought in tags")
            continue
        if field == "explanation":
            fields["explanation"] = found.changed(thought or rest, "thought tags removed")
        if thought and fields.get("solution", Found(None)).value in (None, ""):
            fields["solution"] = replace(after, own=True)
    return fields


def _text(field: str, found: Found) -> str | None:
    """Return a value as text.

    Raises:
        BadRow: it is neither a text nor a finite number, or the question is a number.
    """
    value = found.value
    if isinstance(value, (float, Decimal)) and math.isnan(value):  # how pandas writes a missing value
        return None
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (float, Decimal)) and math.isinf(value):
        raise BadRow(f"{field}: must be a finite number, not {value}")
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) and field != "question":
        return str(value)
    if isinstance(value, Mapping):
        texts = [key for key, inner in value.items() if isinstance(inner, (str, int)) and found.column]
        nested = f"; name one of its fields, such as {_flag(field)} {found.column}.{texts[0]}" if texts else ""
        raise BadRow(f"{field}: expected text, got an object{nested}")
    kind = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
    raise BadRow(f"{field}: expected text, got {kind}")


def _finite(value: Any) -> Any:
    """Return None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, (float, Decimal)) and not math.isfinite(value) else value


def _as_json(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)


def _list(columns: Mapping[str, Any]) -> str:
    return ", ".join(repr(column) for column in columns)
