from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.scoring.reward import reward_terms
from rlt_data.steps import rank as rank_module
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.conftest import Rlt, examples
from tests.made_runs import drop_part, files_of, make_run, ranked, table, trace

Row = dict[str, Any]
NAN, INF = float("nan"), float("inf")


def ranks(run: RunFolder) -> dict[str, Row]:
    return {row["trace_id"]: row for row in table(run, "ranks").to_dicts()}


def order(run: RunFolder) -> list[str]:
    """The traces of the run's questions, each question's from best to worst."""
    return table(run, "ranks").sort("question_id", "rank")["trace_id"].to_list()


#: The first of each pair comes before the second.
PAIRS: dict[str, tuple[Row, Row]] = {
    "well-formed first": ({"reward": -9.0}, {"reward": 9.0, "closed": False}),
    "also without value": ({"reward": None}, {"reward": 9.0, "truncated": True}),
    "a value before NaN": ({"reward": -9.0}, {"reward": NAN}),
    "a value before none": ({"reward": -9.0}, {"reward": None}),
    "a value before infinity": ({"reward": -9.0}, {"reward": INF}),
    "the larger value": ({"reward": 1.5}, {"reward": 1.25}),
    "the larger value of two flawed ones": ({"reward": 2.0, "empty": True}, {"reward": 1.0, "holds_tag": True}),
    "fewer tokens at equal values": ({"thought_tokens": 3}, {"thought_tokens": 4}),
    "fewer tokens without values": ({"reward": None, "thought_tokens": 3}, {"reward": NAN, "thought_tokens": 4}),
    "the smaller id of equals": ({"trace_id": "a"}, {"trace_id": "b"}),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("places", [(0, 1), (1, 0)])
def test_order_within_a_question(tmp_path: Path, name: str, places: tuple[int, int]) -> None:
    rows = [trace("q", i, **{"trace_id": f"{i}", **fields}) for i, fields in enumerate(PAIRS[name])]
    run = make_run(tmp_path / "run", [rows[place] for place in places], [trace("r", 0)])
    ranked(run)
    assert order(run) == [*(row["trace_id"] for row in rows), "r/0"]
    assert [row["traces"] for row in ranks(run).values()] == [2, 2, 1]


VALUES = st.one_of(st.none(), st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0]), st.floats(width=64))
TRACES = st.lists(
    st.fixed_dictionaries(
        {
            "question": st.sampled_from(["a", "b", "c", "d"]),
            "reward": VALUES,
            "thought_tokens": st.integers(0, 2),
            "closed": st.booleans(),
            "truncated": st.booleans(),
        }
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=examples(20), deadline=None)
@given(TRACES, st.randoms(use_true_random=False))
def test_ranks_equal_a_plain_sort_for_any_order_of_rows(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Row], shuffle: random.Random
) -> None:
    rows = [trace(sample=i, **row) for i, row in enumerate(drawn)]
    shuffle.shuffle(rows)

    def place(row: Row) -> tuple[Any, ...]:
        value = row["reward"] if row["reward"] is not None and math.isfinite(row["reward"]) else None
        return (
            row["question_id"],
            not row["well_formed"],
            value is None,
            -(value or 0.0),
            row["thought_tokens"],
            row["trace_id"],
        )

    parts = [
        sorted((row for row in rows if row["question_id"] in keys), key=lambda row: keys.index(row["question_id"]))
        for keys in ("ba", "dc")
    ]
    run = make_run(tmp_path_factory.mktemp("case") / "run", *parts)
    if all(place(row)[2] for row in rows):
        with pytest.raises(SettingsError):
            ranked(run)
        return
    assert ranked(run).rows == len(rows)
    assert order(run) == [row["trace_id"] for row in sorted(rows, key=place)]
    for key in "abcd":
        of_question = [row["rank"] for row in ranks(run).values() if row["question_id"] == key]
        assert sorted(of_question) == list(range(1, len(of_question) + 1))


