from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from rlt_data.cli.output import printable
from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.reporting.browse import find
from rlt_data.statistics import TERMS, stats
from rlt_data.storage.errorlog import ErrorLog
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import SCHEMAS, to_table
from tests.conftest import Rlt
from tests.made_runs import add_signal, distilled, make_run, ranked, trace

Read = Callable[[Path, str], pl.DataFrame]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    draw = [0.5, -1.25, 3.0, None, 2.0, -7.5]
    first = [trace("a", i, value, r_ss=float(i), kl_mean=None) for i, value in enumerate(draw)]
    second = [trace("b", 0, 1.0, truncated=True, closed=False), trace("b", 1, 1.5, finish_reason=None)]
    return make_run(tmp_path / "run", first, second)


def test_figures_equal_those_computed_from_the_tables(run: RunFolder, read: Read) -> None:
    ErrorLog(run, "score").add("a/9", "too long", "source of a")
    found, scores, traces = stats(run), read(run.path, "scores"), read(run.path, "traces")
    assert found.rows == {"questions": 2, "traces": 8, "scores": 8, "ranks": 0}
    assert found.finish_reasons == {"length": 1, "stop": 6, "unknown": 1}
    assert found.completion_tokens == traces["completion_tokens"].sum() and found.failed == {"score": 1}
    shares = {"closed": 7 / 8, "truncated": 1 / 8, "empty": 0.0, "holds_tag": 0.0, "control_token": 0.0}
    assert found.shares == shares | {"well_formed": 7 / 8}
    assert found.terms["term"].to_list() == list(TERMS)
    for row in found.terms.to_dicts():
        values = scores[row["term"]].drop_nulls().to_numpy()
        assert row["mean"] == pytest.approx(values.mean())
        assert row["std"] == pytest.approx(values.std(ddof=1))
        for name, share in {"min": 0, "q25": 25, "median": 50, "q75": 75, "max": 100}.items():
            assert row[name] == pytest.approx(float(pl.Series(values).quantile(share / 100, "linear") or 0))


def test_terms_without_values_and_runs_without_scores_have_no_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0, None), trace("a", 1, None)])
    reward = stats(run).terms.filter(term="reward").to_dicts()[0]
    assert {value for name, value in reward.items() if name != "term"} == {None}
    bare = RunFolder(tmp_path / "bare")
    bare.record("input", {})
    assert stats(bare).shares == {} and set(stats(bare).rows.values()) == {0}


def test_wide_figures_are_printed_completely(rlt: Rlt, tmp_path: Path) -> None:
    rows = [trace("a", i, value, solution_logprob_min=value) for i, value in enumerate((-123456.75, -234567.25))]
    run = make_run(tmp_path / "run", rows)
    printed = rlt("stats", run.path).stdout
    [line] = [line for line in printed.splitlines() if "solution_logprob_min" in line]
    assert line.split()[1:] == [
        "-179012.000", "78566.988", "-234567.250", "-206789.625", "-179012.000", "-151234.375", "-123456.750"
    ]  # fmt: skip
    assert "well formed 100.0%" in printed and "2 scores" in printed


@pytest.mark.parametrize("key", ["source of b", "b"])
def test_a_question_is_found_by_its_id_or_its_source_with_all_traces_best_first(run: RunFolder, key: str) -> None:
    shown = find(run, key)
    assert shown.question["question"] == "What is b?"
    assert [row["trace_id"] for row in shown.traces] == ["b/1", "b/0"]


def test_a_trace_is_found_by_a_prefix_of_its_id(run: RunFolder) -> None:
    shown = find(run, "a/4")
    assert [row["trace_id"] for row in shown.traces] == ["a/4"] and shown.traces[0]["r_ss"] == 4.0
    assert shown.question["question_id"] == "a"


def test_a_source_id_takes_precedence_over_a_key_prefix(tmp_path: Path) -> None:
    """Source ids are often row numbers, and hashes often start with a digit."""
    rows = [
        trace("3f00", 0, source_id="0"),
        trace("a1", 0, trace_id="3a", source_id="1"),
        trace("b2", 0, source_id="3"),
    ]
    run = make_run(tmp_path / "run", rows[:2], rows[2:])
    for part in (0, 1):
        questions = run.read("questions", part).to_pylist()
        sources = {"3f00": "0", "a1": "1", "b2": "3"}
        renamed = [row | {"source_id": sources[row["question_id"]]} for row in questions]
        run.write_part("questions", part, to_table("questions", renamed))
    assert find(run, "3").question["question_id"] == "b2"
    assert find(run, "3f").question["question_id"] == "3f00"
    assert [row["trace_id"] for row in find(run, "3a").traces] == ["3a"]


