from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlt_data.errors import DiskError, RunFolderError, SettingsError
from rlt_data.settings import MergeSettings, parse_settings
from rlt_data.steps import merge as merge_module
from rlt_data.steps.merge import MergeSummary, merge
from rlt_data.storage.errorlog import ErrorLog, failures
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import KEYS, QUESTIONS_PER_PART, to_table
from tests.conftest import Rlt, examples, write_jsonl
from tests.made_runs import distilled, drop_part, files_of, make_run, ranked, table, trace

Row = dict[str, Any]
Tiny = Callable[..., Path]

TABLES = ("questions", "traces", "scores")


def merging(out: Path, *runs: RunFolder) -> MergeSummary:
    return merge(parse_settings(MergeSettings, {"in": [str(run.path) for run in runs], "out": str(out)}))


def merged(out: Path, *runs: RunFolder) -> RunFolder:
    return RunFolder(merging(out, *runs).run)


def run_of(path: Path, questions: Iterable[int], **more: Any) -> RunFolder:
    """Make a run with one trace for each question."""
    rows = [trace(f"{question:04d}", 0, float(question), made_by=path.name, **more) for question in questions]
    return make_run(path, *in_parts(rows, QUESTIONS_PER_PART))


def in_parts(rows: list[Any], size: int) -> list[list[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def keys(run: RunFolder, name: str) -> list[str]:
    return table(run, name)[KEYS[name]].to_list()


def tables_of(run: RunFolder) -> dict[str, bytes | None]:
    return {name: content for name, content in files_of(run.path).items() if name.split("/")[0] in TABLES}


#: Runs as their questions, each with the samples that are there; a question may be in several of them.
RUNS = st.lists(
    st.dictionaries(st.integers(0, 14), st.sets(st.integers(0, 2), min_size=1), max_size=10), min_size=2, max_size=4
)


@settings(max_examples=examples(10), deadline=None)
@given(RUNS, st.sampled_from([0, 3000, 2**20]), st.randoms(use_true_random=False))
def test_a_merged_run_is_the_union_in_the_order_of_the_runs(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[dict[int, set[int]]], buffer_bytes: int, draw: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("case")
    runs: list[RunFolder] = []
    places: dict[str, int] = {}
    traces: dict[str, Row] = {}
    scored: set[str] = set()
    for number, samples in enumerate(drawn):
        order = in_parts(draw.sample(sorted(samples), len(samples)), 4)
        parts = [
            [trace(f"q{i}", sample, made_by=f"{number}") for i in chunk for sample in sorted(samples[i])]
            for chunk in order
        ]
        runs.append(make_run(folder / f"{number}", *parts))
        for part, rows in enumerate(parts):
            if draw.random() < 0.3:
                drop_part(runs[-1], "scores", part)
            else:
                scored.update(row["trace_id"] for row in rows)
            for row in rows:
                places.setdefault(row["question_id"], len(places))
                traces.setdefault(row["trace_id"], row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_module, "QUESTIONS_PER_PART", 4)
        patch.setattr(merge_module, "BUFFER_BYTES", buffer_bytes)
        union = merged(folder / "merged", *runs)
    expected = sorted(traces.values(), key=lambda row: (places[row["question_id"]], row["sample_index"]))
    for part, question_ids in enumerate(in_parts(list(places), 4)):
        assert union.read("questions", part)["question_id"].to_pylist() == question_ids
        of_part = [row for row in expected if row["question_id"] in question_ids]
        assert union.read("traces", part, columns := ["trace_id", "made_by", "completion"]).to_pylist() == [
            {name: row[name] for name in columns} for row in of_part
        ]
        assert union.read("scores", part)["trace_id"].to_pylist() == [
            row["trace_id"] for row in of_part if row["trace_id"] in scored
        ]
    counts = {name: union.count(name) for name in TABLES}
    assert counts == {"questions": len(places), "traces": len(traces), "scores": len(scored)}
    assert {path.name for path in union.path.iterdir()} - {"manifests"} == {
        "run.json",
        *(name for name in TABLES if counts[name]),
    }


@pytest.fixture
def shares(tmp_path: Path) -> list[RunFolder]:
    """Runs of several parts whose questions overlap and are ordered differently."""
    orders = list(range(400)), list(range(300, 600)), list(range(100, 700, 2))
    random.Random(0).shuffle(orders[1])
    return [run_of(tmp_path / f"share-{i}", order) for i, order in enumerate(orders)]


def test_the_merged_bytes_do_not_depend_on_buffering(
    tmp_path: Path, shares: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = merged(tmp_path / "one", *shares)
    monkeypatch.setattr(merge_module, "BUFFER_BYTES", 0)
    assert files_of(merged(tmp_path / "two", *shares).path) == files_of(one.path)
    assert one.parts("traces") == [0, 1, 2]


def test_any_order_of_the_runs_gives_the_same_rows(tmp_path: Path, shares: list[RunFolder]) -> None:
    one, other = merged(tmp_path / "one", *shares), merged(tmp_path / "other", *reversed(shares))
    for name in TABLES:
        assert keys(one, name) != keys(other, name) and sorted(keys(one, name)) == sorted(keys(other, name))


def test_a_merged_run_can_be_merged_again(tmp_path: Path, shares: list[RunFolder]) -> None:
    whole, pair = merged(tmp_path / "whole", *shares), merged(tmp_path / "pair", *shares[:2])
    grown = merged(tmp_path / "grown", pair, shares[2])
    assert tables_of(grown) == tables_of(whole)
    assert tables_of(merged(tmp_path / "again", whole, shares[1], grown)) == tables_of(whole)
    first, last = grown.step("merge")["sources"]
    assert (first["rows"]["traces"], last["rows"]["traces"]) == (600, 300)
    assert [source["run"] for source in first["sources"]] == [str(run.path) for run in shares[:2]]


def test_merge_counts_rows_and_duplicates(tmp_path: Path, shares: list[RunFolder]) -> None:
    summary = merging(tmp_path / "merged", *shares)
    none = {"thoughts": 0, "answers": 0, "grades": 0}
    assert summary.rows == dict.fromkeys(TABLES, 650) | none and summary.repeated == dict.fromkeys(TABLES, 350) | none
    assert (summary.runs, summary.failed, RunFolder(summary.run).step("merge")["rows"]) == (3, 0, summary.rows)


def test_merged_traces_keep_their_origins_and_copies_that_differ_are_counted(tmp_path: Path, rlt: Rlt) -> None:
    first = make_run(
        tmp_path / "first", [trace("a", i, origin="A", answer=str(i), meta=f'{{"i": {i}}}') for i in range(3)]
    )
    other = make_run(
        tmp_path / "other",
        [*(trace("a", i, origin="B" if i == 2 else "A", answer=str(i), meta=f'{{"i": {i}}}') for i in range(1, 4))],
    )
    summary = merging(tmp_path / "merged", first, other)
    assert summary.differing == {"questions": 0, "traces": 1}
    for name in ("traces", "scores"):
        rows = table(RunFolder(summary.run), name).select("sample_index", "origin", "meta").rows()
        assert rows == [(i, "A", f'{{"i": {i}}}') for i in range(4)]
    assert table(RunFolder(summary.run), "traces")["answer"].to_list() == ["0", "1", "2", "3"]
    printed = rlt("merge", "--in", first.path, "--in", other.path, "--out", tmp_path / "again").stdout
    assert "another origin, answer or other --keep columns: 1 traces;" in printed


def test_source_runs_do_not_change_and_unchanged_parts_are_hard_links(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "a", range(512)), run_of(tmp_path / "b", range(512, 600))]
    ranked(runs[0])
    (runs[1].path / ".lock").touch()
    before = [files_of(run.path) for run in runs]
    merged_run = merged(tmp_path / "merged", *runs)
    assert [files_of(run.path) for run in runs] == before
    for name in TABLES:
        for part, (run, its) in enumerate([(runs[0], 0), (runs[0], 1), (runs[1], 0)]):
            assert os.path.samefile(merged_run.part_file(name, part), run.part_file(name, its))
    assert not merged_run.parts("ranks") and not merged_run.step("rank")
    assert ranked(merged_run).rows == 600


def test_rows_in_journals_are_merged(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, [trace(f"{name}{i}", 0) for i in range(3)]) for name in "abc"]
    for run in runs[1:]:
        rows = run.read("traces", 0)
        drop_part(run, "traces", 0)
        for row in (2, 0):
            run.add_segment("traces", 0, rows.slice(row, 1))
    assert keys(merged(tmp_path / "merged", *runs), "traces") == [
        "a0/0", "a1/0", "a2/0", "b0/0", "b2/0", "c0/0", "c2/0"
    ]  # fmt: skip
    alone = merged(tmp_path / "alone", runs[1], RunFolder.existing(run_of(tmp_path / "nothing", []).path))
    assert keys(alone, "traces") == ["b0/0", "b2/0"] and not (alone.path / "journal").exists()


def test_answers_and_grades_are_merged_too(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        run = run_of(tmp_path / name, range(2) if name == "a" else range(1, 4))
        ids = [{"answer_id": f"{key}/0", "question_id": key, "sample_index": 0} for key in keys(run, "questions")]
        more = {"completion": name, "completion_tokens": 1, "made_by": name, "answer": "", "correct": True}
        rows = [row | more | {"formatted": True, "truncated": False} for row in ids]
        run.write_part("answers", 0, to_table("answers", rows))
        run.write_part("grades", 0, to_table("grades", rows[1:]))
        runs.append(run)
    merged_run = merged(tmp_path / "merged", *runs)
    assert table(merged_run, "answers")["made_by"].to_list() == ["a", "a", "b", "b"]
    assert keys(merged_run, "grades") == ["0001/0", "0002/0", "0003/0"]


def test_run_json_entries_come_from_the_first_run_that_has_them(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, range(i, i + 1)) for i, name in enumerate("abcd")]
    for run in runs[:2]:
        drop_part(run, "scores", 0)
    runs[0].record("score", {"depends_on": {"student": "a wrong start"}})
    for run in runs[2:]:
        run.record("score", {"depends_on": {"student": "s"}, "settings": {"in": run.path.name}, "rows": 1})
    for run in runs[1:]:
        run.record("generate", {"depends_on": {"seed": 0}, "settings": {"in": run.path.name}})
        run.record("input", {"digest": f"of {run.path.name}"})
    merged_run = merged(tmp_path / "merged", *runs)
    assert merged_run.step("generate") == {"depends_on": {"seed": 0}, "settings": {"in": "b"}, "rows": 4, "failed": 0}
    assert merged_run.step("score")["settings"] == {"in": "c"} and merged_run.step("score")["rows"] == 2
    assert merged_run.step("input") == {"digest": "of b"}
    assert [source["input"] for source in merged_run.step("merge")["sources"]] == [None, "of b", "of c", "of d"]


def test_a_merged_run_records_the_inputs_of_all_runs(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, range(i, i + 1)) for i, name in enumerate("abc")]
    first, second = {"name": "one.jsonl", "on_hub": False}, {"name": "org/two", "on_hub": True, "split": "train"}
    for run, inputs in zip(runs, ([first], [second, first], [first]), strict=True):
        run.record("input", {"digest": "1", "inputs": inputs})
    assert merged(tmp_path / "merged", *runs).step("input")["inputs"] == [first, second]


def test_runs_of_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, range(1)) for name in "ab"]
    for run, temperature in zip(runs, (0.7, 1.0), strict=True):
        run.record("score", {"depends_on": {"temperature": temperature, "alpha": 0}})
    with pytest.raises(RunFolderError) as error:
        merged(tmp_path / "merged", *runs)
    for fact in (str(runs[0].path), str(runs[1].path), "score", "temperature 0.7 and 1.0"):
        assert fact in str(error.value)
    assert "alpha" not in str(error.value) and not (tmp_path / "merged").exists()