def test_scores_that_are_still_in_the_journal_are_ranked(tmp_path: Path) -> None:
    rows = [trace("b", 0, 1.0), trace("b", 1, 2.0), trace("a", 0, 1.0), trace("a", 1, 3.0)]
    run = make_run(tmp_path / "run", rows)
    drop_part(run, "scores", 0)
    for row in (rows[2], rows[1], rows[0], rows[3]):
        run.add_segment("scores", 0, to_table("scores", [row]))
    assert ranked(run).questions == 2
    assert order(run) == ["a/1", "a/0", "b/1", "b/0"]
    assert table(run, "ranks")["trace_id"].to_list()[:2] == ["b/1", "b/0"]  # questions stay in the input's order


def test_a_trace_with_several_flaws_gets_the_first(tmp_path: Path) -> None:
    flaws: dict[str, Row] = {
        "empty": {"empty": True, "holds_tag": True, "truncated": True, "closed": False},
        "holds tag": {"holds_tag": True, "truncated": True, "closed": False},
        "truncated": {"truncated": True, "closed": False},
        "unclosed": {"closed": False},
    }
    run = make_run(
        tmp_path / "run", [trace("q", i, trace_id=name, **row) for i, (name, row) in enumerate(flaws.items())]
    )
    ranked(run)
    assert {name: row["flaw"] for name, row in ranks(run).items()} == {name: name for name in flaws}


def test_a_bucket_is_the_rank_by_default(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0, 1.0), trace("a", 1, 2.0), trace("b", 0, closed=False)])
    ranked(run)
    assert {key: (row["bucket"], row["rank"]) for key, row in ranks(run).items()} == {
        "a/1": (1, 1), "a/0": (2, 2), "b/0": (1, 1)
    }  # fmt: skip


@pytest.mark.parametrize(("rows", "buckets"), [(8, 4), (9, 4), (10, 3), (100, 7), (3, 2), (2, 5)])
def test_quantiles_are_equal_shares_of_all_traces(tmp_path: Path, rows: int, buckets: int) -> None:
    run = make_run(
        tmp_path / "run", [trace(f"q{i % 3}", i, float(i)) for i in sorted(range(rows), key=lambda i: i % 3)]
    )
    ranked(run, buckets=buckets)
    numbers = [ranks(run)[f"q{i % 3}/{i}"]["bucket"] for i in range(rows)]
    assert numbers == sorted(numbers, reverse=True) and numbers[-1] == 1 and max(numbers) <= buckets
    sizes = Counter(numbers).values()
    assert max(sizes) - min(sizes) <= 1 and len(sizes) == min(rows, buckets)


def test_equal_values_share_a_quantile(tmp_path: Path) -> None:
    values = [0.1] * 5 + [0.3] * 4 + [0.7]
    run = make_run(tmp_path / "run", [trace("q", i, value) for i, value in enumerate(values)])
    ranked(run, buckets=4)
    numbers = [ranks(run)[f"q/{i}"]["bucket"] for i in range(10)]
    assert numbers == [3] * 5 + [1] * 5  # the borders are 0.1, 0.2 and 0.3, and a value on a border is above it


def test_traces_with_a_flaw_or_without_a_value_do_not_affect_quantiles(tmp_path: Path) -> None:
    good = [trace("q", i, float(i)) for i in range(4)]
    bad = [trace("q", 4, NAN), trace("q", 5, None), trace("q", 6, -INF)]
    bad += [trace("q", i, 99.0, truncated=True) for i in range(7, 30)]
    run = make_run(tmp_path / "run", good + bad)
    ranked(run, buckets=2)
    assert [ranks(run)[row["trace_id"]]["bucket"] for row in good] == [2, 2, 1, 1]
    assert {ranks(run)[row["trace_id"]]["bucket"] for row in bad} == {None}


