"""Which traces conditions, signals, ids and caps leave for a data set, and that the funnel counts the others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pyarrow.parquet as pq
import pytest

from rlt_data.errors import InputError, RunFolderError, SettingsError
from rlt_data.signals.funnel import FunnelStep
from rlt_data.steps import rank as rank_module
from rlt_data.steps.distill import DistillSummary
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.conftest import Rlt
from tests.made_runs import add_signal, distilled, files_of, make_run, ranked, trace


def data(summary: DistillSummary) -> pl.DataFrame:
    return pl.read_ndjson(Path(str(summary.out)) / "train.jsonl", infer_schema_length=None)


def selected(run: RunFolder, **settings: Any) -> list[str]:
    return data(distilled(run, **settings))["trace_id"].to_list()


def step(summary: DistillSummary, condition: str) -> FunnelStep:
    [found] = [step for step in summary.funnel if step.condition == condition]
    return found


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Questions a, b and c in two parts, with three traces each; sample 2 is the best. Origins: X, Y, null."""
    rows = {q: [trace(q, i, float(i), origin=[None, "Y", "X"][i], r_ss=-float(i)) for i in range(3)] for q in "abc"}
    run = make_run(tmp_path / "run", [*rows["a"], *rows["b"]], rows["c"])
    ranked(run)
    return run


# --where


def test_conditions_apply_before_the_best_trace_is_chosen(run: RunFolder) -> None:
    assert selected(run) == ["a/2", "b/2", "c/2"]
    assert selected(run, where="reward < 2") == ["a/1", "b/1", "c/1"]
    assert selected(run, where=["reward < 2", "question_id <> 'b'"], select="top:2") == ["a/1", "a/0", "c/1", "c/0"]


def test_a_rank_means_this_trace_or_none(run: RunFolder) -> None:
    assert selected(run, select="rank:1", where="question_id <> 'b'") == ["a/2", "c/2"]
    with pytest.raises(SettingsError, match=r"--select rank:1.*|reward < 2 \(3\)"):
        distilled(run, select="rank:1", where="reward < 2")


def test_each_condition_is_a_line_of_the_funnel_and_shows_nulls(run: RunFolder) -> None:
    summary = distilled(run, where=["origin <> 'X'", "question_id <> 'b'"], select="all")
    first, second = step(summary, "origin <> 'X'"), step(summary, "question_id <> 'b'")
    assert (first.rows_in, first.rows_out, first.unknown) == (9, 3, 3)
    assert first.examples == ["a/0", "a/2", "b/0"]
    assert (second.rows_in, second.rows_out, second.unknown, second.examples) == (3, 2, 0, ["b/1"])
    assert (second.questions_in, second.questions_out) == (3, 2)
    recorded = json.loads((summary.out / "distill.json").read_text())
    assert [entry["condition"] for entry in recorded["funnel"] if not entry["note"]] == [
        "well-formed",
        "origin <> 'X'",
        "question_id <> 'b'",
    ]
    assert recorded["settings"]["where"] == ["origin <> 'X'", "question_id <> 'b'"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("rewrad > 1", "did you mean 'reward'"),
        ("reward", "must be true or false"),
        ("ifd > 1 AND repeats", "repeats is a column of the signal text; run rlt-data curate"),
        ("reward >= max(reward)", "depends on several rows"),
    ],
)
def test_a_wrong_condition_is_one_line_and_keeps_the_data_set(
    rlt: Rlt, run: RunFolder, where: str, message: str
) -> None:
    distilled(run)
    before = files_of(run.path)
    errors = rlt("distill", run.path, "--where", where, code=2).stderr
    assert errors.startswith("error: --where: ") and message in errors and errors.count("\n") == 1
    assert files_of(run.path) == before


def test_a_condition_over_a_signal(run: RunFolder) -> None:
    add_signal(run, "mine", "trace", score={"a/0": 5, "b/1": 7, "c/2": 1})
    summary = distilled(run, where="score > 2")
    assert data(summary)["trace_id"].to_list() == ["a/0", "b/1"] and step(summary, "score > 2").unknown == 6


# Default conditions