def test_failures_are_carried_over_unless_another_run_has_the_row(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, range(2 * i, 2 * i + 2)) for i, name in enumerate("abc")]
    for step, key, run in [
        ("generate", "0002/0", 0),  # a trace that the second run made
        ("generate", "0003", 0),  # a question of which the second run made traces
        ("generate", "0009/0", 0),
        ("score", "0004/0", 1),  # scored by the third run
        ("score", "0009/0", 1),
        ("generate", "0009/0", 2),
        ("generate", "0009/0", 2),
    ]:
        ErrorLog(runs[run], step).add(key, f"in {run}", None)
    summary = merging(tmp_path / "merged", *runs)
    assert {(entry["step"], entry["key"], entry["reason"]) for entry in failures(RunFolder(summary.run))} == {
        ("generate", "0009/0", "in 0"), ("score", "0009/0", "in 1")
    }  # fmt: skip
    assert summary.failed == 2


def test_a_failed_merge_leaves_nothing_and_a_killed_one_does_not_block_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run_of(tmp_path / name, range(3 * i, 3 * i + 3)) for i, name in enumerate("ab")]
    content = runs[1].part_file("traces", 0).read_bytes()
    runs[1].part_file("traces", 0).write_bytes(b"PAR1 nonsense PAR1")
    torn = tmp_path / ".merged.rlt-data" / "new" / "merged" / "traces"
    torn.mkdir(parents=True)
    (torn / "part-00007.parquet").touch()
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(RunFolderError, match="is truncated"):
        merged(tmp_path / "merged", *runs)
    assert {path.name for path in tmp_path.iterdir()} == before
    runs[1].part_file("traces", 0).write_bytes(content)
    assert RunFolder(merging(tmp_path / "merged", *runs).run).parts("traces") == [0]


