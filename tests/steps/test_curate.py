from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rlt_data.errors import InputError, RltDataError, RunFolderError, SettingsError
from rlt_data.settings import CurateSettings, parse_settings
from rlt_data.signals.base import Column, Signal
from rlt_data.signals.registry import SIGNALS
from rlt_data.steps.curate import CurateSummary, curate
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.conftest import write_jsonl
from tests.killing import command, run_and_kill
from tests.made_runs import distilled, files_of, make_run, ranked, trace


def curated(run: RunFolder, *signals: str, **settings: Any) -> CurateSummary:
    content = {"in": str(run.path), "signals": list(signals)} | settings
    return curate(parse_settings(CurateSettings, content))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    parts = [[trace(f"{part}-{q}", sample, float(q)) for q in range(3) for sample in range(2)] for part in range(3)]
    return make_run(tmp_path / "run", *parts)


@pytest.fixture
def expressions(tmp_path: Path) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text("good: reward > 0.5\nmargin: r_ss - 2 * r_kl + sample_index\nwho: origin\n")
    return str(file)


FUNCTION = """
import polars as pl

def {name}(rows):
    return rows.select({columns})
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module with a signal function, and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(columns: str, name: str = "brevity") -> str:
        module = f"signals_{abs(hash((columns, name)))}"
        Path(f"{module}.py").write_text(FUNCTION.format(name=name, columns=columns))
        return f"{module}:{name}"

    return write


def test_expressions_become_columns_of_the_scan(run: RunFolder, expressions: str) -> None:
    summary = curated(run, expressions)
    [signal] = summary.signals
    assert (signal.name, signal.rows, signal.new) == ("mine", 18, 18)
    assert signal.findings == {"good": 12}
    rows = run.scan().collect()
    assert rows["good"].to_list() == [value > 0.5 for value in rows["reward"]]
    assert rows["margin"].to_list() == [float(index) for index in rows["sample_index"]]
    assert rows["who"].null_count() == 18


def test_a_second_call_computes_nothing(run: RunFolder, expressions: str) -> None:
    curated(run, expressions)
    before = files_of(Path(str(run.path)))
    assert [signal.new for signal in curated(run, expressions).signals] == [0]
    assert files_of(Path(str(run.path))) == before


def test_one_changed_signal_is_computed_again(run: RunFolder, expressions: str, plug_in: Any) -> None:
    function = plug_in("size=pl.col('explanation').str.len_chars()")
    curated(run, expressions, function)
    Path(expressions).write_text("good: reward > 1.5\n")
    assert {s.name: s.new for s in curated(run, expressions, function).signals} == {"mine": 18, "brevity": 0}
    assert run.scan().collect()["good"].sum() == 6
    assert "margin" not in run.scan().collect_schema()


def test_new_traces_are_added_to_signals_of_rows(run: RunFolder, plug_in: Any) -> None:
    function = plug_in("size=pl.col('explanation').str.len_chars()")
    curated(run, function)
    again = RunFolder(run.path)
    more = [trace("1-1", sample, 0.0) for sample in (2, 3)]
    rows = [*again.read("traces", 1).to_pylist(), *more]
    with again.locked():
        again.write_part("traces", 1, to_table("traces", rows))
        again.compact_all("traces")
    assert not again.is_current("signal_brevity")
    assert "size" not in again.scan().collect_schema()  # an incomplete signal is no column
    [signal] = curated(again, function).signals
    assert (signal.rows, signal.new) == (20, 2)
    assert again.scan().collect()["size"].null_count() == 0


def test_an_expression_is_out_of_date_with_its_scores(run: RunFolder, expressions: str) -> None:
    curated(run, expressions)
    with run.locked():
        rows = run.read("scores", 0).to_pylist()
        run.write_part("scores", 0, to_table("scores", [row | {"reward": 9.0} for row in rows]))
        run.compact_all("scores")
    assert not run.is_current("signal_mine")
    with pytest.raises(SettingsError, match="good is a column of the signal mine, which does not cover all rows"):
        ranked(run, by="CASE WHEN good THEN 1 ELSE 0 END")
    curated(run, expressions)
    ranked(run, by="CASE WHEN good THEN 1 ELSE 0 END")


def test_ranks_by_a_signal_are_out_of_date_with_it(run: RunFolder, expressions: str) -> None:
    curated(run, expressions)
    ranked(run, by="margin")
    assert run.is_current("ranks")
    Path(expressions).write_text("margin: r_ss + sample_index\n")
    curated(run, expressions)
    assert not RunFolder(run.path).is_current("ranks")


def test_a_question_level_signal_reaches_all_traces(run: RunFolder, tmp_path: Path) -> None:
    evaluation = RunFolder(tmp_path / "evaluation")
    questions = [{"question_id": str(q), "question": f"What is 0-{q}?", "solution": "x"} for q in range(2)]
    grades: list[dict[str, Any]] = [
        {
            "answer_id": f"{q}/{sample}",
            "question_id": str(q),
            "sample_index": sample,
            "answer": "x",
            "correct": sample < q + 1,
            "formatted": True,
            "truncated": False,
            "completion_tokens": 1,
            "completion": "x",
            "made_by": "x",
        }
        for q in range(2)
        for sample in range(4)
    ]
    for table, rows in (("questions", questions), ("answers", grades), ("grades", grades)):
        evaluation.write_part(table, 0, to_table(table, rows))
    evaluation.record("evaluate", {})
    curated(run, evaluation=str(evaluation.path), signals=["pass_rate"])
    rates = run.scan().collect().group_by("question_id").agg(pl.col("pass_rate").unique())
    assert dict(rates.filter(pl.col("question_id").str.starts_with("0")).iter_rows()) == {
        "0-0": [0.25],
        "0-1": [0.5],
        "0-2": [None],
    }
    other = make_run(tmp_path / "other", [trace("elsewhere", 0, 0.0)])
    with pytest.raises(SettingsError, match="has none of the questions"):
        curated(other, evaluation=str(evaluation.path), signals=["pass_rate"])


def test_reviews_come_from_a_file(run: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "reviews.jsonl"
    file.write_text('{"trace_id": "0-0/1", "review": "good"}\n{"trace_id": "1-0/0", "review": "bad"}\n')
    [signal] = curated(run, "review", reviews=str(file)).signals
    assert signal.findings == {"review bad": 1, "review good": 1}
    assert dict(
        run.scan().filter(pl.col("review").is_not_null()).select("trace_id", "review").collect().iter_rows()
    ) == {
        "0-0/1": "good",
        "1-0/0": "bad",
    }
    file.write_text('{"trace_id": "nowhere", "review": "good"}\n')
    with pytest.raises(InputError, match="1 of 1 ids are no traces"):
        curated(run, "review", reviews=str(file))
    assert run.scan().collect()["review"].count() == 2  # the earlier reviews remain
    file.write_text('{"trace": "0-0/1"}\n')
    with pytest.raises(InputError, match=f"--reviews: {file}: line 1: needs the columns trace_id and review"):
        curated(run, "review", reviews=str(file))


def test_a_spreadsheet_may_list_traces_without_a_review(run: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text("\ufefftrace_id;review\r\n0-0/1;gut\r\n0-0/0;\r\n")
    assert curated(run, "review", reviews=str(file)).signals[0].findings == {"review gut": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("0-0/1", "good"), ("0-0/1", "bad")], "line 2: 0-0/1 has another review in an earlier row"),
        ([("0-0/1", None), ("0-0/0", "")], "has no reviews"),
        ([("0-0/1", ["good"])], "line 1: trace_id must be a text, and review a text"),
        ([("0-0/1", "good"), ("0-0", "good")], "1 of 2 ids are no traces of this run, such as 0-0$"),
    ],
)
def test_mistakes_in_reviews(run: RunFolder, tmp_path: Path, rows: list[tuple[str, Any]], message: str) -> None:
    file = write_jsonl(tmp_path / "reviews.jsonl", [{"trace_id": key, "review": review} for key, review in rows])
    with pytest.raises(InputError, match=f"--reviews: {file}: {message}"):
        curated(run, "review", reviews=str(file))


@pytest.mark.parametrize(
    ("flag", "signal"),
    [("max_repetition", "text"), ("max_leak", "leak"), ("similarity", "duplicates")],
)
def test_a_setting_of_a_signal_that_is_not_computed_is_refused(run: RunFolder, flag: str, signal: str) -> None:
    with pytest.raises(SettingsError, match=f"--{flag.replace('_', '-')}: has no effect without --signals {signal}"):
        curated(run, "answer", **{flag: 0.3})
    assert [entry.name for entry in curated(run, "answer", signal, **{flag: 0.3}).signals] == ["answer", signal]


def test_a_benchmark_with_a_bad_row_is_refused_without_a_flag_that_curate_lacks(run: RunFolder, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "benchmark.jsonl", [{"question": None}, {"question": "What is 1-1?"}])
    with pytest.raises(InputError, match=r"--against: .*1 of 2 rows are bad\n  line 1: question: missing"):
        curated(run, "contamination", against=[str(file)])


MISTAKES = {
    "unknown": (["txt_"], "no signal 'txt_'"),
    "no function": (["os:nothing"], "os has no 'nothing'"),
    "no file": (["nothing.yaml"], "nothing.yaml: cannot be read"),
    "needs a setting": (["pass_rate"], "pass_rate needs --evaluation"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_the_names_of_signals(run: RunFolder, case: str) -> None:
    names, message = MISTAKES[case]
    with pytest.raises(RltDataError, match=message):
        curated(run, *names)


def test_a_missing_file_is_an_error_before_any_signal_is_computed(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--against: .*missing.jsonl: no such file"):
        curated(run, against=[str(tmp_path / "missing.jsonl")])
    assert not run.signals


def test_a_missing_package_is_announced_once_and_first(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    for _ in range(2):
        curated(run, "text", "answer")
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage() == (
        "curate: math-verify is not installed; the signal answer stops at the first row that needs it. "
        "pip install 'rlt-data[eval]'"
    )
    assert run.signals.keys() == {"text", "answer"}


YAML_MISTAKES = {
    "a list": ("- a\n", "must map names of columns to SQL expressions"),
    "a number": ("a: 1\n", "must map names of columns to SQL expressions"),
    "empty": ("", "must map names of columns to SQL expressions"),
    "no column": ("a: beauty + 1\n", "a: no column 'beauty'"),
    "aggregate": ("a: AVG(reward)\n", "a: AVG.*depends on several rows"),
    "taken": ("reward: r_ss\n", "scores has a column 'reward' already"),
    "a list column": ("a: solution_logprobs\n", "a must be true or false, a number or a text"),
    "a key column": ("question_id: reward\n", "traces has a column 'question_id' already"),
    "the key of the table": ("trace_id: reward\n", "traces has a column 'trace_id' already"),
    "a column without a name": ("'': reward\n", "column '' must be letters, digits and underscores"),
    "a column twice": ("a: reward\nb: r_ss\na: r_kl\n", "line 3: has the key 'a' twice"),
    "a wide number": ("a: seed\n", "returned other columns: conversion from `u64` to `i64` failed"),
}


@pytest.mark.parametrize("case", YAML_MISTAKES)
def test_mistakes_in_a_file_of_expressions(tmp_path: Path, case: str) -> None:
    run = make_run(tmp_path / "run", [trace("q", sample, float(sample), seed=2**63) for sample in range(2)])
    text, message = YAML_MISTAKES[case]
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RltDataError, match=message) as error:
        curated(run, str(file))
    assert not run.parts("signal_mine") and "\n" not in str(error.value)


def test_two_files_of_one_name_are_not_one_signal(run: RunFolder, tmp_path: Path) -> None:
    for name, text in (("mine.yaml", "a: reward\n"), ("mine.yml", "b: r_ss\n")):
        (tmp_path / name).write_text(text)
    with pytest.raises(SettingsError, match=r"mine.yaml and .*mine.yml are both called mine; rename one"):
        curated(run, str(tmp_path / "mine.yaml"), str(tmp_path / "mine.yml"))


def test_an_expression_over_its_own_column_is_refused(run: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("a: reward\n")
    curated(run, str(file))
    file.write_text("a: a + 1\n")
    with pytest.raises(SettingsError, match=r"mine.yaml: reads a column that it makes"):
        curated(run, str(file))
    assert run.scan().collect()["a"].null_count() == 0


def test_signals_that_are_left_out_of_date_are_named_with_their_command(
    run: RunFolder, expressions: str, tmp_path: Path
) -> None:
    benchmark = write_jsonl(tmp_path / "benchmark.jsonl", [{"question": "What is 1-1?"}])
    curated(run, expressions, "contamination", against=[str(benchmark)])
    run.write_part("questions", 3, to_table("questions", [{"question_id": "n", "question": "New?", "solution": "s"}]))
    new = trace("n", 0)
    for table in ("traces", "scores"):
        run.write_part(table, 3, to_table(table, [new]))
        run.compact_all(table)
    skipped = curated(run).skipped
    assert skipped["contamination"] == "out of date; rlt-data curate RUN --against ..."
    assert skipped["mine"] == "out of date; rlt-data curate RUN --signals, with the file of mine"
    ranked(run)
    with pytest.raises(RunFolderError, match=r"contamination does not cover .*; run rlt-data curate RUN --against"):
        distilled(run)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("pl.col('beauty')", "raised ColumnNotFoundError"),
        ("exit(3)", "raised SystemExit: 3"),
        ("pl.col('explanation').head(1)", "returned 1 rows for 6 traces"),
        ("a=pl.struct('question')", "a must be true or false, a number or a text"),
        (
            "a=pl.when(pl.col('question').str.contains('2-')).then(pl.lit('x')).otherwise(pl.lit('1')).cast(pl.Int64)",
            "",
        ),
    ],
)
def test_a_function_that_fails_is_named(run: RunFolder, plug_in: Any, columns: str, message: str) -> None:
    name = plug_in(columns)
    with pytest.raises(SettingsError, match=f"({name}|brevity).*{message}"):
        curated(run, name)


def test_two_signals_cannot_have_a_column_of_one_name(run: RunFolder, plug_in: Any, tmp_path: Path) -> None:
    function = plug_in("size=pl.col('explanation').str.len_chars()")
    curated(run, function)
    (tmp_path / "other.yaml").write_text("size: thought_tokens\n")
    with pytest.raises(SettingsError, match="brevity has a column 'size' already"):
        curated(run, str(tmp_path / "other.yaml"))


def test_a_run_without_traces_has_nothing_to_curate(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.record("generate", {})
    with pytest.raises(RunFolderError, match="has no traces to curate"):
        curated(run)


SLOW = """
import sys, time
import polars as pl
from pathlib import Path