def test_contaminated_and_duplicate_rows_are_left_out(run: RunFolder) -> None:
    add_signal(run, "contamination", "question", contaminated={"a": True, "b": False, "c": False})
    add_signal(run, "duplicates", "question", question_duplicate_of={"c": "b"})
    add_signal(run, "copies", "trace", trace_duplicate_of={"b/2": "b/0"})
    summary = distilled(run, select="all")
    assert data(summary)["trace_id"].to_list() == ["b/1", "b/0"]
    counts = {entry.condition: (entry.rows_in, entry.rows_out, entry.examples) for entry in summary.funnel}
    assert counts == {
        "well-formed": (9, 9, []),
        "contaminated": (9, 6, ["a/0", "a/1", "a/2"]),
        "duplicate": (6, 2, ["b/2", "c/0", "c/1"]),
    }
    assert selected(run, include="contaminated") == ["a/2", "b/1"]
    assert selected(run, include=["duplicate", "contaminated"]) == ["a/2", "b/2", "c/2"]
    lifted = distilled(run, include="duplicate")
    assert step(lifted, "duplicate").note == "not applied with --include duplicate"
    assert selected(run, where="NOT contaminated", include=["contaminated", "duplicate"]) == ["b/2", "c/2"]


def test_a_signal_that_was_not_computed_sets_no_condition_and_the_funnel_says_so(rlt: Rlt, run: RunFolder) -> None:
    printed = rlt("distill", run.path).stdout.splitlines()
    assert "  contaminated: not computed; rlt-data curate RUN --against FILE" in printed
    assert "  duplicate: not computed; rlt-data curate RUN" in printed
    assert printed[0].startswith("3 rows")


@pytest.mark.parametrize(("level", "column"), [("question", "question_duplicate_of"), ("trace", "trace_duplicate_of")])
def test_a_signal_that_does_not_cover_all_rows_is_refused(
    rlt: Rlt, run: RunFolder, tmp_path: Path, level: str, column: str
) -> None:
    add_signal(run, "duplicates", level, **{column: {f"c{'/0' * (level == 'trace')}": "x"}})
    with run.locked():
        run.write_part("questions", 2, to_table("questions", [{"question_id": "d", "question": "?", "solution": "."}]))
        run.write_part("traces", 2, to_table("traces", [trace("d", 0)]))
        run.write_part("scores", 2, to_table("scores", [trace("d", 0)]))
    ranked(run)
    errors = rlt("distill", run.path, code=5).stderr
    assert errors.count("\n") == 1 and "the signal duplicates does not cover all rows; run rlt-data curate" in errors
    with pytest.raises(SettingsError, match="--where: .*does not cover all rows"):
        distilled(run, include="duplicate", where=f"{column} IS NULL")
    assert len(selected(run, include="duplicate")) == 4


def test_a_condition_named_like_a_default_one_does_not_replace_it(run: RunFolder) -> None:
    add_signal(run, "contamination", "question", contaminated={"a": True, "b": False, "c": False})
    with pytest.raises(SettingsError, match=r"contaminated \(1\), --where contaminated \(2\)"):
        distilled(run, where="contaminated")
    assert selected(run, where="contaminated", include="contaminated") == ["a/2"]


def test_another_member_stands_in_for_one_that_another_condition_drops(run: RunFolder) -> None:
    add_signal(run, "duplicates", "question", question_duplicate_of={"a": "c", "b": "c"})
    add_signal(run, "copies", "trace", trace_duplicate_of={"a/1": "a/2", "a/0": "a/2"})
    whole = distilled(run)
    assert data(whole)["trace_id"].to_list() == ["c/2"] and step(whole, "duplicate").remark == ""
    kept = distilled(run, where="question_id <> 'c'", select="all")
    assert data(kept)["trace_id"].to_list() == ["a/2"]
    assert step(kept, "duplicate").remark.startswith("1 clusters keep another member")
    kept = distilled(run, where=["question_id <> 'c'", "reward < 2"], select="all")
    assert data(kept)["trace_id"].to_list() == ["a/0"]  # the smallest id of those that are left
    assert step(kept, "duplicate").remark.startswith("2 clusters keep another member")
    ranked(run, where="question_id = 'b'")
    assert selected(run) == ["b/2"]  # the others have no rank


def test_nothing_stands_in_for_a_contaminated_question(run: RunFolder) -> None:
    add_signal(run, "duplicates", "question", question_duplicate_of={"a": "c"})
    add_signal(run, "contamination", "question", contaminated={"a": False, "b": False, "c": True})
    assert selected(run) == ["b/2"]
    assert selected(run, include="contaminated") == ["b/2", "c/2"]
    assert selected(run, include="contaminated", where="question_id <> 'c'") == ["a/2", "b/2"]