def test_the_summary_has_a_row_for_every_bucket_and_one_for_none(tmp_path: Path) -> None:
    rows = [
        trace("a", 0, 4.0, thought_tokens=10),
        trace("a", 1, 2.0, thought_tokens=20),
        trace("b", 0, 1.0, thought_tokens=40),
        trace("b", 1, 9.0, thought_tokens=7, closed=False),
        trace("b", 2, NAN, thought_tokens=8),
    ]
    run = make_run(tmp_path / "run", rows[:2], rows[2:])
    summary = ranked(run, buckets=2)
    assert (summary.rows, summary.questions) == (5, 2)
    columns = ["bucket", "rows", "mean_value", "mean_thought_tokens", "well_formed"]
    assert summary.table.columns == columns
    assert summary.table.rows() == [(1, 2, 3.0, 15.0, 1.0), (2, 1, 1.0, 40.0, 1.0), (None, 2, 9.0, 7.5, 0.5)]
    by_rank = ranked(run).table
    assert by_rank.rows() == [(1, 2, 2.5, 25.0, 1.0), (2, 2, 2.0, 14.0, 1.0), (3, 1, 9.0, 7.0, 0.0)]
    assert (
        RunFolder(run.path).step("rank")["rows"] == 5
        and RunFolder(run.path).step("rank")["settings"]["buckets"] == "ranks"
    )


def test_many_parts_are_ranked_like_one(tmp_path: Path) -> None:
    draw = random.Random(0)
    parts = [
        [trace(f"{part:03d}", i, draw.random()) for i in range(3)] for part in range(rank_module.PARTS_AT_A_TIME + 3)
    ]
    many = make_run(tmp_path / "many", *parts)
    one = make_run(tmp_path / "one", [row for part in parts for row in part])
    for buckets in ("ranks", "4"):
        assert_frame_equal(ranked(many, buckets=buckets).table, ranked(one, buckets=buckets).table)
        assert table(many, "ranks").equals(table(one, "ranks"))
    assert RunFolder(many.path).parts("ranks") == list(range(len(parts)))


def test_ranks_do_not_depend_on_the_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [[trace(f"{part}", i, float((7 * part + 3 * i) % 11)) for i in range(4)] for part in range(5)]
    run = make_run(tmp_path / "run", *parts)
    summaries, tables = [], []
    for number in (64, 2, 1):
        monkeypatch.setattr(rank_module, "PARTS_AT_A_TIME", number)
        summaries.append(ranked(run, buckets=3).table)
        tables.append(files_of(run.path / "ranks"))
    assert tables[0] == tables[1] == tables[2]
    for summary in summaries[1:]:
        assert_frame_equal(summary, summaries[0])


@pytest.mark.parametrize("column", ["reward_without_entropy", "r_ss", "solution_logprob_mean"])
def test_other_columns_can_be_ranked_by(tmp_path: Path, column: str) -> None:
    rows = [trace("q", 0, 1.0, **{column: 5.0}), trace("q", 1, 2.0, **{column: 4.0})]
    run = make_run(tmp_path / "run", rows)
    ranked(run)
    assert order(run) == ["q/1", "q/0"]
    ranked(run, by=column)
    assert order(run) == ["q/0", "q/1"]
    assert [row["value"] for row in ranks(run).values()] == [5.0, 4.0]


def test_ranking_again_replaces_the_ranks_with_equal_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", i, float(i)) for i in range(4)], [trace("b", 0)])
    ranked(run)
    first = files_of(run.path / "ranks")
    ranked(run, buckets=2)
    assert {row["bucket"] for row in ranks(run).values()} == {1, 2}
    ranked(run)
    assert files_of(run.path / "ranks") == first


def test_scores_of_different_settings_are_not_compared(tmp_path: Path) -> None:
    parts = [trace("a", 0), trace("a", 1)], [trace("b", 0, scored_by="another student")]
    run = make_run(tmp_path / "run", *parts)
    with pytest.raises(RunFolderError, match="2 different settings"):
        ranked(run)
    assert not run.parts("ranks")


