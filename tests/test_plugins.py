"""Engines, rewards, presets and shapes from outside: an installed package, or module:function."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from rlt_data.errors import SettingsError
from rlt_data.plugins import ENGINES, PRESETS, REWARDS, SHAPES, Registry
from tests.conftest import Rlt, write_jsonl

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin"
QUESTION = (
    "Combine the numbers 4, 6 and 9 with +, -, * and / to reach 30. Use every number exactly once; brackets are "
    "allowed. Answer with one expression."
)
REGISTRIES = [ENGINES, REWARDS, PRESETS, SHAPES]


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the modules of earlier tests."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("mine")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def run(rlt: Rlt) -> Path:
    """Two questions with two traces each."""
    rlt("countdown", "make", "--rows", 2, "--out", "problems.jsonl")
    rlt("generate", "--in", "problems.jsonl", "--teacher", "nano", "--n", 2, "--max-tokens", 20, "--out", "run")
    return Path("run")


def test_an_installed_package_brings_all_four(tmp_path: Path, rlt: Rlt, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shutil.copytree(PLUGIN, tmp_path / "source")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, "--target", site, source], check=True, capture_output=True)
    monkeypatch.syspath_prepend(site)

    write_jsonl(Path("faq.jsonl"), [{"Q": QUESTION, "A": "(9 - 4) * 6"}])
    options = ["--preset", "faq", "--engine", "oracle", "--teacher", "nano", "--n", 1]
    rlt("generate", "--in", "faq.jsonl", *options, "--out", "run")
    rlt("score", "--in", "run", "--student", "nano", "--teacher", "none", "--reward", "brief")
    rlt("rank", "--in", "run")
    rlt("distill", "--in", "run", "--shape", "alpaca")
    trace = pl.read_parquet("run/traces/*.parquet").row(0, named=True)
    assert "( 9 - 4 ) * 6" in trace["completion"] and trace["finish_reason"] == "stop"
    score = pl.read_parquet("run/scores/*.parquet").row(0, named=True)
    assert score["reward"] == pytest.approx(score["r_ss"] - 0.01 * score["thought_tokens"])
    row = pl.read_parquet("run/dataset/data/*.parquet").row(0, named=True)
    assert row["instruction"] == QUESTION and row["input"] == "" and "(9 - 4) * 6" in row["output"]
    options = ["--student", "nano", "--teacher", "none", "--engine", "oracle", "--out", "other"]
    assert "Oracle" in rlt("score", "--in", "run", *options, code=6).stderr
    assert "'brief'" in rlt("score", "--in", "run", "--student", "nano", "--reward", "breif", code=2).stderr


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.option)
def test_every_built_in_is_found_by_its_registry(registry: Registry) -> None:
    for name in registry.built_in:
        assert callable(registry.load(name)) and registry.identity(name) is None


MISTAKES = {
    "rtl": "'rlt'",
    "nosuch:reward": "nosuch",
    "mine_broken:reward": "SyntaxError",
    "mine:reword": "'reward'",
    "mine:NUMBER": "int",
    "mine reward:x": "module:function",
    ":x": "module:function",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_names_are_one_line(name: str, rlt: Rlt) -> None:
    Path("mine.py").write_text("NUMBER = 3\ndef reward(row): return 0\n")
    Path("mine_broken.py").write_text("def\n")
    result = rlt("score", "--in", "traces.jsonl", "--student", "nano", "--reward", name, code=2)
    assert MISTAKES[name] in result.stderr and "reward" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_reward_replaces_the_column_and_is_part_of_the_run(run: Path, rlt: Rlt) -> None:
    rlt("score", "--in", run, "--student", "nano", "--out", "plain")
    assert "reward" not in json.loads(Path("plain/run.json").read_text())["steps"]["score"]["depends_on"]
    Path("mine.py").write_text("def reward(row): return float(len(row['question'] + row['explanation']))\n")
    rlt("score", "--in", run, "--student", "nano", "--reward", "mine:reward", "--out", "other")
    plain, other = (pl.read_parquet(f"{name}/scores/*.parquet").sort("trace_id") for name in ("plain", "other"))
    assert other["reward"].min() > 0 and other["r_ss"].equals(plain["r_ss"])  # type: ignore[operator]
    rlt("score", "--in", run, "--student", "nano", "--out", "other", code=5)
    rlt("score", "--in", run, "--student", "nano", "--reward", "mine:reward", "--out", "other")
    Path("mine.py").write_text("def reward(row): return 1.0\n")
    rlt("score", "--in", run, "--student", "nano", "--reward", "mine:reward", "--out", "other", code=5)
    assert pl.read_parquet("other/scores/*.parquet").sort("trace_id").equals(other)


@pytest.mark.parametrize("returned", ["row['nosuch']", "'high'", "float('nan')"])
def test_a_reward_that_fails_fails_its_row(run: Path, rlt: Rlt, returned: str) -> None:
    Path("mine.py").write_text(f"def reward(row): return {returned} if row['question'] == FIRST else None\n")
    first = pl.read_parquet("run/questions/*.parquet")["question"][0]
    with Path("mine.py").open("a") as file:
        file.write(f"FIRST = {first!r}\n")
    rlt("score", "--in", run, "--student", "nano", "--reward", "mine:reward", code=4)
    failures = [json.loads(line) for line in Path("run/errors.jsonl").read_text().splitlines()]
    assert len(failures) == 2 and all("mine:reward" in failure["reason"] for failure in failures)
    assert pl.read_parquet("run/scores/*.parquet")["reward"].to_list() == [None, None]


def test_training_rewards_with_the_same_function(tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("trl", reason="needs the extra train")
    import numpy as np

    from rlt_data.engines import open_model
    from rlt_data.formats import load_format
    from rlt_data.settings import ModelSettings, TrainTeacherSettings
    from rlt_data.training.rewards import DenseReward
    from rlt_data.training.rollouts import Rollout

    Path("mine.py").write_text("def reward(row): return {'a': 7.0}[row['explanation'].strip()]\n")
    model = str(tiny("chat"))
    student = open_model(model, ModelSettings(device="cpu"))
    settings = TrainTeacherSettings(model=model, student=model, input="x", out="o", reward="mine:reward")
    format = load_format("rlt")
    reward = DenseReward(settings, student, format, student.tokenizer, same_tokenizer=True)

    def rollout(text: str) -> Rollout:
        ids = np.asarray(student.tokenizer(text)["input_ids"], np.int32)
        return Rollout(text, ids, np.full(len(ids), -1, np.float32), ids[:0], np.zeros(0, np.float32), "stop")

    questions = [{"question": "q", "question_id": name, "solution": "2"} for name in ("first", "second")]
    rows = reward.rows(questions, [rollout(text + format.explanation_tags[1]) for text in ("a", "b")])
    assert [row["reward"] for row in rows] == [7.0, None]
    assert "second" in caplog.text and "KeyError" in caplog.text


def test_a_preset_can_say_who_wrote_the_traces(rlt: Rlt) -> None:
    Path("mine3.py").write_text(
        "def preset(record): return {'question': record['Q'], 'solution': record['A'], "
        "'explanations': ['a', 'b'], 'origin': record['Q'] + '-1B'}\n"
    )
    Path("faq.jsonl").write_text('{"Q": "q", "A": "s", "model": "other"}\n')
    assert "origins of the traces: q-1B 2" in rlt("check", "--in", "faq.jsonl", "--preset", "mine3:preset").output


def test_a_preset_that_fails_rejects_its_record(rlt: Rlt) -> None:
    Path("mine.py").write_text("def preset(record): return {'question': record['Q'], 'solution': record['A']}\n")
    write_jsonl(Path("faq.jsonl"), [{"Q": "a", "A": "b"}, {"Q": "c"}])
    result = rlt("check", "--in", "faq.jsonl", "--preset", "mine:preset", code=3)
    assert "line 2" in result.output and "KeyError" in result.output and "line 1:" not in result.output
    Path("mine2.py").write_text("def preset(record): return {'prompt': 'x'}\n")
    assert "'prompt'" in rlt("check", "--in", "faq.jsonl", "--preset", "mine2:preset", code=3).output


def test_a_changed_preset_reads_the_file_again(rlt: Rlt) -> None:
    write_jsonl(Path("faq.jsonl"), [{"Q": QUESTION, "A": "(9 - 4) * 6"}])
    options = ["--preset", "mine:preset", "--teacher", "nano", "--n", 1, "--max-tokens", 4, "--out", "run"]
    for solution in ("record['A']", "'6 * (9 - 4)'", "'6 * (9 - 4)'"):
        Path("mine.py").write_text(f"def preset(record): return {{'question': record['Q'], 'solution': {solution}}}\n")
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        rlt("generate", "--in", "faq.jsonl", *options)
    assert pl.read_parquet("run/questions/*.parquet")["solution"].to_list() == ["(9 - 4) * 6", "6 * (9 - 4)"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("[row['question']]", "list"),
        ("{'final_answer': row['question']}", "'final_answer'"),
        ("{'text': row['nosuch']}", "KeyError"),
        ("{'text': 1 if row['question'] == 'question' else 'x'}", "text: int64"),
        ("{'text': 'x'} if row['question'] == 'question' else {'txt': 'x'}", "text: string"),
    ],
)
def test_a_shape_that_fails_writes_nothing(run: Path, rlt: Rlt, body: str, named: str) -> None:
    rlt("score", "--in", run, "--student", "nano")
    rlt("rank", "--in", run)
    Path("mine.py").write_text(f"def shape(row): return {body}\n")
    result = rlt("distill", "--in", run, "--include", "truncated", "--shape", "mine:shape", code=2)
    assert named in result.stderr and not Path("run/dataset").exists()


def test_an_object_that_is_no_engine_is_refused(rlt: Rlt) -> None:
    Path("mine.py").write_text("def engine(model, logs, memory_share): return object()\n")
    write_jsonl(Path("q.jsonl"), [{"question": "a", "solution": "b"}])
    result = rlt("generate", "--in", "q.jsonl", "--teacher", "nano", "--engine", "mine:engine", "--out", "run", code=6)
    assert "mine:engine" in result.stderr and "context_length" in result.stderr


def test_an_engine_that_raises_when_opened_is_refused(rlt: Rlt) -> None:
    Path("mine.py").write_text("def engine(model, logs, memory_share): raise OSError('no card')\n")
    write_jsonl(Path("q.jsonl"), [{"question": "a", "solution": "b"}])
    result = rlt("generate", "--in", "q.jsonl", "--teacher", "nano", "--engine", "mine:engine", "--out", "run", code=6)
    assert "mine:engine" in result.stderr and "no card" in result.stderr


def test_a_file_here_never_hides_an_installed_module() -> None:
    Path("json.py").write_text("def dumps(row): return 0\n")
    assert REWARDS.load("json:dumps") is json.dumps
    with pytest.raises(SettingsError, match="nosuch"):
        REWARDS.load("nosuch")