@pytest.fixture
def flawed(tmp_path: Path) -> RunFolder:
    """One trace with each combination of flaws that --include knows, and one with a tag."""
    token = {"control_token": True, "well_formed": False}
    cut = {"truncated": True, "closed": False}
    run = make_run(
        tmp_path / "flawed",
        [
            trace("a", 0),
            trace("a", 1, **token),
            trace("a", 2, **cut),
            trace("a", 3, **cut, **token),
            trace("a", 4, closed=False),
            trace("a", 5, closed=False, **token),
            trace("a", 6, holds_tag=True),
        ],
    )
    ranked(run)
    return run


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ([], ["a/0"]),
        (["truncated"], ["a/0", "a/2"]),
        (["control-token"], ["a/0", "a/1"]),
        (["control-token", "truncated"], ["a/0", "a/1", "a/2", "a/3"]),
    ],
)
def test_include_accepts_only_the_flaws_that_it_names(
    flawed: RunFolder, include: list[str], expected: list[str]
) -> None:
    summary = distilled(flawed, include=include, select="all")
    assert sorted(data(summary)["trace_id"]) == expected
    name = " or ".join(["well-formed", *sorted(include, reverse=True)])
    assert step(summary, name).rows_out == len(expected) and "holds tag 1" in step(summary, name).remark


def test_unknown_inclusions_are_refused(rlt: Rlt, run: RunFolder) -> None:
    errors = rlt("distill", run.path, "--include", "empty", code=2).stderr
    assert errors.startswith("error: --include") and "control-token" in errors and errors.count("\n") == 1


def test_a_trace_whose_score_failed_is_in_the_funnel(run: RunFolder) -> None:
    run.write_part("scores", 0, run.read("scores", 0).slice(1))
    run.folder.write("errors.jsonl", lambda path: path.write_text('{"step": "score", "key": "a/0", "reason": "x"}\n'))
    ranked(run)
    assert step(distilled(run), "ranked").examples == ["a/0"]


# Preference


def test_chosen_and_rejected_traces_fulfil_the_conditions(run: RunFolder, tiny: Any) -> None:
    add_signal(run, "copies", "trace", trace_duplicate_of={"b/0": "b/1"})
    settings = {"shape": "preference", "tokenizer": str(tiny())}
    pairs = data(distilled(run, where="reward < 2 OR question_id <> 'a'", **settings))
    rejected = [row["rejected"].split("Thought ")[1][0] for row in pairs.to_dicts()]
    assert list(zip(pairs["trace_id"], rejected, strict=True)) == [("a/1", "0"), ("b/2", "1"), ("c/2", "0")]
    summary = distilled(run, where="reward > 0 OR question_id <> 'a'", rejected="rank:3", **settings)
    assert data(summary)["trace_id"].to_list() == ["c/2"] and step(summary, "--rejected rank:3").questions_out == 1


def test_a_pair_has_two_texts(run: RunFolder, tiny: Any) -> None:
    texts = {"a/0": "same", "a/2": " same\n", "b/0": "same", "b/2": "same"}
    for part in run.parts("traces"):
        rows = run.read("traces", part).to_pylist()
        for row in rows:
            key = row["trace_id"]
            row["completion"] = f"{texts.get(key, key)}<|end_of_explanation|>"
            row["solution"] = "It is no b." if key == "b/0" else None
        run.write_part("traces", part, to_table("traces", rows))
    summary = distilled(run, shape="preference", tokenizer=str(tiny()))
    assert data(summary)["trace_id"].to_list() == ["b/2", "c/2"]  # the solutions of b differ
    assert step(summary, "--rejected worst").questions_out == 2


# Solutions


def test_a_trace_without_a_solution_is_in_no_data_set(tmp_path: Path) -> None:
    rows = [trace("a", 0, 1.0), trace("a", 1, 2.0, solution_tokens=0), trace("b", 0, 3.0, solution_tokens=0)]
    run = make_run(tmp_path / "run", rows)
    ranked(run)
    summary = distilled(run)
    assert data(summary)["trace_id"].to_list() == ["a/0"] and step(summary, "has a solution").rows_out == 1
    ids = write_ids(tmp_path, "txt", ["a/0", "b/0"])
    assert data(distilled(run, ids=str(ids)))["trace_id"].to_list() == ["a/0"]
    with pytest.raises(SettingsError, match=r"has a solution \(1\)"):
        distilled(run, where="question_id = 'b'")


# --per and --cap


def test_a_cap_limits_the_rows_of_each_value(run: RunFolder) -> None:
    summary = distilled(run, select="all", per="origin", cap=2)
    assert Counter(data(summary)["origin"]) == {"X": 2, "Y": 2, None: 2}
    line = step(summary, "--per origin --cap 2")
    assert (line.rows_in, line.rows_out, len(line.examples)) == (9, 6, 3)
    assert Counter(data(distilled(run, select="all", per="question_id", cap=1))["trace_id"]) == {
        "a/2": 1, "b/2": 1, "c/2": 1,
    }  # fmt: skip
    assert len(selected(run, select="all", per="reward > 1", cap=2, limit=3)) == 3


