"""The measures of `score`, from the command line, with tiny real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from rlt_data.engines import SequenceLogprobs
from rlt_data.formats import load_format
from rlt_data.scoring.measures import without_repeats
from rlt_data.settings import ScoreSettings
from rlt_data.steps.score import score
from rlt_data.storage.errorlog import failures
from rlt_data.storage.run import RunFolder
from rlt_data.storage.schemas import content_hash, to_table
from tests.conftest import Rlt, write_jsonl
from tests.killing import table_bytes
from tests.reference import Reference

Read = Callable[[Path, str], pl.DataFrame]
Tiny = Callable[..., Path]

FORMAT = load_format("rlt")
END = FORMAT.explanation_tags[1]
ALL = ("--measures", "ifd", "--measures", "local", "--measures", "leak")
COLUMNS = [
    "thought_logprob_mean", "thought_logprob_min", "perplexity", "token_rank_mean", "rsr", "surprising_share",
    "ifd", "local_logprob_mean", "leak_drop",
]  # fmt: skip

#: Explanations as the steps that they have, the padding before them included.
STEPS = [
    ["\n\nWe count the rolls, the pages and the apples.", " There are six of them!", " Is that right?", " Yes, it is."],
    ["\n\nFirst, 17 * 20 = 340.", "\nThen 17 * 3 = 51.", "\n\nThe sum is 340 + 51.", "\nWe add them;", "\nso: 391.",
     " This is the seventh step.", " Où est l'élève?"],
    ["\n\nOne step without an end"],
    ["\n\nLike this: the number 17 times 23 is 391, because 17 * 20 = 340 and more.", " Good."],
]  # fmt: skip
SOLUTION = "The number 17 times 23 is 391, because 17 * 20 = 340 and 17 * 3 = 51."


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    rows = []
    for number, steps in enumerate(STEPS):
        completion = "".join(steps).removeprefix(FORMAT.padding) + END
        for question in ("What is 17 times 23?", "Où?"):
            row = {"id": f"{number}/{len(rows)}", "question": question, "solution": SOLUTION, "completion": completion}
            rows.append(row)
    return write_jsonl(tmp_path / "traces.jsonl", rows)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_measure_equals_the_plain_reference(
    rlt: Rlt, read: Read, tiny: Tiny, traces: Path, temperature: float
) -> None:
    at = "--measure-temperature", temperature
    rlt("score", "--in", traces, "--student", tiny(), "--teacher", "none", *ALL, *at, "--out", "run")
    reference = Reference(tiny(), tiny(), FORMAT)
    scores = {row["source_id"]: row for row in read(Path("run"), "scores").to_dicts()}
    rows = [json.loads(line) for line in traces.read_text().splitlines()]
    assert len(scores) == len(rows) == 8
    for row in rows:
        found, question, completion = scores[row["id"]], row["question"], row["completion"]
        for name, value in reference.measures(question, completion, temperature).items():
            close = {"perplexity": 1e-4, "ifd": 1e-4, "rsr": 1e-4, "token_rank_mean": 1e-3}.get(name)
            bound = pytest.approx(value, rel=close) if close else pytest.approx(value, abs=1e-5)
            assert found[name] == bound, (row["id"], name)
        steps = STEPS[int(row["id"][0])]
        assert found["local_logprob_mean"] == pytest.approx(reference.local(question, steps, temperature), abs=1e-5)
        cut = without_repeats(completion.removesuffix(END), SOLUTION)
        r_ss, without = (
            term["solution_logprob_mean"] + 0.01 * term["solution_logprob_min"]
            for term in (
                reference.score(question, SOLUTION, text + END) for text in (completion.removesuffix(END), cut)
            )
        )
        assert (cut != completion.removesuffix(END)) == (row["id"][0] == "3")
        assert found["leak_drop"] == pytest.approx(r_ss - without, abs=2e-5)
    drops = [score["leak_drop"] for id, score in scores.items() if id[0] == "3"]
    assert len(drops) == 2 and all(abs(drop) > 0.001 for drop in drops)


def test_the_expensive_measures_are_null_unless_requested(rlt: Rlt, read: Read, tiny: Tiny, traces: Path) -> None:
    rlt("score", "--in", traces, "--student", tiny(), "--teacher", "none", "--out", "run")
    scores = read(Path("run"), "scores")
    assert all(scores[name].null_count() == 0 for name in COLUMNS[:6])
    assert all(scores[name].null_count() == len(scores) for name in COLUMNS[6:])
    assert (scores["thought_logprob_min"] <= scores["thought_logprob_mean"]).all()


def test_measures_change_no_reward_and_do_not_depend_on_the_batch(
    rlt: Rlt, read: Read, tiny: Tiny, traces: Path
) -> None:
    arguments = "score", "--in", traces, "--student", tiny(), "--teacher", tiny("chat", 1), "--per-token"
    rlt(*arguments, "--out", "plain")
    rlt(*arguments, *ALL, "--out", "all")
    rlt(*arguments, *ALL, "--batch-tokens", 64, "--out", "small")
    plain, every, small = (read(Path(run), "scores").drop("scored_by") for run in ("plain", "all", "small"))
    assert every.equals(small)
    assert plain.drop(COLUMNS[6:]).equals(every.drop(COLUMNS[6:]))


def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    rlt: Rlt, tiny: Tiny, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = "score", "--in", traces, "--student", tiny(), "--teacher", tiny("chat", 1), *ALL
    rlt(*arguments, "--out", "straight")
    rows = ScoringStops(5)
    with monkeypatch.context() as patch:
        patch.setattr("rlt_data.steps.score.score_trace", rows)
        rlt(*arguments, "--out", "stopped", code=130)
    rlt(*arguments, "--out", "stopped")
    assert table_bytes(Path("stopped"), "scores") == table_bytes(Path("straight"), "scores")


class ScoringStops:
    """Score a few rows, then stop like Ctrl-C."""

    def __init__(self, rows: int) -> None:
        from rlt_data.scoring import score_trace

        self.rows, self.score_trace = rows, score_trace

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        self.rows -= 1
        if self.rows < 0:
            raise KeyboardInterrupt
        return self.score_trace(*arguments, **more)


def test_an_engine_without_ranks_leaves_measures_null_with_one_notice(
    tiny: Tiny, traces: Path, read: Read, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in from before the measures, around a real engine."""
    from rlt_data.engines.transformers import TransformersEngine

    logprobs = TransformersEngine.logprobs

    def only_logprobs(self: TransformersEngine, blocks: Any, temperature: float) -> Any:
        for result in logprobs(self, blocks, temperature):
            yield SequenceLogprobs(result.key, result.logprobs) if isinstance(result, SequenceLogprobs) else result

    monkeypatch.setattr(TransformersEngine, "logprobs", only_logprobs)
    settings: dict[str, Any] = {"input": str(traces), "student": str(tiny()), "teacher": "none"}
    score(ScoreSettings(**settings, out="null", measures=("ifd", "local", "leak")))
    null = read(Path("null"), "scores")
    assert all(null[name].null_count() == len(null) for name in COLUMNS[:8]) and null["leak_drop"].null_count() == 0
    assert caplog.text.count("the engine returns no log-probs at --measure-temperature 1 and no token ranks") == 1
    score(ScoreSettings(**settings, out="same", measures=("ifd",), measure_temperature=0.7))
    same = read(Path("same"), "scores")
    filled = [name for name in COLUMNS if same[name].null_count() == 0]
    assert filled == ["thought_logprob_mean", "thought_logprob_min", "perplexity", "surprising_share", "ifd"]


