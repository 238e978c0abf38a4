"""Read chats: lists of turns with a speaker, a content and possibly a thought, under the names that are in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlt_data.inputs.rows import BadRow, Fields, Found

#: Names of the speaker, the text and the thought in a turn.
_SPEAKERS, _TEXTS, _THOUGHTS = ("role", "from"), ("content", "value"), ("reasoning_content", "reasoning", "thinking")
_USERS, _ASSISTANTS, _SYSTEMS = ("user", "human"), ("assistant", "gpt", "model"), ("system", "developer")

Turn = Mapping[str, Any]


def question_and_answer(chat: Any, column: str) -> Fields:
    """Return question, solution, explanation and system text of a chat with one question and one answer.

    The solution belongs to the trace if the answer has its thought in a separate field.

    Args:
        chat: the value of the column.
        column: the column, for origins and messages.

    Raises:
        BadRow: the value is no chat, or has more or fewer turns.
    """
    turns = turns_of(chat)
    if turns is None:
        raise BadRow(f"{column}: expected a list of objects with 'role' and 'content', or 'from' and 'value'")
    questions = [turn for turn in turns if _speaker(turn) in _USERS]
    answers = [turn for turn in turns if _speaker(turn) in _ASSISTANTS]
    if len(questions) != 1 or len(answers) != 1:
        raise BadRow(f"{column}: expected one question and one answer, got {len(questions)} and {len(answers)}")
    fields = {"question": _text(questions[0], column), "solution": _text(answers[0], column)}
    if thought := _first_key(answers[0], _THOUGHTS):
        fields["explanation"] = Found(answers[0][thought], f"{column}[{_speaker(answers[0])}].{thought}")
        fields["solution"] = replace(fields["solution"], own=True)
    return fields | system_text(turns, column)


def only_question(question: Found) -> Fields:
    """Return question and system text of a value that may be a chat without an answer; other values unchanged."""
    turns = turns_of(question.value) or []
    users = [turn for turn in turns if _speaker(turn) in _USERS]
    if len(users) != 1 or any(_speaker(turn) in _ASSISTANTS for turn in turns):
        return {"question": question}
    column = question.column or "question"
    text = _text(users[0], column)
    return {"question": Found(text.value, text.column, question.rule)} | system_text(turns, column)


def system_text(turns: list[Turn], column: str) -> Fields:
    """Return the system text of a chat as field ``system``, or no field if the chat has none.

    Raises:
        BadRow: the chat has several.
    """
    texts = [found for turn in turns if _speaker(turn) in _SYSTEMS if (found := _text(turn, column)).value]
    if len(texts) > 1:
        raise BadRow(f"{column}: expected at most one system text, got {len(texts)}")
    return {"system": texts[0]} if texts else {}


def turns_of(chat: Any) -> list[Turn] | None:
    """Return the turns of a chat, a list of objects or an object of lists; None if the value is no chat."""
    if isinstance(chat, Mapping) and all(isinstance(values, list) for values in chat.values()):
        chat = [dict(zip(chat, values, strict=False)) for values in zip(*chat.values(), strict=False)]
    if not isinstance(chat, list) or not chat:
        return None
    return chat if all(isinstance(turn, Mapping) and _first_key(turn, _SPEAKERS) for turn in chat) else None


def _speaker(turn: Turn) -> Any:
    return turn[key] if (key := _first_key(turn, _SPEAKERS)) else None


def _text(turn: Turn, column: str) -> Found:
    """Return the text of a turn, whose content may be a list of parts."""
    key = _first_key(turn, _TEXTS)
    content = turn[key] if key else None
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    return Found(content, f"{column}[{_speaker(turn)}].{key}")


def _first_key(turn: Turn, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if turn.get(key)), None)
