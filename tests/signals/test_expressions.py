from __future__ import annotations

from pathlib import Path

import pytest

from rlt_data.errors import SettingsError
from rlt_data.signals.expressions import parse_expression
from rlt_data.signals.funnel import Funnel
from rlt_data.storage.rows import read_rows
from rlt_data.storage.run import RunFolder
from tests.made_runs import make_run, trace


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    rows = [trace("q", i, float(i), origin="a" if i else None) for i in range(4)]
    return make_run(tmp_path / "run", rows, [trace("r", 0, None)])


def test_a_condition_names_its_columns_and_tables(run: RunFolder) -> None:
    condition = parse_expression(run, "reward > 1 AND origin = 'a' OR question LIKE '%q%'", "--where")
    assert condition.columns == ("reward", "origin", "question")
    assert condition.tables == ("scores", "traces", "questions")


def test_a_condition_must_be_true_or_false(run: RunFolder) -> None:
    rows = read_rows(run, 0, ["reward", "origin"])
    with pytest.raises(SettingsError, match=r"--where: reward: must be true or false for each trace, not Float64"):
        parse_expression(run, "reward", "--where").evaluate(rows)
    with pytest.raises(SettingsError, match="--where: reward LIKE 'a'"):
        parse_expression(run, "reward LIKE 'a'", "--where").evaluate(rows)
    with pytest.raises(SettingsError, match="depends on several rows"):
        parse_expression(run, "reward > AVG(reward)", "--where").evaluate(rows)


def test_the_funnel_counts_over_chunks_and_shows_what_is_unknown(run: RunFolder) -> None:
    funnel = Funnel()
    known = parse_expression(run, "origin = 'a'", "--where")
    large = parse_expression(run, "reward >= 2", "--where")
    kept = []
    for part in (0, 1):
        rows = read_rows(run, part, ["origin", "reward"])
        rows = funnel.filter(rows, "known", known)
        kept += funnel.filter(rows, "large", large)["trace_id"].to_list()
    funnel.skip("contaminated", "not computed")
    assert kept == ["q/2", "q/3"]
    steps = [(s.condition, s.rows_in, s.rows_out, s.unknown, s.examples, s.note) for s in funnel.steps]
    assert steps == [
        ("known", 5, 3, 2, ["q/0", "r/0"], ""),
        ("large", 3, 2, 0, ["q/1"], ""),
        ("contaminated", 0, 0, 0, [], "not computed"),
    ]
