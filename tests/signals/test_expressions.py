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


@pytest.mark.parametrize(
    "text", ["-LENGTH(completion)", "ABS(LENGTH(question) - LENGTH(completion))", "STRPOS(completion, 'z') - 1"]
)
def test_a_difference_that_polars_wraps_around_is_refused(run: RunFolder, text: str) -> None:
    expression = parse_expression(run, text, "--by", "number")
    with pytest.raises(SettingsError, match="cannot become negative; convert it first"):
        expression.evaluate(read_rows(run, 0, expression.columns))


@pytest.mark.parametrize("text", ["AVG(reward) > -100", "reward > MIN(reward) - 5", "FIRST(reward) IS NOT NULL"])
def test_an_aggregate_is_refused_even_if_these_rows_do_not_show_it(run: RunFolder, text: str) -> None:
    condition = parse_expression(run, text, "--where")
    with pytest.raises(SettingsError, match="depends on several rows"):
        condition.evaluate(read_rows(run, 0, condition.columns))


@pytest.mark.parametrize(
    "text",
    [
        "COALESCE(reward, 0) > 1",
        "GREATEST(reward, r_ss, 1) > 1",
        "CASE WHEN origin = 'a' THEN TRUE ELSE FALSE END",
        "CONCAT(origin, 'x', 'y') LIKE 'a%'",
        "origin IN ('a', 'b') OR origin IS NULL",
        "reward BETWEEN -1 AND 2.5",
        "ROUND(ABS(reward), 2) <> 1 AND LENGTH(completion) - 1.5 > 2",
        "SUBSTR(UPPER(question), 1, 4) = 'WHAT'",
        "TRUE",
        "NULLIF(origin, 'a') IS NULL",
    ],
)
def test_conditions_over_one_trace_are_not_refused(run: RunFolder, text: str) -> None:
    condition = parse_expression(run, text, "--where")
    assert len(condition.evaluate(read_rows(run, 0, condition.columns))) == 4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            "LENGTH(question) - CAST(LENGTH(completion) AS BIGINT)",
            10 - len("Thought 0 about q.\n<|end_of_explanation|>"),
        ),
        ("LENGTH(question) + LENGTH(solution)", 18),
        ("-thought_tokens * 1000000000", -10_000_000_000),
        ("sample_index - thought_tokens", -10),
    ],
)
def test_integers_are_computed_exactly(run: RunFolder, text: str, value: int) -> None:
    expression = parse_expression(run, text, "--by", "number")
    assert expression.evaluate(read_rows(run, 0, expression.columns))[0] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "--by: must not be empty"),
        ("(SELECT 1)", "--by: (SELECT 1): must not contain a subquery"),
        ("reward IN (SELECT 1)", "--by: reward IN (SELECT 1): must not contain a subquery"),
        ("REWARD", "--by: no column 'REWARD'; did you mean 'reward'?"),
        ("r_ss; r_kl", "--by: r_ss; r_kl: not a SQL expression"),
    ],
)
def test_what_is_no_expression_is_named(run: RunFolder, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_expression(run, text, "--by", "number")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_reason_of_a_wrong_pattern_is_shown(run: RunFolder) -> None:
    condition = parse_expression(run, "completion ~ '('", "--where")
    with pytest.raises(SettingsError, match="unclosed group") as error:
        condition.evaluate(read_rows(run, 0, condition.columns))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["origin = nano", 'origin = "nano"', "origin IN ('a', nano)"])
def test_a_text_without_single_quotes_is_explained(run: RunFolder, text: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_expression(run, text, "--where")
    assert str(error.value) == "--where: no column 'nano'; texts are in single quotes: 'nano'"


def test_other_unknown_columns_are_listed(run: RunFolder) -> None:
    for text in ("zzz = 'a'", "LENGTH(zzz) > 1"):
        with pytest.raises(SettingsError, match="no column 'zzz'; known: trace_id, .*[a-z_]$"):
            parse_expression(run, text, "--where")