def test_a_cap_does_not_depend_on_the_order_of_questions_or_on_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = [[trace(f"{q}", i, float((q * 7 + i) % 5), origin="XYZ"[i]) for i in range(3)] for q in range(100, 120)]
    one = make_run(tmp_path / "one", [row for question in traces for row in question])
    many = make_run(tmp_path / "many", *reversed(traces))
    drawn = []
    for run, parts_at_a_time in ((one, 64), (many, 64), (many, 3)):
        monkeypatch.setattr(rank_module, "PARTS_AT_A_TIME", parts_at_a_time)
        ranked(run)
        drawn.append(sorted(selected(run, select="all", per="origin", cap=4, seed=5)))
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) == 12
    assert drawn[0] != sorted(selected(one, select="all", per="origin", cap=4, seed=6))
    first = {row["trace_id"] for question in traces[:4] for row in question}
    assert not set(drawn[0]) <= first  # the first questions of the table are not favoured


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--per", "origin"), "--per: requires --cap"),
        (("--cap", 2), "--cap: requires --per"),
        (("--per", "orgin", "--cap", 2), "--per: no column 'orgin'; did you mean 'origin'?"),
        (("--per", "token_ids", "--cap", 2), "--per: token_ids: must be one number or text"),
        (("--per", "INTERVAL '1 day'", "--cap", 2), "--per: INTERVAL '1 day': must be one number or text"),
        (("--per", "", "--cap", 2), "--per: must not be empty"),
    ],
)
def test_a_cap_needs_an_expression_with_one_value(
    rlt: Rlt, run: RunFolder, flags: tuple[object, ...], message: str
) -> None:
    errors = rlt("distill", run.path, *flags, code=2).stderr
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1


# --ids


def write_ids(folder: Path, kind: str, ids: list[str]) -> Path:
    file = folder / f"ids.{kind}"
    frame = pl.DataFrame({"note": ["x"] * len(ids), "trace_id": ids})
    if kind == "txt":
        file.write_text("\n".join(ids) + "\n\n")
    elif kind == "jsonl":
        frame.write_ndjson(file)
    elif kind == "csv":
        frame.write_csv(file)
    else:
        frame.write_parquet(file)
    return file


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_ids_select_exactly_these_traces(run: RunFolder, tmp_path: Path, kind: str) -> None:
    add_signal(run, "contamination", "question", contaminated={"a": True})
    file = write_ids(tmp_path, kind, ["c/0", "a/1", "c/2", "a/1"])
    summary = distilled(run, ids=str(file))
    assert data(summary)["trace_id"].to_list() == ["a/1", "c/2", "c/0"]
    assert (step(summary, "--ids").rows_in, step(summary, "--ids").rows_out) == (9, 3)
    notes = {entry.condition: entry.note for entry in summary.funnel if entry.note}
    assert notes == dict.fromkeys(["well-formed", "contaminated", "duplicate"], "not applied with --ids")
    recorded = json.loads((summary.out / "distill.json").read_text())
    assert recorded["settings"]["ids"] == file.name and recorded["ids"]["count"] == 3
    assert str(tmp_path) not in json.dumps(recorded["settings"])


def test_ids_take_malformed_traces_and_further_conditions(flawed: RunFolder, tmp_path: Path) -> None:
    file = str(write_ids(tmp_path, "txt", ["a/2", "a/4", "a/0"]))
    assert sorted(selected(flawed, ids=file)) == ["a/0", "a/2", "a/4"]
    assert selected(flawed, ids=file, where="truncated") == ["a/2"]
    assert len(selected(flawed, ids=file, limit=1)) == 1


