from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from rlt_data.errors import InputError
from rlt_data.inputs.reader import RowReader
from rlt_data.inputs.rows import BadRow, Row
from rlt_data.settings import InputSettings, parse_settings

TAGGED = (
    "<|begin_of_thought|>\n\nfirst\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nIt is 2.\n\n<|end_of_solution|>"
)


def row(data: dict[str, Any], **settings: Any) -> tuple[str | None, Row]:
    reader = RowReader(parse_settings(InputSettings, {"in": "x", **settings}), data, "x.jsonl")
    [got] = reader(data, 7)
    return reader.preset, got


@pytest.mark.parametrize(
    ("data", "preset", "question", "solution", "answer", "explanation"),
    [
        ({"question": "q", "solution": "s"}, "question-solution", "q", "s", None, None),
        ({"question": "q", "solution": 33, "answer": 33.5}, "question-solution", "q", "33", "33.5", None),
        ({"prompt": "q", "completion": "s"}, "prompt-completion", "q", "s", None, None),
        (
            {
                "prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "s"}],
            },
            "prompt-completion", "q", "s", None, None,
        ),
        (
            {"question": "q", "answer": "He has <<3*4=12>>12.\nSo 2 more is <<12+2=14>>14.\n#### 14"},
            "gsm8k", "q", "He has 12.\nSo 2 more is 14.\nThe answer is 14.", "14", None,
        ),
        ({"question": "q", "answer": "14"}, "question-answer", "q", "14", "14", None),
        ({"problem": "q", "solution": "s", "answer": "1", "level": 5}, "math", "q", "s", "1", None),
        (
            {"question": "q", "solution": "s", "thinking_trajectories": ["long"], "attempt": "a"},
            "s1k", "q", "s", None, "long",
        ),
        (
            {"system": "y", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": TAGGED}]},
            "bespoke", "q", "It is 2.", None, "first",
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "s"}]},
            "sharegpt", "q", "s", None, None,
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>t</think>s"}]},
            "messages", "q", "s", None, "t",
        ),
        (
            {"messages": [{"role": "user", "content": "q"},
                          {"role": "assistant", "content": "<think>t</think><answer>s</answer>"}]},
            "messages", "q", "s", None, "t",
        ),
        (
            {"messages": [{"role": "user", "content": "q"},
                          {"role": "assistant", "content": "s", "reasoning_content": "t"}]},
            "messages", "q", "s", None, "t",
        ),
        ({"question": "q", "answer": "# Plan\n#### Code\nx"}, "question-answer", "q", "# Plan\n#### Code\nx",
         "# Plan\n#### Code\nx", None),
        ({"question": "q", "answer": "1 << 2 = 4, and 16 >> 2 = 4\n#### 4"}, "gsm8k", "q",
         "1 << 2 = 4, and 16 >> 2 = 4\nThe answer is 4.", "4", None),
        ({"prompt": "q", "completion": "<think>t</think>s"}, "prompt-completion", "q", "s", None, "t"),
        ({"question": "q", "solution": "t\n</think>\n\ns"}, "question-solution", "q", "s", None, "t"),
        ({"question": "q", "solution": "s", "explanation": "<think>\nt\n</think>"}, "question-solution", "q", "s",
         None, "t"),
        ({"question": "q", "solution": "s", "answer": [1, "-1"]}, "question-solution", "q", "s", "1, -1", None),
        ({"question": "q", "solution": "s", "answer": True}, "question-solution", "q", "s", "True", None),
        ({"question": "q", "answer": "B", "options": ["x", "y"]}, "question-answer", "q\n\nA. x\nB. y", "B", "B", None),
        ({"question": "q", "solution": "s", "answer": 1, "choices": ["x", "y"]}, "question-solution",
         "q\n\n0. x\n1. y", "s", "1", None),
        ({"question": "q", "solution": "2", "choices": {"text": ["x", "y"], "label": ["1", "2"]}},
         "question-solution", "q\n\n1. x\n2. y", "2", None, None),
        ({"question": "q\n(A) x\n(B) y", "answer": "B", "options": ["x", "y"]}, "question-answer",
         "q\n(A) x\n(B) y", "B", "B", None),
        ({"instruction": "q", "input": "text", "output": "s"}, "instruction-output", "q\n\ntext", "s", None, None),
        ({"instruction": "q", "input": "", "output": "s"}, "instruction-output", "q", "s", None, None),
        ({"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "2"}}, "verl", "q", "2", "2",
         None),
        ({"problem": "q", "answer": "2", "generations": ["<think>t</think>2"]}, "generations", "q", "2", "2", "t"),
        ({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "s"}]}, "sharegpt", "q",
         "s", None, None),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "s"}], "answer": 4}, "messages", "q",
         "s", "4", None),
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "s"]}}, "messages", "q", "s", None, None),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                          {"role": "assistant", "content": "s", "reasoning": "t"}]},
            "messages", "q", "s", None, "t",
        ),
    ],
)  # fmt: skip
def test_the_common_layouts(
    data: dict[str, Any], preset: str, question: str, solution: str, answer: str | None, explanation: str | None
) -> None:
    detected, got = row(data)
    assert detected == preset
    assert (got.question, got.solution, got.answer, got.explanation) == (question, solution, answer, explanation)
    assert row(data, preset=preset)[1] == got


