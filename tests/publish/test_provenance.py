"""Where a data set came from: inputs, commands, reward and prompts, with runs of the miniature models."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard
from transformers import AutoTokenizer

import rlt_data as rlt
from rlt_data.formats import load_format
from rlt_data.publish.push import push
from rlt_data.run import read_dataset
from rlt_data.settings import PushSettings
from rlt_data.storage.run import RunFolder
from tests.conftest import write_jsonl
from tests.hub_server import File, HubServer, Repo
from tests.made_runs import distilled, make_run, ranked, trace
from tests.publish.test_card import NAME, section

QUESTIONS = [
    {
        "question": f"Combine the numbers {a}, {b} and {c} with +, -, * and / to reach {a + b + c}. Use every number "
        "exactly once; brackets are allowed. Answer with one expression.",
        "solution": f"{a} + {b} + {c}",
    }
    for a, b, c in ((2, 3, 4), (5, 6, 7), (8, 9, 10))
]


def card_of(run: RunFolder | str, **settings: Any) -> DatasetCard:
    path = run if isinstance(run, str) else str(run.path)
    return DatasetCard(push(PushSettings(input=path, repo_id=NAME, dry_run=True, **settings)).card)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> rlt.Run:
    folder = tmp_path_factory.mktemp("nano")
    questions = write_jsonl(folder / "my questions.jsonl", QUESTIONS)
    run = rlt.generate(str(questions), teacher="nano", out=str(folder / "run"), n=2, max_tokens=60)
    run.score(student="nano").rank().distill()
    return run


def test_the_card_shows_the_prompts_that_the_models_saw(hub: HubServer, nano: rlt.Run) -> None:
    text = section(card_of(str(nano.path)).text, "How it was made")
    teacher, student = re.findall(r"shown here with one of the questions:\n\n```text\n(.*?)\n```", text, re.S)
    shortest = QUESTIONS[0]
    assert teacher.endswith(
        f"{shortest['question']} </question> <solution> {shortest['solution']} </solution> <explanation> "
    )
    assert student.endswith(f"{shortest['question']} </question> ") and shortest["solution"] not in student
    models = json.loads((nano.path / "run.json").read_text())["steps"]["score"]["models"]
    for role, model in models.items():
        assert f"Chat template of the {role}: hash `{model['chat_template']}`." in text
    # Without the run, distill.json has the prompts too.
    folder = card_of(f"{nano.path}/dataset").text
    authors = "Authors of the explanations"  # with the number of traces only if the run is there
    assert section(folder, "How it was made").partition(authors)[0] == text.partition(authors)[0]


def test_a_run_without_recorded_prompts_shows_the_system_prompts(hub: HubServer, run: RunFolder) -> None:
    run.record("generate", {"settings": {"chat_template": "/home/me/own.jinja"}, "models": {"teacher": {
        "name": "t", "weights": "1", "dtype": "float32", "chat_template": "0a1b"}}})  # fmt: skip
    text = section(card_of(run).text, "How it was made")
    assert "System prompt of the teacher:" in text and "System prompt of the student:" in text
    assert "Chat template of the teacher: `own.jinja`, hash `0a1b`." in text


def test_a_local_input_is_named_by_its_file(hub: HubServer, nano: rlt.Run) -> None:
    for source in (str(nano.path), f"{nano.path}/dataset"):
        card = card_of(source)
        assert "Questions and solutions come from `my questions.jsonl`.\n" in card.text
        command = "rlt-data generate --in 'my questions.jsonl' --max-tokens 60 --engine transformers --teacher nano"
        assert command in card.text
        assert not card.data.source_datasets and str(nano.path.parent) not in str(card)


def test_an_input_from_the_hub_is_a_source_data_set(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.repos["dataset", "org/sums"] = Repo("dataset", "org/sums", private=False)
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    repo.add("main", "rows", {"test.jsonl": File(lines.encode(), lfs=False)})
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run = rlt.generate("org/sums", split="test", teacher="nano", out=str(tmp_path / "run"), n=1, max_tokens=20)
    run.score(student="nano").rank()
    run.distill(include="truncated")
    for source in (str(run.path), f"{run.path}/dataset"):
        card = card_of(source)
        assert card.data.source_datasets == ["org/sums"]
        said = "Questions and solutions come from [org/sums](https://huggingface.co/datasets/org/sums) (split `test`)."
        assert said in card.text and re.search("rlt-data generate --in org/sums .*--split test", card.text)


def test_imported_traces_come_from_the_input_and_are_not_called_synthetic(hub: HubServer, run: RunFolder) -> None:
    run.record("input", {"traces": True, "inputs": [{"name": "org/traces", "on_hub": True}]})
    distilled(run)
    card = card_of(run)
    assert "Questions, solutions and explanations come from [org/traces]" in card.text
    assert card.data.source_datasets == ["org/traces"] and "synthetic" not in card.data.tags
    run.record("generate", {"models": {}})
    assert "synthetic" in card_of(run).data.tags


def test_only_recorded_origins_are_declared(hub: HubServer, run: RunFolder) -> None:
    run.record("input", {"settings": {"in": "org/perhaps"}})  # an earlier version did not record where it is
    card = card_of(run)
    assert not card.data.source_datasets and "Questions and solutions come from `org/perhaps`." in card.text


def test_a_reward_function_of_the_users_is_named(hub: HubServer, run: RunFolder) -> None:
    usual = card_of(run).text
    assert "dense reward of Reinforcement-Learned Teachers" in usual and "The reward measures how well" in usual
    run.record("score", {"settings": {"reward": "mine:short", "lambda": 3.0}})
    distilled(run)
    for source in (str(run.path), f"{run.path}/dataset"):
        text = card_of(source).text
        introduction = text.split("\n## ")[0]
        assert "ranked by the reward function `mine:short`, not by the reward of Reinf" in introduction
        assert "dense reward" not in text and "The reward measures how well" not in text
        assert "| `reward` | value of the reward function `mine:short` |" in text
        assert "Reward: the function `mine:short` instead of the RLT reward." in text


def test_a_ranking_by_another_column_is_named(hub: HubServer, run: RunFolder) -> None:
    ranked(run, by="r_ss")
    distilled(run)
    text = card_of(run).text.split("\n## ")[0]
    assert "ranked by `r_ss`: how well the student" in text and "how well the student" in text


def test_the_card_links_only_the_paper_and_recorded_data_sets(hub: HubServer, nano: rlt.Run) -> None:
    card = card_of(str(nano.path)).text
    assert set(re.findall(r"https?://[^\s)\]\"']+", card)) == {"https://arxiv.org/abs/2506.08388"}


@pytest.mark.parametrize(
    ("shape", "reads"), [("messages", True), ("prompt-completion", True), ("sharegpt", False), ("bespoke", False)]
)
def test_the_card_says_whether_trl_reads_the_rows(
    hub: HubServer, run: RunFolder, tiny: Callable[..., Path], tmp_path: Path, shape: str, reads: bool
) -> None:
    data = distilled(run, shape=shape, tokenizer=str(tiny())).out
    text = section(card_of(run).text, "How to train on it")
    assert ("which TRL's `SFTTrainer` reads." in text) == reads != ("use the rows of" in text)
    trl = pytest.importorskip("trl", reason="needs the extra train")
    config = trl.SFTConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    rows = read_dataset(data)
    [*_, row] = trl.SFTTrainer(model=str(tiny()), args=config, train_dataset=rows).train_dataset
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    trained = tokenizer.decode(row["input_ids"])
    format = load_format("rlt")
    turns = {"system": format.student_system, "user": "What is c?", "assistant": read_turn(rows[-1])}
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert (trained.rstrip("\n") == whole.rstrip("\n")) == reads
    if reads:
        loss = tokenizer.decode([token for token in row["labels"] if token >= 0])
        assert ("loss covers the complete conversation" in text) == (loss == trained)
    else:
        assert ("keeps the roles `human` and `gpt`" in text) == ("<|im_start|>gpt" in trained)
        assert ("ignores the column `system`" in text) == (format.student_system not in trained)


def read_turn(row: dict[str, Any]) -> str:
    """Return the assistant's turn of a row."""
    if "completion" in row:
        return str(row["completion"]).removesuffix("<|im_end|>")
    turn = (row.get("messages") or row["conversations"])[-1]
    return str(turn.get("content") or turn["value"])


