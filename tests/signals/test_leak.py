"""Signal ``leak``: copies of the solution and mentions of it are found; honest explanations are not flagged."""

from __future__ import annotations

import random
from typing import Any

import polars as pl
import pytest

from rlt_data.signals.leak import SIGNAL
from tests.signals.made_texts import computed, made

#: Sentences that give away that the writer was given the solution.
_LEAKS = {
    "en": (
        "According to the solution provided, Mara keeps 40 pears.",
        "As the given answer says, it is 12.",
        "The provided solution starts by adding both numbers.",
        "This matches the reference answer.",
        "From the given solution, we know that x = 2.",
        "Since we already know the answer is 7, we only need to explain it.",
        "I was given the solution, so let me explain it.",
        "The solution you gave me the answer to is short. You gave me the correct solution.",
        "According to the answer key it is 5.",
        "The solution above says that both are even.",
        "the  SOLUTION\nthat I was given uses a table.",
        "Looking at the provided solution, we first factor.",
        "The answer given to us is 15, so we work backwards.",
        "Let me look at the answer key first.",
        "Hm, the given answer is 30, but I get 25.",
        "As stated in the solution, both are even.",
        "The detailed solution provided above explains it.",
        "In the solution, they divide by two.",
    ),
    "de": (
        "Laut der angegebenen Lösung sind es 40 Birnen.",
        "Die vorgegebene Lösung beginnt mit einer Tabelle.",
        "Wie die Musterlösung zeigt, ist x gleich 2.",
        "Das stimmt mit der gegebenen Antwort überein.",
        "Da wir die Antwort schon kennen, erklären wir nur den Weg.",
        "In der Musterlösung steht eine Tabelle.",
    ),
    "fr": (
        "Selon la solution fournie, il reste 40 poires.",
        "Comme l'indique la solution, x vaut 2.",
        "Cela correspond à la réponse donnée.",
        "D’après la solution, on additionne d'abord.",
        "Nous connaissons déjà la réponse.",
        "Le corrigé commence par une somme.",
    ),
    "es": (
        "Según la solución dada, quedan 40 peras.",
        "La respuesta proporcionada dice que son 12.",
        "Como ya sabemos la respuesta, solo falta explicarla.",
        "Esto coincide con la solución proporcionada.",
        "Como muestra la solución, x es 2.",
        "En la solución dada se suma primero.",
    ),
    "it": ("Secondo la soluzione fornita restano 40 pere.", "Conosciamo la risposta che ci è stata data."),
    "pt": ("Segundo a solução fornecida, restam 40 peras.", "Como mostra a solução, x vale 2."),
    "zh": (
        "根据给出的答案，剩下40个梨。",
        "我们先相加，这与参考答案一致。",
        "标准答案说明x等于2。",
        "因为我们已经知道答案，所以只需解释。",
        "正如所给的解答所示，答案是七。",
        "题目给的答案是七，我们来凑。",
        "按照提供的解法，先相加。",
    ),
    "ja": ("与えられた解答によると、梨は40個です。", "模範解答ではまず足します。", "これは示された答えと一致します。"),
    "ru": (
        "Согласно приведённому решению, осталось 40 груш.",
        "В эталонном решении сначала складывают.",
        "Это совпадает с данным ответом.",
    ),
}

#: Sentences about solutions and answers that any solver may write.
_HONEST = (
    "The solution is x = 2.",
    "The only solutions are 3 and 5, and the answer is given by their sum.",
    "Substitute the value into the given equation.",
    "The answer is 12, which is our final answer.",
    "Let me check the solution: 2 + 2 = 4. The solution works.",
    "The given answer choices are A to D.",
    "The general solution given by integration is y = Ce^x.",
    "A salt solution of 20 % is mixed with a given solution of 40 %.",
    "The given solution contains 30 grams of acid.",
    "We are given that the solution set is finite.",
    "Following the steps of the solution method for quadratics, we complete the square.",
    "From the solution of the first equation we get y.",
    "We were given the equation, not its solutions.",
    "I already know that 7 is prime, so the answer must be odd.",
    "This solution provides both roots. The solution provided both roots before, too.",
    "Die Lösung ist x = 2, und die Antwort lautet 5. Nach der Lösung der Gleichung setzen wir ein.",
    "La solution est x = 2 et la réponse est donnée par la somme. La solution de l'équation est unique.",
    "La solución es x = 2. La respuesta está dada por la suma.",
    "La soluzione è x = 2. A solução é x = 2.",
    "所以答案是二。方程的解是x等于2。根据题目给出的条件，我们知道答案。题目给出的答案选项有四个。",
    "方程式の解は2です。与えられた式から答えは整数です。",
    "Решение уравнения единственное, поэтому данное решение подходит. По данному условию ответ целый.",
    "As mentioned, the solution is acid. The expected answer is an integer.",
)


def _signal(*pairs: tuple[str, str], **settings: Any) -> pl.DataFrame:
    return computed(
        SIGNAL, [{"question_solution": solution, "explanation": text} for solution, text in pairs], **settings
    )


@pytest.mark.parametrize("language", _LEAKS)
def test_mentions_of_a_given_solution_are_found(language: str) -> None:
    rows = _signal(*(("5", f"We think about it. {sentence} Then we are done.") for sentence in _LEAKS[language]))
    missed = [text for text, phrase in zip(_LEAKS[language], rows["leak_phrase"], strict=True) if phrase is None]
    assert not missed and rows["leaks"].all()


def test_ordinary_sentences_about_solutions_are_no_leaks() -> None:
    rows = _signal(*(("5", sentence) for sentence in _HONEST))
    assert rows["leak_phrase"].drop_nulls().to_list() == []
    assert not rows["leaks"].any()