def test_rows_without_their_question_are_refused(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, range(3)) for name in "ab"]
    runs[1].write_part("questions", 0, runs[1].read("questions", 0).slice(1))
    with pytest.raises(RunFolderError, match="b: part 0 of traces "):
        merged(tmp_path / "merged", *runs)


def test_folders_that_cannot_be_merged(tmp_path: Path) -> None:
    a, b = run_of(tmp_path / "a", range(3)), run_of(tmp_path / "b", range(3, 6))
    (tmp_path / "link").symlink_to(a.path, target_is_directory=True)
    with pytest.raises(SettingsError, match=r"--in: .*a and .*link are the same folder; name each run once"):
        merged(tmp_path / "merged", a, b, RunFolder(tmp_path / "link"))
    with pytest.raises(SettingsError, match=r"--out: .*merged .*b\b"):
        merged(b.path / "deep" / "merged", a, b)
    for out in (a.path, tmp_path / "link"):
        with pytest.raises(RunFolderError, match=f"{out.name}: .*--out"):
            merged(out, a, b)
    with b.locked(), pytest.raises(RunFolderError, match="b: another rlt-data process is writing to this folder"):
        merged(tmp_path / "merged", a, RunFolder(b.path))
    assert not (tmp_path / "merged").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, largest_file: Any) -> None:
    draw = random.Random(0)
    runs = [
        run_of(tmp_path / name, range(200 * i, 200 * i + 200), completion=draw.randbytes(500).hex())
        for i, name in enumerate("ab")
    ]
    before = set(tmp_path.iterdir())
    with pytest.raises(DiskError, match="cannot write "), largest_file(10 * 1024):
        merged(tmp_path / "merged", *runs)
    assert set(tmp_path.iterdir()) == before
    assert len(merged(tmp_path / "merged", *runs).read("traces", 0)) > 0