#: Rows with all columns of well-known data sets; the texts are invented.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "gsm8k": (
        "gsm8k",
        {
            "question": "Ines bakes 24 rolls on Friday, and half as many on Saturday. How many does she bake?",
            "answer": "She bakes 24/2 = <<24/2=12>>12 rolls on Saturday.\n"
            "On both days she bakes 24+12 = <<24+12=36>>36 rolls.\n#### 36",
        },
    ),
    "math500": (
        "math",
        {
            "problem": "Find $x > 0$ with $x^2 = 9$.\n\n[asy]\ndraw((0,0)--(3,0));\n[/asy]",
            "solution": "Since $3^2 = 9$ and $x > 0$, we have $x = \\boxed{3}.$",
            "answer": "3",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/0.json",
        },
    ),
    "s1k": (
        "question-solution",
        {
            "id": 0,
            "question": "Prove that \\[ a^2 + b^2 \\geq 2ab \\] for any real numbers $a, b$. ",
            "solution": "1. **Rewrite it:**\n   \\[\n   (a - b)^2 \\geq 0\n   \\]\n2. A square is not negative.",
            "source_type": "inequalities",
        },
    ),
    "aime24": (
        "question-solution",
        {"id": 60, "problem": "A walk takes $s$ hours.", "solution": "So $s = 4$: \\boxed{240}", "answer": "240",
         "url": "https://example.org/1", "question": "A walk takes $s$ hours."},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_well_known_data_sets_are_read(name: str) -> None:
    preset, data = ROWS[name]
    detected, got = row(data)
    assert detected == preset and got.question == data.get("question", data.get("problem"))
    assert got.solution.strip() and "<<" not in got.solution
    assert got.answer == {"gsm8k": "36", "s1k": None}.get(name, data.get("answer"))


def test_named_columns_override_a_preset() -> None:
    data = {"question": "q", "solution": "s", "expression": "1 + 1", "uid": 5, "level": 3}
    got = row(data, solution_column="expression", id_column="uid", keep=["level"])[1]
    assert (got.solution, got.source_id, got.meta) == ("1 + 1", "5", '{"level": 3}')
    assert row({"text": "q", "gold": "s"}, question_column="text", solution_column="gold")[0] == "columns"


def test_nested_fields_are_named_with_dots() -> None:
    data = {"q": {"text": "q"}, "reward_model": {"ground_truth": 2}, "info": {"level": 3}}
    got = row(data, question_column="q.text", solution_column="reward_model.ground_truth", keep=["info.level"])[1]
    assert (got.question, got.solution, got.meta) == ("q", "2", '{"info.level": 3}')


def test_a_completion_beside_a_solution_is_a_trace() -> None:
    got = row({"prompt": "q", "completion": "c", "solution": "s"})[1]
    assert (got.question, got.solution, got.completion) == ("q", "s", "c")


def test_kept_numbers_are_json() -> None:
    got = row({"question": "q", "solution": "s", "a": float("nan"), "b": Decimal("0.5")}, keep=["a", "b"])[1]
    assert got.meta == '{"a": null, "b": 0.5}'


@pytest.mark.parametrize(
    ("reason", "stored"),
    [("stop", "stop"), ("end_turn", "stop"), ("max_tokens", "length"), ("MAX_TOKENS", "length"), ("tool_calls", None)],
)
def test_finish_reasons_of_other_apis(reason: str, stored: str | None) -> None:
    data = {"question": "q", "solution": "s", "explanation": "e", "finish_reason": reason}
    assert row(data)[1].finish_reason == stored


def test_the_source_id_is_the_id_or_the_number_of_the_row() -> None:
    assert row({"id": 12, "question": "q", "solution": "s"})[1].source_id == "12"
    got = row({"question": "q", "solution": "s"})[1]
    assert got.source_id == "7" and not got.has_id


def test_traces_are_read() -> None:
    got = row({"question": "q", "solution": "s", "completion": "c", "explanation": "e", "finish_reason": "length"})[1]
    assert (got.completion, got.explanation, got.finish_reason) == ("c", None, "length")
    assert row({"question": "q", "solution": "s", "r1": "e"}, explanation_column="r1")[1].explanation == "e"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"question": None, "solution": "s"}, "question: missing"),
        ({"question": " \n", "solution": "s"}, "question: empty"),
        ({"question": ["q"], "solution": "s"}, "question: expected text, got a list of 1"),
        ({"question": 3, "solution": "s"}, "question: expected text, got int"),
        ({"question": "q", "solution": True}, "solution: expected text, got bool"),
        ({"question": "q", "solution": float("inf")}, "solution: must be a finite number"),
        ({"question": "q", "solution": "s", "answer": float("-inf")}, "answer: must be a finite number"),
        ({"question": "q\0", "solution": "s"}, "question: contains a NUL character"),
        ({"question": "q", "solution": "\ud800"}, "solution: contains half of a surrogate pair"),
        ({"question": "q" * 11, "solution": "s"}, "question: 11 characters, --max-chars is 10"),
        ({"question": "q", "solution": "s", "completion": "c" * 11}, "completion: 11 characters"),
        (
            {"messages": [{"role": "user", "content": "q"}] * 2},
            "messages: expected one question and one answer, got 2 and 0",
        ),
        ({"messages": "text"}, "messages: expected a list of objects"),
        ({"conversations": [{"user": "q"}]}, "conversations: expected a list of objects with 'role'"),
        ({"question": "q", "solution": "<think>it"}, "solution: the thought that <think> opens is not closed"),
    ],
)
def test_bad_rows_name_the_field_and_the_reason(data: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow) as error:
        row(data, max_chars=10)
    assert message in str(error.value)


