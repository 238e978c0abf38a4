"""Word problems and formulas that rules make from lists of words, and rules that change them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

PEOPLE = "Abena Bruno Celia Dawit Elena Farid Greta Hugo Irina Jonas Kamala Lucia Marek Nadia Otis Priya".split()
PLACES = "market bakery harbour library orchard workshop stadium museum nursery station".split()
THINGS = "lemons candles ropes notebooks tiles kettles ribbons lanterns violins spoons buckets kites".split()
ACTIONS = "sells paints repairs collects borrows wraps carries stacks counts polishes".split()
SPANS = "morning evening weekend month season afternoon".split()
STARTS = (
    "Every {span}, {one} {action} {a} {thing} at the {place}.",
    "{one} works at the {place} and {action} {a} {thing} each {span}.",
    "The {place} pays {one} {a} dollars because {one} {action} the {thing}.",
)
MIDDLES = (
    "After lunch, {two} takes {b} of them to the {other} and returns with {c} {thing2}.",
    "{two}, who lives near the {other}, brings {b} boxes with {c} {thing2} in each box.",
    "Then {two} walks to the {other}, where {b} of the {thing2} cost {c} dollars.",
)
ENDS = (
    "How many {thing} and {thing2} do {one} and {two} have together when the {other} closes?",
    "What is the number of {thing2} that {two} still needs for the {place}?",
)
SYNONYMS = {"sells": "offers", "carries": "hauls", "works": "serves", "brings": "fetches", "walks": "strolls"}


def word_problem(rng: random.Random) -> str:
    """Return a problem of three sentences; two problems rarely share all their numbers."""
    one, two = rng.sample(PEOPLE, 2)
    place, other = rng.sample(PLACES, 2)
    thing, thing2 = rng.sample(THINGS, 2)
    a, b, c = (rng.randrange(2, 2000) for _ in range(3))
    text = " ".join(map(rng.choice, (STARTS, MIDDLES, ENDS)))
    return text.format(
        one=one, two=two, place=place, other=other, thing=thing, thing2=thing2, a=a, b=b, c=c,
        action=rng.choice(ACTIONS), span=rng.choice(SPANS),
    )  # fmt: skip


def formula_problem(rng: random.Random) -> str:
    """Return a problem with LaTeX; some have fewer than 13 tokens."""
    a, b, c, d = (rng.randrange(2, 400) for _ in range(4))
    x, y = rng.sample("xyzuvw", 2)
    return rng.choice(
        (
            rf"Compute $\frac{{{a}}}{{{b}}} \cdot \sqrt{{{c}}} - {d}.$",
            rf"Solve ${x}^2 - {a}{x} + {b} \le {c}$ for ${x}.$",
            rf"Let ${x}$ and ${y}$ be real numbers such that \[{x}^2 + {a}{y} = {b} \quad \text{{and}} \quad "
            rf"\left( {x} - {c} \right)^3 = -{d}{y}.\] Find the largest possible value of $\frac{{{x}}}{{{y}}}.$",
            rf"The angles of a triangle $ABC$ are ${a}^\circ$ and $\frac{{{b}}}{{7}}\pi,$ and the side opposite to the "
            rf"first has length ${c}\sqrt{{{d}}}.$ What is the radius of its circle, if $\theta \neq {b}$?",
        )
    )


def spaced(rng: random.Random, text: str) -> str:
    return re.sub(r"\s+", lambda _: rng.choice([" ", "  ", "\n", "\t"]), text)


def spelled(rng: random.Random, text: str) -> str:
    """Change case, white space and the marks at the ends of words."""
    text = rng.choice([str.upper, str.lower, str.title])(text)
    return re.sub(r"[.,?](?=\s|$)", lambda mark: rng.choice(["", mark[0], " " + mark[0]]), spaced(rng, text))


def renamed(rng: random.Random, text: str) -> str:
    names = [name for name in PEOPLE if name in text]
    for old, new in zip(names, rng.sample([name for name in PEOPLE if name not in text], len(names)), strict=True):
        text = text.replace(old, new)
    return text


def reordered(rng: random.Random, text: str) -> str:
    first, second, question = re.split(r"(?<=[.?]) ", text)
    return f"{second} {first} {question}"


def synonyms(rng: random.Random, text: str) -> str:
    for word, other in SYNONYMS.items():
        text = re.sub(rf"\b{word}\b", other, text)
    return text


def other_number(rng: random.Random, text: str) -> str:
    position = rng.choice([match.start() for match in re.finditer(r"\d+", text)])
    return text[:position] + str(rng.randrange(1, 10)) + text[position:]


def swapped_numbers(rng: random.Random, text: str) -> str:
    one, two = rng.sample(sorted(set(re.findall(r"\d+", text))), 2)
    return re.sub(r"\d+", lambda number: {one: two, two: one}.get(number[0], number[0]), text)


#: Other spellings of the same LaTeX.
LATEX: dict[str, Callable[[random.Random, str], str]] = {
    "same": lambda rng, text: text,
    "spelled": spelled,
    "spaced": spaced,
    "dfrac": lambda rng, text: text.replace(r"\frac", r"\dfrac"),
    "tfrac": lambda rng, text: text.replace(r"\frac", r"\tfrac"),
    "slash": lambda rng, text: re.sub(r"\\frac\{(\w+)\}\{(\w+)\}", r"\1/\2", text),
    "no left": lambda rng, text: re.sub(r"\\(left|right) ?", "", text),
    "left": lambda rng, text: re.sub(r"(?<= )\(", r"\\left(", re.sub(r"(?<=\w)\)", r"\\right)", text)),
    "inline": lambda rng, text: re.sub(r"\$([^$]*)\$", r"\\(\1\\)", text),
    "display": lambda rng, text: re.sub(r"\$([^$]*)\$", r"$$\1$$", text),
    "plain": lambda rng, text: text.replace("$", "").replace(r"\[", "").replace(r"\]", ""),
    "mathrm": lambda rng, text: text.replace(r"\text{", r"\mathrm{"),
    "spaces": lambda rng, text: re.sub("([=+])", r"\\,\1\\;", text),
    "signs": lambda rng, text: text.replace("-", "−").replace(r"\cdot", "×").replace(r"\le ", "≤ "),
    "words": lambda rng, text: text.replace(r"\theta", "θ").replace(r"\pi", "π").replace(r"^\circ", "°"),
    "escaped": lambda rng, text: text.replace("\\", "\\\\"),
    "star": lambda rng, text: text.replace(r"\cdot", "*").replace(r"\neq", r"\ne"),
    "powers": lambda rng, text: text.replace("^2", "²").replace("^3", "^{3}"),
    "root": lambda rng, text: re.sub(r"\\sqrt\{(\d+)\}", r"√\1", text),
}
