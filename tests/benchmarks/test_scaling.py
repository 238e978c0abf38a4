"""The table of docs/scaling.md and the costs of the recipes follow from their inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import recipes, scaling
from benchmarks.report import markdown

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


@pytest.mark.parametrize(("recipe", "scale"), recipes.shipped())
def test_nothing_is_shipped_for_a_card_that_it_does_not_fit(recipe: str, scale: str) -> None:
    steps = recipes.steps(recipe, scale, scaling.MACHINES[recipes.SCALES[scale].machine])
    assert [step.step for step in steps if not step.fits] == []
    assert {"score", "train-student", "evaluate"} <= {step.step.partition(" (")[0] for step in steps}
    assert all(0 < step.seconds < float("inf") and step.dollars > 0 for step in steps)
    assert markdown([recipes.by_file(recipe, scale)]).splitlines()[-1] in (DOCS / "recipes" / "README.md").read_text()


def test_the_settings_of_a_larger_card_do_not_fit_a_smaller_one() -> None:
    for scale, machine in (("single-gpu", scaling.MACHINES[0]), ("paper", scaling.MACHINES[1])):
        too_large = {step.step for step in recipes.steps("teacher", scale, machine) if not step.fits}
        assert too_large == {"train-teacher warmup (warmup)", "train-teacher rl (teacher)", "train-student (student)"}
    for recipe in ("teacher", "student"):
        machines = {recipes.SCALES[scale].machine for name, scale in recipes.shipped() if name == recipe}
        assert machines == set(range(len(scaling.MACHINES)))
