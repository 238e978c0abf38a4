from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks import planted


def _questions(seed: int) -> list[dict[str, Any]]:
    """Questions with solutions in the notation of GSM8K, each with another story."""
    draw = random.Random(seed)
    people = ("Ada", "Ben", "Cleo", "Dov", "Elif", "Finn", "Gita", "Hugo")
    things = ("apples", "stamps", "coins", "books", "shells", "tickets", "pencils", "cards", "plums", "marbles")
    places = ("at the market", "at school", "in the garden", "on the beach", "in the library", "near the station")
    rows = []
    for number in range(planted.ROWS):
        a, b, c = draw.randint(3, 90), draw.randint(2, 60), draw.randint(2, 12)
        who, what, where = draw.choice(people), draw.choice(things), draw.choice(places)
        rows.append(
            {
                "question": f"{who} found {a} {what} {where} on day {number}. Then {who} got {b} more from a friend "
                f"and put all of them into {c} bags of the same size. How many {what} were there in total?",
                "answer": f"{who} had {a}+{b}=<<{a}+{b}={a + b}>>{a + b} {what} after the gift.\n"
                f"The bags do not change that, so there were {a + b} {what}.\n#### {a + b}",
            }
        )
    return rows


def test_planted_faults_are_found_and_clean_rows_are_not_flagged(tmp_path: Path) -> None:
    benchmark = [
        {
            "problem": f"Let $f(x) = \\frac{{x^{n}}}{{{n + 1}}} + {3 * n}x$ be defined for all real numbers. Determine "
            f"the value of $f({n + 2}) \\cdot f(-{n + 2})$ and show that it does not depend on the choice of the sign.",
            "solution": f"Insert both values. \\boxed{{{n}}}",
            "answer": str(n),
        }
        for n in range(3, 60)
    ]
    for name, rows in {"gsm8k_train": _questions(0), "math500": benchmark[:40], "aime24": benchmark[40:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = planted.plant(tmp_path)
    for name, of in planted.figures(planted.curated(tmp_path, rows, tmp_path), rows).items():
        assert of.recall >= (0.9 if name == "question_duplicate_of" else 1.0), name
        assert of.precision >= 0.95 and of.clean < 0.005, name