def slow(rows):
    if Path("pause").exists():
        print("part", flush=True)
        time.sleep(0.3)
    return rows.select(size=pl.col("explanation").str.len_chars(), first=pl.col("question").str.slice(0, 4))
"""


def test_a_killed_call_ends_like_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [[trace(f"{part}-{q}", 0, float(q)) for q in range(2)] for part in range(6)]
    killed, undisturbed = (make_run(tmp_path / name, *parts) for name in ("killed", "undisturbed"))
    (tmp_path / "slow_signal.py").write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    arguments = [sys.executable, "-m", "rlt_data.cli.main", "curate", "killed", "--signals", "slow_signal:slow"]
    (tmp_path / "pause").touch()
    for _ in range(2):
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
        )
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "part\n"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert 1 <= RunFolder(killed.path).count("signal_slow") < 12
    (tmp_path / "pause").unlink()
    for run in (killed, undisturbed):
        curated(RunFolder(run.path), "slow_signal:slow")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "undisturbed")


def test_rows_of_a_whole_signal_may_come_in_any_order(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(frames: Any, *_: Any) -> Any:
        rows = pl.concat(list(frames))
        yield rows.select("trace_id", same=pl.len().over("question")).reverse().head(7)
        yield rows.select("trace_id", same=pl.len().over("question")).head(11)

    whole = Signal("whole", "trace", {"same": Column(pl.Int64, "x")}, ("question",), compute, whole=True)
    monkeypatch.setitem(SIGNALS, "whole", whole)
    curated(run, "whole")
    assert run.scan().collect()["same"].to_list() == [2] * 18
    for version, wrong in enumerate((lambda rows: rows[:-1], lambda rows: rows[[*range(18), 4]]), 2):

        def of_other_rows(*arguments: Any, wrong: Any = wrong) -> Any:
            yield wrong(pl.concat(compute(*arguments)))

        monkeypatch.setitem(SIGNALS, "whole", replace(whole, compute=of_other_rows, version=version))
        with pytest.raises(SettingsError, match="must return each row once"):
            curated(run, "whole")
    assert run.scan().collect()["same"].to_list() == [2] * 18


def test_signals_are_recorded_and_settings_make_them_new(run: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "reviews.jsonl"
    file.write_text('{"trace_id": "0-0/1", "review": "good"}\n')
    curated(run, "review", reviews=str(file))
    entry = json.loads((Path(str(run.path)) / "run.json").read_text())["steps"]["curate"]["signals"]["review"]
    assert entry["columns"] == {"review": "string"} and entry["level"] == "trace"
    file.write_text('{"trace_id": "0-0/1", "review": "bad"}\n')
    assert curated(run, "review", reviews=str(file)).signals[0].new == 18
    assert curated(run, "review", reviews=str(file)).signals[0].new == 0


@pytest.mark.slow
def test_killed_default_signals_end_like_undisturbed_ones(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = "we add both numbers then divide by the rest and get another sum which is larger than before".split()

    def row(part: int, question: int, sample: int) -> dict[str, Any]:
        text = " ".join(draw.choices(words, k=200)) + f" So the answer is {draw.randrange(9)}. "
        return trace(f"{part}-{question}", sample, 0.0, completion=text + "<|end_of_explanation|>")

    parts = [[row(part, q, sample) for q in range(256) for sample in range(4)] for part in range(4)]
    killed, undisturbed = (make_run(tmp_path / name, *parts) for name in ("killed", "undisturbed"))
    against = tmp_path / "benchmark.jsonl"
    against.write_text('{"question": "What is 2-7?"}\n')
    arguments = command("curate", Path(str(killed.path)), "--against", against)
    kills = run_and_kill(arguments, kills=12, seconds=3.0, seed=0)
    assert kills >= 3
    curated(undisturbed, against=[str(against)])
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "undisturbed")
