"""Expressions are evaluated trace by trace, and ``--where`` means the same for every command that looks at a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from rlt_data.errors import SettingsError
from rlt_data.signals.expressions import parse_expression
from rlt_data.signals.funnel import Funnel, lost_questions
from rlt_data.signals.matching import find_matching
from rlt_data.statistics import scored, stats
from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt
from tests.made_runs import make_run, ranked, trace


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two parts; the first question has the largest rewards, and one trace has none."""
    rows = [[trace(q, i, 10.0 - 3 * place - i, origin="XY"[i % 2]) for i in range(3)] for place, q in enumerate("abc")]
    run = make_run(tmp_path / "run", [*rows[0], *rows[1]], [*rows[2], trace("d", 0, None, origin="X")])
    ranked(run)
    return run


@pytest.mark.parametrize("text", ["reward >= max(reward)", "reward > avg(reward)", "rank() OVER (ORDER BY reward) = 1"])
def test_an_expression_over_several_rows_is_refused_wherever_the_extreme_row_is(run: RunFolder, text: str) -> None:
    condition = parse_expression(run, text, "--where")
    for values in ([5.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 5.0], [1.0, 5.0, 2.0, 3.0]):
        with pytest.raises(SettingsError, match="--where: .* depends on several rows"):
            condition.evaluate(pl.DataFrame({"reward": values}))


def test_special_values_do_not_look_like_several_rows(run: RunFolder) -> None:
    number = parse_expression(run, "reward * 2", "--by", "number")
    values = [float("nan"), None, float("inf"), 1.0, float("-inf")]
    assert number.evaluate(pl.DataFrame({"reward": values})).to_list()[1:] == [None, float("inf"), 2.0, float("-inf")]


def test_a_funnel_counts_rows_questions_and_examples_over_several_chunks(run: RunFolder) -> None:
    funnel, condition = Funnel(), parse_expression(run, "reward > 5", "--where")
    for question, rewards in (("a", [9.0, 1.0, None]), ("b", [1.0, 2.0, 3.0])):
        ids = [f"{question}/{i}" for i in range(3)]
        rows = pl.DataFrame({"trace_id": ids, "question_id": [question] * 3, "reward": rewards})
        funnel.filter(rows, "high", condition)
    [step] = funnel.steps
    assert (step.rows_in, step.rows_out, step.unknown, step.examples) == (6, 1, 1, ["a/1", "a/2", "b/0"])
    assert (step.questions_in, step.questions_out) == (2, 1) and lost_questions(funnel.steps) == {"high": 1}


def test_several_conditions_must_all_be_true(run: RunFolder) -> None:
    matching = find_matching(run, ["reward > 3", "origin = 'X'"])
    assert matching and {part: ids.to_list() for part, ids in matching.traces.items()} == {
        0: ["a/0", "a/2", "b/0", "b/2"],
        1: ["c/0"],
    }
    assert str(matching) == "5 of 10 traces satisfy reward > 3 and origin = 'X' (1 others have no value to compare)"
    assert find_matching(run, []) is None


def test_stats_of_some_traces_are_those_of_a_run_that_has_only_them(rlt: Rlt, run: RunFolder, tmp_path: Path) -> None:
    matching = find_matching(run, ["question_id = 'a' OR question_id = 'c'"])
    some = stats(run, matching=matching)
    rows = [
        [trace(q, i, 10.0 - 3 * place - i, origin="XY"[i % 2]) for i in range(3)] for place, q in ((0, "a"), (2, "c"))
    ]
    other = make_run(tmp_path / "other", *rows)
    ranked(other)
    alone = stats(other)
    assert some.rows == alone.rows == {"questions": 2, "traces": 6, "scores": 6, "ranks": 6}
    assert some.terms.equals(alone.terms) and some.buckets.equals(alone.buckets)
    assert (some.origins, some.shares, some.finish_reasons) == (alone.origins, alone.shares, alone.finish_reasons)
    printed = rlt("stats", run.path, "--where", "question_id = 'a'").stdout.splitlines()
    assert printed[0] == "3 of 10 traces satisfy question_id = 'a'; the figures are about these traces only"
    assert printed[1].startswith("1 questions, 3 traces, 3 scores")
    assert len(scored(run, matching=matching)) == 6


def test_stats_of_no_trace_are_printed(rlt: Rlt, run: RunFolder) -> None:
    assert rlt("stats", run.path, "--where", "reward > 99").stdout.startswith("0 of 10 traces")


def test_the_python_functions_take_conditions(run: RunFolder) -> None:
    import rlt_data as rlt

    assert rlt.stats(run.path, where="reward > 9").rows["traces"] == 1
    assert rlt.Run(run.path).stats(where=["reward > 7", "origin = 'Y'"]).rows["traces"] == 1
    with pytest.raises(SettingsError, match="--where: .*did you mean 'reward'"):
        rlt.stats(run.path, where="rewrad > 9")


def test_a_report_shows_only_the_matching_traces_and_says_so(rlt: Rlt, run: RunFolder) -> None:
    printed = rlt("report", run.path, "--where", "origin = 'Y'", "--out", "page.html").stdout
    assert printed.startswith("3 of 10 traces satisfy origin = 'Y'; the page is about")
    assert "all 3 traces of 3 questions" in printed
    page = Path("page.html").read_text()
    assert "This page is about these traces only: 3 of 10 traces satisfy origin = &#39;Y&#39;." in page
    cards = dict(re.findall(r"<dt>(?:<span[^>]*>)?(\w+)(?:</span>)?\s*</dt><dd>(.*?)</dd>", page))
    assert cards["traces"] == "3" and cards["questions"] == "3"


def test_a_report_without_matching_traces_is_refused(rlt: Rlt, run: RunFolder) -> None:
    errors = rlt("report", run.path, "--where", "reward > 99", code=2).stderr
    assert "error: --where: 0 of 10 traces satisfy reward > 99" in errors and not Path("report.html").exists()


def test_a_report_of_two_runs_applies_the_condition_to_both(rlt: Rlt, run: RunFolder, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", [trace("a", i, float(i), origin="Y") for i in range(3)])
    rlt("report", run.path, "--against", other.path, "--where", "origin = 'Y'", "--out", "page.html")
    page = Path("page.html").read_text()
    assert "run: 3 of 10 traces satisfy" in page and "other: 3 of 3 traces satisfy" in page


def test_a_condition_of_a_pipeline_file_may_be_one_text(run: RunFolder, rlt: Rlt, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"out: {run.path}\ndistill:\n  where: reward > 9\n")
    rlt("run", tmp_path / "p.yaml")
    assert json.loads((run.path / "dataset" / "distill.json").read_text())["counts"]["rows"] == 1