def test_gsm8k_requires_the_marker_of_the_final_answer() -> None:
    with pytest.raises(BadRow, match="no '####'"):
        row({"question": "q", "answer": "no mark"}, preset="gsm8k")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no preset fits the columns 'text', 'gold'; name them with --question-column and --solution-column"),
        ({"question_column": "text"}, "name them with --solution-column"),
        ({"question_column": "Text"}, "--question-column: no column 'Text'; the columns are 'text', 'gold'"),
        ({"question_column": "text", "solution_column": "gold", "keep": ["x"]}, "--keep: no column 'x'"),
        ({"question_column": "text", "solution_column": "gold", "id_column": "x"}, "--id-column: no column 'x'"),
    ],
)
def test_missing_columns(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        row({"text": "q", "gold": "s"}, **settings)
    assert message in str(error.value)


def test_columns_that_may_have_traces_are_named_if_no_preset_fits() -> None:
    with pytest.raises(InputError, match="'r1_reasoning' may have traces \\(--explanation-column\\)$"):
        row({"question": "q", "r1_reasoning": "Six times seven is 42.", "reply": "42"})


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "s"}]


@pytest.mark.parametrize(
    ("data", "settings", "system"),
    [
        ({"messages": [{"role": "system", "content": "Be brief."}, *CHAT]}, {}, "Be brief."),
        ({"messages": [{"role": "developer", "content": [{"text": "Be brief."}]}, *CHAT]}, {}, "Be brief."),
        ({"messages": [{"role": "system", "content": "Be brief."}, *CHAT], "system": "no"}, {}, "Be brief."),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "s"},
                ]
            },
            {},
            "Be brief.",
        ),
        ({"conversations": CHAT, "system": "Be brief."}, {}, "Be brief."),
        ({"prompt": [{"role": "system", "content": "Be brief."}, CHAT[0]], "completion": [CHAT[1]]}, {}, "Be brief."),
        (
            {"prompt": [{"role": "system", "content": "Be brief."}, CHAT[0]], "reward_model": {"ground_truth": "s"}},
            {},
            "Be brief.",
        ),
        ({"question": "q", "solution": "s", "system_prompt": "Be brief."}, {}, "Be brief."),
        ({"Q": "q", "S": "s", "system": "Be brief."}, {"question_column": "Q", "solution_column": "S"}, "Be brief."),
        ({"messages": [{"role": "system", "content": ""}, *CHAT]}, {}, None),
        ({"question": "q", "solution": "s", "system": " \n"}, {}, None),
        ({"question": "q", "solution": "s", "system": 3}, {}, None),
        ({"question": "q", "solution": "s"}, {}, None),
    ],
)
def test_a_row_has_the_system_text_of_its_record(
    data: dict[str, Any], settings: dict[str, Any], system: str | None
) -> None:
    assert row(data, **settings)[1].system == system


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        ("a" * 31, "system: 31 characters, --max-chars is 30"),
        ("\0", "system: contains a NUL character"),
        ("\ud800", "system: contains half of a surrogate pair"),
    ],
)
def test_a_system_text_is_checked_like_the_other_texts(system: str, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        row({"question": "q", "solution": "s", "system": system}, max_chars=30)
    turns = [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, *CHAT]
    with pytest.raises(BadRow, match="messages: expected at most one system text, got 2"):
        row({"messages": turns})


@pytest.mark.parametrize(
    ("column", "settings"), [("explanation", {}), ("answers", {"explanation_column": "answers"})], ids=["name", "flag"]
)
def test_a_column_of_traces_may_have_several(column: str, settings: dict[str, Any]) -> None:
    data = {"question": "q", "solution": "s", column: ["<think>a</think>", "b", None], "finish_reasons": list("xyz")}
    reader = RowReader(parse_settings(InputSettings, {"in": "x", **settings}), data, "x")
    assert [row.explanation for row in reader(data, 0)] == ["a", "b"]
    assert [row.explanation for row in reader({**data, column: []}, 0)] == [None]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"question": "q", "query": "r", "response": "s"}, "'question' or 'query' may be the question; name them with"),
        ({"query": "q", "response": "s", "output": "t"}, "'output' or 'response' may be the solution; name them with"),
        ({"query": "q", "response": "s", "answer": "t"}, "'response' or 'answer' may be the solution; name them with"),
    ],
)
def test_two_equally_plausible_columns_are_not_guessed(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        row(data)
