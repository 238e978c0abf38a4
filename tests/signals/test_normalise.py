from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rlt_data.signals.normalise import DECISIVE, FORMULA, tokens, words


def words_of(text: str) -> list[str]:
    return list(words(pl.Series([text]))[0])


def same(one: str, other: str) -> bool:
    first, second = tokens(pl.Series([one, other])).split()
    return np.array_equal(first, second)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"$\dfrac{1}{2}$ and $\tfrac{3}{4}$", "1/2 and 3/4"),
        (r"\frac12 + \frac{a+b}{c}", r"\(\frac{1}{2}+(a+b)/c\)"),
        (r"$\left( x^{2} - 3 \cdot y \right)$", "(x²−3×y)"),
        (r"$x^{10}\,+\;y_{1}$", "x^10 + y_1"),
        (r"$$x \le 5 \quad\text{ and }\quad y \geqslant 6$$", "x ≤ 5 and y >= 6"),
        (r"an angle of $60^{\circ}$", "An angle of 60°"),
        (r"$\pi r^2, \theta \neq \infty$", "π r^2, θ ≠ ∞"),
        (r"$\sqrt{2}+\sqrt3$", "√2 + √3"),
        (r"\begin{align*} x &= 1{,}000 \\ y &= 20\,000 \end{align*}", "x = 1000\ny = 20,000"),
        (r"$912,\!673$ people", "912673 people"),
        ("$1 + 2 + \\cdots + 9$", "1+2+...+9"),
        (r"\mathrm{cm} and \operatorname{lcm}(4, 6)", "cm and lcm(4,6)"),
        ("Janet’s  DUCKS, lay\n\n16 eggs!", "janet's ducks lay 16 eggs"),
        ("a 9-kilometre-long walk — the **first**", r"a $9$ kilometre long walk: \textbf{the} first"),
        (r"$\binom{8}{4}$ modulo $n \pmod{7}$", r"$\dbinom84$ modulo $n \bmod 7$".replace("84", "{8}{4}")),
        (r"$\log_{2}64$", r"$\log_264$"),
        ("ｆｕｌｌ width １２", "full width 12"),
        (r"$58_9 - x_{1}^{-2} + 2^n$ and $2\frac{1}{2}$", "58₉ - x₁⁻² + 2ⁿ and 2½"),
        (r"$\log_{2}64$", r"$\operatorname{log}_264$"),
        (r"$1 + |z - 1| - \lceil 3.6 \rceil$", r"$1+\lvert z-1\rvert-⌈3.6⌉$"),
        (r"$0^{+}$ and $n \equiv 3$, $AB \perp CD$, $\prod f$", "0^+ and n ≡ 3, AB ⊥ CD, ∏ f"),
        (r"$x = 5$, 30\% of $a^2$", "<question><math>x = 5</math>,<br>30% of a<sup>2</sup></question>"),
        (r"$\frac{x}{7} + \frac{1}{n}$ and $20^\circ$", r"$\frac x7 + \frac1n$ and 20^∘"),
        (
            r"$x = 5$ \quad in $\begin{array}{c} y \end{array}$",
            r"$x = {\color{red} 5}$\hspace{2mm} in \begin{matrix}y\end{matrix}",
        ),
        ("$5x^2 + 3^{12}$ **and** the rest", "5x**2 + 3**{12} and the rest"),
        ("> A bee has\n> 6 legs.\n>\n> How many have 2?", "A bee has 6 legs. How many have 2?"),
        ("x\n> 5 and Janet\u2060’s", "x > 5 and Janet´s"),
        (r"1\,234\,567 or 1,000,000,000 or 12{,}345{,}678", "1234567 or 1000000000 or 12345678"),
        (r"\frac123 of x^{-1} and y^{n+1}", "1/2 3 of x⁻¹ and yⁿ⁺¹"),
        ("2½ cups", "2 1/2 cups"),
        ("don´t and don’t", "don't and don't"),
        (r"$f'(x) + g''(x)$ for $f: A \to B$", r"f^{\prime}(x) + g^{\prime\prime}(x) for f: A -> B"),
        (r"\[60^{\circ}, f \circ g\]", "60^∘, f ∘ g"),
        ("٣٠ كتابا و ۱۲", "30 كتابا و 12"),
    ],
)
def test_spellings_of_the_same_text_have_the_same_tokens(one: str, other: str) -> None:
    assert words_of(one) == words_of(other)
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x + 1", "x - 1"),
        ("f(-3)", "f(3)"),
        ("2^3", "2 * 3"),
        ("the set {100, 200}", "the set {100200}"),
        (r"\left", r"\le ft"),
        ("1.5", "15"),
        (".5", "5"),
        ("find f'(2)", "find f(2)"),
    ],
)
def test_other_texts_have_other_tokens(one: str, other: str) -> None:
    assert not same(one, other)


def test_number_words_and_spellings_of_numbers_are_numbers() -> None:
    assert same("zero, two, Seventeen and ninety", "0 2 17 and 90")
    assert same("x = 5 and .5", "x 5 and 0.5")


def test_scripts_without_spaces_have_a_token_per_character() -> None:
    assert words_of("数学 3 个") == ["数", "学", "3", "个"]
    assert words_of("한국어 문제") == ["한국어", "문제"]


def test_digits_of_all_scripts_are_numbers() -> None:
    for zero in "0０٠۰०০੦૦୦௦౦೦൦๐໐༠၀០":
        [code] = tokens(pl.Series([chr(ord(zero) + 4) + chr(ord(zero) + 2)])).codes
        assert code == tokens(pl.Series(["42"])).codes[0] and int(code) & DECISIVE
    assert int(tokens(pl.Series(["三"])).codes[0]) & DECISIVE


def test_a_series_is_not_changed() -> None:
    texts = pl.Series(["１ ½", "a"])
    assert words(texts).to_list() == [["1", "1", "2"], ["a"]]
    assert texts.to_list() == ["１ ½", "a"]


def test_lists_of_three_digit_numbers_are_not_joined() -> None:
    assert words_of("(100,200,300)") == ["100", "200", "300"]
    assert words_of("$1,234,567 or 12,345") == ["1234567", "or", "12345"]


def test_flags_mark_what_decides_and_what_belongs_to_formulas() -> None:
    text = "take half of 3 apples and x -5 odd"
    codes = tokens(pl.Series([text])).codes
    flagged = {
        flag: [word for word, code in zip(text.split(), codes, strict=True) if int(code) & flag] for flag in (1, 2)
    }
    assert flagged == {DECISIVE: ["half", "3", "-5", "odd"], FORMULA: ["x", "-5"]}


def test_offsets_separate_texts_and_null_has_no_tokens() -> None:
    found = tokens(pl.Series(["a b", None, "", "b c"]))
    assert found.offsets.tolist() == [0, 2, 2, 2, 4]
    assert found.codes[1] == found.codes[2]
    taken = found.take(np.array([3, 0]))
    assert taken.offsets.tolist() == [0, 2, 4]
    assert taken.codes.tolist() == [*found.codes[2:], *found.codes[:2]]
