"""From questions to scores through the command line, with tiny real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from transformers import AutoTokenizer

from rlt_data.formats import encode, load_format
from rlt_data.storage.errorlog import failures
from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt, write_jsonl
from tests.killing import table_bytes
from tests.reference import Reference

Read = Callable[[Path, str], pl.DataFrame]
Tiny = Callable[..., Path]

TERMS = [
    "reward", "reward_without_entropy", "penalty", "r_ss", "r_kl",
    "solution_logprob_mean", "solution_logprob_min", "kl_mean", "kl_max",
]  # fmt: skip

#: Completions that test spans: edges, multi-byte letters, inner tags, no closing tag.
COMPLETIONS = [
    "We add 1 and 1.\n\n<|end_of_explanation|>",
    "One and one is two.<|end_of_explanation|> and more after it",
    "Où est l'élève? 🙂 你好 e\u0301\n<|end_of_explanation|>",
    "cut in the mid",
    "  spaces   at the end   <|end_of_explanation|>",
    "<|begin_of_solution|>2<|end_of_solution|><|end_of_explanation|>",
    "tabs\tand\r\nlines\x00<|end_of_explanation|>",
    "Again. " * 60 + "<|end_of_explanation|>",
    "<|im_end|><|end_of_explanation|>",
]


def terms(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort("trace_id").select("trace_id", *TERMS)


def largest_difference(a: pl.DataFrame, b: pl.DataFrame) -> float:
    a, b = terms(a), terms(b)
    assert a["trace_id"].equals(b["trace_id"])
    return max(float((a[name] - b[name]).abs().max() or 0.0) for name in TERMS)  # type: ignore[arg-type]


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = []
    for i, completion in enumerate(COMPLETIONS):
        for question, solution in [("What is 1 + 1?", "2"), ("Où?", "x = 2 ou\n\nx = 3"), ("Sign?", "-3")]:
            row = {"id": f"{i}/{len(rows)}", "question": question, "solution": solution, "completion": completion}
            rows.append(row)
    return write_jsonl(tmp_path / "traces.jsonl", rows)


@pytest.fixture
def bare_format(tmp_path: Path) -> Path:
    """A format without padding between contents and tags."""
    file = tmp_path / "bare.yaml"
    file.write_text("extends: rlt\nname: bare\npadding: ''\nsolution_padding: ''\nseparator: ''\n")
    return file


@pytest.mark.parametrize(("format", "kl"), [("rlt", "k1"), ("bare", "k1"), ("rlt", "full")])
def test_every_term_equals_the_plain_reference(
    rlt: Rlt, read: Read, tiny: Tiny, traces: Path, bare_format: Path, format: str, kl: str
) -> None:
    format = str(bare_format) if format == "bare" else format
    student, teacher = tiny("chat", 0), tiny("chat", 1)
    models = "--student", student, "--teacher", teacher
    rlt("score", "--in", traces, *models, "--format", format, "--kl", kl, "--out", "run")
    reference = Reference(student, teacher, load_format(format), full_kl=kl == "full")
    scores = {row["source_id"]: row for row in read(Path("run"), "scores").to_dicts()}
    rows = [json.loads(line) for line in traces.read_text().splitlines()]
    assert len(scores) == len(rows)
    for row in rows:
        score = scores[row["id"]]
        if score["thought_tokens"] != score["kl_tokens"]:
            continue  # the two sides' tokens differ, which the plain computation does not know
        for name, value in reference.score(row["question"], row["solution"], row["completion"]).items():
            assert score[name] == pytest.approx(value, abs=2e-4), (row["id"], name)


def test_rewards_equal_those_of_the_authors_code(rlt: Rlt, read: Read, oracle: Path) -> None:
    golden = [json.loads(line) for line in (oracle / "golden_public.jsonl").read_text().splitlines()]
    rlt(
        "score", "--in", oracle / "golden_public.jsonl", "--format", oracle / "format.yaml", "--temperature", 0.7,
        "--student", oracle / "tiny-student", "--teacher", oracle / "tiny-teacher", "--out", "run",
    )  # fmt: skip
    scores = {row["source_id"]: row for row in read(Path("run"), "scores").to_dicts()}
    assert len(scores) == len(golden) == 56
    for row in golden:
        for name, value in row["expected"].items():
            assert scores[row["id"]][name] == pytest.approx(value, abs=2e-4), (row["id"], row["case"], name)


def test_an_explanation_whose_tokens_all_merge_with_tags_is_empty(
    rlt: Rlt, read: Read, tiny: Tiny, tmp_path: Path, bare_format: Path
) -> None:
    empty = ["<|end_of_explanation|>", "<|end_of_explanation|> and more", ".<|end_of_explanation|>"]
    rows = [{"question": "q", "solution": "2", "completion": text} for text in (*empty, "5.<|end_of_explanation|>")]
    path = write_jsonl(tmp_path / "traces.jsonl", rows)
    models = "--student", tiny("fusing"), "--teacher", tiny("fusing", 1)
    rlt("score", "--in", path, *models, "--format", bare_format, "--out", "run")
    *nothing, something = read(Path("run"), "scores").sort("source_id").to_dicts()
    for score in nothing:
        assert score["empty"] and not score["well_formed"]
        assert (score["thought_tokens"], score["kl_mean"], score["kl_max"]) == (0, 1.0, 1.0)
        assert score["r_ss"] == nothing[0]["r_ss"]  # all are shown to the student as the same empty thought
    assert not something["empty"] and something["thought_tokens"] == 1


@pytest.mark.parametrize("kl", ["k1", "full"])
def test_empty_explanations_need_no_teacher_pass(rlt: Rlt, read: Read, tiny: Tiny, tmp_path: Path, kl: str) -> None:
    explanations = [("a", "We add."), ("a", "We count."), ("empty", ""), ("b", "We add."), ("b", "We count.")]
    rows = [
        {"question": f"Question {name}", "solution": "2", "completion": f"{text}<|end_of_explanation|>"}
        for name, text in explanations
    ]
    path = write_jsonl(tmp_path / "traces.jsonl", rows)
    models = "--student", tiny(), "--teacher", tiny("chat", 1)
    rlt("score", "--in", path, *models, "--kl", kl, "--out", "run")
    assert read(Path("run"), "scores")["empty"].to_list() == [text == "" for _, text in explanations]


@pytest.mark.parametrize("student", ["chat", "base", "sliding"])
@pytest.mark.parametrize("teacher", ["chat", "sliding"])
def test_stored_and_computed_teacher_logprobs_give_equal_scores(
    rlt: Rlt, read: Read, tiny: Tiny, problems: Path, teacher: str, student: str
) -> None:
    models = "--student", tiny(student, 5), "--format", "rlt"
    rlt("generate", "--in", problems, "--teacher", tiny(teacher), "--format", "rlt",
        "--out", "run", "--n", 3, "--max-tokens", 40)  # fmt: skip
    rlt("score", "--in", "run", *models)
    rlt("score", "--in", "run", *models, "--teacher", tiny(teacher), "--teacher-logprobs", "compute", "--out", "again")
    stored, computed = read(Path("run"), "scores"), read(Path("again"), "scores")
    assert set(stored["teacher_logprobs"]) == {"trace"} and set(computed["teacher_logprobs"]) == {"computed"}
    assert (stored["kl_tokens"] > 0).all()
    assert largest_difference(stored, computed) < 1e-5


def test_scores_do_not_depend_on_batches_or_the_order_of_rows(
    rlt: Rlt, read: Read, tiny: Tiny, traces: Path, tmp_path: Path
) -> None:
    models = "--student", tiny(), "--teacher", tiny("chat", 1)
    lines = traces.read_text().splitlines(keepends=True)
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("".join(reversed(lines)))
    rlt("score", "--in", traces, *models, "--out", "one")
    rlt("score", "--in", traces, *models, "--out", "two", "--batch-tokens", 100)
    rlt("score", "--in", backwards, *models, "--out", "three")
    one = read(Path("one"), "scores")
    for other in ("two", "three"):
        assert largest_difference(one, read(Path(other), "scores")) < 1e-5


def test_a_second_call_changes_nothing_and_a_larger_n_adds_rows(
    rlt: Rlt, read: Read, tiny: Tiny, problems: Path
) -> None:
    options = "--in", problems, "--teacher", tiny(), "--max-tokens", 20, "--out", "run"
    rlt("generate", *options, "--n", 2)
    before, rows = table_bytes(Path("run"), "traces"), read(Path("run"), "traces")
    assert "12 traces (0 new)" in rlt("generate", *options, "--n", 2).stdout
    assert table_bytes(Path("run"), "traces") == before
    assert "18 traces (6 new)" in rlt("generate", *options, "--n", 3).stdout
    more = read(Path("run"), "traces")
    assert more.filter(pl.col("sample_index") < 2).equals(rows)
    rlt("score", "--in", "run", "--student", tiny("chat", 1))
    assert "18 scores (0 new)" in rlt("score", "--in", "run", "--student", tiny("chat", 1)).stdout


def test_traces_and_run_json_record_tokens_and_models(rlt: Rlt, read: Read, tiny: Tiny, problems: Path) -> None:
    rlt("generate", "--in", problems, "--teacher", tiny("sliding"), "--n", 2, "--max-tokens", 20, "--out", "run")
    tokenizer = AutoTokenizer.from_pretrained(tiny("sliding"))
    padding = encode(tokenizer, ["<|begin_of_explanation|>\n\n"])[0].ids[-1:].tolist()
    for row in read(Path("run"), "traces").to_dicts():
        assert row["source_id"].startswith("q") and row["logprob_temperature"] == 0.7
        assert len(row["token_ids"]) == len(row["logprobs"]) == row["completion_tokens"] <= 20
        assert row["prefill_token_ids"] == padding and len(row["prefill_logprobs"]) == 1
        assert tokenizer.decode(row["token_ids"]).lstrip() == row["completion"].lstrip()
    info = RunFolder(Path("run")).step("generate")
    assert info["models"]["teacher"]["weights"] and info["format"]["name"] == "rlt-shots"
    assert info["versions"]["torch"] and info["settings"]["seed"] == 0
    assert str(Path.cwd()) not in json.dumps(read(Path("run"), "traces").to_dicts())


def test_changed_settings_are_refused_and_give_other_traces_in_another_run(
    rlt: Rlt, read: Read, tiny: Tiny, problems: Path
) -> None:
    options = "--in", problems, "--teacher", tiny(), "--n", 1, "--max-tokens", 15
    rlt("generate", *options, "--out", "run")
    for change, message in [
        (("--seed", 1), "seed was 0, now 1"),
        (("--temperature", 1), "temperature was 0.7, now 1.0"),
        (("--format", "think"), "format was"),
        (("--teacher", tiny("chat", 1)), "teacher was"),
        (("--dtype", "bfloat16"), "dtype was 'float32', now 'bfloat16'"),
    ]:
        result = rlt("generate", *options, *change, "--out", "run", code=5)
        assert message in result.stderr and "another --out" in result.stderr
        rlt("generate", *options, *change, "--out", f"run{change[0]}")
        assert not set(read(Path("run"), "traces")["trace_id"]) & set(
            read(Path(f"run{change[0]}"), "traces")["trace_id"]
        )


def test_a_prompt_over_the_context_fails_alone(rlt: Rlt, read: Read, tiny: Tiny, tmp_path: Path) -> None:
    rows = [
        {"id": "short", "question": "q", "solution": "s"},
        {"id": "long", "question": "long " * 2000, "solution": "s"},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    result = rlt("generate", "--in", path, "--teacher", tiny(), "--n", 2, "--max-tokens", 5, "--out", "run", code=4)
    assert "1 failed" in result.stdout and "errors.jsonl" in result.stdout and "2048" in result.stdout
    assert set(read(Path("run"), "traces")["source_id"]) == {"short"}
    [entry] = failures(RunFolder("run"))
    assert entry["source_id"] == "long" and entry["attempts"] == 1 and "2048" in entry["reason"]
    rlt("generate", "--in", path, "--teacher", tiny(), "--n", 2, "--max-tokens", 5, "--out", "run", code=4)
    assert failures(RunFolder("run"))[0]["attempts"] == 1
    rlt(
        "generate",
        "--in",
        path,
        "--teacher",
        tiny(),
        "--n",
        2,
        "--max-tokens",
        5,
        "--out",
        "run",
        "--retry-errors",
        code=4,
    )
    assert failures(RunFolder("run"))[0]["attempts"] == 2


def test_a_trace_that_cannot_be_scored_fails_alone(rlt: Rlt, read: Read, tiny: Tiny, tmp_path: Path) -> None:
    rows = [
        {"id": "good", "question": "q", "solution": "s", "explanation": "why"},
        {"id": "long", "question": "q", "solution": "s", "explanation": "long " * 2000},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    models = "--student", tiny(), "--teacher", tiny("chat", 1)
    rlt("score", "--in", path, *models, "--out", "run", code=4)
    assert read(Path("run"), "scores")["source_id"].to_list() == ["good"]
    assert "the student's" in failures(RunFolder("run"))[0]["reason"]
    rlt("score", "--in", path, *models, "--out", "run", "--retry-errors", code=4)
    assert failures(RunFolder("run"))[0]["attempts"] == 2 and len(read(Path("run"), "scores")) == 1


def test_foreign_traces_need_a_teacher_or_none(rlt: Rlt, read: Read, tiny: Tiny, traces: Path) -> None:
    result = rlt("score", "--in", traces, "--student", tiny(), code=2)
    assert "27 of 27 traces" in result.stderr
    rlt("score", "--in", traces, "--student", tiny(), "--teacher", "none", "--out", "run")
    scores = read(Path("run"), "scores")
    assert scores["reward"].is_null().all() and scores["reward_without_entropy"].is_not_null().all()
    assert set(scores["teacher_logprobs"]) == {"none"}
    result = rlt("rank", "--in", "run", code=2)
    assert "--by reward_without_entropy" in result.stderr
    rlt("rank", "--in", "run", "--by", "reward_without_entropy")


def test_stored_logprobs_are_used_only_for_the_same_temperature_and_teacher(
    rlt: Rlt, read: Read, tiny: Tiny, problems: Path
) -> None:
    rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 1, "--max-tokens", 15, "--out", "run")
    student = "--student", tiny("chat", 1)
    result = rlt("score", "--in", "run", *student, "--temperature", 1, "--out", "hot", code=2)
    assert "6 of 6 traces" in result.stderr
    rlt("score", "--in", "run", *student, "--temperature", 1, "--teacher", tiny(), "--out", "hot")
    assert set(read(Path("hot"), "scores")["teacher_logprobs"]) == {"computed"}
    rlt("score", "--in", "run", *student, "--teacher", tiny("chat", 2), "--out", "other")
    assert set(read(Path("other"), "scores")["teacher_logprobs"]) == {"computed"}
    rlt("score", "--in", "run", *student, "--teacher", tiny(), "--out", "same")
    assert set(read(Path("same"), "scores")["teacher_logprobs"]) == {"trace"}
    result = rlt("score", "--in", "same", *student, "--teacher", tiny(), "--lambda", 1, code=5)
    assert "lambda was 3.0, now 1.0" in result.stderr


def test_teacher_logprobs_trace_uses_only_stored_logprobs(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 1, "--max-tokens", 5, "--out", "run")
    stored = "--in", "run", "--student", tiny("chat", 1), "--teacher-logprobs", "trace"
    result = rlt("score", *stored, "--teacher", tiny("chat", 2), "--out", "other", code=2)
    assert "6 of 6 traces" in result.stderr
    assert "6 scores (6 new)" in rlt("score", *stored, "--teacher", tiny(), "--out", "same").stdout


def test_the_student_format_may_differ_if_explanations_stay_the_same(
    rlt: Rlt, tiny: Tiny, problems: Path, tmp_path: Path
) -> None:
    rlt("generate", "--in", problems, "--teacher", tiny("base"), "--n", 1, "--max-tokens", 15, "--out", "run")
    rlt("score", "--in", "run", "--student", tiny(), "--format", "rlt", "--out", "chat")
    assert RunFolder("chat").step("score")["format"]["name"] == "rlt"
    result = rlt("score", "--in", "run", "--student", tiny(), "--format", "think", "--out", "other", code=2)
    assert "explanation_tags" in result.stderr


def test_k3_is_computed_from_the_same_log_ratios(rlt: Rlt, read: Read, tiny: Tiny, problems: Path) -> None:
    rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 8, "--max-tokens", 60, "--out", "run")
    student = "--student", tiny("chat", 1), "--per-token"
    rlt("score", "--in", "run", *student)
    rlt("score", "--in", "run", *student, "--kl", "k3", "--out", "k3")
    k1, k3 = (read(Path(run), "scores").sort("trace_id") for run in ("run", "k3"))
    for one, three in zip(k1["thought_kl"].to_list(), k3["thought_kl"].to_list(), strict=True):
        assert three == pytest.approx(np.exp(-np.array(one)) - 1 + one, rel=1e-3, abs=1e-4)


def test_full_kl_needs_the_teacher(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 1, "--max-tokens", 5, "--out", "run")
    errors = rlt("score", "--in", "run", "--student", tiny(), "--kl", "full", code=2).stderr
    assert "--kl" in errors and "--teacher" in errors


def test_per_token_values_add_up_to_the_terms(rlt: Rlt, read: Read, tiny: Tiny, traces: Path) -> None:
    rlt("score", "--in", traces, "--student", tiny("base"), "--teacher", tiny(), "--per-token", "--out", "run")
    for row in read(Path("run"), "scores").to_dicts():
        assert len(row["thought_logprobs"]) == len(row["thought_offsets"]) == row["thought_tokens"]
        assert len(row["solution_logprobs"]) == len(row["solution_offsets"]) == row["solution_tokens"]
        assert len(row["thought_kl"]) == len(row["kl_offsets"]) == row["kl_tokens"]
        assert np.mean(row["solution_logprobs"]) == pytest.approx(row["solution_logprob_mean"], abs=1e-4)
        assert row["thought_offsets"] == sorted(row["thought_offsets"])
        if row["kl_tokens"]:
            assert np.mean(row["thought_kl"]) == pytest.approx(row["kl_mean"], abs=1e-4)
            assert np.max(row["thought_kl"]) == pytest.approx(row["kl_max"], abs=1e-4)


def test_each_flaw_is_recorded(rlt: Rlt, read: Read, tiny: Tiny, tmp_path: Path) -> None:
    flaws: dict[str, dict[str, Any]] = {
        "fine": {"completion": "We add.<|end_of_explanation|>"},
        "empty": {"completion": "<|end_of_explanation|>"},
        "unclosed": {"completion": "We add."},
        "truncated": {"completion": "We add.", "finish_reason": "length"},
        "holds tag": {"completion": "</thought> <|end_of_thought|> <|end_of_explanation|>"},
    }
    rows = [{"id": name, "question": "q", "solution": "s", **fields} for name, fields in flaws.items()]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    rlt("score", "--in", path, "--student", tiny(), "--teacher", tiny("chat", 1), "--out", "run")
    rlt("rank", "--in", "run")
    ranks = {row["source_id"]: row for row in read(Path("run"), "ranks").to_dicts()}
    assert {name: row["flaw"] for name, row in ranks.items()} == {name: name for name in flaws} | {"fine": None}
    assert ranks["fine"]["rank"] == 1
    scores = {row["source_id"]: row for row in read(Path("run"), "scores").to_dicts()}
    assert [name for name, row in scores.items() if row["well_formed"]] == ["fine"]
    assert {name: row["penalty"] for name, row in scores.items()} == {
        "fine": 0, "empty": 0, "unclosed": -1, "truncated": -1, "holds tag": 0
    }  # fmt: skip


def test_characters_that_merge_with_a_tag_are_counted(
    rlt: Rlt, read: Read, tiny: Tiny, tmp_path: Path, bare_format: Path
) -> None:
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"question": "q", "solution": "(2)", "completion": "So.\n\n<|end_of_explanation|>"}]
    )
    models = "--student", tiny("fusing"), "--teacher", "none"
    rlt("score", "--in", path, *models, "--format", bare_format, "--out", "bare")
    rlt("score", "--in", path, *models, "--format", "rlt", "--out", "padded")
    assert read(Path("bare"), "scores")["uncovered_chars"].to_list() == [1]  # the ')' before the closing tag
    assert read(Path("padded"), "scores")["uncovered_chars"].to_list() == [0]