def test_unknown_ids_are_refused(rlt: Rlt, run: RunFolder, tmp_path: Path) -> None:
    file = write_ids(tmp_path, "txt", ["a/1", "nosuch", "a/9"])
    errors = rlt("distill", run.path, "--ids", file, code=3).stderr
    assert errors.count("\n") == 1 and "2 of 3 ids" in errors and "such as nosuch" in errors
    assert not (run.path / "dataset").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": "best"}, "select: has no effect with --ids"),
        ({"include": "truncated"}, "include: has no effect with --ids"),
        ({"shape": "preference"}, "ids: cannot be combined"),
    ],
)
def test_ids_are_the_selection(run: RunFolder, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    file = str(write_ids(tmp_path, "txt", ["a/1"]))
    with pytest.raises(SettingsError, match=message):
        distilled(run, ids=file, **{"select": "all", **settings} if "shape" not in settings else settings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ids.txt", "\n\n", "has no ids"),
        ("ids.jsonl", '{"id": "a/1"}\n', "line 1: has no column trace_id, only 'id'"),
        ("ids.jsonl", '{"trace_id": 7}\n', "line 1: trace_id is not a text"),
        ("ids.csv", "trace_id,note\n0123456789ab,good\n", "such as 0123456789ab; a complete id has 32 characters"),
        ("ids.txt", None, "no such file"),
        ("ids.bin", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_without_ids_is_one_line(
    run: RunFolder, tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"--ids: .*{message}"):
        distilled(run, ids=str(tmp_path / name))


# --columns


def test_columns_of_the_run_are_added_to_the_rows(run: RunFolder, tmp_path: Path) -> None:
    add_signal(run, "answer", "trace", answer_verdict={"a/2": "correct", "b/2": "wrong"})
    add_signal(run, "pass_rate", "question", pass_rate={"a": 0.25, "c": float("nan")})
    names = ["answer_verdict", "pass_rate", "r_ss", "solution_tokens", "closed", "question"]
    summary = distilled(run, columns=names)
    table = pq.read_table(next(Path(str(summary.out)).glob("data/*.parquet")))
    assert table.select(["trace_id", *names]).to_pylist() == [
        {"trace_id": f"{q}/2", "answer_verdict": verdict, "pass_rate": rate, "r_ss": -2.0, "solution_tokens": 1,
         "closed": True, "question": f"What is {q}?"}
        for q, verdict, rate in (("a", "correct", 0.25), ("b", "wrong", None), ("c", None, None))
    ]  # fmt: skip
    types = {name: str(table.schema.field(name).type) for name in names}
    assert types == dict(zip(names, ["string", "double", "double", "int64", "bool", "string"], strict=True))
    loaded = datasets.load_dataset(str(summary.out), cache_dir=str(tmp_path / "cache"))["train"].to_list()
    lines = (summary.out / "train.jsonl").read_text().splitlines()
    assert loaded == [json.loads(line) for line in lines]
    meanings = json.loads((summary.out / "distill.json").read_text())["columns"]
    assert list(meanings) == names and meanings["question"] == "the question"
    assert meanings["pass_rate"].startswith("share of the solver's answers")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("rank", "every row of --shape messages has a column 'rank'"),
        ("messages", "no column 'messages'"),
        ("r_sss", "did you mean 'r_ss'"),
        ("token_ids", "token_ids has a list per trace"),
        ("seed", "seed has numbers above 2^63"),
        ("pass_rate", "signal pass_rate; run rlt-data curate --signals pass_rate --evaluation ... first"),
    ],
)
def test_columns_that_cannot_be_added_are_refused(rlt: Rlt, run: RunFolder, column: str, message: str) -> None:
    errors = rlt("distill", run.path, "--columns", column, code=2).stderr
    assert errors.startswith("error: --columns: ") and message in errors and errors.count("\n") == 1


# Stale results


def test_ranks_that_were_made_from_a_signal_are_refused_after_it_changes(run: RunFolder) -> None:
    add_signal(run, "mine", "trace", score={"a/0": 5})
    ranks = {part: run.read("ranks", part) for part in run.parts("ranks")}
    with run.locked(), run.replacing("ranks", made_from=["scores", "signal_mine"]) as new:
        for part, rows in ranks.items():
            new.write(part, rows)
    assert len(selected(run)) == 3
    add_signal(run, "mine", "trace", score={"a/0": 6})
    with pytest.raises(RunFolderError, match="ranks are older than the scores or signals"):
        distilled(run)


def test_a_data_set_is_older_than_the_signals_that_selected_its_rows(run: RunFolder) -> None:
    add_signal(run, "mine", "trace", score={"a/0": 5})
    add_signal(run, "other", "trace", unread={"a/0": 5})
    summary = distilled(run, where="score > 1")
    made_from = json.loads((summary.out / "distill.json").read_text())["made_from"]
    assert list(made_from) == ["ranks", "signal_mine"] and run.changed(made_from) == []
    add_signal(run, "other", "trace", unread={"a/0": 6})
    assert run.changed(made_from) == []
    add_signal(run, "mine", "trace", score={"a/0": 6})
    assert run.changed(made_from) == ["signal_mine"]