#: Scores that cannot be ranked, and the message of each.
FAILURES: dict[str, tuple[Row, str]] = {
    "mixed settings": ({"scored_by": "another student"}, "2 different settings"),
    "damaged part": ({}, "part-00001.parquet: is truncated"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_ranking_keeps_the_earlier_one(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0, 1.0), trace("a", 1, 2.0)], [trace("b", 0)])
    ranked(run)
    change, message = FAILURES[name]
    if change:
        run.write_part("scores", 1, to_table("scores", [trace("b", 0, **change)]))
        run.compact_all("scores")
    else:
        run.part_file("scores", 1).write_bytes(b"PAR1 nonsense PAR1")
    before = files_of(run.path)
    monkeypatch.setattr(rank_module, "PARTS_AT_A_TIME", 1)
    with pytest.raises(RunFolderError, match=message):
        ranked(run)
    assert files_of(run.path) == before


def test_a_run_without_scores_or_values_cannot_be_ranked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(RunFolderError, match="rlt-data score"):
        ranked(run)
    run = make_run(tmp_path / "other", [trace("q", 0, None), trace("q", 1, NAN)])
    with pytest.raises(SettingsError, match="--by reward_without_entropy"):
        ranked(run)
    with pytest.raises(RunFolderError, match="nothing"):
        ranked(RunFolder(tmp_path / "nothing"))


def test_a_ranking_by_an_expression_may_use_any_column(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        [trace("q", 0, 1.0, r_ss=-1.0, origin="a"), trace("q", 1, 5.0, r_ss=-3.0, origin="b"), trace("q", 2, 0.0)],
    )
    ranked(run, by="r_ss - thought_tokens / 10 + CASE WHEN origin = 'b' THEN 9 ELSE 0 END")
    assert order(run) == ["q/1", "q/2", "q/0"]
    assert [row["value"] for row in ranks(run).values()] == [5.0, -1.0, -2.0]


@pytest.mark.parametrize(("lambda_", "alpha"), [(1.0, 0.01), (0.0, 0.0), (3.0, 0.1), (0.3, 1e-05)])
def test_other_weights_give_the_reward_that_score_would_give(tmp_path: Path, lambda_: float, alpha: float) -> None:
    draw = random.Random(0)

    def scored(sample: int) -> Row:
        solution, thought, kl = ([draw.gauss(-2, 1) for _ in range(7)] for _ in range(3))
        terms = reward_terms(solution=np.array(solution), thought=np.array(thought), kl=np.array(kl), closed=sample > 2)
        same = reward_terms(
            solution=np.array(solution),
            thought=np.array(thought),
            kl=np.array(kl),
            closed=sample > 2,
            lambda_=lambda_,
            alpha=alpha,
        )
        rewards[f"q/{sample}"] = same.reward
        return trace("q", sample, **asdict(terms))

    rewards: dict[str, float | None] = {}
    run = make_run(tmp_path, [scored(sample) for sample in range(40)])
    ranked(run, lambda_=lambda_, alpha=alpha)
    assert {key: row["value"] for key, row in ranks(run).items()} == rewards  # to the last bit


def test_one_weight_leaves_the_other_as_it_was_scored(tmp_path: Path) -> None:
    run = make_run(tmp_path, [trace("q", 0, 0.0, kl_mean=1.0, kl_max=10.0)])
    run.record("score", {"settings": {"lambda": 2.0, "alpha": 0.5}})
    ranked(run, alpha=0.0)
    assert ranks(run)["q/0"]["value"] == -2.0
    ranked(run, lambda_=1.0)
    assert ranks(run)["q/0"]["value"] == -6.0


def test_weights_that_rank_does_not_take_are_those_of_the_score(tmp_path: Path) -> None:
    terms = {"solution_logprob_mean": -1.0, "solution_logprob_min": -2.0, "kl_mean": 1.0, "kl_max": 10.0}
    run = make_run(tmp_path, [trace("q", 0, 0.0, **terms)])
    run.record("score", {"settings": {"lambda": 2.0, "alpha": 0.5, "solution_weight": 3.0, "alpha_kl": 0.1}})
    ranked(run, lambda_=1.0)
    assert ranks(run)["q/0"]["value"] == 3 * (-1 - 0.5 * 2) - (1 + 0.1 * 10)


