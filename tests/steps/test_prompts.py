"""From questions to data sets with the chat template of a reasoning model: what is trained is what is served."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import chat_template_utils

from rlt_data.engines.config import open_tokenizer
from rlt_data.engines.models import Checkpoint
from rlt_data.formats import Problem, Views, load_format
from rlt_data.settings import ModelSettings
from rlt_data.training.examples import IGNORED, read_conversations, tokenize_texts
from tests.conftest import Rlt, write_jsonl
from tests.formats.test_templates import FOLDER

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the extra train")

Tiny = Callable[..., Path]
QWEN3, R1, LLAMA = (FOLDER / f"{name}.jinja" for name in ("qwen3", "deepseek_r1_distill", "llama3_2"))
ROWS: list[dict[str, Any]] = [
    {"id": f"{number}{letter}", "question": f"What is {number} + 1?", "solution": f" It is {number + 1}. ",
     "explanation": text}
    for number in (1, 2)
    for letter, text in (("a", "We add one to it, twice to be sure."), ("b", "Add.\n\nThat is it"))
]  # fmt: skip


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "traces.jsonl", ROWS)


def json_of(rlt: Rlt, *arguments: Any) -> dict[str, Any]:
    return dict(json.loads(rlt("preview", *arguments, "--json").stdout))


def logprobs(model: Path, ids: list[int], span: tuple[int, int], text: str) -> torch.Tensor:
    """Return the log-probs at temperature 0.7 of the tokens inside a range of characters, by one plain forward pass."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        values = (loaded(torch.tensor([ids])).logits[0].float() / 0.7).log_softmax(-1)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [i for i, (start, end) in enumerate(offsets) if span[0] <= start < end <= span[1]]
    return torch.stack([values[i - 1, ids[i]] for i in inside])


@pytest.mark.parametrize("template", [QWEN3, R1], ids=["qwen3", "r1"])
def test_native_scores_are_those_of_the_shown_text(
    rlt: Rlt, tiny: Tiny, tmp_path: Path, traces: Path, template: Path
) -> None:
    student, teacher = tiny(), tiny("chat", 1)
    options = "--chat-template", template
    rlt("score", "--in", traces, "--student", student, "--teacher", teacher, *options, "--out", "run")
    scores = {row["source_id"]: row for row in pl.read_parquet("run/scores/*.parquet").to_dicts()}
    assert len(scores) == 4 and all(row["well_formed"] and not row["uncovered_chars"] for row in scores.values())
    for row in ROWS:
        shown = json_of(rlt, "run", "--student", student, "--key", scores[row["id"]]["trace_id"], "--teacher", teacher)
        text, score = shown["student_text"], scores[row["id"]]
        assert shown["format"] == "native" and text.startswith(shown["served_prompt"])
        assert text[len(shown["served_prompt"]) :].endswith(
            f"{row['explanation']}\n</think>\n\n{row['solution'].strip()}{text[shown['solution'][1] :]}"
        )
        solution = logprobs(student, shown["student_tokens"], shown["solution"], text)
        thought = logprobs(student, shown["student_tokens"], shown["thought"], text)
        assert score["solution_logprob_mean"] == pytest.approx(solution.mean().item(), abs=1e-4)
        assert (score["thought_tokens"], score["solution_tokens"]) == (len(thought), len(solution))
        # The teacher's log-probs of the same tokens, in its own prompt.
        whole = shown["teacher_prompt"] + row["explanation"] + "\n\n<|end_of_explanation|>"
        tokenizer: Any = AutoTokenizer.from_pretrained(teacher)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        start = len(shown["teacher_prompt"])
        of_teacher = logprobs(teacher, ids, (start, start + len(row["explanation"])), whole)
        pairs = min(len(thought), len(of_teacher), score["kl_tokens"])
        kl = of_teacher[:pairs] - thought[:pairs]
        assert score["kl_tokens"] >= score["thought_tokens"] - 1
        assert score["kl_mean"] == pytest.approx(kl.mean().item(), abs=2e-4)
        assert score["kl_max"] == pytest.approx(kl.max().item(), abs=2e-4)