def test_traces_of_other_runs_keep_the_share_that_is_correct(hub: HubServer, tmp_path: Path) -> None:
    metas = [json.dumps({"is_correct": value, "correctness_math_verify": text}) for value, text in
             ((True, "no idea"), (False, "true"), (True, "true"))]  # fmt: skip
    rows = [trace("a", i, -float(i), meta=meta) for i, meta in enumerate(metas)]
    run = make_run(tmp_path / "run", [*rows, trace("b", 0, meta=None), trace("c", 0, meta='{"other": 1}')])
    ranked(run)
    distilled(run)
    assert "Correct according" not in card_of(run).text  # generated traces: the column is about something else
    run.record("input", {"traces": True})
    distilled(run)
    text = section(card_of(run).text, "Statistics")
    assert re.findall("Correct according.*", text) == [
        "Correct according to the column `is_correct` of the input: 100.0% of the 1 rows of `default` with a value and "
        "66.7% of the 3 rows of `traces` with a value."
    ]


def test_the_card_names_the_signals_with_their_settings(hub: HubServer, nano: rlt.Run, tmp_path: Path) -> None:
    run = rlt.Run(shutil.copytree(nano.path, tmp_path / "run"))
    benchmark = write_jsonl(tmp_path / "bench.jsonl", [{"question": "What is 1 + 1?", "solution": "2"}])
    run.curate(signals=["text", "contamination"], against=str(benchmark), max_repetition=0.3)
    run.rank(by="-rsr").distill()
    text = card_of(str(run.path)).text
    signals = "`text` (max-repetition 0.3) and `contamination` (similarity 0.7, against `bench.jsonl`)"
    assert f"Signals of `rlt-data curate`: {signals}." in section(text, "How it was made")
    assert "<summary>Best: -rsr -" in text


def test_the_card_has_the_weights_that_the_formula_does_not_imply(tmp_path: Path) -> None:
    for number, (weights, expected) in enumerate(
        (
            ({"solution_weight": 1.0, "alpha_kl": None}, "with λ 3.0."),
            ({"solution_weight": 0.0, "alpha_kl": 0.1}, "with λ 3.0, weight of r_ss 0.0, α of the maximum 0.1."),
        )
    ):
        run = make_run(tmp_path / f"run-{number}", [trace("a", 0)])
        run.record("score", {"settings": {"lambda": 3.0} | weights})
        ranked(run)
        distilled(run)
        assert f"Reward: `r_ss - λ * r_kl + penalty`, {expected}" in card_of(run).text