def test_a_data_set_of_a_merged_run_contains_no_local_path(tmp_path: Path) -> None:
    merged_run = merged(tmp_path / "merged", run_of(tmp_path / "a", range(3)), run_of(tmp_path / "b", range(2, 6)))
    ranked(merged_run)
    record = json.loads((distilled(merged_run).out / "distill.json").read_text())
    assert record["steps"]["merge"]["rows"]["traces"] == 6 and str(tmp_path) not in json.dumps(record)


def test_merged_shares_equal_the_unsplit_run_and_can_be_continued(
    rlt: Rlt, tiny: Tiny, problems: Path, tmp_path: Path
) -> None:
    """Merge two shares of an input and a third run with more samples and no scores."""
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    write_jsonl(tmp_path / "first.jsonl", rows[:3])
    write_jsonl(tmp_path / "second.jsonl", rows[3:])
    models = "--teacher", tiny(), "--max-tokens", 12
    for name, file, samples in [("whole", problems, 2), ("a", "first.jsonl", 2), ("b", "second.jsonl", 2)]:
        rlt("generate", "--in", file, *models, "--n", samples, "--out", name)
        rlt("score", "--in", name, "--student", tiny("chat", 1))
    rlt("generate", "--in", problems, *models, "--n", 3, "--out", "more")
    printed = rlt("merge", "--in", "a", "--in", "b", "--out", "merged").stdout
    assert "6 questions, 12 traces, 12 scores" in printed and "merged" in printed and "rlt-data rank" in printed
    assert "0 new" in rlt("generate", "--in", problems, *models, "--n", 2, "--out", "merged").stdout
    assert "0 new" in rlt("score", "--in", "merged", "--student", tiny("chat", 1)).stdout
    for name in ("traces", "scores"):
        assert keys(RunFolder("merged"), name) == keys(RunFolder("whole"), name)
    assert "12 traces of 6 questions" in rlt("rank", "--in", "merged").stdout
    printed = rlt("merge", "--in", "more", "--in", "merged", "--out", "all").stdout
    assert "6 questions, 18 traces, 12 scores" in printed and "6 questions, 12 traces\n" in printed
    assert "18 scores (6 new)" in rlt("score", "--in", "all", "--student", tiny("chat", 1)).stdout
    assert "18 traces of 6 questions" in rlt("rank", "--in", "all").stdout


def test_signals_are_not_merged_and_named(tmp_path: Path, rlt: Rlt) -> None:
    (tmp_path / "mine.yaml").write_text("long: thought_tokens > 5\n")
    runs = [run_of(tmp_path / "a", range(3)), run_of(tmp_path / "b", range(3, 5))]
    rlt("curate", runs[0].path, "--signals", tmp_path / "mine.yaml")
    printed = rlt("merge", *[run.path for run in runs], "--out", tmp_path / "both").stdout
    assert "signals are not merged (mine); run rlt-data curate" in printed
    assert not RunFolder(tmp_path / "both").signals
