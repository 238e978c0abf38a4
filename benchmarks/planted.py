"""Precision and recall of the signals on planted faults: python -m benchmarks.planted DATA > docs/results/planted.md

DATA is a folder with gsm8k_train.jsonl, math500.jsonl and aime24.jsonl. 2,000 questions of GSM8K get explanations that
are worded by rule from the steps of their solutions. Known faults are then planted in some of them, each in other rows,
and rows with copies and with questions of the benchmarks are added.
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
)


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
        for _ in range(count):
            row = rows[next(order)]
            rows.append(Row(change(row.question, draw), row.solution, row.answer, row.explanation, {fault}))

    def loop(row: Row) -> None:
        sentence = draw.choice(["Wait, let me check this again. ", "no no no ", "12 + 5 = 17, so 17. ", "hmm "])
        row.explanation += " " + sentence * draw.randint(20, 60)

    def leak(row: Row) -> None:
        row.explanation = f"{draw.choice(_LEAKS)} {row.explanation}"

    def copy(row: Row) -> None:
        row.explanation = f"Let me think. {row.solution} So the answer is {row.answer}."

    def other_answer(row: Row) -> None:
        value = float(row.answer.replace(",", "")) + draw.choice([1, 10, -3, 0.5])
        row.explanation = re.sub(r"the answer is .*$", f"the answer is {value:g}.", row.explanation)

    def no_answer(row: Row) -> None:
        row.explanation = re.sub(r"Nothing else is missing.*$", "And from there it is easy to see.", row.explanation)

    def foreign(row: Row) -> None:
        middle = len(row.explanation) // 2
        row.explanation = f"{row.explanation[:middle]} {draw.choice(_FOREIGN)} {row.explanation[middle:]}"

    def broken(row: Row) -> None:
        row.explanation += draw.choice([" </think>", " <|im_end|>", " <think>"])

    copies(100, "exact duplicate", respaced)
    copies(100, "near duplicate", edited)
    copies(100, "paraphrase", paraphrased)
    copies(100, "other numbers", with_other_numbers)
    some(60, "loop", loop)
    some(50, "leak phrase", leak)
    some(50, "leak copy", copy)
    some(100, "wrong answer", other_answer)
    some(50, "no answer", no_answer)
    some(50, "foreign", foreign)
    some(50, "broken", broken)
    hidden = [json.loads(line) for name in ("math500", "aime24") for line in (data / f"{name}.jsonl").open()]
    for record in hidden:
        change: Callable[[str, random.Random], str] = draw.choice([unchanged, respaced, with_other_latex])
        text = change(record["problem"], draw)
        if draw.random() < 0.3:
            text = f"Solve this problem and explain your steps.\n\n{text}\n\nThink carefully."
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
}


def main() -> None:
    """Print the table."""
    data = Path(sys.argv[1])
    rows = plant(data)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pool.jsonl"
        source.write_text(
            "".join(
                json.dumps(
                    {
                        "id": str(number),
                        "question": row.question,
                        "solution": row.solution,
                        "answer": row.answer,
                        "explanation": row.explanation,
                    }
                )
                + "\n"
                for number, row in enumerate(rows)
            )
        )
        run = RunFolder(Path(folder) / "run")
        format = load_format("rlt")
        with run.locked():
            ingest(run, InputSettings(input=str(source)), format, [], traces=True)
            run.record("score", {"format": format.model_dump(mode="json")})
        against = [str(data / f"{name}.jsonl") for name in ("math500", "aime24")]
        summary = curate(parse_settings(CurateSettings, {"in": str(run.path), "against": against}))
        for signal in summary.signals:
            print(f"{signal.name}: {signal.rows / signal.seconds:,.0f} rows/s", file=sys.stderr)
        frame = run.scan().collect()
    report(frame, rows)


def report(frame: pl.DataFrame, rows: list[Row]) -> None:
    """Print precision and recall per finding, and recall per planted fault."""
    found = {row["source_id"]: row for row in frame.to_dicts()}
    print(
        "| finding | planted | found | precision | recall | flagged clean rows |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    clean = {str(number) for number, row in enumerate(rows) if not row.faults}
    flags: dict[str, set[str]] = {}
    for name, (expression, faults) in FINDINGS.items():
        flagged = set(frame.filter(pl.sql_expr(expression))["source_id"])
        flags[name] = flagged
        planted = {str(number) for number, row in enumerate(rows) if row.faults & faults} & found.keys()
        if name == "question_duplicate_of":  # either of two duplicates may be the one that is kept
            flagged = {key for key in flagged}
            partners = _partners(frame)
            hit = {key for key in planted if key in flagged or partners.get(key, set()) & flagged}
            right = {key for key in flagged if key in planted or partners.get(key, set()) & planted}
        else:
            hit, right = planted & flagged, planted & flagged
        precision = f"{len(right) / len(flagged):.3f}" if flagged else "–"
        print(
            f"| `{name}` | {len(planted)} | {len(flagged)} | {precision} | {len(hit) / len(planted):.3f} | "
            f"{len((flagged - right) & clean) / len(clean):.2%} |"
        )
    print("\n| planted fault | rows | found by |\n| --- | ---: | --- |")
    for fault in sorted({fault for row in rows for fault in row.faults}):
        keys = {str(number) for number, row in enumerate(rows) if fault in row.faults} & found.keys()
        by = ", ".join(f"`{name}` {len(keys & flagged)}" for name, flagged in flags.items() if keys & flagged)
        print(f"| {fault} | {len(keys)} | {by or 'none'} |")


def _partners(frame: pl.DataFrame) -> dict[str, set[str]]:
    """Return the other rows of each row's cluster of duplicate questions."""
    cluster = frame.select("source_id", root=pl.coalesce("question_duplicate_of", "question_id"))
    groups: dict[str, set[Any]] = {}
    for key, root in cluster.iter_rows():
        groups.setdefault(root, set()).add(key)
    return {key: members - {key} for members in groups.values() for key in members}


if __name__ == "__main__":
    main()
