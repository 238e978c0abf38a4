"""Compare answers exactly, without computer algebra: equal texts, numbers and choices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

#: A text without an announced answer is an answer up to this length, in characters.
_LONGEST_BARE = 100
_THREE_WORDS = re.compile(r"[^\W\d_]{2,}(?:,? [^\W\d_]{2,}){2}")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|mathit)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;: ()\[\]]|\$|\\(?=[%$#])")
_SPACES = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:[,\s]\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"([-+]?)(?:(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?|\\frac\{(\d+)\}\{(\d+)\})")
_LONGEST_NUMBER = 50
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_SYMBOLS = str.maketrans(
    {"∞": r"\infty ", "π": r"\pi ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "≤": r"\le "}
    | {"≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "×": r"\times ", "·": r"\cdot ", "÷": "/", "°": r"^\circ ", "−": "-"}
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")
_FRACTIONS = {symbol: rf"\frac{{{a}}}{{{b}}}" for symbol, a, b in ("½12", "⅓13", "⅔23", "¼14", "¾34")}
_UNIT = re.compile(r"(?<=\d) (?!pi\b)[^\W\d_]{2,}(?: [^\W\d_]+)*$")
#: Numbers that differ by less than this, relatively, may be roundings of each other.
_ROUNDING = Fraction(1, 1000)
_FRAC = re.compile(r"\\frac\s*(\\[A-Za-z]+|\d)\s*(\\[A-Za-z]+|\d)")
_LABEL = re.compile(r"(?:^|(?<=[\s({]))\(?([A-J])\s*[).:]\)?")
_CHOICE = re.compile(r"(?:(?:option|choice) ?)?(?:\(?([A-J])(?:[).:]|$)|\(([a-j])\))")
_GOLD_LETTER = re.compile(r"\(?([A-Ja-j])(?:[).:]+(?:\s.*)?)?", re.DOTALL)
#: The letter of a choice.
LETTER = re.compile(r"(?<![A-Za-z])\(?([A-J])\)?(?![A-Za-z])")


def bare_answer(text: str) -> str | None:
    """Return a text that is an answer itself: one short line without three words in sequence; None for any other."""
    text = text.strip()
    if not text or len(text) > _LONGEST_BARE or "\n" in text or _THREE_WORDS.search(text):
        return None
    return text.removesuffix(".")


def compared(answer: str, known: str) -> bool | None:
    """Return whether an answer equals the known one; None if that takes algebra.

    Two texts are equal if they differ only in LaTeX that does not change the meaning, spaces and, for words, case. A
    number may be followed by a unit in words. Two plain numbers are different if neither can be a rounding of the
    other.
    """
    answer, known = normal(answer), normal(known)
    if answer == known or (answer.isalpha() and len(answer) > 1 and answer.casefold() == known.casefold()):
        return True
    number, known_number = _number(answer), _number(known)
    if known_number is None:
        return None
    if number is None:
        return True if _number(_UNIT.sub("", answer)) == known_number else None
    if number == known_number:
        return True
    return False if abs(number - known_number) > _ROUNDING * max(abs(known_number), Fraction(1)) else None


def normal(answer: str) -> str:
    """Return an answer without LaTeX that does not change its meaning, and without spaces between symbols."""
    answer = latex(answer).replace("{,}", ",")
    answer = _NOISE.sub("", _WRAPPED.sub(r" \1", answer))
    answer = _SPACES.sub("", answer.strip(" \n*")).removesuffix(".")
    return re.sub(r"[,\s]", "", answer) if _THOUSANDS.fullmatch(answer) else answer


def latex(text: str) -> str:
    """Return a text with the LaTeX of its Unicode symbols, and with one spelling of fractions."""
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    if not text.isascii():
        for symbol, fraction in _FRACTIONS.items():
            text = text.replace(symbol, fraction)
        text = re.sub("[⁰¹²³⁴-⁹⁻ⁿ]+", lambda power: f"^{{{power[0].translate(_SUPERSCRIPTS)}}}", text)
        text = re.sub(r"√\s*(?:(\d+|\w)|\(([^()]*)\))", r"\\sqrt{\1\2}", text).translate(_SYMBOLS)
    return _FRAC.sub(r"\\frac{\1}{\2}", text)


def _number(text: str) -> Fraction | None:
    if text.casefold() in _NUMBER_WORDS:
        return Fraction(_NUMBER_WORDS.index(text.casefold()))
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if not match:
        return None
    sign, number, divisor, numerator, denominator = match.groups()
    below = int(divisor or denominator or 1)
    return Fraction(number or numerator) / below * (-1 if sign == "-" else 1) if below else None


def options(question: str) -> dict[str, str]:
    """Return the options that a question lists, such as ``A) 21``, by letter; empty if it lists fewer than two.

    The letters must follow each other from A.
    """
    labels: list[re.Match[str]] = []
    for label in _LABEL.finditer(question):
        if label[1] == "ABCDEFGHIJ"[len(labels) : len(labels) + 1]:
            labels.append(label)
    if len(labels) < 2:
        return {}
    ends = [*(label.start() for label in labels[1:]), len(question)]
    return {label[1]: _option(question[label.end() : end]) for label, end in zip(labels, ends, strict=True)}


def _option(text: str) -> str:
    """Return the first line of an option without the LaTeX around it."""
    line = (text.strip(" \t}{").splitlines() or [""])[0]
    return (
        normal(re.sub(r"\\q?quad|\\textbf\s*\{?\(?$|\\\\$|\\text\s*\{?\(?$", "", line))
        .strip("~ ")
        .lstrip("})")
        .rstrip("{(")
        .casefold()
    )


def gold_letter(gold: str) -> str | None:
    """Return the letter of the right choice, given as ``B``, ``(b)``, ``B.`` or ``B) text``; None if there is none."""
    match = _GOLD_LETTER.fullmatch(gold.strip())
    return match[1].upper() if match else None


def chosen(answer: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an answer names; None if it names none.

    Args:
        answer: the answer: a letter, the text of an option, both, or a sentence with the letter.
        listed: the options, from :func:`options`.
    """
    if letter := is_choice(answer, listed):
        return letter
    letters = [letter for letter in LETTER.findall(normal(answer)) if letter in listed]
    return letters[-1] if letters else None


def is_choice(answer: str, listed: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an answer consists of, by its letter or its text; None for other answers."""
    text = normal(answer)
    same = [letter for letter, option in listed.items() if option and option == text.casefold()]
    if len(same) == 1:
        return same[0]
    start = _CHOICE.match(text)
    letter = start and (start[1] or start[2]).upper()
    return letter if letter in listed else None