def made_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Make a run of imported traces from rows with question, solution, completion and perhaps own_solution."""
    run = RunFolder(folder)
    questions, traces = [], []
    with run.locked():
        for number, row in enumerate(rows):
            question_id = content_hash({"question": row["question"], "solution": row["solution"], "number": number})
            questions.append({"question_id": question_id, "source_id": str(number), **row})
            traces.append(
                {
                    "trace_id": content_hash({"trace": number}), "question_id": question_id, "source_id": str(number),
                    "sample_index": 0, "completion": row["completion"], "made_by": "test",
                    "solution": row.get("own_solution"),
                }
            )  # fmt: skip
        for table, content in (("questions", questions), ("traces", traces)):
            names = to_table(table, []).schema.names
            run.write_part(table, 0, to_table(table, [{k: r.get(k) for k in names} for r in content]))
        run.record("generate", {"settings": {}})
    return folder


def test_questions_without_a_solution_have_measures_and_no_reward(
    rlt: Rlt, read: Read, tiny: Tiny, tmp_path: Path
) -> None:
    completion = f"We count the pages. There are 14 of them.{END}"
    rows = [
        {"question": "How many?", "solution": "", "completion": completion},
        {"question": "How many?", "solution": "14 pages", "completion": completion},
        {"question": "How many?", "solution": "", "completion": completion, "own_solution": "14 pages"},
        {"question": "And now?", "solution": "", "completion": END},
    ]
    run = made_run(tmp_path / "run", rows)
    result = rlt("score", run, "--student", tiny(), "--teacher", tiny("chat", 1), *ALL, code=4)
    assert "1 failed" in result.output
    [failure] = failures(RunFolder(run))
    assert failure["reason"] == "the question has no solution, and the explanation has no token"
    bare, solved, own = read(run, "scores").sort("source_id").to_dicts()
    needed = ["reward", "reward_without_entropy", "r_ss", "solution_logprob_mean", "solution_logprob_min", "leak_drop"]
    assert all(bare[name] is None for name in [*needed, "r_kl", "kl_mean"])
    assert (bare["solution_tokens"], bare["teacher_logprobs"], bare["well_formed"]) == (0, "none", True)
    for name in COLUMNS[:8]:
        assert bare[name] == solved[name] is not None
    keys = {"trace_id", "question_id", "source_id"}
    assert {k: v for k, v in own.items() if k not in keys} == {k: v for k, v in solved.items() if k not in keys}
    assert all(solved[name] is not None for name in needed)


def test_a_server_needs_equal_temperatures_for_further_passes(rlt: Rlt, tiny: Tiny, traces: Path) -> None:
    served = "--engine", "server", "--url", "http://127.0.0.1:9/v1", "--temperature", 0.7, "--served-temperature", 0.7
    arguments = "score", "--in", traces, "--student", tiny(), "--teacher", "none", *served, *ALL
    error = rlt(*arguments, code=2).stderr
    assert "--measures: ifd and local need log-probs at --measure-temperature 1" in error
    assert "add --measure-temperature 0.7" in error


def test_measures_are_named_once_in_any_order() -> None:
    settings = ScoreSettings(input="run", student="s", measures=("leak", "ifd", "leak"))
    assert settings.measures == ("ifd", "leak")
    defaults = ScoreSettings(input="run", student="s").depends_on()
    assert not {"measures", "measure_temperature"} & set(defaults)  # scores of earlier versions lack them
    assert settings.depends_on()["measures"] == ["ifd", "leak"]