def test_where_ranks_the_rest_among_themselves(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        [trace("q", 0, 3.0, origin="a"), trace("q", 1, 2.0, origin="b"), trace("q", 2, 1.0), trace("q", 3, 0.0)],
        [trace("r", 0, 0.0, origin="a")],
    )
    summary = ranked(run, where=["origin <> 'a'", "reward < 2.5"])
    assert {key: (row["rank"], row["traces"]) for key, row in ranks(run).items()} == {"q/1": (1, 1)}
    assert (summary.rows, summary.questions) == (1, 1)
    first, second = summary.funnel
    assert (first.condition, first.rows_in, first.rows_out, first.unknown) == ("origin <> 'a'", 5, 1, 2)
    assert first.examples == ["q/0", "q/2", "q/3"]
    assert (second.rows_in, second.rows_out) == (1, 1)
    with pytest.raises(SettingsError, match="--where: no trace satisfies reward > 99"):
        ranked(run, where=["reward > 99"])
    assert len(ranks(run)) == 1  # the earlier ranks remain


WRONG = {
    "no such column": ("beauty", "no column 'beauty'"),
    "near miss": ("rewrad", "did you mean 'reward'"),
    "no expression": ("reward +", "not a SQL expression"),
    "a text": ("completion", "must be a number for each trace, not String"),
    "aggregate": ("reward - AVG(reward)", "depends on several rows"),
    "window": ("SUM(reward) OVER (PARTITION BY question_id)", "depends on several rows"),
    "ranks": ("rank", "rank is a column of ranks|cannot depend on earlier ranks"),
    "signal": ("pass_rate", "signal pass_rate; run rlt-data curate --signals pass_rate"),
    "empty": ("", "must not be empty"),
    "division by zero": ("reward / 0", "no trace has a finite value"),
    "a measure that was not computed": ("-ifd", r"no trace has a finite value \(score --measures ifd computes it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_expression_is_named(tmp_path: Path, case: str) -> None:
    run = make_run(tmp_path, [trace("q", 0, 1.0), trace("q", 1, 2.0), trace("q", 2, 4.0)])
    text, message = WRONG[case]
    with pytest.raises(SettingsError, match=f"--by: .*({message})"):
        ranked(run, by=text)


def test_an_origin_without_values_is_refused_with_what_would_work(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        [trace("q", 0, 1.0, origin="a"), trace("q", 1, None, origin="import", r_kl=None), trace("q", 2, 4.0)],
    )
    with pytest.raises(
        SettingsError, match=r"--by: reward: no trace of import has a finite value, 1 of 3 traces.*--by r_ss"
    ):
        ranked(run)
    ranked(run, by="r_ss")
    ranked(run, where=["origin = 'a'"])
    assert order(run) == ["q/0"]


def test_only_columns_with_values_are_recommended(tmp_path: Path) -> None:
    unsolved = {"reward_without_entropy": None, "r_ss": None, "r_kl": None, "rsr": 3.0}
    rows = [trace("q", 0, 1.0, origin="a", rsr=2.0), trace("q", 1, None, origin="b", **unsolved)]
    run = make_run(tmp_path / "pool", rows)
    with pytest.raises(
        SettingsError, match="no trace of b has a finite value.*; --by=-rsr ranks by what all origins have"
    ):
        ranked(run)
    with pytest.raises(SettingsError, match="without a solution.*; --by=-rsr ranks them"):
        ranked(run, where=["origin = 'b'"])
    run = make_run(tmp_path / "nothing", rows[:1], [trace("r", 0, None, origin="b", **unsolved | {"rsr": None})])
    with pytest.raises(SettingsError, match=r"without a solution\); --where selects origins"):
        ranked(run)
    with pytest.raises(SettingsError, match=r"or without a solution\)$"):
        ranked(run, where=["origin = 'b'"])
    run.record("score", {"settings": {"reward": "mine:reward"}})
    with pytest.raises(SettingsError, match=r"or if the function of --reward returned None\)$"):
        ranked(run, where=["origin = 'b'"])


def test_a_remedy_works_for_questions_without_a_solution(tmp_path: Path) -> None:
    unsolved = {"r_ss": None, "reward_without_entropy": None, "origin": "b"}
    rows = [trace("q", sample, None, rsr=float(sample), **unsolved) for sample in range(2)]
    with pytest.raises(SettingsError, match="no trace has a finite value .*without a solution.*; --by=-rsr ranks them"):
        ranked(make_run(tmp_path / "none", rows))
    run = make_run(tmp_path / "run", [*rows, trace("q", 2, 1.0, rsr=2.0, origin="a")])
    with pytest.raises(
        SettingsError, match="no trace of b has a finite value, .*; --by=-rsr ranks by what all origins"
    ):
        ranked(run, by="r_ss")
    ranked(run, by="-rsr")
    assert order(run) == ["q/0", "q/1", "q/2"]


def test_a_pool_of_many_origins_is_refused_in_a_short_message(tmp_path: Path) -> None:
    rows = [trace("q", sample, None, origin=f"{sample:03} " + "x" * 500) for sample in range(200)]
    with pytest.raises(SettingsError, match="no trace has a finite value"):
        ranked(make_run(tmp_path / "none", rows))
    run = make_run(tmp_path / "run", [*rows, trace("q", 200, 1.0, origin="a")])
    with pytest.raises(
        SettingsError, match=r"no trace of 000 x+\.\.\., 001 x+\.\.\., 002 x+\.\.\. and 197 more"
    ) as error:
        ranked(run)
    assert len(str(error.value)) < 500


def test_a_repeated_condition_is_counted_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, [trace("q", sample, float(sample)) for sample in range(4)])
    [step] = ranked(run, where=["reward > 0", "reward > 0"]).funnel
    assert (step.rows_in, step.rows_out, step.questions_in) == (4, 3, 1)


def test_traces_without_a_value_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, [trace("q", 0, 1.0), trace("q", 1, None), trace("q", 2, NAN), trace("q", 3, 4.0)])
    assert ranked(run).notes == ["2 of 4 traces have no value and rank below those that have one"]


