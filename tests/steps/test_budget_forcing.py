"""Budget forcing: which thoughts are extended and closed, and that it resumes like other sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rlt_data.engines import open_model
from rlt_data.errors import SettingsError
from rlt_data.formats import Views, load_format
from rlt_data.progress import SILENT
from rlt_data.settings import CountdownSettings, EvaluateSettings
from rlt_data.steps.budget_forcing import BudgetForcing, Thought
from rlt_data.steps.countdown import make_countdown
from rlt_data.steps.evaluate import evaluate
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import to_table
from tests.conftest import Rlt
from tests.killing import table_bytes

TABLES = ("thoughts", "answers", "grades")
#: The text of the nano student in place of "Wait", which its vocabulary lacks.
WAIT = " no"


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    numbers = {"fewest": 3, "most": 3, "smallest": 1, "largest": 14, "smallest_target": 0, "largest_target": 120}
    make_countdown(CountdownSettings(out=str(file), rows=8, split="test", **numbers))
    return str(file)


def settings(problems: str, out: str, **options: Any) -> EvaluateSettings:
    values = {"model": "nano-student", "benchmark": "countdown", "input": problems, "out": out, "n": 2}
    return EvaluateSettings(**values | {"temperature": 0.8, "max_tokens": 150, "device": "cpu"} | options)


def rows(out: str, table: str) -> pl.DataFrame:
    return pl.read_parquet(f"{out}/{table}/*.parquet")


def sampled(out: str) -> int:
    """Return how many tokens a run has sampled, as run.json says."""
    return int(json.loads(Path(out, "run.json").read_text())["steps"]["evaluate"]["work"]["tokens"])


def test_thoughts_are_extended_and_closed(problems: str) -> None:
    budget = {"max_thought": 50, "waits": 2, "min_thought": 30, "wait_text": WAIT}
    result = evaluate(settings(problems, "run", **budget))
    answers, thoughts = rows("run", "answers"), rows("run", "thoughts")
    assert len(answers) == result.answers == 16
    cut = extended = 0
    for answer in answers.iter_rows(named=True):
        own = thoughts.filter(
            (pl.col("question_id") == answer["question_id"]) & (pl.col("sample_index") == answer["sample_index"])
        ).sort("extension")
        text, tokens = "", 0
        for thought in own.iter_rows(named=True):
            assert answer["completion"].startswith(text)
            if thought["extension"]:
                assert tokens < budget["min_thought"] and text.endswith(WAIT)
            text += thought["completion"]
            tokens += thought["completion_tokens"]
            if thought["extension"] < own["extension"].max():
                text, tokens = text.removesuffix("</thought>") + WAIT, tokens + 1
        extended += len(own) > 1
        assert own["extension"].to_list() == list(range(len(own))) and len(own) <= 3
        if own["finish_reason"][-1] == "length":
            assert tokens == 50 and answer["completion"].startswith(text)
            assert answer["completion"][len(text) :].lstrip().startswith("</thought>")
            cut += 1
        else:
            assert tokens >= 30 or len(own) == 3 or tokens + 1 >= 50
        assert answer["completion"].count("</thought>") == 1 and answer["completion_tokens"] > tokens
        assert answer["prompt_tokens"] == own["prompt_tokens"][0]
    assert (result.extended, result.cut) == (extended / 16, cut / 16) and cut and extended
    written = json.loads(Path("run/evaluation.json").read_text())
    assert (written["extended"], written["cut"]) == (result.extended, result.cut)
    recorded = json.loads(Path("run/run.json").read_text())["steps"]["evaluate"]
    assert budget.items() <= recorded["depends_on"].items()


def test_a_budget_that_nothing_exceeds_changes_no_answer(problems: str) -> None:
    evaluate(settings(problems, "plain", n=1, temperature=0.0))
    evaluate(settings(problems, "forced", n=1, temperature=0.0, max_thought=140))
    columns = ["question_id", "completion", "finish_reason", "prompt_tokens", "completion_tokens"]
    plain = rows("plain", "answers").filter(pl.col("finish_reason") != "length").select(columns)
    forced = rows("forced", "answers").select(columns)
    assert len(plain) > 3 and plain.join(forced, on=columns, how="inner").height == len(plain)


class _Interrupt(BaseException):
    pass


class _Stopping:
    """Progress that interrupts after some rows."""

    def __init__(self, rows: int) -> None:
        self.left = rows

    def start(self, task: str, total: int, done: int = 0) -> None:
        assert done <= total

    def advance(self, rows: int = 1, tokens: int = 0) -> None:
        self.left -= rows
        if self.left < 0:
            raise _Interrupt

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("after", [5, 18, 30])
def test_an_interrupted_evaluation_ends_with_the_same_bytes(problems: str, after: int) -> None:
    budget = {"max_thought": 50, "waits": 2, "min_thought": 30, "wait_text": WAIT, "batch_size": 8}
    evaluate(settings(problems, "whole", **budget))
    with pytest.raises(_Interrupt):
        evaluate(settings(problems, "stopped", **budget), _Stopping(after))
    plan, before = evaluate(settings(problems, "stopped", dry_run=True, **budget)).plan, sampled("stopped")
    evaluate(settings(problems, "stopped", **budget))
    assert plan and 0 < sampled("stopped") - before <= plan.tokens <= 16 * 150 - before
    for table in TABLES:
        assert table_bytes(Path("stopped"), table) == table_bytes(Path("whole"), table), table
    evaluate(settings(problems, "stopped", **budget))
    assert table_bytes(Path("stopped"), "thoughts") == table_bytes(Path("whole"), "thoughts")


def test_more_samples_keep_the_first(problems: str) -> None:
    budget = {"max_thought": 40, "waits": 1, "wait_text": WAIT}
    evaluate(settings(problems, "run", n=1, **budget))
    before = rows("run", "answers")
    assert evaluate(settings(problems, "run", n=3, **budget)).answers == 24
    assert before.join(rows("run", "answers"), on=before.columns, how="inner", nulls_equal=True).height == 8


def _forcing(**options: Any) -> tuple[BudgetForcing, Views]:
    model = open_model("nano-student", EvaluateSettings(model="nano-student", benchmark="math", input="x"))
    views = Views(load_format(str(model.checkpoint.folder / "format.yaml")), model.template, model.control)
    chosen = EvaluateSettings(model="m", benchmark="math", input="x", wait_text=WAIT, **options)
    return BudgetForcing(chosen, model, views, "m"), views


def _folded(forcing: BudgetForcing, *texts: tuple[str, str, int]) -> Thought:
    """Return the thought of a sample with these texts, finish reasons and numbers of tokens."""
    run = RunFolder("folded")
    table = [
        {
            "thought_id": str(stage),
            "question_id": "q",
            "sample_index": 0,
            "extension": stage,
            "completion": text,
            "finish_reason": reason,
            "prompt_tokens": 7,
            "completion_tokens": tokens,
            "made_by": forcing._maker(stage),
        }
        for stage, (text, reason, tokens) in enumerate(texts)
    ]
    run.write_part("questions", 0, to_table("questions", [{"question_id": "q", "question": "q", "solution": "s"}]))
    run.write_part("thoughts", 0, to_table("thoughts", table))
    [(key, thought)] = forcing.thoughts(run, 0)
    assert key == ("q", 0) and thought.start.prompt_tokens == 7
    return thought


def test_what_follows_a_thought() -> None:
    forcing, views = _forcing(max_thought=100, waits=2, min_thought=50, max_tokens=120)
    end = views.thought_end
    short = _folded(forcing, (f"a {end}", "stop", 20))
    assert short.open and short.start.text == f"a {WAIT}" and short.start.max_tokens == 100 - 21
    assert short.start.tokens == 21 and short.extensions == 1
    long = _folded(forcing, (f"a {end}", "stop", 20), (f" b {end}", "stop", 40))
    assert not long.open and long.start.text == f"a {WAIT} b {end}" and long.start.ended is None
    assert long.start.max_tokens == 120 - 61 and not long.cut
    cut = _folded(forcing, ("a b", "length", 100))
    assert cut.cut and not cut.open and cut.start.text == "a b" + views.thought_closing
    ended = _folded(forcing, ("a b", "eos", 60))
    assert not ended.open and ended.start.ended == "eos" and ended.start.text == "a b"
    assert _folded(forcing, ("a b", "eos", 10)).start.text == f"a b{WAIT}"
    thrice = _folded(forcing, *[(f"a {end}", "stop", 2)] * 3)
    assert thrice.extensions == 2 and not thrice.open and thrice.start.text.count(WAIT) == 2
    unlimited, _ = _forcing(waits=1, max_tokens=50)
    assert _folded(unlimited, ("a", "length", 50)).start.ended == "length"
    assert _folded(unlimited, (f"a {end}", "stop", 49)).start.ended == "length"  # no room for a word more


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_thought": 5}, "min_thought: has no effect without --waits"),
        ({"wait_text": "Hm"}, "wait_text: has no effect without --waits"),
        ({"waits": 1, "min_thought": 9, "max_thought": 9}, "min_thought: must be less than --max-thought (9)"),
        ({"max_thought": 9, "max_tokens": 9}, "max_thought: must be less than --max-tokens (9)"),
    ],
)
def test_impossible_budgets_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        EvaluateSettings(model="m", benchmark="math", input="x", **options)
    assert message in str(error.value)


def test_a_text_that_the_model_cannot_read_is_refused(rlt: Rlt, problems: str) -> None:
    flags = ("--model", "nano-student", "--benchmark", "countdown", "--in", problems, "--waits", 1, "--out", "none")
    assert "the model's vocabulary lacks 'Wait'" in rlt("evaluate", *flags, code=2).stderr
    assert not Path("none").exists()


def test_failed_thoughts_are_retried(problems: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlt_data.engines import Failure
    from rlt_data.engines.transformers import TransformersEngine

    budget = {"max_thought": 40, "n": 1}
    original = TransformersEngine.generate

    def failing(self: TransformersEngine, *arguments: Any) -> Any:
        for number, sample in enumerate(original(self, *arguments)):
            yield sample if number else Failure(sample.key, "bad luck")

    with monkeypatch.context() as patched:
        patched.setattr(TransformersEngine, "generate", failing)
        first = evaluate(settings(problems, "run", **budget), SILENT)
    assert (first.answers, first.failed) == (6, 2)  # one thought, and one answer of another sample
    assert evaluate(settings(problems, "run", **budget)).answers == 6
    again = evaluate(settings(problems, "run", retry_errors=True, **budget))
    assert (again.answers, again.failed) == (8, 0)
