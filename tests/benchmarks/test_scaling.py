"""The table of docs/scaling.md and the costs of the recipes follow from their inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import recipes, scaling
from benchmarks.report import markdown
from rlt_data.recipes.experiment import recipes as all_recipes

DOCS = Path(__file__).parents[2]


def row(rows: list[dict[str, Any]], machine: str, stage: str) -> dict[str, Any]:
    [found] = [row for row in rows if row["machine"].startswith(machine) and row["stage"] == stage]
    return found


def test_a_measured_rate_replaces_the_assumed_one() -> None:
    rows = scaling.rows(scaling.parser().parse_args(["--rate", "generate:80=1000"]))
    one, eight = row(rows, "1 x 80", "generate"), row(rows, "8 x 80", "generate")
    tokens = 17_000 * 16 * 3296
    assert one["rate"] == eight["rate"] == "measured" and row(rows, "1 x 24", "generate")["rate"] != "measured"
    assert one["seconds"] == f"{tokens / 1000:,.0f}" and eight["seconds"] == f"{tokens / 8000:,.0f}"
    assert one["$"] == eight["$"] == f"{tokens / 1000 / 3600 * 2.5:,.0f}"


def test_decoding_is_limited_by_memory() -> None:
    rates = [scaling.decoding_limit(gpu, scaling.MODEL, 800, 3296) for gpu in (scaling.RTX_4090, scaling.H100)]
    (slow, few), (fast, many) = rates
    assert few < many and slow < fast
    # Each step of the 31 samples reads 15.2 GB of weights and 31 * 2,448 * 57,344 bytes of keys and values.
    assert few == 31 and slow == pytest.approx(31 * 1008e9 / (2 * 7.6153e9 + 31 * 2448 * 57344), rel=1e-3)


def test_the_table_of_the_docs_is_that_of_the_command() -> None:
    assert markdown(scaling.rows(scaling.parser().parse_args([]))) in (DOCS / "docs" / "scaling.md").read_text()


def test_every_recipe_has_a_price() -> None:
    for recipe in all_recipes():
        assert 0 < recipes.hours(recipe, "single-gpu") < recipes.hours(recipe, "paper")
    assert markdown(recipes.rows()) in (DOCS / "recipes" / "README.md").read_text()