def test_an_imported_trace_is_found_by_its_own_source_id(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", i, source_id=f"row {i}") for i in range(3)])
    assert [row["trace_id"] for row in find(run, "row 2").traces] == ["a/2"]


def test_the_first_question_is_shown_without_a_key(run: RunFolder) -> None:
    assert find(run).question["question_id"] == "a" and len(find(run).traces) == 6


def test_traces_are_shown_by_rank_if_ranked(run: RunFolder) -> None:
    assert [row["trace_id"] for row in find(run, "a").traces][:2] == ["a/2", "a/4"]  # by reward
    ranked(run, by="r_ss")
    assert [row["trace_id"] for row in find(run, "a").traces] == [f"a/{i}" for i in (5, 4, 3, 2, 1, 0)]


def test_unknown_keys_are_refused(rlt: Rlt, run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'zzz'"):
        find(run, "zzz")
    with pytest.raises(RunFolderError, match="no such run folder"):
        find(RunFolder.existing(tmp_path / "nothing"))
    assert rlt("show", run.path, "zzz", code=2).stderr.count("error: ") == 1
    assert "not a run folder" in rlt("stats", tmp_path, code=5).stderr
    bare = RunFolder(tmp_path / "bare")
    bare.record("input", {})
    assert "no traces yet" in rlt("show", bare.path, code=2).stderr


def test_show_prints_a_trace_with_its_scores_and_only_the_ends_if_asked(rlt: Rlt, run: RunFolder) -> None:
    ranked(run)
    printed = rlt("show", run.path, "a").stdout
    assert [line for line in printed.splitlines() if line.startswith("Thought")] == [
        f"Thought {i} about a." for i in (2, 4, 0, 1, 5, 3)
    ]
    assert "What is a?" in printed and "It is a." in printed
    assert "rank 1 of 6, trace a/2, sample 2, stop" in printed and "reward 3.000" in printed
    ends = rlt("show", run.path, "a", "--ends").stdout
    assert re.findall(r"Thought (\d)", ends) == ["2", "3"]
    assert re.findall(r"Thought (\d)", rlt("show", run.path, "a/4", "--ends").stdout) == ["4"]


def test_show_prints_what_signals_found(rlt: Rlt, run: RunFolder) -> None:
    add_signal(run, "answer", "trace", answer_verdict={"a/2": "wrong"}, repeats={"a/2": True, "a/4": False})
    add_signal(run, "contamination", "question", contaminated_by={"a": "benchmark.jsonl 7"})
    expected = "answer_verdict: wrong; repeats; contaminated_by: benchmark.jsonl 7\n"
    assert expected in rlt("show", run.path, "a/2").stdout
    assert expected in rlt("show", run.path, "--where", "repeats").stdout
    printed = rlt("show", run.path, "a/4").stdout
    assert "contaminated_by: benchmark.jsonl 7" in printed and "repeats" not in printed and "verdict" not in printed


def shown(rlt: Rlt, *arguments: object) -> list[str]:
    """Return the traces that ``show`` prints, in its order."""
    printed = rlt("show", *arguments).stdout
    return [f"{question}/{sample}" for sample, question in re.findall(r"^Thought (\d) about (\w)", printed, re.M)]


def test_show_prints_the_best_or_the_worst_traces_of_the_run(rlt: Rlt, run: RunFolder) -> None:
    assert shown(rlt, run.path, "--worst", 2) == ["a/5", "a/1"]
    assert shown(rlt, run.path, "--best", 3) == ["a/2", "a/4", "b/1"]
    assert shown(rlt, run.path, "b", "--best", 3) == ["b/1", "b/0"]
    assert shown(rlt, run.path, "--best", 99)[-2:] == ["a/5", "a/3"]  # the one without a reward comes last
    assert shown(rlt, run.path, "--worst", 99)[-1] == "a/3"
    ranked(run, by="r_ss")
    assert shown(rlt, run.path, "--best", 1) == ["a/5"]  # by what the run is ranked by


def test_show_prints_the_traces_that_satisfy_an_expression_over_all_tables(rlt: Rlt, run: RunFolder) -> None:
    assert shown(rlt, run.path, "--where", "reward < 0") == ["a/1", "a/5"]
    assert shown(rlt, run.path, "--where", "closed and reward > 1", "--worst", 1) == ["b/1"]
    assert shown(rlt, run.path, "--where", "question LIKE '%b%' AND finish_reason IS NULL") == ["b/1"]
    assert shown(rlt, run.path, "--where", "reward < 1", "--where", "sample_index > 1") == ["a/5"]
    printed = rlt("show", run.path, "--where", "reward > 99").stdout
    assert printed == "0 of 8 traces satisfy reward > 99 (1 others have no value to compare)\n"
    ranked(run)
    assert shown(rlt, run.path, "--where", "rank = 1") == ["a/2", "b/1"]


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("rewrad < 1", "'reward'"),
        ("zzzzz < 1", "trace_id"),
        ("reward <", "reward <"),
        ("reward", "must be true or false"),
        ("reward > avg(reward)", "depends on several rows"),
        ("reward < 'x'", "string"),
        ("rank = 1", "ranks"),
        ("nosuch(reward)", "nosuch"),
        ("", "expression"),
    ],
)
def test_a_wrong_expression_is_one_line(rlt: Rlt, run: RunFolder, where: str, names: str) -> None:
    errors = rlt("show", run.path, "--where", where, code=2).stderr
    assert errors.startswith("error: --where: ") and names in errors and errors.count("\n") == 1


