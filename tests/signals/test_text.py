"""Signal ``text``: loops are found and ordinary texts are not; scripts, languages, LaTeX and control tokens."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest

from rlt_data.signals.text import SIGNAL
from tests.signals.made_texts import computed, made

_SENTENCES = (
    "Wait, I should check the second case again.",
    "So the total is 4 * 12 = 48, which is what we wanted.",
    "Therefore \\( x^2 + 1 = 0 \\) has no real root, so we try again.",
    "Hmm, that is not right. Let me think about the remainder once more.",
)
_PASSAGE = (
    "First we add the numbers in the left column, which gives a value that we call s. Then we add those in the right "
    "column and compare. If they agree we are done; otherwise we move one entry to the other side and begin again. "
)


def _column(name: str, *texts: str, question: str = "What is the sum?", **settings: Any) -> list[Any]:
    rows = [{"question": question, "explanation": text} for text in texts]
    return computed(SIGNAL, rows, **settings)[name].to_list()


def test_loops_are_found_after_long_good_texts_and_clean_texts_are_not_flagged() -> None:
    draw = random.Random(16)
    clean = [row.explanation for row in made(600, seed=1)]
    long = ["\n".join(draw.sample(clean, 25)) for _ in range(40)]
    loops = [
        *(sentence + " " for sentence in _SENTENCES),
        "wait ", "no, no, ", "7 ", "1, 2, ", "0.5 + ", "\\frac{1}{2} + ", "ha", 
        "答案是四十八。", "等等，", "😀", "\n\n### So\n", _PASSAGE,
    ]  # fmt: skip
    planted = []
    for _ in range(300):
        loop = draw.choice(loops)
        repeated = loop * max(-(-draw.randint(250, 2000) // len(loop)), 4)
        before = draw.choice([draw.choice(long), draw.choice(clean), ""])
        planted.append(before + " " + repeated[: len(repeated) - draw.randrange(len(loop))])

    assert not any(_column("repeats", *clean, *long))
    missed = [text[-80:] for text, found in zip(planted, _column("repeats", *planted), strict=True) if not found]
    assert not missed


@pytest.mark.parametrize(
    "text",
    [
        "| a | b |\n|---|---|\n" + "".join(f"| {n} | {n * n} |\n" for n in range(40)),
        "\n".join(f"Step {n}. We add {n} to the sum and get {n * (n + 1) // 2}." for n in range(30)),
        "The powers are " + ", ".join(f"2^{{{n}}} = {2**n}" for n in range(25)) + ".",
        "2^{10} = 2 \\cdot 2 \\cdot 2 \\cdot 2 \\cdot 2 \\cdot 2 \\cdot 2 \\cdot 2 \\cdot 2 \\cdot 2 = 1024",
        "1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 = 10, so ten ones make ten.",
        "1/3 = 0.3333333333333333333333333333333333 and so on.",
        "Case 1\n" + "-" * 100 + "\nThe sum is odd.\nCase 2\n" + "=" * 100 + "\nThe sum is even.",
        "\\begin{pmatrix} 0 & 0 & 0 \\\\ 0 & 0 & 0 \\\\ 0 & 0 & 0 \\end{pmatrix} is the zero matrix.",
        "x^2+2x+1 = (x+1)^2. Again x^2+2x+1 = (x+1)^2 because x^2+2x+1 = (x+1)^2 expands to x^2+2x+1.",
        "for i in range(3):\n    for j in range(3):\n        print(i, j)\n" * 2 + "This prints nine pairs, twice.",
    ],
)
def test_tables_lists_formulas_and_code_are_no_loops(text: str) -> None:
    assert _column("repeats", text) == [False]


def test_repetition_is_the_share_of_loops_in_a_stretch() -> None:
    loop, clean = "again and again and ", " ".join(row.explanation for row in made(40, seed=2))
    lone, after, alone = _column("repetition", clean, f"{clean} {loop * 8}", loop * 100)
    assert (lone, alone) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.01))
    assert after == pytest.approx(len(loop) * 8 / 500, abs=0.02)
    assert _column("repeats", f"{clean} {loop * 8}", max_repetition=0.5) == [False]


def test_lengths_and_compression() -> None:
    row = computed(SIGNAL, [{"question": "?", "explanation": "Straightforwardness costs 2 é, 三十."}]).row(
        0, named=True
    )
    assert (row["characters"], row["words"]) == (34, 6)
    usual, repetitive = _column("compression_ratio", next(made(1, seed=3)).explanation, "abc" * 300)
    assert usual < 3 < 20 < repetitive


@pytest.mark.parametrize(
    ("question", "text", "share"),
    [
        ("How many?", "We add them.", 0),
        ("How many?", "We add 三 x", 1 / 7),
        ("How many?", "Мы", 1),
        ("How many?", "The angle α is \\frac{π}{2}, ∠ABC", 0),
        ("How many?", "12 + 30 = 42", None),
        ("How many?", "", None),
        ("Сколько? Пусть x", "Мы складываем x", 1 / 13),
        ("有多少个苹果？", "答案是 \\frac{1}{2}", 0),
        ("12 + 30 = ?", "答案 we", 0),
        ("Quantas são?", "São três, porque ção", 0),
    ],
)
def test_the_share_of_other_scripts(question: str, text: str, share: float | None) -> None:
    (measured,) = _column("other_scripts", text, question=question)
    assert measured == (share if share is None else pytest.approx(share))


def test_mixed_languages_are_measured_by_function_words() -> None:
    english = "We see that the sum of these numbers is even because they are all even, and we have three of them."
    german = "Wir sehen, dass die Summe nicht ungerade ist, weil sich eine gerade Zahl ergibt."
    question = "What is the sum of these numbers, and is it even?"
    none, half, other = _column("other_languages", english, f"{english} {german}", german, question=question)
    assert none == 0 and 0.3 < half < 0.5 and other == 1
    assert _column("other_languages", german, question="Wie groß ist die Summe, wenn wir nicht mit 3 beginnen?") == [0]
    assert _column("other_languages", german, "x = 2", question="2 + x") == [0, None]
    clean = [row.explanation for row in made(300, seed=4)]
    assert max(share or 0 for share in _column("other_languages", *clean, question=question)) < 0.1


@pytest.mark.parametrize(
    ("text", "balanced"),
    [
        ("No LaTeX at all", True),
        ("$x$ and \\(y\\) and \\[z\\] and \\{1, 2\\} and \\left( \\frac{1}{2} \\right]", True),
        ("\\begin{align} a &= b \\\\[2pt] c &= d \\end{align}", True),
        ("\\left\\{ x \\right. with \\leftarrow", True),
        ("It costs $5 and 3 \\% more, or 7$ in all", True),
        ("\\frac{1}{2", False),
        ("so $x = y", False),
        ("\\(x and", False),
        ("\\[ x", False),
        ("\\begin{align} a", False),
        ("\\left( x", False),
        ("a } b", False),
    ],
)
def test_latex_balance(text: str, balanced: bool) -> None:
    assert _column("latex_balanced", text) == [balanced]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("So 5.<|im_end|> More", "<|im_end|>"),
        ("We get 4.</think> The answer", "</think>"),
        ("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("[INST] Hello", "[INST]"),
        ("done</s>", "</s>"),
        ("done<turn|> <|turn>user", "<turn|>"),
        ("done<|channel>thought", "<|channel>"),
        ("[THINK]So[/THINK]", "[THINK]"),
        ("done [TOOL_CALLS]", "[TOOL_CALLS]"),
        ("</seed:think>", "</seed:think>"),
        ("|a|<|x|>b and [Think]", None),
        ("a < b | c > d, and <b>bold</b> |x| <|> and |> x", None),
        ("if x<s>y and [1, INST]", "<s>"),
    ],
)
def test_control_tokens(text: str, found: str | None) -> None:
    assert _column("control_string", text) == [found]


def test_rows_do_not_depend_on_each_other() -> None:
    rows = [{"question": row.question, "explanation": row.explanation} for row in made(60, seed=5)]
    rows += [{"question": "?", "explanation": text} for text in ("", "wait " * 60, "a" * 5_000_000, "Да " * 9)]
    whole = computed(SIGNAL, rows)
    order = random.Random(6).sample(range(len(rows)), len(rows))
    shuffled = computed(SIGNAL, [rows[number] for number in order], parts=7)
    assert shuffled.drop("trace_id").equals(whole.drop("trace_id")[order])


@pytest.mark.parametrize(
    "text",
    [
        None, "", " ", "a" * 400_000, "a " * 200_000, "😀" * 100_000, "$" * 400_000, "\\frac{" * 70_000, "\n" * 400_000,
        "中" * 130_000,
        "x\u0301\u200d\ufdd0\U0010ffff" * 60_000, "".join(random.Random(7).choices(string.printable, k=400_000)),
        " ".join(f"{'b ' * (n % 300)}" for n in range(2000)), "<|" * 200_000,
    ],
)  # fmt: skip
def test_odd_texts_are_measured(text: str | None) -> None:
    row = computed(SIGNAL, [{"question": text, "explanation": text}]).row(0, named=True)
    assert row["characters"] == len(text or "") and 0 <= row["repetition"] <= 1
