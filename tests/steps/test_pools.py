"""Runs with traces of several teachers, of several sampling settings of one, and of imports."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from rlt_data.errors import RunFolderError
from rlt_data.publish.push import push
from rlt_data.reporting.facts import facts
from rlt_data.reporting.live import Watch
from rlt_data.settings import MergeSettings, PushSettings, parse_settings
from rlt_data.statistics import stats
from rlt_data.steps.makers import recorded_makers
from rlt_data.steps.merge import merge
from rlt_data.storage.errorlog import ErrorLog, failures
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash, to_table
from tests.conftest import Rlt, write_jsonl
from tests.killing import assert_same_table, command, environment, table_bytes
from tests.made_runs import make_run, ranked, trace

Tiny = Callable[..., Path]
Read = Callable[[Path, str], pl.DataFrame]

QUESTION = (
    "Combine the numbers {} with +, -, * and / to reach {}. Use every number exactly once; brackets are allowed. "
    "Answer with one expression."
)
#: Three problems in the words of the miniature models.
PROBLEMS = [
    {"id": name, "question": QUESTION.format(numbers, target), "solution": way}
    for name, numbers, target, way in [
        ("a", "11, 6 and 14", 52, "11 * 6 - 14"),
        ("b", "5, 6 and 4", 29, "5 + 4 * 6"),
        ("c", "1, 13 and 10", 24, "1 + 13 + 10"),
    ]
]
TRACES = [row | {"explanation": f"Try {row['solution']}.", "model": "R1"} for row in PROBLEMS]
FIRST = "nano-teacher", "--n", 2
WARM = "nano-teacher-warm", "--n", 3
STUDENT = "--student", "nano-student"


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "problems.jsonl", PROBLEMS)


@pytest.fixture
def imported(rlt: Rlt, tmp_path: Path) -> Path:
    """A run of imported traces, scored."""
    path = write_jsonl(tmp_path / "traces.jsonl", TRACES)
    rlt("score", "--in", path, *STUDENT, "--teacher", "none", "--out", "imported")
    return path


def generate(rlt: Rlt, problems: Path, out: str, teacher: str | Path, *options: Any, code: int = 0) -> Any:
    settings = "--in", problems, "--teacher", teacher, "--max-tokens", 24
    return rlt("generate", *settings, *options, "--out", out, code=code)


def origins(read: Read, run: str, table: str) -> dict[str, int]:
    counts = read(Path(run), table).group_by("origin").len()
    return dict(counts.sort("origin").iter_rows())


def texts(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort("trace_id").select("trace_id", "sample_index", "completion", "made_by", "origin", "logprobs")


def test_another_teacher_joins_a_run_only_with_add(rlt: Rlt, read: Read, problems: Path) -> None:
    generate(rlt, problems, "run", *FIRST)
    before = read(Path("run"), "traces")
    refused = generate(rlt, problems, "run", *WARM, code=5).stderr
    assert "teacher was 'nano-teacher', now 'nano-teacher-warm'" in refused and "--add" in refused
    assert read(Path("run"), "traces").equals(before)
    assert "15 traces (9 new)" in generate(rlt, problems, "run", *WARM, "--add").stdout
    assert origins(read, "run", "traces") == {"nano-teacher": 6, "nano-teacher-warm": 9}
    after = read(Path("run"), "traces")
    assert texts(after.filter(origin="nano-teacher")).equals(texts(before))
    makers = recorded_makers(RunFolder("run"))
    assert [after.filter(made_by=key)["origin"].unique().item() for key in makers] == [FIRST[0], WARM[0]]
    for maker, (teacher, n) in zip(makers.values(), [("nano-teacher", 2), ("nano-teacher-warm", 3)], strict=True):
        assert (maker["models"]["teacher"]["name"], maker["settings"]["n"], maker["origin"]) == (teacher, n, teacher)
        assert maker["format"]["name"] == "nano" and maker["depends_on"]["seed"] == 0


def test_add_is_an_ordinary_call_on_a_new_run(rlt: Rlt, problems: Path) -> None:
    generate(rlt, problems, "run", *FIRST)
    generate(rlt, problems, "added", *FIRST, "--add")
    assert table_bytes(Path("run"), "traces") == table_bytes(Path("added"), "traces")
    assert len(recorded_makers(RunFolder("added"))) == 1


def test_each_maker_is_continued_by_its_settings(rlt: Rlt, read: Read, problems: Path) -> None:
    generate(rlt, problems, "run", *FIRST)
    generate(rlt, problems, "run", *WARM, "--add")
    assert "15 traces (0 new)" in generate(rlt, problems, "run", *FIRST).stdout
    assert "15 traces (0 new)" in generate(rlt, problems, "run", *WARM, "--add").stdout
    more = generate(rlt, problems, "run", "nano-teacher-warm", "--n", 4)
    assert "18 traces (3 new)" in more.stdout and "generate: 12/12 (100 %)" in more.stderr
    assert "21 traces (3 new)" in generate(rlt, problems, "run", "nano-teacher", "--n", 3).stdout
    assert [maker["settings"]["n"] for maker in recorded_makers(RunFolder("run")).values()] == [3, 4]
    assert origins(read, "run", "traces") == {"nano-teacher": 9, "nano-teacher-warm": 12}


def test_origin_tells_settings_of_one_teacher_apart(rlt: Rlt, read: Read, problems: Path) -> None:
    generate(rlt, problems, "run", *FIRST)
    assert "--origin tells them apart" in generate(rlt, problems, "run", *FIRST, "--seed", 1, "--add").stderr
    generate(rlt, problems, "run", *FIRST, "--seed", 2, "--add", "--origin", "third")
    generate(rlt, problems, "run", "nano-teacher", "--n", 3, "--seed", 2)  # keeps its origin
    assert origins(read, "run", "traces") == {"nano-teacher": 12, "third": 9}
    refused = generate(rlt, problems, "run", *FIRST, "--seed", 2, "--origin", "other", code=2).stderr
    assert "'third'" in refused
    rlt("score", "run", *STUDENT)
    rlt("rank", "run")
    rlt("distill", "run", "--select", "all", "--include", "truncated", "--out", "data")
    made_by = dict(read(Path("run"), "traces").select("trace_id", "origin").iter_rows())
    for table in ("scores", "ranks"):
        assert dict(read(Path("run"), table).select("trace_id", "origin").iter_rows()) == made_by
    rows = [json.loads(line) for line in Path("data/train.jsonl").read_text().splitlines()]
    assert len(rows) == read(Path("run"), "scores")["well_formed"].sum() + len(
        read(Path("run"), "ranks").filter(flaw="truncated")
    )
    assert all(row["origin"] == made_by[row["trace_id"]] for row in rows) and {row["origin"] for row in rows} == {
        "nano-teacher", "third"
    }  # fmt: skip


def test_a_format_with_other_tags_is_refused(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    generate(rlt, problems, "run", tiny(), "--n", 1, "--format", "rlt")
    refused = generate(rlt, problems, "run", tiny("chat", 1), "--n", 1, "--add", "--format", "think", code=2).stderr
    assert "explanation_tags" in refused and "such as 'rlt'" in refused
    assert len(recorded_makers(RunFolder("run"))) == 1
    generate(rlt, problems, "think", tiny("chat", 1), "--n", 1, "--format", "think")
    assert "explanation_tags" in rlt("merge", "run", "think", "--out", "merged", code=5).stderr


def test_a_start_that_made_nothing_leaves_no_maker(rlt: Rlt, problems: Path) -> None:
    run = RunFolder("run")
    run.record("generate", {"depends_on": {"teacher": "T"}, "settings": {"n": 7}})
    generate(rlt, problems, "run", *FIRST)
    assert [maker["settings"]["n"] for maker in recorded_makers(run).values()] == [2]


def test_scores_of_old_rows_stay_and_only_new_traces_are_scored(rlt: Rlt, read: Read, problems: Path) -> None:
    generate(rlt, problems, "run", *FIRST)
    rlt("score", "run", *STUDENT)
    before = read(Path("run"), "scores")
    for step, table, column in (("generate", "traces", "made_by"), ("score", "scores", "scored_by")):
        as_before_pools = content_hash(RunFolder("run").step(step)["depends_on"])
        assert read(Path("run"), table)[column].unique().to_list() == [as_before_pools]
    generate(rlt, problems, "run", *WARM, "--add")
    assert "15 scores (9 new)" in rlt("score", "run", *STUDENT).stdout
    after = read(Path("run"), "scores")
    assert after.filter(origin="nano-teacher").sort("trace_id").equals(before.sort("trace_id"))
    assert after.group_by("origin").agg(pl.col("scored_by").n_unique())["scored_by"].to_list() == [1, 1]
    assert after["scored_by"].n_unique() == 2 and after["r_kl"].is_not_null().all()
    generate(rlt, problems, "warm", *WARM)
    rlt("score", "warm", *STUDENT)
    alone = read(Path("warm"), "scores").sort("trace_id")
    assert after.filter(origin="nano-teacher-warm").sort("trace_id").equals(alone)
    assert "15 traces of 3 questions ranked" in rlt("rank", "run").stdout


def test_each_trace_is_aligned_with_its_own_teachers_tokens(rlt: Rlt, read: Read, tiny: Tiny, problems: Path) -> None:
    """Three tokenizers: the teachers' and the student's."""
    options = "--n", 2, "--format", "rlt"
    student = "--student", tiny("chat", 5)
    for out, teacher in (("base", tiny("base")), ("sliding", tiny("sliding"))):
        generate(rlt, problems, out, teacher, *options)
        generate(rlt, problems, "run", teacher, *options, "--add")
        rlt("score", out, *student)
    rlt("score", "run", *student)
    separate = pl.concat([read(Path(out), "scores") for out in ("base", "sliding")]).sort("trace_id")
    assert read(Path("run"), "scores").sort("trace_id").equals(separate)
    assert (separate["kl_tokens"] > 0).all()


def test_other_students_or_settings_are_still_refused(rlt: Rlt, problems: Path, tmp_path: Path) -> None:
    generate(rlt, problems, "run", *FIRST)
    rlt("score", "run", *STUDENT)
    generate(rlt, problems, "run", *WARM, "--add")
    for options, message in [
        ((*STUDENT, "--lambda", 1), "lambda was 3.0, now 1.0"),
        (("--student", "nano-teacher"), "student was 'nano-student', now 'nano-teacher'"),
        ((*STUDENT, "--teacher", "none"), "teacher was the teacher of the traces, now 'none'"),
        ((*STUDENT, "--teacher", "nano-teacher-warm"), "now 'nano-teacher-warm'"),
    ]:
        assert message in rlt("score", "run", *options, code=5).stderr
    rlt("score", "run", *STUDENT, "--teacher", "nano-teacher")  # the old scores have this teacher; the new ones get it
    assert "teacher was 'nano-teacher', now the teacher of the traces" in rlt("score", "run", *STUDENT, code=5).stderr
    run = make_run(tmp_path / "made", [trace("a", i, scored_by=f"{i}") for i in range(2)])
    run.record("score", {"depends_on": {"student": "S", "teacher": "A+B"}})
    with pytest.raises(RunFolderError, match="2 different settings"):
        ranked(run)


def test_a_named_teacher_counts_for_all_traces(rlt: Rlt, read: Read, problems: Path) -> None:
    generate(rlt, problems, "run", *FIRST)
    generate(rlt, problems, "run", *WARM, "--add")
    rlt("score", "run", *STUDENT, "--teacher", "nano-teacher-warm")
    scores = read(Path("run"), "scores")
    assert scores["scored_by"].n_unique() == 1
    assert dict(scores.select("origin", "teacher_logprobs").unique().iter_rows()) == {
        "nano-teacher": "computed", "nano-teacher-warm": "trace"
    }  # fmt: skip


def test_traces_without_log_probs_get_no_kl_and_are_reported(
    rlt: Rlt, read: Read, problems: Path, imported: Path
) -> None:
    assert "--add" in generate(rlt, problems, "imported", *FIRST, code=5).stderr
    before = read(Path("imported"), "scores")
    generate(rlt, problems, "imported", *FIRST, "--add")
    generate(rlt, problems, "imported", *FIRST, "--add", "--temperature", 1, "--origin", "hot")
    result = rlt("score", "imported", *STUDENT)
    assert "15 scores (12 new)" in result.stdout
    [line] = [line for line in result.stderr.splitlines() if "no teacher log-probs" in line]
    assert line.startswith("9 of 15 traces") and "3 of 'R1'" in line and "6 of 'hot' (stored at 1)" in line
    scores = read(Path("imported"), "scores")
    assert scores.filter(origin="R1").sort("trace_id").equals(before.sort("trace_id"))
    for row in scores.to_dicts():
        has_kl = row["origin"] == "nano-teacher"
        assert all((row[name] is not None) == has_kl for name in ("reward", "r_kl", "kl_mean"))
        assert row["teacher_logprobs"] == ("trace" if has_kl else "none") and row["reward_without_entropy"] is not None
    assert "15 traces of 3 questions ranked" in rlt("rank", "imported", "--by", "reward_without_entropy").stdout


def test_without_usable_log_probs_the_message_lists_the_stored_temperatures_by_origin(rlt: Rlt, problems: Path) -> None:
    generate(rlt, problems, "run", *FIRST, "--temperature", 1)
    generate(rlt, problems, "run", *WARM, "--temperature", 0.5, "--add")
    errors = rlt("score", "run", *STUDENT, code=2).stderr
    facts = [
        "15 of 15 traces", "--temperature 0.5 (free, KL only for traces of 'nano-teacher-warm')",
        "--temperature 1 (free, KL only for traces of 'nano-teacher')", "--teacher (one extra", "--teacher none",
    ]  # fmt: skip
    positions = [errors.find(fact) for fact in facts]
    assert -1 not in positions and positions == sorted(positions), errors


def test_files_are_not_imported_into_runs_of_generated_traces(
    rlt: Rlt, read: Read, problems: Path, imported: Path
) -> None:
    generate(rlt, problems, "run", *FIRST)
    before = table_bytes(Path("run"), "traces"), RunFolder("run").info
    refused = rlt("score", "--in", imported, *STUDENT, "--teacher", "none", "--out", "run", code=5).stderr
    assert "rlt-data merge" in refused and refused.count("\n") == 1
    assert (table_bytes(Path("run"), "traces"), RunFolder("run").info) == before


def test_a_merged_pool_has_the_rows_of_an_added_one(rlt: Rlt, read: Read, problems: Path, imported: Path) -> None:
    for out, teacher in (("first", FIRST), ("warm", WARM)):
        generate(rlt, problems, out, *teacher)
        rlt("score", out, *STUDENT)
        generate(rlt, problems, "imported", *teacher, "--add")
    rlt("score", "imported", *STUDENT)
    printed = rlt("merge", "imported", "first", "warm", "--out", "same").stdout
    assert "traces of 3 teachers, sampling settings or imports pooled" in printed
    rlt("score", "--in", imported, *STUDENT, "--teacher", "none", "--out", "only")
    rlt("merge", "only", "first", "warm", "--out", "merged")
    for table in ("questions", "traces", "scores"):
        assert table_bytes(Path("merged"), table) == table_bytes(Path("imported"), table)
        assert table_bytes(Path("same"), table) == table_bytes(Path("imported"), table)
    merged, added = RunFolder("merged"), RunFolder("imported")
    assert recorded_makers(merged).keys() == recorded_makers(added).keys()
    assert merged.step("score")["depends_on"] == added.step("score")["depends_on"]
    for run in ("merged", "imported"):
        assert "18 traces (0 new)" in generate(rlt, problems, run, *WARM).stdout
        assert "18 scores (0 new)" in rlt("score", run, *STUDENT).stdout
        assert "18 traces of 3 questions ranked" in rlt("rank", run, "--by", "r_ss").stdout
        assert stats(run).origins == origins(read, run, "ranks") == {
            "R1": 3, "nano-teacher": 6, "nano-teacher-warm": 9
        }  # fmt: skip
    assert "rlt-data merge" in rlt("score", "--in", imported, *STUDENT, "--out", "merged", code=5).stderr


def test_runs_whose_scores_have_another_teacher_than_the_traces_are_not_merged(
    rlt: Rlt, problems: Path, tmp_path: Path
) -> None:
    for out, teacher, named in (("a", FIRST, ()), ("b", WARM, ("--teacher", "nano-teacher")), ("c", WARM, ())):
        generate(rlt, problems, out, *teacher)
        rlt("score", out, *STUDENT, *named)
    generate(rlt, problems, "d", *WARM)
    rlt("score", "d", *STUDENT, "--teacher", "none")
    rlt("merge", "a", "b", "--out", "one-teacher")
    for runs in ("c b", "c a b", "a b c", "a d"):
        refused = rlt("merge", *runs.split(), "--out", "refused", code=5).stderr
        assert "different score settings (teacher " in refused and not Path("refused").exists()
    rlt("merge", "c", "a", "--out", "own-teachers")
    assert RunFolder("own-teachers").step("score")["settings"]["teacher"] is None


def test_missing_traces_of_every_maker_are_reported(rlt: Rlt, tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        [trace(question, 0, trace_id=f"{question}/{maker}", made_by=maker) for question in "ab" for maker in "xy"],
    )
    hashes = {name: {"teacher": name} for name in "xy"}
    run.record("generate", {"depends_on": hashes["x"], "settings": {"n": 1}})
    [x] = recorded_makers(run)
    rows = run.read("traces", 0).to_pylist()
    makers = {"x": x, "y": "hash of y"}
    run.write_part("traces", 0, to_table("traces", [row | {"made_by": makers[row["made_by"]]} for row in rows]))
    run.record("generate", {"added": {"hash of y": {"depends_on": hashes["y"], "settings": {"n": 3}}}})
    assert ranked(run).missing_traces == 4
    run.record("input", {"traces": True})
    run.record("generate", {"added": {}})
    assert ranked(run).missing_traces == 0  # the other traces are imported
    run.record("generate", {"settings": {"n": 2}, "added": {"hash of y": {"settings": {"n": 1}}}})
    assert ranked(run).missing_traces == 2
    ErrorLog(run, "generate", made_by="hash of y").add("a", "too long", None)
    assert ranked(run).missing_traces == 2  # a failure of one maker is none of the other's
    ErrorLog(run, "generate", made_by=x).add("a", "too long", None)
    assert ranked(run).missing_traces == 1


def test_a_question_that_fails_with_one_teacher_is_sampled_with_the_other(
    rlt: Rlt, read: Read, tiny: Tiny, tmp_path: Path
) -> None:
    """The nano teacher's vocabulary lacks the words of the second question; the tiny model has every byte."""
    path = write_jsonl(tmp_path / "rows.jsonl", [PROBLEMS[0], {"id": "w", "question": "Où?", "solution": "Là."}])
    generate(rlt, path, "run", *FIRST, code=4)
    nano = yaml.safe_dump(RunFolder("run").step("generate")["format"])
    Path("nano.yaml").write_text(nano)
    options: tuple[Any, ...] = tiny(), "--n", 2, "--format", "nano.yaml", "--add"
    generate(rlt, path, "run", *options, code=4)  # the first teacher's failure remains
    assert origins(read, "run", "traces") == {"nano-teacher": 2, tiny().name: 4}
    [failure] = failures(RunFolder("run"))
    assert failure["source_id"] == "w" and failure["made_by"] == next(iter(recorded_makers(RunFolder("run"))))
    generate(rlt, path, "run", *options, "--retry-errors", code=4)
    assert failures(RunFolder("run"))[0]["attempts"] == 1
    generate(rlt, path, "run", *FIRST, "--retry-errors", code=4)
    assert failures(RunFolder("run"))[0]["attempts"] == 2
    generate(rlt, path, "other", tiny(), "--n", 2, "--format", "nano.yaml")
    summary = merge(parse_settings(MergeSettings, {"in": ["other", "run"], "out": "merged"}))
    assert summary.failed == 1 and failures(RunFolder("merged"))[0]["made_by"] == failure["made_by"]


