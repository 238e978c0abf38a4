"""Read only the questions of an input, with or without solutions."""

from __future__ import annotations

from rlt_data.errors import InputError
from rlt_data.inputs.chats import only_question
from rlt_data.inputs.options import with_options
from rlt_data.inputs.presets import detect
from rlt_data.inputs.rows import BadRow, Columns, Fields, Found, Row
from rlt_data.plugins import PRESETS

#: How questions of APPS, TACO and LiveCodeBench begin in Sky-T1-data-17k, Bespoke-Stratos-17k and OpenThoughts-114k.
CODE_QUESTION = "Generate an executable Python function"


def asks_for_code(question: str) -> bool:
    """Return whether a question asks for a program, which no grader of rlt-data runs."""
    return question.lstrip().startswith(CODE_QUESTION)


class QuestionReader:
    """Turns records into rows that have a question, an id and no solution.

    Args:
        first: the first record, which determines the preset.
        source: the input, for messages.

    Raises:
        InputError: no preset finds the question.
    """

    def __init__(self, first: Columns, source: str) -> None:
        preset = detect(first, ("solution",))
        if preset is None:
            raise InputError(f"{source}: no column is known to be the question; the columns are {', '.join(first)}")
        self.preset: str = preset
        self.found: Fields = {}
        self._read = PRESETS.load(preset)

    def __call__(self, data: Columns, number: int) -> list[Row]:
        """Return the row of a record; its id is the record's, or its number.

        Raises:
            BadRow: the question is missing, empty or no text.
        """
        question = only_question(self._read(data).get("question", Found(None)))["question"]
        text = with_options(question, data).value
        if not isinstance(text, str) or not text.strip():
            raise BadRow("question: missing or empty")
        source_id = data.get("id", data.get("unique_id"))
        return [Row(text, "", source_id=str(number) if source_id is None else str(source_id))]