def test_show_says_what_else_it_can_show(rlt: Rlt, run: RunFolder) -> None:
    notice = rlt("show", run.path).stderr
    assert "1 of 2" in notice and all(word in notice for word in ("KEY", "--best", "--worst", "--where"))
    assert rlt("show", run.path, "b").stderr == ""
    many = make_run(run.path.parent / "many", [trace("a", i, float(i)) for i in range(30)])
    assert "30 of 30" in rlt("show", many.path, "--where", "true").stdout
    assert len(re.findall("^Thought", rlt("show", many.path, "--where", "true").stdout, re.M)) == 10


@pytest.mark.parametrize("flags", [("--best", 1, "--worst", 1), ("--ends", "--best", 1), ("--ends", "--where", "true")])
def test_choices_that_exclude_each_other_are_refused(rlt: Rlt, run: RunFolder, flags: tuple[object, ...]) -> None:
    assert rlt("show", run.path, *flags, code=2).stderr.count("error: --") == 1


def test_traces_without_scores_have_no_worst(rlt: Rlt, tmp_path: Path) -> None:
    scored = make_run(tmp_path / "scored", [trace("a", 0)])
    run = RunFolder(tmp_path / "run")
    for table in ("questions", "traces"):
        run.write_part(table, 0, scored.read(table, 0))
    run.record("input", {})
    assert "rlt-data score" in rlt("show", run.path, "--worst", 1, code=5).stderr
    assert shown(rlt, run.path, "--where", "true") == ["a/0"]
    assert "scores" in rlt("show", run.path, "--where", "reward > 0", code=2).stderr


HOSTILE = "\x1b[31mred\x1b[0m \x1b]0;title\x07 bell\b\b\b \x9b2J \x7f \u202eturned\r over"


def test_nothing_in_a_trace_or_an_id_drives_the_terminal(rlt: Rlt, tmp_path: Path) -> None:
    row = trace("a", 0, trace_id=HOSTILE, source_id=HOSTILE, completion=HOSTILE)
    run = make_run(tmp_path / "run", [row])
    question = {"question_id": "a", "source_id": HOSTILE, "question": HOSTILE, "solution": HOSTILE}
    run.write_part("questions", 0, to_table("questions", [question]))
    printed = rlt("show", run.path).stdout
    assert not set(printed) & {char for char in HOSTILE if not char.isprintable()}
    assert (
        printed.count("red") == 5
    )  # it is all there: the source id, the question, the solution, the trace's id and its text


def test_nothing_in_an_input_drives_the_terminal(rlt: Rlt, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"question,solution,{HOSTILE[:20]}\nq,s,x\n")
    assert "\x1b" not in rlt("check", "--in", path).output


@pytest.mark.parametrize(
    "text",
    [
        "[bold]not bold[/bold] [link=file:///etc/passwd]here[/link] [/] [red",
        ":warning: :smile: :not_an_emoji:",
        "ends with a backslash \\",
        r"\[bold] \\[bold]",
        "tabs\tand\n\nlines",
        "Où est-il\u00a0? 你好\u3000 🙂 e\u0301",
        "word " * 100 + "x" * 300,
    ],
)
def test_a_trace_is_printed_as_it_is(rlt: Rlt, tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0, completion=text)])
    assert rlt("show", run.path).stdout.endswith(text + "\n")
    assert printable(text) == text


@pytest.mark.parametrize("source", ["[bold]a[/bold]", ":warning:", "a\\"])
def test_an_id_is_printed_as_it_is(rlt: Rlt, tmp_path: Path, source: str) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0)])
    [question] = run.read("questions", 0).to_pylist()
    run.write_part("questions", 0, to_table("questions", [question | {"source_id": source}]))
    assert f"--- question a (source {source})\n" in rlt("show", run.path).stdout


