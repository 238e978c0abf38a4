"""Presets: functions that find the fields of a row in a record of a common layout.

A preset takes a record and returns the fields of :class:`~rlt_data.inputs.rows.Row` that it finds. It raises
:class:`~rlt_data.inputs.rows.BadRow` to reject the record. Plug-ins (docs/extending.md) return plain values; the
presets here return them with their origins, which ``check`` shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from rlt_data.inputs.chats import question_and_answer
from rlt_data.inputs.rows import BadRow, Columns, Fields, Found
from rlt_data.inputs.thoughts import UnclosedThoughtError, split_thought

#: Common names of the columns of a field. A record that has several of them is not read without flags.
QUESTIONS = ("question", "problem", "prompt", "query", "input", "Question")
SOLUTIONS = ("solution", "generated_solution", "output", "response", "Response")
ANSWERS = ("answer", "final_answer", "expected_answer", "reference_answer", "ground_truth", "answerKey")

#: Columns whose text may be a reference solution or the trace of a model, if the record also has an answer.
_REPLIES = {"output", "response", "Response"}

#: Columns with traces.
_TRACES = ("explanation", "completion", "Complex_CoT")

#: A solution whose last line is ``#### final answer``.
_GSM8K_ANSWER = re.compile(r"(?P<solution>.*)^#### *(?P<final>\S[^\n]{0,99}?)\s*", re.S | re.M)

#: A calculator annotation such as ``<<3*4=12>>``, unlike the shifts in ``1 << 2 = 4, and 16 >> 2 = 4``.
_CALCULATOR_MARK = re.compile(r"<<(?!\s)(?:(?!, )[^<>\n])*=(?:(?!, )[^<>\n])*(?<!\s)>>")


def _columns(**names: str) -> Callable[[Columns], Fields]:
    return lambda data: {field: Found(data.get(column), column) for field, column in names.items()}


question_solution = _columns(question="question", solution="solution")
question_answer = _columns(question="question", solution="answer", answer="answer")
math_problem = _columns(question="problem", solution="solution")
s1k = _columns(question="question", solution="solution", explanations="thinking_trajectories")


def columns(data: Columns) -> Fields:
    """Read columns with other common names, each field from the only column that may have it.

    The solution belongs to the trace if it is a reply next to the thought of the same model.
    """
    answer = only(data, ANSWERS)
    solutions = solution_candidates(data)
    names = {
        "question": only(data, QUESTIONS),
        "solution": solutions[0] if len(solutions) == 1 else None,
        "answer": answer,
        "explanation": only(data, ("Complex_CoT",)),
    }
    fields = {field: Found(data[column], column) for field, column in names.items() if column}
    if names["explanation"] and names["solution"] in _REPLIES:
        fields["solution"] = replace(fields["solution"], own=True)
    return fields


def only(columns: Collection[str], names: Collection[str]) -> str | None:
    """Return the only name that is a column, or None if none or several are."""
    found = [name for name in names if name in columns]
    return found[0] if len(found) == 1 else None


def solution_candidates(columns: Collection[str]) -> list[str]:
    """Return the columns that may have the solution; the answer is the solution of a record without another."""
    solutions = [name for name in SOLUTIONS if name in columns]
    answers = [name for name in ANSWERS if name in columns]
    return solutions + answers if not solutions or set(solutions) <= _REPLIES else solutions


def reply_with_thought(first: Columns) -> str | None:
    """Return the only solution column of a record if it is a reply with a thought and a text after it, else None."""
    columns = [name for name in SOLUTIONS if name in first]
    if len(columns) != 1 or columns[0] not in _REPLIES or not isinstance(first[columns[0]], str):
        return None
    try:
        thought, rest = split_thought(first[columns[0]])
    except UnclosedThoughtError:
        return None
    return columns[0] if thought and rest else None


def gsm8k(data: Columns) -> Fields:
    """Remove the calculator annotations from a GSM8K answer and spell out its final answer."""
    match = _GSM8K_ANSWER.fullmatch(str(data.get("answer")))
    if not match:
        raise BadRow("answer: no '####' before the final answer")
    solution, final = _CALCULATOR_MARK.sub("", match["solution"]).strip(), match["final"]
    return {
        "question": Found(data.get("question"), "question"),
        "solution": Found(f"{solution}\nThe answer is {final}.", "answer", "calculator annotations removed"),
        "answer": Found(final, "answer", "text after ####"),
    }


def is_gsm8k(data: Columns) -> bool:
    """Return whether the answer of a record ends like one of GSM8K."""
    return _GSM8K_ANSWER.fullmatch(str(data.get("answer"))) is not None


def generations(data: Columns) -> Fields:
    """Read a record with several generations of a model, each of which is a trace."""
    solution = "solution" if data.get("solution") is not None else "answer"
    return {
        **first_question(data),
        "solution": Found(data.get(solution), solution),
        "explanations": Found(data.get("generations"), "generations"),
    }


def first_question(data: Columns) -> Fields:
    """Return the question of a record, from the first column that may have it."""
    return next(({"question": Found(data[column], column)} for column in QUESTIONS if column in data), {})


def messages(data: Columns) -> Fields:
    """Read one question and one answer from the chat in column ``messages``."""
    return question_and_answer(data.get("messages"), "messages")


def sharegpt(data: Columns) -> Fields:
    """Read one question and one answer from the chat in column ``conversations``."""
    return question_and_answer(data.get("conversations"), "conversations")


def prompt_completion(data: Columns) -> Fields:
    """Read prompt and completion, two texts or two lists of chat messages.

    The completion is the trace if the record also has a solution.
    """
    if isinstance(data.get("prompt"), list) and isinstance(data.get("completion"), list):
        turns = question_and_answer([*data["prompt"], *data["completion"]], "prompt")
        for field in ("solution", "explanation"):
            if field in turns:
                column = str(turns[field].column).replace("prompt", "completion", 1)
                turns[field] = replace(turns[field], column=column)
        return turns
    if isinstance(data.get("solution"), str):
        return _columns(question="prompt", solution="solution", completion="completion")(data)
    return _columns(question="prompt", solution="completion")(data)


def instruction_output(data: Columns) -> Fields:
    """Read a record of Alpaca or Dolly; its input or context follows the instruction."""
    question = Found(data.get("instruction"), "instruction")
    inputs = [name for name in ("input", "context") if isinstance(text := data.get(name), str) and text.strip()]
    if inputs and isinstance(question.value, str):
        parts = [question.value, *(data[name] for name in inputs)]
        text = "\n\n".join(part for part in parts if part.strip())
        question = question.changed(text, f"{' and '.join(map(repr, inputs))} appended", *inputs)
    column = "output" if "output" in data else "response"
    return {"question": question, "solution": Found(data.get(column), column)}


def verl(data: Columns) -> Fields:
    """Read a record of verl: a chat as prompt, and the ground truth of the reward model."""
    reward_model = data.get("reward_model")
    truth = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    found = Found(truth, "reward_model.ground_truth")
    if isinstance(truth, str) and (text := _only_item(truth)) is not None:
        found = found.changed(text, "only item of its JSON list")
    return {"question": Found(data.get("prompt"), "prompt"), "solution": found, "answer": found}


def _only_item(text: str) -> str | None:
    """Return the text of a JSON list of one text, or None for other texts."""
    try:
        items = json.loads(text) if text.startswith('["') else None
    except ValueError:
        return None
    return items[0] if isinstance(items, list) and len(items) == 1 and isinstance(items[0], str) else None


#: What ``auto`` tries in this order: presets with the columns that they need.
_LAYOUTS = (
    ("s1k", {"question", "solution", "thinking_trajectories"}),
    ("question-solution", {"question", "solution"}),
    ("math", {"problem", "solution"}),
    ("question-answer", {"question", "answer"}),
    ("prompt-completion", {"prompt", "completion"}),
    ("verl", {"prompt", "reward_model"}),
    ("instruction-output", {"instruction", "output"}),
    ("instruction-output", {"instruction", "response"}),
)


def detect(first: Columns, named: Collection[str]) -> str | None:
    """Return the preset for an input, or None if none fits.

    Args:
        first: its first record.
        named: fields whose columns are named by flags.
    """
    if {"question", "solution"} <= set(named):
        return "columns"
    if isinstance(first.get("generations"), list) and "question" in first_question(first):
        if first.keys() & {"solution", "answer"}:
            return "generations"
    if "conversations" in first:
        return "bespoke" if "begin_of_solution" in str(first["conversations"]) else "sharegpt"
    if "messages" in first:
        return "messages"
    for preset, required in _LAYOUTS:
        if required <= first.keys():
            return "gsm8k" if preset == "question-answer" and is_gsm8k(first) else preset
    if not ("question" in named or only(first, QUESTIONS)):
        return None
    candidates = solution_candidates(first)
    if "solution" in named or len(candidates) == 1:
        return "columns"
    if not candidates and isinstance(first.get("generations"), list):
        return "generations"
    has_trace = {"explanation", "completion"} & set(named) or first.keys() & set(_TRACES)
    return "columns" if has_trace and not candidates else None
