"""Rule-based explanations: random search, raw or edited."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal

from rlt_data.recipes.nano.corpus import Attempt, attempts

#: Number of failed attempts in an edited search.
KEPT_MISSES = 2
#: Maximum number of attempts in a raw search: those that fit into the teachers' limit of 110 tokens.
MOST_ATTEMPTS = 10

Rule = Literal["raw", "edited"]


def rival_rows(file: str, rule: str, seed: int) -> list[dict[str, Any]]:
    """Explain Countdown problems by rule.

    Args:
        file: output of ``rlt-data countdown make``.
        rule: ``raw``: attempts in random order up to the first hit, at most ``MOST_ATTEMPTS``.
            ``edited``: the hit after at most ``KEPT_MISSES`` misses.
        seed: seed of the order of attempts.

    Returns:
        Rows with ``id``, ``question``, ``solution`` (the expression of the hit) and ``explanation``.
    """
    draw = random.Random(f"{seed}/rivals")
    rows = []
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        problem = json.loads(line)
        explanation, solution = _search(draw, problem, edited=rule == "edited")
        rows.append(
            {"id": problem["id"], "question": problem["question"], "solution": solution, "explanation": explanation}
        )
    return rows


def _search(draw: random.Random, problem: dict[str, Any], *, edited: bool) -> tuple[str, str]:
    target = int(problem["target"])
    order: list[Attempt] = list(attempts(tuple(sorted(problem["numbers"]))))
    draw.shuffle(order)
    index = next(index for index, attempt in enumerate(order) if attempt.second.value == target)
    misses, hit = order[:index], order[index]
    if edited:
        misses = misses[-KEPT_MISSES:]
    search = [*misses, hit][:MOST_ATTEMPTS]
    return " ".join(attempt.text(target) for attempt in search), hit.expression
