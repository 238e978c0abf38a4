"""Grading for rlt_countdown.yaml: the text after the solution tag, graded as in ``rlt-data evaluate``."""

from __future__ import annotations

from typing import Any

from rlt_data.tasks.grading import grade


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return whether the answer reaches the target.

    Args:
        doc: a problem with ``numbers`` and ``target``.
        results: the model's text, up to the closing solution tag.
    """
    solution = results[0].rpartition("<solution>")[2]
    return {
        "accuracy": float(
            grade("countdown", solution, str(doc["target"]), numbers=doc["numbers"], target=doc["target"]).correct
        )
    }
