from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
from transformers import AutoTokenizer

from rlt_data.errors import ModelError, RunFolderError, SettingsError
from rlt_data.formats import encode, load_format
from rlt_data.formats.template import PLAIN
from rlt_data.formats.views import student_message
from rlt_data.inputs.read import read_records
from rlt_data.run import read_dataset
from rlt_data.settings import InputSettings
from rlt_data.signals.funnel import lost_questions
from rlt_data.steps import rank as rank_module
from rlt_data.steps.distill import DistillSummary
from rlt_data.storage.errorlog import ErrorLog
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.conftest import Rlt
from tests.made_runs import distilled, files_of, make_run, ranked, trace

Tiny = Callable[..., Path]

SHAPES = ["messages", "prompt-completion", "sharegpt", "bespoke"]


def rows(folder: Path) -> pl.DataFrame:
    return pl.read_ndjson(folder / "train.jsonl", infer_schema_length=None)


def selected(run: RunFolder, **settings: Any) -> list[str]:
    """Distill, and return the ids of the traces in the order of the data set."""
    return rows(distilled(run, **settings).out)["trace_id"].to_list()


def dropped(summary: DistillSummary) -> dict[str, int]:
    """Return the number of traces that each condition dropped, if it dropped any."""
    return {step.condition: step.rows_in - step.rows_out for step in summary.funnel if step.rows_in > step.rows_out}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Three questions: with three good traces, with one good and two malformed ones, with malformed ones only."""
    run = make_run(
        tmp_path / "run",
        [
            *(trace("a", i, float(i)) for i in range(3)),
            trace("b", 0, 9.0, truncated=True, closed=False),
            trace("b", 1, 1.0),
            trace("b", 2, 8.0, holds_tag=True),
        ],
        [trace("c", 0, 5.0, closed=False), trace("c", 1, 6.0, truncated=True, closed=False)],
    )
    ranked(run)
    return run


@pytest.mark.parametrize(
    ("select", "expected"),
    {
        "best": ["a/2", "b/1"],
        "rank:1": ["a/2", "b/1"],
        "rank:2": ["a/1"],
        "bucket:1": ["a/2", "b/1"],
        "bucket:3": ["a/0"],
        "top:2": ["a/2", "a/1", "b/1"],
        "top:9": ["a/2", "a/1", "a/0", "b/1"],
        "all": ["a/2", "a/1", "a/0", "b/1"],
    }.items(),
)
def test_only_well_formed_traces_are_selected(run: RunFolder, select: str, expected: list[str]) -> None:
    assert selected(run, select=select) == expected


@pytest.mark.parametrize(
    ("select", "expected"),
    {
        "best": ["a/2", "b/1", "c/1"],
        "rank:2": ["a/1", "b/0"],
        "top:2": ["a/2", "a/1", "b/1", "b/0", "c/1"],
        "all": ["a/2", "a/1", "a/0", "b/1", "b/0", "c/1"],
    }.items(),
)
def test_include_truncated_selects_truncated_traces_and_no_other_flaw(
    run: RunFolder, select: str, expected: list[str]
) -> None:
    assert selected(run, select=select, include="truncated") == expected


def test_a_quantile_bucket_spans_all_questions(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", [trace(key, i, 10.0 * place + i) for place, key in enumerate("ab") for i in range(4)]
    )
    ranked(run, buckets=2)
    assert selected(run, select="bucket:1") == ["b/3", "b/2", "b/1", "b/0"]


def test_random_selects_one_well_formed_trace_per_question_by_seed(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", [trace(f"{q}", i, float(i), closed=i > 0) for q in range(100, 160) for i in range(5)]
    )
    ranked(run)
    first = selected(run, select="random", seed=1)
    assert [key.split("/")[0] for key in first] == [f"{q}" for q in range(100, 160)]
    chosen = Counter(key.split("/")[1] for key in first)
    assert set(chosen) == {"1", "2", "3", "4"} and max(chosen.values()) < 30
    assert selected(run, select="random", seed=1) == first != selected(run, select="random", seed=2)


def test_limit_draws_questions_by_seed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace(f"{q}", i) for q in range(100, 140) for i in range(2)])
    ranked(run)
    ten_keys = selected(run, limit=10, seed=3)
    assert len(ten_keys) == 10 and ten_keys == sorted(ten_keys) and ten_keys == selected(run, limit=10, seed=3)
    assert ten_keys != selected(run, limit=10, seed=4) and ten_keys != selected(run)[:10]
    assert set(selected(run, limit=4, seed=3)) < set(ten_keys)
    assert Counter(key.split("/")[1] for key in selected(run, select="all", limit=6)) == {"0": 3, "1": 3}
    assert len(selected(run, limit=99)) == 40


@pytest.mark.parametrize(("holdout", "questions"), [("6", 6), ("0.2", 8), ("0.001", 1)])
def test_held_out_questions_are_the_split_test(rlt: Rlt, tmp_path: Path, holdout: str, questions: int) -> None:
    run = make_run(tmp_path / "run", *([trace(f"{q}", i) for i in range(2)] for q in range(100, 140)))
    ranked(run)

    def held_out(seed: int, **settings: Any) -> list[str]:
        out = distilled(run, holdout=holdout, seed=seed, out=str(tmp_path / "data"), **settings).out
        splits = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
        for split, data in splits.items():
            text = (tmp_path / "data" / f"{split}.jsonl").read_text()
            assert data.to_list() == [json.loads(line) for line in text.splitlines()]
        kept, drawn = ({key.split("/")[0] for key in splits[split]["trace_id"]} for split in ("train", "test"))
        assert not kept & drawn and len(drawn) == questions and len(kept) == 40 - questions
        return sorted(drawn)

    drawn = held_out(3)
    assert drawn == held_out(3, select="random") != held_out(4)
    options = "--select", "all", "--holdout", holdout, "--out", tmp_path / "data"
    assert f"  {2 * questions} rows are held out as the split test, from {questions} of the questions" in (
        rlt("distill", run.path, *options).output
    )
    counts = json.loads((tmp_path / "data" / "distill.json").read_text())["counts"]
    assert (counts["rows"], counts["held_out"], counts["held_out_questions"]) == (80, 2 * questions, questions)
    assert len(read_dataset(tmp_path / "data")) == 80 - 2 * questions
    distilled(run, out=str(tmp_path / "data"))
    assert set(datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))) == {"train"}


@pytest.mark.parametrize(
    ("holdout", "message"), [("40", "40 leaves no question"), ("1.5", "a share below 1"), ("0", "greater")]
)
def test_a_holdout_that_leaves_nothing_to_train_on_is_refused(
    rlt: Rlt, tmp_path: Path, holdout: str, message: str
) -> None:
    run = make_run(tmp_path / "run", [trace(f"{q}", 0) for q in range(40)])
    ranked(run)
    distilled(run)
    before = files_of(run.path)
    output = rlt("distill", run.path, "--holdout", holdout, code=2).output
    assert "error: --holdout: " in output and message in output and files_of(run.path) == before


@pytest.mark.parametrize("select", ["best", "random", "all"])
def test_a_draw_does_not_depend_on_the_order_of_questions_or_on_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str
) -> None:
    traces = [[trace(f"{q}", i, float((q * 7 + i) % 5)) for i in range(3)] for q in range(100, 120)]
    one = make_run(tmp_path / "one", [row for question in traces for row in question])
    many = make_run(tmp_path / "many", *reversed(traces))
    drawn = []
    for run, parts_at_a_time in ((one, 64), (many, 64), (many, 3)):
        monkeypatch.setattr(rank_module, "PARTS_AT_A_TIME", parts_at_a_time)
        ranked(run)
        drawn.append(sorted(selected(run, select=select, limit=7, seed=5)))
    assert drawn[0] == drawn[1] == drawn[2] and len(drawn[0]) == 7


def test_limit_with_parts_that_have_no_selected_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0)], [trace("b", 0), trace("b", 1)], [trace("c", 0)])
    ranked(run)
    monkeypatch.setattr(rank_module, "PARTS_AT_A_TIME", 1)
    assert selected(run, select="rank:2", limit=5) == ["b/1"]


def test_excluded_traces_are_counted(run: RunFolder) -> None:
    best = distilled(run)
    assert (best.rows, best.questions, dropped(best)) == (2, 2, {"well-formed": 4, "--select best": 2})
    every = distilled(run, select="all")
    assert (every.rows, every.questions, dropped(every)) == (4, 2, {"well-formed": 4})
    second = distilled(run, select="rank:2")
    assert (second.rows, dropped(second)) == (1, {"--select rank:2": 5, "well-formed": 2})
    assert json.loads((second.out / "distill.json").read_text())["funnel"][1]["rows_out"] == 1


def assistant(row: dict[str, Any]) -> str:
    """Return the assistant's text of a row."""
    if "completion" in row:
        return str(row["completion"]).removesuffix("<|im_end|>")
    turns = row.get("messages") or row["conversations"]
    return str(turns[-1].get("content") or turns[-1]["value"])