def test_failures_of_earlier_versions_belong_to_the_first_maker(rlt: Rlt, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [PROBLEMS[0], {"id": "w", "question": "Où?", "solution": "Là."}])
    generate(rlt, path, "run", *FIRST, code=4)
    errors = Path("run/errors.jsonl")
    entry = json.loads(errors.read_text())
    errors.write_text(json.dumps({key: value for key, value in entry.items() if key != "made_by"}) + "\n")
    generate(rlt, path, "run", *FIRST, code=4)
    assert failures(RunFolder("run")) == [entry]


def test_a_killed_addition_continues_to_the_same_bytes(rlt: Rlt) -> None:
    small = "--most", 3, "--largest", 14, "--largest-target", 120
    rlt("countdown", "make", "--out", "questions.jsonl", "--rows", 100, *small)
    options = "generate", "--in", "questions.jsonl", "--max-tokens", 16, "--n", 2, "--out"
    added = "--teacher", "nano-teacher-warm", "--add"
    for run in ("straight", "killed"):
        rlt(*options, run, "--teacher", "nano-teacher")
    often = "import rlt_data.storage.writer as writer; writer.FLUSH_SECONDS = 0.05; "
    python = [often + part if "main()" in part else part for part in command(*map(str, options), "killed", *added)]
    process = subprocess.Popen(python, env=environment(), stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(Path("killed").glob("journal/traces/*/*.parquet")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() != 0
    assert 200 < RunFolder("killed").count("traces") < 400
    for run in ("straight", "killed"):
        rlt(*options, run, *added)
        rlt("score", run, *STUDENT)
    assert_same_table(Path("killed"), Path("straight"), "traces", 400)
    assert_same_table(Path("killed"), Path("straight"), "scores", 400)


def test_the_page_and_the_card_name_every_teacher(rlt: Rlt, problems: Path, imported: Path) -> None:
    for teacher in (FIRST, WARM):
        generate(rlt, problems, "imported", *teacher, "--add")
    rlt("score", "imported", *STUDENT)
    [generated, scored] = Watch("imported").now()["steps"]
    assert (generated["done"], generated["total"], generated["state"]) == (15, 15, "done")
    assert (scored["done"], scored["total"]) == (18, 18)
    rlt("rank", "imported", "--by", "r_ss")
    found = facts(RunFolder("imported"), None)
    assert found["traces"] == "generated and imported" and found["teacher"] == "nano-teacher; nano-teacher-warm"
    assert found["sampling"].count("per question") == 2
    rlt("distill", "imported", "--select", "all", "--include", "truncated")
    card = str(push(PushSettings(input="imported", repo_id="org/name", dry_run=True)).card)
    assert "the teacher models `nano-teacher` and `nano-teacher-warm`" in card and "or imported" in card
    assert card.count("rlt-data generate") == 2 and "some of the explanations" in card
    assert {"nano-teacher", "nano-teacher-warm", "R1"} <= set(card.replace("|", " ").split())


def test_a_pipeline_adds_a_teacher_and_finds_conflicts_with_the_existing_run_first(
    rlt: Rlt, read: Read, problems: Path, tmp_path: Path
) -> None:
    generate(rlt, problems, "run", *FIRST)
    rlt("score", "run", *STUDENT)
    section: dict[str, Any] = {"in": str(problems), "teacher": "nano-teacher-warm", "n": 1, "max_tokens": 24}
    conflicts: list[tuple[dict[str, Any], dict[str, Any], int, str]] = [
        ({"add": True, "temperature": 1}, {}, 2, "score.temperature: 1 (free)"),
        ({"add": True}, {"teacher": "none"}, 5, "now 'none'"),
        ({}, {}, 5, "--add"),
    ]
    for generating, scoring, code, message in conflicts:
        pipeline = {"out": "run", "generate": section | generating, "score": {"student": "nano-student"} | scoring}
        Path("pipeline.yaml").write_text(yaml.safe_dump(pipeline))
        assert message in rlt("run", "pipeline.yaml", code=code).stderr
        assert origins(read, "run", "traces") == {"nano-teacher": 6}
    pipeline = {"out": "run", "generate": section | {"add": True}, "score": {"student": "nano-student"}, "rank": {}}
    Path("pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    assert "9 traces of 3 questions ranked" in rlt("run", "pipeline.yaml").stdout


@pytest.mark.parametrize("by", ["r_ss - 2 * (1 - well_formed)", "-rsr", "reward_without_entropy"])
def test_the_origin_is_right_on_every_row_of_a_pool_of_three(
    rlt: Rlt, read: Read, problems: Path, imported: Path, by: str
) -> None:
    generate(rlt, problems, "run", *FIRST)
    generate(rlt, problems, "run", *WARM, "--add")
    rlt("score", "run", *STUDENT)
    rlt("score", "--in", imported, *STUDENT, "--teacher", "none", "--out", "R1")
    rlt("merge", "run", "R1", "--out", "pool")
    rlt("curate", "pool")
    rlt("rank", "pool", f"--by={by}")
    rlt("distill", "pool", "--select", "all", "--include", "truncated", "--include", "duplicate", "--out", "data")
    writers = dict(read(Path("run"), "traces").select("trace_id", "origin").iter_rows())
    writers |= dict.fromkeys(read(Path("R1"), "traces")["trace_id"], "R1")
    rows = [json.loads(line) for line in Path("data/train.jsonl").read_text().splitlines()]
    assert {row["trace_id"]: row["origin"] for row in rows} == {
        row["trace_id"]: writers[row["trace_id"]] for row in rows
    }
    assert {row["origin"] for row in rows} == {"nano-teacher", "nano-teacher-warm", "R1"}
    well_formed = read(Path("pool"), "ranks").filter(pl.col("flaw").is_null()).sort("question_id", "rank")
    assert all(group["value"].is_sorted(descending=True) for _, group in well_formed.group_by("question_id"))