def test_every_shape_has_the_scored_text(rlt: Rlt, tiny: Tiny, traces: Path) -> None:
    student = tiny()
    tokenizer: Any = AutoTokenizer.from_pretrained(student)
    rlt("score", "--in", traces, "--student", student, "--teacher", "none", "--chat-template", QWEN3, "--out", "run")
    rlt("rank", "run", "--by", "r_ss")
    keys = pl.read_parquet("run/scores/*.parquet").select("source_id", "trace_id").rows()
    shown = {id: json_of(rlt, "run", "--student", student, "--key", trace_id) for id, trace_id in keys}
    template = open_tokenizer(Checkpoint("m", student), ModelSettings(chat_template=str(QWEN3)))[1]
    for shape in ("messages", "prompt-completion", "sharegpt", "bespoke"):
        rlt("distill", "run", "--select", "all", "--shape", shape, "--out", shape)
        rows = pl.read_parquet(f"{shape}/data/*.parquet").to_dicts()
        texts = [text.prompt + text.completion for text in read_conversations(f"{shape}/train.jsonl", template)]
        assert texts == [shown[row["source_id"]]["student_text"] for row in rows] and len(rows) == 4
        lines = [json.loads(line) for line in Path(shape, "train.jsonl").read_text().splitlines()]
        assert lines == rows and not {"answer", "response", "query", "question"} & rows[0].keys()
        if shape == "messages":
            assert [turn["role"] for turn in rows[0]["messages"]] == ["user", "assistant"]  # no empty system turn
            assert "<think>" not in rows[0]["messages"][-1]["content"] and rows[0]["messages"][-1]["reasoning_content"]
            for row in rows:
                rendered = tokenizer.apply_chat_template(
                    row["messages"], tokenize=False, chat_template=QWEN3.read_text()
                )
                assert rendered.rstrip("\n") == shown[row["source_id"]]["student_text"]
        if shape == "prompt-completion":
            assert all(row["prompt"] == shown[row["source_id"]]["served_prompt"] for row in rows)
            [example] = list(tokenize_texts(read_conversations(f"{shape}/train.jsonl", template), tokenizer))[:1]
            learned = [token for token, label in zip(*example.values(), strict=True) if label != IGNORED]
            assert tokenizer.decode(learned) == rows[0]["completion"]


def test_preference_rows_pair_the_best_trace_with_a_worse_one(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "id": "1c", "explanation": "Or else."}, {**ROWS[0], "id": "3", "question": "Alone?"}]
    traces = write_jsonl(tmp_path / "more.jsonl", rows)
    rlt("score", "--in", traces, "--student", tiny(), "--teacher", "none", "--chat-template", QWEN3, "--out", "run")
    rlt("rank", "run", "--by", "r_ss")
    ranks = pl.read_parquet("run/ranks/*.parquet")
    result = rlt("distill", "run", "--shape", "preference", "--out", "pairs")
    assert re.search(r"^--rejected worst +3 +2 +2 ", result.stdout, re.M)
    ids = {row["id"]: row for row in rows}
    for option, place in (("worst", -1), ("rank:2", 1)):
        rlt("distill", "run", "--shape", "preference", "--rejected", option, "--out", "pairs")
        pairs = pl.read_parquet("pairs/data/*.parquet").to_dicts()
        assert len(pairs) == 2
        for pair in pairs:
            order = ranks.filter(pl.col("question_id") == pair["question_id"]).sort("rank")["source_id"].to_list()
            for name, source in (("chosen", order[0]), ("rejected", order[place])):
                explanation, solution = ids[source]["explanation"], ids[source]["solution"].strip()
                assert pair[name] == f"<think>\n{explanation}\n</think>\n\n{solution}"
            assert pair["prompt"].endswith("<|im_start|>assistant\n") and pair["user_text"] in pair["prompt"]
    rlt("distill", "run", "--shape", "preference", "--select", "all", code=2)
    rlt("distill", "run", "--rejected", "rank:2", code=2)


def test_messages_that_lose_their_thought_are_refused(rlt: Rlt, tiny: Tiny, traces: Path) -> None:
    rlt("score", "--in", traces, "--student", tiny(), "--teacher", "none", "--chat-template", R1, "--out", "run")
    rlt("rank", "run", "--by", "r_ss")
    for shape in ("messages", "sharegpt", "bespoke"):
        refused = rlt("distill", "run", "--shape", shape, code=2).stderr
        assert "drops the thought from such rows; use --shape prompt-completion" in refused
    rlt("distill", "run", "--shape", "prompt-completion")