@pytest.mark.parametrize("format", ["rlt", "think"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_assistant_text_is_the_student_message_of_the_format(
    tiny: Tiny, tmp_path: Path, shape: str, format: str
) -> None:
    used = load_format(format)
    thought = "  First <b>this</b>.\n\nOù? 🙂\t\\n then {that}. \n"
    run = make_run(
        tmp_path / "run", [trace("a", 0, completion=thought + used.explanation_tags[1] + " and on")], format=format
    )
    ranked(run)
    tokenizer = {"tokenizer": str(tiny())} if shape == "prompt-completion" else {}
    [row] = rows(distilled(run, shape=shape, **tokenizer).out).to_dicts()
    assert assistant(row) == student_message(used, None, "It is a.", thought).text
    texts = json.dumps(row, ensure_ascii=False)
    assert json.dumps(used.student_system, ensure_ascii=False)[1:-1] in texts and "What is a?" in texts


ROLES = {
    "messages": {"messages": ["system", "user", "assistant"]},
    "prompt-completion": {},
    "sharegpt": {"conversations": ["system", "human", "gpt"]},
    "bespoke": {"conversations": ["user", "assistant"]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_datasets_loads_the_folder_and_finds_the_rows_of_the_jsonl_file(
    run: RunFolder, tiny: Tiny, tmp_path: Path, shape: str
) -> None:
    tokenizer = {"tokenizer": str(tiny())} if shape == "prompt-completion" else {}
    summary = distilled(run, shape=shape, select="all", **tokenizer)
    loaded = datasets.load_dataset(str(summary.out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    loaded_rows = loaded["train"].to_list()
    assert loaded_rows == [json.loads(line) for line in (summary.out / "train.jsonl").read_text().splitlines()]
    assert [row["trace_id"] for row in loaded_rows] == ["a/2", "a/1", "a/0", "b/1"]
    roles = {
        column: [turn.get("role") or turn.get("from") for turn in turns]
        for column, turns in loaded_rows[0].items()
        if isinstance(turns, list)
    }
    assert roles == ROLES[shape] and ("system" in loaded_rows[0]) == (shape == "bespoke")
    origin = {
        "question_id": "a",
        "source_id": "source of a",
        "final_answer": "a",
        "rank": 1,
        "reward": 2.0,
        "thought_tokens": 10,
    }
    assert origin.items() <= loaded_rows[0].items()


@pytest.mark.parametrize("shape", ["messages", "prompt-completion"])
def test_trl_trains_on_the_data_set_unchanged(run: RunFolder, tiny: Tiny, tmp_path: Path, shape: str) -> None:
    trl = pytest.importorskip("trl")
    summary = distilled(run, shape=shape, select="all", tokenizer=str(tiny()))
    data = datasets.load_dataset(str(summary.out), split="train", cache_dir=str(tmp_path / "cache"))
    trainer = trl.SFTTrainer(
        model=str(tiny()),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "trained"), max_steps=1, per_device_train_batch_size=4, max_length=None,
            use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=data,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    for row, trained in zip(data.to_list(), trainer.train_dataset.to_list(), strict=True):
        if shape == "messages":
            text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        else:
            text = row["prompt"] + row["completion"]
            learnt = tokenizer.decode([token for token in trained["labels"] if token >= 0])
            assert learnt == row["completion"] and learnt.endswith("<|im_end|>")
        assert tokenizer.decode(trained["input_ids"]) == text
    assert trainer.train().training_loss > 0


@pytest.fixture
def long_and_short(tmp_path: Path) -> RunFolder:
    """Question a: its best trace is long. Question b: all are long. Question c: all are short."""
    words = {"a": [2, 3, 300], "b": [300, 301, 302], "c": [1, 2, 3]}
    run = make_run(
        tmp_path / "run",
        [
            trace(key, i, float(i), completion="word " * count + "<|end_of_explanation|>")
            for key, counts in words.items()
            for i, count in enumerate(counts)
        ],
    )
    ranked(run)
    return run


@pytest.mark.parametrize("kind", ["chat", "base", "sliding"])
def test_exactly_the_rows_over_the_token_limit_are_excluded(long_and_short: RunFolder, tiny: Tiny, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny(kind))
    template = {} if tokenizer.chat_template else {"chat_template": PLAIN, "plain_bos": True}
    lengths = {
        row["trace_id"]: len(
            encode(tokenizer, [tokenizer.apply_chat_template(row["messages"], tokenize=False, **template).rstrip()])[0]
        )
        for row in rows(distilled(long_and_short, select="all").out).to_dicts()
    }
    for limit in (lengths["a/1"], lengths["b/1"]):
        kept = selected(long_and_short, select="all", tokenizer=str(tiny(kind)), max_tokens=limit)
        assert set(kept) == {key for key, length in lengths.items() if length <= limit}
        assert max(lengths[key] for key in kept) == limit


@pytest.mark.parametrize(
    ("select", "expected", "counts"),
    [
        ("best", ["a/1", "c/2"], (4, 1, {"--max-tokens 600": 1})),
        ("top:2", ["a/1", "a/0", "c/2", "c/1"], (4, 1, {"--max-tokens 600": 1})),
        ("rank:1", ["c/2"], (2, 0, {"--max-tokens 600": 2})),
        ("bucket:2", ["a/1", "c/1"], (1, 0, {"--max-tokens 600": 1})),
        ("all", ["a/1", "a/0", "c/2", "c/1", "c/0"], (4, 0, {"--max-tokens 600": 1})),
    ],
)
def test_the_next_best_trace_replaces_one_that_is_too_long(
    long_and_short: RunFolder, tiny: Tiny, select: str, expected: list[str], counts: tuple[int, int, dict[str, int]]
) -> None:
    summary = distilled(long_and_short, select=select, tokenizer=str(tiny()), max_tokens=600)
    assert rows(summary.out)["trace_id"].to_list() == expected
    assert (dropped(summary)["--max-tokens 600"], summary.fallbacks, lost_questions(summary.funnel)) == counts


def test_a_limit_in_tokens_needs_a_tokenizer(run: RunFolder) -> None:
    with pytest.raises(SettingsError, match="max_tokens: "):
        distilled(run, max_tokens=100)
    with pytest.raises(ModelError, match="nowhere"):
        distilled(run, max_tokens=100, tokenizer="nowhere")


def test_a_chat_template_that_would_change_the_rows_is_refused(run: RunFolder, tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    content = "message['content']"
    cut = "(message['content'].split('<|end_of_thought|>')[-1])"  # as templates of reasoning models do
    assert content in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(content, cut)
    tokenizer.save_pretrained(tmp_path / "student")
    (tmp_path / "student" / "config.json").write_bytes((tiny() / "config.json").read_bytes())
    distilled(run)
    before = files_of(run.path)
    with pytest.raises(ModelError, match="omits or changes the system text"):
        distilled(run, tokenizer=str(tmp_path / "student"))
    assert files_of(run.path) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select": "rank:9"}, r"by condition: --select rank:9 \(3\)"),
        ({"select": "bucket:9", "limit": 2}, r"by condition: --select bucket:9 \(3\)"),
        ({"select": "rank:3"}, r"by condition: --select rank:3 \(1\), well-formed \(2\)"),
    ],
)
def test_an_empty_selection_keeps_the_earlier_data_set(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    flawed = [trace(key, i, 9.0 - i, closed=i < 2) for key in "ab" for i in range(3)]
    run = make_run(tmp_path / "run", [*flawed, trace("c", 0)])
    ranked(run)
    distilled(run)
    before = files_of(run.path)
    with pytest.raises(SettingsError, match=message):
        distilled(run, **settings)
    assert files_of(run.path) == before


def test_distilling_again_replaces_the_data_set(run: RunFolder) -> None:
    out = distilled(run).out
    first = files_of(out)
    distilled(run, select="all", shape="sharegpt")
    assert len(rows(out)) == 4 and "conversations" in rows(out).columns
    distilled(run)
    assert files_of(out) == first
    assert not [path for path in run.path.iterdir() if path.name.startswith(".dataset")]


#: Content of an --out folder that is not a data set; None: --out is a file.
OBSTACLES: dict[str, dict[str, str] | None] = {
    "a file": None,
    "someone's notes": {"notes.txt": "mine"},
    "another data set": {"data/train-00000.parquet": "theirs", "README.md": "theirs"},
    "a data set with notes": {"distill.json": "{}", "train.jsonl": "", ".git/config": "mine"},
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_other_files_are_not_replaced(run: RunFolder, tmp_path: Path, name: str) -> None:
    out, content = tmp_path / "out", OBSTACLES[name]
    if content is None:
        out.write_text("mine")
    for file, text in (content or {}).items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text(text)
    before = files_of(tmp_path)
    with pytest.raises(RunFolderError, match="out: .*--out"):
        distilled(run, out=str(out))
    assert files_of(tmp_path) == before


def test_a_run_folder_is_refused_and_an_empty_folder_is_used(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="run: .*--out"):
        distilled(run, out=str(run.path))
    (tmp_path / "empty").mkdir()
    assert len(rows(distilled(run, out=str(tmp_path / "empty")).out)) == 2


def test_settings_and_counts_are_recorded_with_the_data_set(run: RunFolder) -> None:
    out = distilled(run, select="top:2", seed=7).out
    record = json.loads((out / "distill.json").read_text())
    assert record["settings"]["select"] == "top:2" and record["settings"]["seed"] == 7
    assert record["format"]["name"] == "rlt" and record["steps"]["rank"]["settings"]["by"] == "reward"
    assert record["counts"]["rows"] == 3 and "--select top:2" in (out / "README.md").read_text()


def test_a_run_without_ranks_or_format_is_refused(run: RunFolder, tmp_path: Path) -> None:
    unranked = make_run(tmp_path / "unranked", [trace("a", 0)])
    with pytest.raises(RunFolderError, match="rlt-data rank"):
        distilled(unranked)
    ranked(unranked)
    (unranked.path / "run.json").write_text('{"version": 1, "steps": {}}')
    with pytest.raises(RunFolderError, match="run.json .* format"):
        distilled(unranked)


def test_folders_of_the_same_name_are_not_confused(run: RunFolder, tmp_path: Path) -> None:
    """``datasets`` caches by folder name and README patterns; so does the reader of inputs, which uses it."""
    for place, rank in (("one", 1), ("other", 2)):
        (tmp_path / place).mkdir()
        distilled(run, select=f"rank:{rank}", out=str(tmp_path / place / "dataset"))
        loaded = datasets.load_dataset(str(tmp_path / place / "dataset"), split="train")
        assert set(loaded["rank"]) == {rank}
        foreign = tmp_path / place / "foreign"
        (foreign / "data").mkdir(parents=True)
        (foreign / "data" / "train.jsonl").write_text(json.dumps({"question": place, "solution": "s"}))
        card = "---\nconfigs:\n- config_name: default\n  data_files: data/*.jsonl\n---\n"
        (foreign / "README.md").write_text(card)
        [row] = read_records(InputSettings(input=str(foreign)))
        assert row.data == {"question": place, "solution": "s"}


def test_a_row_has_the_metadata_of_its_trace(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        [
            trace("a", 0, meta='{"m": "A"}', origin="A", answer="1"),
            trace("a", 1, meta='{"m": "B"}', origin="B"),
            trace("b", 0),
        ],
    )
    questions = run.read("questions", 0).to_pylist()
    run.write_part("questions", 0, to_table("questions", [{**row, "meta": '{"q": 1}'} for row in questions]))
    ranked(run)
    summary = distilled(run, select="all")
    columns = ["trace_id", "meta", "origin", "final_answer", "question_meta"]
    assert rows(summary.out).select(columns).sort("trace_id").rows() == [
        ("a/0", '{"m": "A"}', "A", "1", '{"q": 1}'),
        ("a/1", '{"m": "B"}', "B", "a", '{"q": 1}'),
        ("b/0", None, None, "b", '{"q": 1}'),
    ]
    assert summary.origins == {"A": 1, "B": 1}


def test_questions_without_a_row_are_counted_by_condition(run: RunFolder) -> None:
    assert lost_questions(distilled(run).funnel) == {"well-formed": 1}
    assert lost_questions(distilled(run, select="bucket:3").funnel) == {"--select bucket:3": 1, "well-formed": 1}
    assert lost_questions(distilled(run, include="truncated").funnel) == {}


def test_the_funnel_is_printed(rlt: Rlt, run: RunFolder) -> None:
    printed = rlt("distill", "--in", run.path).stdout.splitlines()
    [line] = [line for line in printed if line.startswith("well-formed")]
    assert line.split() == ["well-formed", "8", "4", "2", "b/0", "b/2", "c/0"]
    assert "  well-formed: holds tag 1, truncated 2, unclosed 1" in printed


def test_new_traces_without_scores_or_ranks_are_refused(rlt: Rlt, run: RunFolder) -> None:
    with run.locked():
        run.write_part("questions", 2, to_table("questions", [{"question_id": "d", "question": "?", "solution": "."}]))
        run.write_part("traces", 2, to_table("traces", [trace("d", 0)]))
    errors = rlt("distill", "--in", run.path, code=5).stderr
    assert "1 traces" in errors and "rlt-data score" in errors and "rlt-data rank" in errors
    assert "rlt-data score" in rlt("rank", "--in", run.path, code=5).stderr
    with run.locked():
        run.write_part("scores", 2, to_table("scores", [trace("d", 0)]))
    assert "rlt-data rank" in rlt("distill", "--in", run.path, code=5).stderr
    ranked(run)
    assert distilled(run).questions == 3


def test_traces_that_generate_has_not_made_are_reported(rlt: Rlt, run: RunFolder) -> None:
    run.record("generate", {"settings": {"n": 3}})
    assert "1 traces are missing" in rlt("rank", "--in", run.path).stderr  # question c has 2 traces
    assert "rlt-data generate" in rlt("distill", "--in", run.path).stderr
    assert "missing_traces" not in json.loads((run.path / "dataset" / "distill.json").read_text())["counts"]
    ErrorLog(run, "generate").add("hash of trace c/2", "too long", None)
    ranked(run)
    assert distilled(run).missing_traces == 0
    run.record("generate", {"settings": {"n": 4}})
    assert distilled(run).missing_traces == 12 - 8 - 1
    ErrorLog(run, "generate").add("c", "too long", None)  # none of its traces can be made
    assert distilled(run).missing_traces == 8 - 6 - 1


def test_a_trace_whose_score_failed_is_not_missing(run: RunFolder) -> None:
    run.record("generate", {"settings": {"n": 3}})
    run.write_part("scores", 0, run.read("scores", 0).slice(1))
    ErrorLog(run, "score").add("a/0", "too long", None)
    assert ranked(run).missing_traces == distilled(run).missing_traces == 1  # question c has 2 traces
    assert run.count("ranks") == run.count("traces") - 1