def test_the_phrase_is_reported_on_word_boundaries() -> None:
    rows = _signal(("5", "As  the GIVEN\nsolution says, 5."), ("5", "whereas the given solutionist says 5"))
    assert rows["leak_phrase"].to_list() == ["as the given solution says", None]


def test_honest_explanations_of_generated_questions_are_no_leaks() -> None:
    rows = list(made(600, seed=1))
    flagged = _signal(*((row.solution, row.explanation) for row in rows)).filter("leaks")
    assert not len(flagged)
    endings = [row.solution.replace("\n", ". ").rsplit(". ", 1)[-1] for row in rows]
    same_end = _signal(*((row.solution, f"{row.explanation}\n{end}") for row, end in zip(rows, endings, strict=True)))
    assert same_end["leaks"].sum() <= len(rows) * 0.005


def test_copied_solutions_are_found() -> None:
    draw = random.Random(2)
    rows = [row for row in made(1200, seed=3) if row.solution.count(" ") > 25]
    others = [row.explanation for row in made(len(rows), seed=4)]
    planted = []
    for row, other in zip(rows, others, strict=True):
        copy = draw.choice(
            [row.solution, row.solution.upper(), row.solution.replace(" ", "\n  "), row.solution.replace("$", "")]
        )
        planted.append(
            (row.solution, draw.choice([copy, f"Let me explain. {copy}", f"{copy} Done!", copy + "\n" + copy]))
        )
        if row.solution.count("\n") > 1:
            planted.append((row.solution, f"{other}\n{copy}\n{other}\n{other}\n{other}"))
    assert len(planted) > 300
    found = _signal(*planted)
    assert found["leaks"].all()
    assert not _signal(*((row.solution, other) for row, other in zip(rows, others, strict=True)))["leaks"].any()


@pytest.mark.parametrize(
    ("solution", "explanation"),
    [
        ("5", "We add two and three, which makes 5. The answer is 5."),
        (
            "She sold 48 / 2 = 24 clips in May and 72 in all.",
            "Half of 48 is 24. So she sold 48 / 2 = 24 clips in May and 72 in all.",
        ),
        ("", "Anything"),
        ("Anything", ""),
        ("A b c d e f g h i j k l m n o p.", ""),
    ],
)
def test_short_solutions_are_not_copied(solution: str, explanation: str) -> None:
    (row,) = _signal((solution, explanation)).rows(named=True)
    assert row == {"trace_id": "0", "leaks": False, "leak_share": pytest.approx(row["leak_share"]), "leak_phrase": None}
    assert row["leak_share"] <= 0.5


@pytest.mark.parametrize(
    "copy",
    [
        "(a + 1)/2 ≤ α · β holds for all a ≥ 2, and x² − sin y = 3/4 gives √2 once we add 2,500 to both of the sides.",
        r"$\dfrac{a + 1}{2} \leq \alpha \times \beta$ holds for all $a \ge 2,$ and $x^{2} - \operatorname{sin} y = "
        r"\tfrac34$ gives $\sqrt 2$ once we add $2{,}500$ to both of the sides.",
    ],
)
def test_changed_latex_does_not_hide_a_copy(copy: str) -> None:
    solution = (
        r"$\frac{a+1}{2} \le \alpha \cdot \beta$ holds for all $a \geq 2$, and $x^2 - \sin y = \frac{3}{4}$ gives "
        r"$\sqrt{2}$ once we add $2,500$ to both of the sides. The end is near."
    )
    (share,) = _signal((solution, f"Let me think about it. {copy}"))["leak_share"]
    assert share > 0.8


def test_the_share_counts_copied_words() -> None:
    words = [f"w{number}" for number in range(100)]
    copied, own = " ".join(words[:40]), " ".join(f"own{number}" for number in range(360))
    solution = " ".join(words) + ". The end."
    (share,) = _signal((solution, f"{own} {copied}"))["leak_share"]
    assert share == pytest.approx(0.4)  # 40 of the 100 words before the last sentence; 40 of 400 in the explanation
    (share,) = _signal((solution, f"{copied} {' '.join(own.split()[:10])}"))["leak_share"]
    assert share == pytest.approx(0.8)
    assert _signal((solution, f"{own} {copied}"), max_leak=0.3)["leaks"].to_list() == [True]


def test_rows_do_not_depend_on_each_other() -> None:
    pairs = [(row.solution, row.explanation) for row in made(40, seed=5)]
    pairs += [(solution, solution) for solution, _ in pairs[:10]]
    pairs += [(pairs[number][0], pairs[number + 1][0]) for number in range(10)]  # a solution of another question
    order = random.Random(6).sample(range(len(pairs)), len(pairs))
    shuffled = _signal(*(pairs[number] for number in order), parts=6)
    assert shuffled.drop("trace_id").equals(_signal(*pairs).drop("trace_id")[order])


@pytest.mark.parametrize(
    "text",
    [
        None, "", " ", "a" * 400_000, "a " * 200_000, "😀" * 100_000, "the given solution " * 20_000,
        "the\n" * 100_000 + "x",
        "the given " + " " * 400_000, "根据" * 100_000, "x\u0301\u200d\ufdd0\U0010ffff" * 60_000, "a. " * 100_000,
    ],
)  # fmt: skip
def test_odd_texts_are_measured(text: str | None) -> None:
    row = computed(SIGNAL, [{"question_solution": text, "explanation": text}]).row(0, named=True)
    assert 0 <= row["leak_share"] <= 1