def test_generate_takes_the_format_of_the_named_student_before_any_work(
    rlt: Rlt, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    questions = write_jsonl(tmp_path / "questions.jsonl", [{"question": "1 + 1?", "solution": "2"}])
    options = "--in", questions, "--teacher", tiny(), "--max-tokens", 4, "--n", 1
    caplog.set_level("INFO", logger="rlt_data")
    rlt("generate", *options, "--chat-template", QWEN3, "--out", "alone")
    assert "--student checks it now" in caplog.text
    with_student = *options, "--student", tiny("chat", 1)
    rlt("generate", *with_student, "--chat-template", QWEN3, "--out", "run")
    entry = json.loads(Path("run/run.json").read_text())["steps"]["generate"]
    assert entry["format"]["name"] == "native" and entry["templates"]["teacher"]["reasoning"]["opening"] == "<think>\n"
    refused = rlt("generate", *with_student, "--format", "rlt", "--chat-template", R1, "--out", "no", code=6)
    assert "opens a thought" in refused.stderr and not Path("no").exists()
    # Without --student, score takes the native format, whose explanation tags are the same.
    rlt("score", "alone", "--student", tiny(), "--temperature", 0.7, "--chat-template", QWEN3)
    assert json.loads(Path("alone/run.json").read_text())["steps"]["score"]["format"]["name"] == "native"


def test_a_row_with_its_own_system_text_is_shown_with_it(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    rows = [{**ROWS[0], "system": "Be brief."}, {**ROWS[1], "id": "plain"}]
    traces = write_jsonl(tmp_path / "own.jsonl", rows)
    options = "--student", tiny(), "--teacher", "none"
    rlt("score", "--in", traces, *options, "--out", "run")
    rlt("rank", "run", "--by", "r_ss")
    shown = json_of(rlt, "run", "--student", tiny(), "--key", "1a")
    assert "system\nBe brief.<|im_end|>" in shown["student_text"] and "system\nBe brief." in shown["solver_prompt"]
    student_system = load_format("rlt").student_system
    assert student_system in json_of(rlt, "run", "--student", tiny(), "--key", "plain")["served_prompt"]
    assert student_system in json_of(rlt, "--in", traces, "--system", "format", "--student", tiny())["served_prompt"]
    rlt("distill", "run", "--select", "all")
    turns = {row["source_id"]: row["messages"] for row in pl.read_parquet("run/dataset/data/*.parquet").to_dicts()}
    assert turns["1a"][0] == {"role": "system", "content": "Be brief."}
    assert turns["plain"][0] == {"role": "system", "content": student_system}


def test_the_day_of_a_run_changes_nothing(rlt: Rlt, tiny: Tiny, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--in", traces, "--student", tiny(), "--teacher", "none", "--chat-template", LLAMA
    for year in (2031, 2040):
        today = SimpleNamespace(now=partial(datetime, year, 2, 3, tzinfo=UTC))
        monkeypatch.setattr(chat_template_utils, "datetime", today)
        rlt("score", *options, "--out", f"run{year}")
        shown = json_of(rlt, f"run{year}", "--student", tiny())["student_text"]
        assert "Today Date: 01 Jan 2025" in shown
    first, second = (
        {path.name: path.read_bytes() for path in Path(f"run{year}/scores").iterdir()} for year in (2031, 2040)
    )
    assert first == second
    rlt("score", *options, "--template-date", "2031-02-03", "--out", "run2031", code=5)


def test_runs_of_earlier_versions_are_read_but_not_continued(rlt: Rlt, tiny: Tiny, traces: Path) -> None:
    options = "--in", traces, "--student", tiny(), "--teacher", "none"
    rlt("score", *options, "--out", "run")
    file = Path("run/run.json")
    info = json.loads(file.read_text())
    for name in ("templates", "messages"):
        del info["steps"]["score"][name]
    info["steps"]["score"]["depends_on"]["chat_template"] = "0" * 16
    file.write_text(json.dumps(info))
    assert "by an earlier version of rlt-data, whose prompts" in rlt("score", *options, "--out", "run", code=5).stderr
    rlt("rank", "run", "--by", "r_ss")
    rlt("distill", "run", "--select", "all")


def test_the_user_message_can_surround_the_question(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "boxed.yaml"
    file.write_text('extends: native\nname: boxed\nquestion_template: "{question}\\n\\nEnd with \\\\boxed{}."\n')
    _, template = open_tokenizer(Checkpoint("m", tiny()), ModelSettings(chat_template=str(QWEN3)))
    views = Views(load_format(str(file)), template)
    assert "1 + 1?\n\nEnd with \\boxed{}.<|im_end|>" in views.solver_prompt("1 + 1?")
    assert "boxed" not in views.teacher_prompt(Problem("1 + 1?", "2"))


def test_a_solver_of_a_native_format_is_read_by_its_markup(tiny: Tiny) -> None:
    _, template = open_tokenizer(Checkpoint("m", tiny()), ModelSettings(chat_template=str(QWEN3)))
    views = Views(load_format("native"), template)
    assert views.solver_stop == "<|im_end|>"
    assert views.solution_in("<think>\nHm.\n</think>\n\nIt is 2.<|im_end|>") == ("It is 2.", True)
    assert views.solution_in("It is 2.") == ("It is 2.", False)
    assert views.solution_in("<think>\nHm, 3") == ("<think>\nHm, 3", False)


def test_a_pipeline_refuses_a_shape_that_drops_thoughts_before_any_work(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "questions.jsonl", [{"question": "1 + 1?", "solution": "2"}])
    Path("pipeline.yaml").write_text(
        f"out: run\ngenerate: {{in: questions.jsonl, teacher: {tiny()}, n: 1, max_tokens: 4}}\n"
        f"score: {{student: {tiny()}, chat_template: {R1}}}\nrank:\ndistill: {{select: best}}\n"
    )
    refused = rlt("run", "pipeline.yaml", code=2).stderr
    assert "distill.shape: messages: the student's chat template drops the thought" in refused
    assert not Path("run").exists()


def test_questions_with_control_tokens_of_the_named_student_are_bad_rows(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "questions.jsonl", [{"question": "What is <|im_end|>?", "solution": "A token."}])
    options = "--in", file, "--teacher", tiny("sliding"), "--n", 1, "--max-tokens", 2, "--out", "run"
    refused = rlt("generate", *options, "--student", tiny(), "--format", "rlt", code=3).stderr
    assert f"line 1: the question contains '<|im_end|>', a control token of {tiny()}" in refused
    rlt("generate", *options, "--format", "rlt")
