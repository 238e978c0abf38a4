"""Explanations by rule: a searcher that tries everything in order, and an editor that shortens what it wrote."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal

from rlt_data.recipes.nano.corpus import Attempt, attempts

#: Failed attempts that an edited search keeps.
KEPT_MISSES = 2
#: Attempts after which a raw search is given up: as many as fit into the 110 tokens that teachers have.
MOST_ATTEMPTS = 10

Rule = Literal["raw", "edited"]


def rival_rows(file: str, rule: str, seed: int) -> list[dict[str, Any]]:
    """Explain the problems of a questions file.

    Args:
        file: what ``rlt-data countdown make`` wrote.
        rule: ``raw``: attempts in random order until one hits, or there were too many; what was tried last stands.
            ``edited``: the hit, after no more than two of the misses.
        seed: of the order of attempts.

    Returns:
        ``id``, ``question``, ``solution``, ``explanation``; the solution is the expression that was found, or the
        problem's own.
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
    place = next(number for number, each in enumerate(order) if each.second.value == target)
    misses, hit = order[:place], order[place]
    if edited:
        misses = misses[-KEPT_MISSES:]
    tried = [*misses, hit][:MOST_ATTEMPTS]
    return " ".join(each.text(target) for each in tried), tried[-1].expression if tried[-1] is hit else hit.expression
