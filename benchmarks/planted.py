"""Precision and recall of the signals on planted faults: python -m benchmarks.planted DATA > docs/results/planted.md

DATA is a folder with gsm8k_train.jsonl, math500.jsonl and aime24.jsonl. 2,000 questions of GSM8K get explanations that
are worded by rule from the steps of their solutions. Known faults are then planted in some of them, each in other rows,
and rows with copies and with questions of the benchmarks are added. Rows that look faulty, but are not, are planted
too: questions with other numbers or an opposite word, and right answers in another notation.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from rlt_data.formats import load_format
from rlt_data.inputs import ingest
from rlt_data.settings import CurateSettings, InputSettings, parse_settings
from rlt_data.steps.curate import curate
from rlt_data.storage.run import RunFolder

ROWS = 2000
_STEP = re.compile(r"<<([^=>]+)=([^>]+)>>")
_NAMES = ("Ana", "Boris", "Chidi", "Dana", "Emre", "Farah", "Goran", "Hana", "Ivan", "Jun")
_SYNONYMS = {
    "altogether": "in total", "in total": "altogether", "How many": "What number of", "bought": "purchased",
    "gave": "handed", "each": "every", "half as many": "half the number of", "then": "after that",
    "How much": "What amount", "total": "overall", "kids": "children", "buys": "purchases", "has": "owns", "if": "when",
}  # fmt: skip
_FOREIGN = (
    "Сначала мы складываем все числа, потом делим сумму на количество дней и получаем ответ.",
    "首先我们把所有的数字加起来，然后除以天数，就得到了答案。",
    "まず全部の数を足して、それから日数で割ると答えが出ます。",
)
_LEAKS = (
    "According to the solution provided, this is how it works.",
    "The given solution says so, and I follow it.",
    "As the reference answer shows, the steps are these.",
    "I was given the solution, so I only need to explain it.",
    "Looking at the provided solution, the first step is clear.",
    "The given answer is what I should reach.",
    "In der Musterlösung wird zuerst addiert.",
    "D'après le corrigé, on additionne d'abord.",
)
#: Texts around a question of a benchmark.
_AROUND = (
    "Solve this problem and explain your steps.\n\n{}\n\nThink carefully.",
    "Q3. {} Put your final answer in \\boxed{{}}.",
    "{}\n(A) 1\n(B) 2\n(C) 3\n(D) none of these",
    "<question>{}</question>",
    "Löse die folgende Aufgabe auf Deutsch: {} Gib nur das Ergebnis an.",
)
_OPPOSITES = {"more": "less", "less": "more", "fewer": "more", "twice": "half", "half": "twice", "%": " dollars"}
_UNICODE = {
    r"\le": "≤", r"\ge": "≥", r"\ne": "≠", r"\times": "×", r"\cdot": "·", r"\pi": "π", r"\theta": "θ", r"\infty": "∞",
    r"\cup": "∪", r"\in": "∈", r"\equiv": "≡", r"\circ": "∘", r"\lfloor": "⌊", r"\rfloor": "⌋", r"\lceil": "⌈",
    r"\rceil": "⌉", r"\sum": "∑", r"\angle": "∠", r"\triangle": "△", r"\perp": "⊥",
}  # fmt: skip


@dataclass
class Row:
    """A row of the pool, and the faults that were planted in it."""

    question: str
    solution: str
    answer: str
    explanation: str
    faults: set[str] = field(default_factory=set)


def worded(solution: str, answer: str, draw: random.Random) -> str:
    """Word an explanation of a solution of GSM8K that shares few words with it."""
    openings = ("Let me see what is asked here.", "I want to go through this slowly.", "Okay, what do we know?")
    verbs = ("I work out", "now I need", "that leads to", "so the next thing is", "then I look at")
    lines = [draw.choice(openings)]
    for formula, value in _STEP.findall(solution):
        lines.append(f"{draw.choice(verbs).capitalize()} {formula.strip()}, which comes to {value.strip()}.")
    lines.append(f"Nothing else is missing, therefore the answer is {answer}.")
    return " ".join(lines)


def unchanged(text: str, _: random.Random) -> str:
    """Return the text as it is."""
    return text


def respaced(text: str, draw: random.Random) -> str:
    """Change white space and case."""
    words = text.split()
    changed = "".join(word + draw.choice([" ", "  ", "\n", "\t"]) for word in words).strip()
    return changed.upper() if draw.random() < 0.3 else changed


def with_other_latex(text: str, draw: random.Random) -> str:
    """Write the same mathematics with other LaTeX commands."""
    changes = [
        (r"\frac", r"\dfrac"), ("$", r"\("), (r"\left(", "("), (r"\right)", ")"), (r"\cdot", r"\times"),
        (r"\le ", r"\leq "), (r"\ge ", r"\geq "), (", ", r",\, "), (r"\text{", r"\mathrm{"),
    ]  # fmt: skip
    for before, after in draw.sample(changes, 5):
        if before == "$":
            text = re.sub(r"\$([^$]+)\$", r"\\(\1\\)", text)
        elif before == ", ":
            text = re.sub(r"\$([^$]+)\$", lambda match: match[0].replace(", ", r",\, "), text)
        else:
            text = text.replace(before, after)
    return text


def with_unicode(text: str, _: random.Random) -> str:
    """Write the mathematics without LaTeX, as far as Unicode has the symbols."""
    text = re.sub(r"\\[a-z]+", lambda command: _UNICODE.get(command[0], command[0]), text)
    text = re.sub(
        r"\^(\d)|_(\d)", lambda digit: "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit[1])] if digit[1] else chr(0x2080 + int(digit[2])), text
    )
    return re.sub(r"\\[dt]?frac\{(\w)\}\{(\w)\}", r" \1/\2", text).replace("$", "")


def with_markup(text: str, draw: random.Random) -> str:
    """Write the text as on a web page or in a quotation."""
    if draw.random() < 0.5:
        return re.sub(r"\$([^$]+)\$", r"<math>\1</math>", text).replace("\n", "<br>\n")
    return "\n".join(f"> {line}" for line in re.sub(r"(.{30,60}?) ", r"\1\n", text).splitlines())


def edited(text: str, draw: random.Random) -> str:
    """Change a few characters: a near duplicate."""
    text = text.replace(".", " .", 1).replace("?", " ?")
    names = sorted(set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+|^[A-Z][a-z]{2,}(?= (?:has|is|was|sold|bought))", text)))
    return text.replace(names[0], draw.choice(_NAMES)) if names else text + " Please answer."


def paraphrased(text: str, draw: random.Random) -> str:
    """Replace words by synonyms and move the question to the front."""
    text = edited(text, draw)
    for before, after in draw.sample(sorted(_SYNONYMS.items()), len(_SYNONYMS)):
        text = re.sub(rf"\b{before}\b", after, text, count=1)
    return text


def with_other_numbers(text: str, draw: random.Random) -> str:
    """Change the numbers: another question of the same wording, no duplicate."""
    return re.sub(r"\d+", lambda match: str(int(match[0]) + draw.randint(1, 9)), text)


def with_an_opposite(text: str, draw: random.Random) -> str:
    """Replace a word by its opposite: another question, no duplicate."""
    return re.sub(r"(?<= )(?:more|less|fewer|twice|half)\b|%", lambda match: _OPPOSITES[match[0]], text, count=1)


def in_other_notation(answer: str, draw: random.Random) -> str:
    """Write an answer, a whole number, in another notation."""
    number = int(answer.replace(",", ""))
    return draw.choice(
        [f"{number:,}".replace(",", " "), f"${number}.00$", f"{2 * number}/2", f"`{number}`!", f"\\boxed {{{number}}}"]
    )


def plant(data: Path, seed: int = 0) -> list[Row]:
    """Return the pool."""
    draw = random.Random(seed)
    lines = (data / "gsm8k_train.jsonl").read_text().splitlines()
    rows = []
    for line in draw.sample(lines, ROWS):
        record = json.loads(line)
        solution, _, answer = record["answer"].rpartition("\n#### ")
        clean = re.sub(r"<<[^>]*>>", "", solution)
        rows.append(Row(record["question"], clean, answer, worded(solution, answer.replace(",", ""), draw)))
    order = iter(draw.sample(range(ROWS), ROWS))

    def some(count: int, fault: str, change: Callable[[Row], None]) -> None:
        for _ in range(count):
            row = rows[next(order)]
            change(row)
            row.faults.add(fault)

    def copies(count: int, fault: str, change: Callable[[str, random.Random], str]) -> None:
        while count:
            row = rows[next(order)]
            if (text := change(row.question, draw)) != row.question:
                rows.append(Row(text, row.solution, row.answer, row.explanation, {fault}))
                count -= 1

    def loop(row: Row) -> None:
        word = "haha" * 20
        sentences = [
            "Wait, let me check this again. ",
            "no no no ",
            "12 + 5 = 17, so 17. ",
            "hmm ",
            "让我再检查一遍。",
            word,
        ]
        sentence = draw.choice(sentences)
        row.explanation += " " + sentence * draw.randint(20, 60)
        if not sentence.isascii():
            row.faults.add("foreign")

    def leak(row: Row) -> None:
        row.explanation = f"{draw.choice(_LEAKS)} {row.explanation}"

    def copy(row: Row) -> None:
        row.explanation = f"Let me think. {row.solution} So the answer is {row.answer}."

    def other_answer(row: Row) -> None:
        value = float(row.answer.replace(",", "")) + draw.choice([1, 10, -3, 0.5])
        row.explanation = re.sub(r"the answer is .*$", f"the answer is {value:g}.", row.explanation)

    def other_notation(row: Row) -> None:
        answer = in_other_notation(row.answer, draw)
        row.explanation = re.sub(r"the answer is .*$", lambda _: f"the answer is {answer}", row.explanation)

    def no_answer(row: Row) -> None:
        row.explanation = re.sub(r"Nothing else is missing.*$", "And from there it is easy to see.", row.explanation)

    def foreign(row: Row) -> None:
        middle = len(row.explanation) // 2
        row.explanation = f"{row.explanation[:middle]} {draw.choice(_FOREIGN)} {row.explanation[middle:]}"

    def broken(row: Row) -> None:
        row.explanation += draw.choice(
            [
                " <think>",
                " <|im_end|>",
                " <|eot_id|>",
                "<end_of_turn>",
                "<turn|>",
                "</s>",
                "[/INST]",
                "<｜end▁of▁sentence｜>",
            ]
        )

    copies(100, "exact duplicate", respaced)
    copies(100, "near duplicate", edited)
    copies(100, "paraphrase", paraphrased)
    copies(100, "other numbers", with_other_numbers)
    copies(100, "opposite word", with_an_opposite)
    some(60, "loop", loop)
    some(50, "leak phrase", leak)
    some(50, "leak copy", copy)
    some(100, "wrong answer", other_answer)
    some(100, "right answer", other_notation)
    some(50, "no answer", no_answer)
    some(50, "foreign", foreign)
    some(50, "broken", broken)
    hidden = [json.loads(line) for name in ("math500", "aime24") for line in (data / f"{name}.jsonl").open()]
    for record in hidden:
        change: Callable[[str, random.Random], str] = draw.choice(
            [unchanged, respaced, with_other_latex, with_unicode, with_markup]
        )
        around = draw.choice(_AROUND) if draw.random() < 0.3 else "{}"
        text = change(around.format(record["problem"]), draw)
        explanation = "I look at what is given and work step by step until the result is clear."
        rows.append(Row(text, record["solution"], str(record["answer"]), explanation, {"benchmark", "no answer"}))
    draw.shuffle(rows)
    return rows


#: Each signal's finding as an expression, and the faults that it should find.
FINDINGS = {
    "repeats": ("repeats", {"loop"}),
    "leaks": ("leaks", {"leak phrase", "leak copy"}),
    "answer_verdict = wrong": ("answer_verdict = 'wrong'", {"wrong answer"}),
    "answer_verdict = none": ("answer_verdict = 'none'", {"no answer"}),
    "question_duplicate_of": (
        "question_duplicate_of IS NOT NULL",
        {"exact duplicate", "near duplicate", "paraphrase"},
    ),
    "contaminated": ("contaminated", {"benchmark"}),
    "control_string": ("control_string IS NOT NULL", {"broken"}),
    "other_scripts > 0.1": ("other_scripts > 0.1", {"foreign"}),
}


def curated(data: Path, rows: list[Row], folder: Path) -> pl.DataFrame:
    """Compute the default signals of a pool, and return all columns of its traces."""
    source = folder / "pool.jsonl"
    keys = ("question", "solution", "answer", "explanation")
    with source.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps({"id": str(number)} | {key: getattr(row, key) for key in keys}) + "\n")
    run, format = RunFolder(folder / "run"), load_format("rlt")
    with run.locked():
        ingest(run, InputSettings(input=str(source)), format, [], traces=True)
        run.record("score", {"format": format.model_dump(mode="json")})
    against = [str(data / f"{name}.jsonl") for name in ("math500", "aime24")]
    curate(parse_settings(CurateSettings, {"in": str(run.path), "against": against}))
    return run.scan().collect()


@dataclass(frozen=True)
class Figures:
    """How well a finding tells planted rows from the others.

    Attributes:
        planted: rows with a fault that it should find.
        found: rows that it flags.
        precision: share of these that have the fault; of duplicates, one of a pair is enough.
        recall: share of the planted rows that it flags.
        clean: share of the rows without any fault that it flags.
        flagged: ids of the rows that it flags.
    """

    planted: int
    found: int
    precision: float
    recall: float
    clean: float
    flagged: set[str]


def figures(frame: pl.DataFrame, rows: list[Row]) -> dict[str, Figures]:
    """Return the figures of each of :data:`FINDINGS`."""
    ids = set(frame["source_id"])
    clean = {str(number) for number, row in enumerate(rows) if not row.faults} & ids
    partners = _partners(frame)
    measured = {}
    for name, (expression, faults) in FINDINGS.items():
        flagged = set(frame.filter(pl.sql_expr(expression))["source_id"])
        planted = {str(number) for number, row in enumerate(rows) if row.faults & faults} & ids
        pairs = partners if name == "question_duplicate_of" else {}
        hit = {key for key in planted if key in flagged or pairs.get(key, set()) & flagged}
        right = {key for key in flagged if key in planted or pairs.get(key, set()) & planted}
        measured[name] = Figures(
            len(planted),
            len(flagged),
            len(right) / max(len(flagged), 1),
            len(hit) / len(planted),
            len((flagged - right) & clean) / len(clean),
            flagged,
        )
    return measured


def _partners(frame: pl.DataFrame) -> dict[str, set[str]]:
    """Return the other rows of each row's cluster of duplicate questions."""
    cluster = frame.select("source_id", root=pl.coalesce("question_duplicate_of", "question_id"))
    groups: dict[str, set[Any]] = {}
    for key, root in cluster.iter_rows():
        groups.setdefault(root, set()).add(key)
    return {key: members - {key} for members in groups.values() for key in members}


def main() -> None:
    """Print the tables."""
    data = Path(sys.argv[1])
    rows = plant(data)
    with tempfile.TemporaryDirectory() as folder:
        measured = figures(curated(data, rows, Path(folder)), rows)
    print(
        f"# Planted faults\n\n`python -m benchmarks.planted DATA`: {len(rows):,} rows, {ROWS:,} of them questions of "
        "GSM8K with explanations worded by rule.\n\n"
        "| finding | planted | found | precision | recall | flagged clean rows |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, of in measured.items():
        print(f"| `{name}` | {of.planted} | {of.found} | {of.precision:.3f} | {of.recall:.3f} | {of.clean:.2%} |")
    print("\n| planted fault | rows | found by |\n| --- | ---: | --- |")
    for fault in sorted({fault for row in rows for fault in row.faults}):
        keys = {str(number) for number, row in enumerate(rows) if fault in row.faults}
        by = [f"`{name}` {len(keys & of.flagged)}" for name, of in measured.items() if keys & of.flagged]
        print(f"| {fault} | {len(keys)} | {', '.join(by) or 'none'} |")


if __name__ == "__main__":
    main()