def test_a_mean_log_prob_over_several_origins_is_noted(tmp_path: Path) -> None:
    one = [trace("q", sample, 1.0, origin="a", thought_logprob_mean=-1.0) for sample in range(3)]
    two = [trace("r", sample, 1.0, origin="b", thought_logprob_mean=-1.0) for sample in range(3)]
    assert not ranked(make_run(tmp_path / "one", one), by="thought_logprob_mean").notes
    run = make_run(tmp_path / "two", one, two)
    assert "known to misrank" in ranked(run, by="thought_logprob_mean").notes[0]
    assert not ranked(run, by="r_ss").notes


def test_weights_are_refused_where_they_have_no_effect(tmp_path: Path) -> None:
    run = make_run(tmp_path, [trace("q", 0, 1.0)])
    with pytest.raises(SettingsError, match="lambda: has no effect with --by r_ss"):
        ranked(run, by="r_ss", lambda_=1.0)
    run.record("score", {"settings": {"reward": "mine:short"}})
    with pytest.raises(SettingsError, match="--lambda: the scores have the reward of mine:short"):
        ranked(run, lambda_=1.0)


def test_other_weights_rank_as_a_run_that_was_scored_with_them(rlt: Rlt) -> None:
    """The ranks of a run scored at lambda 3, ranked with --lambda 1, are those of a run scored at lambda 1."""
    rlt("countdown", "make", "--rows", 6, "--out", "q.jsonl")
    rlt("generate", "q.jsonl", "--teacher", "nano", "--n", 4, "--out", "three")
    rlt("score", "three", "--student", "nano")
    rlt("score", "three", "--student", "nano", "--lambda", 1, "--alpha", 0, "--out", "one")
    rlt("rank", "three", "--lambda", 1, "--alpha", 0)
    rlt("rank", "one")
    ranks = {
        run: pl.read_parquet(f"{run}/ranks/*.parquet").drop("scored_by").sort("trace_id") for run in ("three", "one")
    }
    assert ranks["three"].equals(ranks["one"]) and ranks["one"]["value"].null_count() == 0
