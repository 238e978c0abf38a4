"""Signal ``answer``: where the answer is found, how it is compared, and graders that fail."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from rlt_data.errors import ModelError
from rlt_data.inputs.questions import CODE_QUESTION
from rlt_data.signals import answer
from rlt_data.signals.answer import SIGNAL
from rlt_data.tasks.countdown import question_text
from tests.conftest import Rlt, write_jsonl
from tests.signals.made_texts import computed, made

#: A grader in place of math-verify that fails for some answers.
_FAILING = """
import time

def parse(text, **options):
    if "hang" in text:
        time.sleep(600)
    if "raise" in text:
        raise ValueError("odd answer")
    if "memory" in text:
        return [bytearray(64 * 2**30)]
    if "die" in text:
        import os
        os._exit(3)
    return [text.strip("$").split()[-1]]

def verify(gold, answer, **options):
    return gold == answer
"""


@pytest.fixture
def math_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that the grader's process imports as math-verify."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "math_verify.py"


def _verdicts(*rows: dict[str, Any], **options: Any) -> list[str]:
    verdicts: list[str] = computed(SIGNAL, [{"question": "?", **row} for row in rows], **options)[
        "answer_verdict"
    ].to_list()
    return verdicts


def _verdict(explanation: str, known: str, question: str = "?") -> str:
    return _verdicts({"question": question, "explanation": explanation, "answer": known})[0]


@pytest.mark.parametrize(
    ("row", "stated"),
    [
        ({"trace_solution": "The answer is 8.", "explanation": "\\boxed{9}"}, "8"),
        ({"trace_solution": "We get \\boxed{8}.", "explanation": "\\boxed{9}"}, "8"),
        ({"trace_solution": "3 * 4 - 5", "explanation": "\\boxed{9}"}, "3 * 4 - 5"),
        ({"trace_solution": "We add both numbers and are done.", "explanation": "\\boxed{9}"}, "9"),
        ({"explanation": "First \\boxed{1}, then \\boxed{\\frac{1}{2}}. The answer is 3."}, "\\frac{1}{2}"),
        ({"explanation": "First \\boxed{1}.\n\nANSWER: $2$"}, "$2$"),
        ({"explanation": "**Answer:** \\boxed{1}. This answer is right."}, "1"),
        ({"explanation": "The answer is 3. Let me check. The answer is 4. Indeed it is."}, "4"),
        ({"explanation": "**Final Answer:** **3.5**\n"}, "3.5"),
        ({"explanation": "So we stop.\n#### 1,234"}, "1,234"),
        ({"explanation": "#### Step 1\nAdd 2 and 3.\n#### Step 2\nDone."}, None),
        ({"explanation": "The answer is:\n\n42"}, "42"),
        ({"explanation": "Die Antwort lautet 42."}, "42"),
        ({"explanation": "所以答案是42"}, "42"),
        ({"explanation": "2 + 3 = 5"}, None),
        ({"explanation": "It is \\boxed{5"}, None),
        ({"explanation": "It is \\boxed {5} or \\boxed 12, so."}, "12"),
        ({"explanation": "Write it in \\boxed form."}, None),
        ({"explanation": "So the answer should be 12. Done."}, "12"),
        ({"explanation": "The answer is 12. It should be positive. The answer must be whole."}, "12"),
        ({"explanation": "## **Final Answer**\n\n12 apples\nBye"}, "12 apples"),
        ({"explanation": "The answer is 12. That is my final answer.\nGreat"}, "12"),
        ({"explanation": "The answer is `12`!"}, "12"),
        ({"explanation": "The answer is <b>12</b>!"}, "12"),
        ({"explanation": "The answer is n!."}, "n!"),
        ({"explanation": "答案为：12"}, "12"),
        ({"explanation": "answer:"}, None),
        ({"explanation": ""}, None),
        ({"explanation": "The answer is " + "9" * 2000}, "9" * 1000),
    ],
)
def test_the_final_answer_of_a_trace(row: dict[str, str], stated: str | None) -> None:
    result = computed(SIGNAL, [{"question": "?", **row}]).row(0, named=True)
    assert (result["answer_verdict"], result["final_answer"]) == ("none", stated)


def test_questions_that_ask_for_a_program_are_counted_and_not_graded() -> None:
    code = {"question": f"{CODE_QUESTION} generated from the given prompt. Print n.", "explanation": "The answer is 5."}
    rows = [code | {"answer": "5"}, {"answer": "5", "explanation": "The answer is 5."}, code]
    table = computed(SIGNAL, [{"question": "?", **row} for row in rows])
    assert table["answer_verdict"].to_list() == ["code", "correct", "code"]
    assert table["final_answer"].to_list() == [None, "5", None]


def test_where_leaves_questions_that_ask_for_a_program_out(rlt: Rlt, tmp_path: Path) -> None:
    questions = f"{CODE_QUESTION} generated from the given prompt. Print n.", "What is 2 + 3?"
    rows = [{"question": text, "solution": "5", "explanation": "Two and three are 5."} for text in questions]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert "answer_verdict code: 1" in rlt("curate", file, "--out", "run", "--signals", "answer").stdout
    [warning] = [line for line in rlt("check", file).stdout.splitlines() if "asks for a program" in line]
    where = re.search(r'--where "(.*?)"', warning)
    assert where and warning.startswith("warning: 1 row: ")
    shown = rlt("show", "run", "--where", where[1]).stdout
    assert "What is 2 + 3?" in shown and "Print n." not in shown


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({"answer": "5", "question_solution": "The answer is 6."}, "correct"),
        ({"question_solution": "2 + 3 = 5\nThe answer is 5."}, "correct"),
        ({"question_solution": "5"}, "correct"),
        ({"question_solution": "Add two and three to get five."}, "none"),
        ({"question_solution": "So we get \\boxed{6}."}, "wrong"),
        ({}, "none"),
        # The own solution of a trace says nothing about the known answer.
        ({"question_solution": "", "trace_solution": "So \\boxed{5}."}, "none"),
        ({"question_solution": "", "trace_solution": "So \\boxed{6}.", "answer": "5"}, "wrong"),
    ],
)
def test_the_known_answer(row: dict[str, str], verdict: str) -> None:
    assert _verdicts({"explanation": "The answer is 5.", **row}) == [verdict]


#: Answer, known answer, and whether they are equal.
_PAIRS = [
    ("72", "72", True),
    ("$72$.", "72.0", True),
    ("1,234", "1234", True),
    ("1{,}234", "1234", True),
    ("\\$5", "5", True),
    ("\\frac{1}{2}", "0.5", True),
    ("\\dfrac12", "\\frac{1}{2}", True),
    ("\\left( 3, \\dfrac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})", True),
    ("x = 5", "5", True),
    ("72 clips", "72", True),
    ("2\\sqrt{2}", "\\sqrt{8}", True),
    ("\\text{Monday}", "monday", True),
    ("50\\%", "50", True),
    ("71", "72", False),
    ("3*4", "34", False),
    ("1 2", "12", False),
    ("-5", "5", False),
    ("(3, 4)", "(4, 3)", False),
    ("8n^2 + 4n + 1", "1", False),
    ("Monday", "Tuesday", False),
    ("x", "y", False),
    ("42 because 6 * 7 = 42", "42", True),
    ("72\\text{ cm}", "72", True),
    ("71 clips", "72", False),
    ("2 pi", "2", False),
    ("½", "0.5", True),
    ("2√3 − π", "2\\sqrt{3}-\\pi", True),
    ("(−∞, 0) ∪ (0, ∞)", "(-\\infty,0)\\cup(0,\\infty)", True),
    ("x² + 2x¹⁰", "x^2+2x^{10}", True),
    ("90°", "90^\\circ", True),
    ("\\frac\\pi2", "\\frac{\\pi}{2}", True),
    ("12 500", "12500", True),
    ("\\text{seven}", "7", True),
    ("eight", "7", False),
]


def test_answers_are_compared() -> None:
    pytest.importorskip("math_verify", reason="needs the extra eval")
    rows = [{"explanation": f"So \\boxed{{{stated}}}.", "answer": known} for stated, known, _ in _PAIRS]
    verdicts = [verdict == "correct" for verdict in _verdicts(*rows)]
    assert [pair for pair, verdict in zip(_PAIRS, verdicts, strict=True) if verdict != pair[2]] == []


_LINES = "Which is the largest?\nA) 21\nB) 22.5\nC) \\frac{1}{2}\nD) the last of them"
_LATEX = "Which? $\\textbf{(A)}\\ 21 \\qquad \\textbf{(B)}\\ 22.5 \\qquad \\textbf{(C)}\\ \\frac{1}{2}$"


@pytest.mark.parametrize("question", [_LINES, _LATEX])
@pytest.mark.parametrize(
    ("explanation", "known", "verdict"),
    [
        ("The answer is (B).", "B", "correct"),
        ("\\boxed{\\text{(C)}}", "C", "correct"),
        ("The answer is B) 22.5", "(B)", "correct"),
        ("So the answer is clearly option A", "A", "correct"),
        ("The answer is 22.5.", "B", "correct"),
        ("The answer is B.", "22.5", "correct"),
        ("The answer is 0.5.", "C", "correct"),
        ("The correct option is B.", "B", "correct"),
        ("The answer is choice (b).", "B", "correct"),
        ("The answer is A.", "B", "wrong"),
        ("The answer is 21.", "B", "wrong"),
        ("The answer is 99.", "B", "wrong"),
        ("We cannot know.", "B", "none"),
    ],
)
def test_choices(question: str, explanation: str, known: str, verdict: str) -> None:
    assert _verdict(explanation, known, question) == verdict


def test_a_letter_is_no_choice_where_the_question_lists_none() -> None:
    assert _verdict("The answer is A.", "A", "Which point do A. and C. share?") == "correct"
    assert _verdict("\\boxed{e}", "e", "Name the point.") == "correct"


@pytest.mark.parametrize(
    ("expression", "verdict"),
    [
        ("3 * 4 - 5", "correct"),
        ("3 \\times 4 - 5", "correct"),
        ("4 * 3 - 5 = 7", "correct"),
        ("3 + 4", "wrong"),
        ("7", "wrong"),
        ("3 * 4 - 6", "wrong"),
    ],
)
def test_countdown(expression: str, verdict: str) -> None:
    meta = json.dumps({"numbers": [3, 4, 5], "target": 7})
    ours = question_text((3, 4, 5), 7)
    row = {"explanation": f"The answer is {expression}.", "question_solution": "5 - 4 * 3"}
    assert _verdicts({**row, "question_meta": meta}, {**row, "question": ours}) == [verdict] * 2
    other = {"question_meta": '{"numbers": ["3"], "target": 7}', "answer": "7", "explanation": "\\boxed{7}"}
    assert _verdicts(other) == ["correct"]


def test_generated_traces_are_graded_exactly() -> None:
    pytest.importorskip("math_verify", reason="needs the extra eval")
    rows = list(made(300, seed=1))
    right = [{"question": row.question, "answer": row.answer, "explanation": row.explanation} for row in rows]
    wrong = [{**trace, "answer": "1234567"} for trace in right]
    assert set(_verdicts(*right)) == {"correct"} and set(_verdicts(*wrong)) == {"wrong"}
    order = random.Random(2).sample(range(len(right)), len(right))
    mixed = [right[number] if number % 3 else wrong[number] for number in order]
    assert _verdicts(*mixed, parts=5) == ["correct" if number % 3 else "wrong" for number in order]


def test_a_failing_grader_costs_one_row(math_verify: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    math_verify.write_text(_FAILING)
    monkeypatch.setattr(answer, "TIMEOUT", 3.0)
    texts = ["a 5", "hang", "b 5", "raise", "c 5", "memory", "d 6", "die", "e 5", "hang"]
    rows = [{"explanation": f"So \\boxed{{{text}}}.", "answer": "z 5"} for text in texts]
    verdicts = [
        "correct",
        "timeout",
        "correct",
        "timeout",
        "correct",
        "timeout",
        "wrong",
        "timeout",
        "correct",
        "timeout",
    ]
    assert _verdicts(*rows, parts=2) == verdicts


def test_each_pair_is_graded_once_per_part(math_verify: Path, tmp_path: Path) -> None:
    log = f"open({str(tmp_path / 'log')!r}, 'a').write(text + chr(10))"
    math_verify.write_text(
        f"def parse(text, **options):\n    {log}\n    return [text]\ndef verify(*pair, **options): return True\n"
    )
    rows = [{"explanation": f"\\boxed{{pair {number % 2}}}", "answer": "q 5"} for number in range(50)]
    assert set(_verdicts(*rows)) == {"correct"}
    assert [(tmp_path / "log").read_text().count(f"$pair {number}$") for number in range(2)] == [1, 1]


def test_a_missing_math_verify_is_one_clear_error_only_where_it_is_needed(math_verify: Path) -> None:
    math_verify.write_text("raise ModuleNotFoundError(\"No module named 'math_verify'\")")
    exact = {"explanation": "The answer is 5.", "answer": "5.0"}
    assert _verdicts(exact, {**exact, "answer": "6"}) == ["correct", "wrong"]
    with pytest.raises(ModelError, match=r"rlt-data\[eval\]") as raised:
        _verdicts({**exact, "answer": "\\sqrt{25}"})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "", "a" * 300_000, "answer is " * 30_000, "\\boxed{" * 40_000, "#### " * 60_000, "answer:\n" * 30_000,
        "{" * 300_000, "A) " * 100_000,
        "答案是" * 30_000, "A. " * 100_000, "x\u0301\u200d\ufdd0\U0010ffff" * 60_000,
    ],
)  # fmt: skip
def test_odd_texts_are_graded(text: str) -> None:
    row = {"question": text, "question_solution": text, "answer": "7", "explanation": text, "question_meta": None}
    assert computed(SIGNAL, [row])["answer_verdict"].to_list()[0] in ("none", "wrong")