def test_a_table_from_before_a_nullable_column_existed_is_read_with_nulls(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0), trace("b", 0)])
    ranked(run)
    before = distilled(run, out=str(tmp_path / "before"))
    run.write_part("traces", 0, run.read("traces", 0).drop_columns(["meta"]))
    again = RunFolder(run.path)
    assert again.read("traces", 0)["meta"].to_pylist() == [None, None]
    assert again.read("traces", 0).schema.names == SCHEMAS["traces"].names
    assert stats(again).rows["traces"] == 2 and find(again, "b").traces[0]["meta"] is None
    assert distilled(again, out=str(tmp_path / "after")).rows == before.rows
    run.write_part("traces", 0, run.read("traces", 0).drop_columns(["completion"]))
    with pytest.raises(RunFolderError, match="cannot be read as a table"):
        RunFolder(run.path).read("traces", 0)


def test_origin_and_kept_columns_are_shown_with_the_trace_or_the_question_that_has_them(
    rlt: Rlt, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0, meta='{"m": "A"}', origin="A"), trace("a", 1)])
    [question] = run.read("questions", 0).to_pylist()
    run.write_part("questions", 0, to_table("questions", [{**question, "meta": '{"q": 1}'}]))
    for command in (["show", run.path], ["show", run.path, "--where", "origin = 'A' OR meta IS NULL"]):
        lines = rlt(*command).stdout.splitlines()
        first = lines.index("Thought 0 about a.")
        assert lines[first - 2 : first] == ["origin: A", '{"m": "A"}']
        assert lines[lines.index("What is a?") - 1] == '{"q": 1}'
        assert lines[lines.index("Thought 1 about a.") - 1].startswith("reward")
    lines = rlt("stats", run.path).stdout.splitlines()
    assert any(re.match(r"A +1 ", line) for line in lines) and any(re.match(r"unknown +1 ", line) for line in lines)


def test_a_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nosuch"):
        stats(RunFolder(tmp_path / "nosuch"))


def test_origins_are_compared_by_measures_selection_and_answers(tmp_path: Path) -> None:
    a = [trace("q", i, float(i), origin="A", rsr=2.0 + i) for i in range(3)]
    b = [trace("q", 3 + i, -1.0, origin="B", rsr=None, well_formed=i > 0) for i in range(2)]
    run = make_run(tmp_path / "run", [*a, *b, trace("q", 9, 5.0)], [trace("r", 0, 4.0, origin="A", rsr=float("nan"))])
    verdicts = ["correct", "wrong", "none", "wrong", "timeout", "none", "correct"]
    rows = [row for part in (0, 1) for row in run.read("traces", part).to_pylist()]
    entry = {"level": "trace", "columns": {"answer_verdict": "string"}, "depends_on": {}}
    with run.locked():
        run.record("curate", {"signals": {"answer": entry}})
        verdict = dict(zip([row["trace_id"] for row in rows], verdicts, strict=True))
        for part in (0, 1):
            keys = run.read("traces", part, ["trace_id", "question_id", "sample_index"])
            column = pa.array([verdict[key] for key in keys["trace_id"].to_pylist()])
            run.write_part("signal_answer", part, keys.append_column("answer_verdict", column))
        run.compact_all("signal_answer")
    ranked(run)
    distilled(run, select="best")
    table = {row["origin"]: row for row in stats(run).by_origin.to_dicts()}
    assert {name: row["traces"] for name, row in table.items()} == {"A": 4, "B": 2, "unknown": 1}
    assert table["A"]["reward"] == pytest.approx((0 + 1 + 2 + 4) / 4) and table["A"]["rsr"] == 3.0
    assert table["B"]["rsr"] is None and table["B"]["well_formed"] == 0.5
    assert {name: row["selected"] for name, row in table.items()} == {"A": 0.25, "B": 0.0, "unknown": 1.0}
    assert {name: row["correct"] for name, row in table.items()} == {"A": 2 / 3, "B": 0.0, "unknown": None}


def test_a_table_has_one_short_line_for_each_origin(rlt: Rlt, tmp_path: Path) -> None:
    names = ["first\nsecond", "x" * 500, "plain"]
    make_run(tmp_path / "run", [trace("q", sample, 0.0, origin=name) for sample, name in enumerate(names)])
    lines = rlt("stats", tmp_path / "run").stdout.splitlines()
    assert [line.split("  ")[0].strip() for line in lines if line.startswith(("first", "xx", "plain", "second"))] == [
        "first second",
        "plain",
        "x" * 97 + "...",
    ]


def test_ranks_that_were_never_made_are_not_outdated(rlt: Rlt, run: RunFolder) -> None:
    assert not stats(run).ranks_outdated and "rank again" not in rlt("stats", run.path).stdout
    ranked(run)
    run.write_part("scores", 1, run.read("scores", 1).slice(1))
    assert stats(RunFolder(run.path)).ranks_outdated
