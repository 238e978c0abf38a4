"""The public Run: what users read and do with a run folder from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rlt_data as rlt


def test_a_run_is_scored_ranked_distilled_and_read_by_its_methods() -> None:
    rlt.make_countdown(rlt.CountdownSettings(rows=3, out="problems.jsonl"))
    rlt.generate(rlt.GenerateSettings(input="problems.jsonl", teacher="nano", out="run", n=2, max_tokens=20))
    run = rlt.Run("run")
    assert run.score(student="nano", lambda_=1.0).rows == 6
    assert run.rank(by="r_ss").questions == 3
    assert run.distill(select="all", include_truncated=True).questions == 3
    assert run.stats().rows == rlt.stats(run).rows == {"questions": 3, "traces": 6, "scores": 6, "ranks": 6}
    assert run.report().out == Path("report.html") and Path("report.html").is_file()
    assert run.info["steps"]["score"]["settings"]["lambda"] == 1.0
    best = run.scan().filter(rank=1).collect()
    questions = [json.loads(line)["question"] for line in Path("problems.jsonl").read_text().splitlines()]
    assert best["question"].to_list() == questions
    assert run.to_dataset("traces").num_rows == 6
    assert run.path == Path("run").absolute() and repr(run) == f"Run('{run.path}')"


def test_mistakes_are_errors_of_the_library() -> None:
    with pytest.raises(rlt.RunFolderError, match="no such run folder"):
        rlt.Run("nowhere")
    with pytest.raises(rlt.RunFolderError, match="no such run folder"):
        rlt.stats("nowhere")
    Path("run").mkdir()
    Path("run/run.json").write_text('{"version": 2, "steps": {}}')
    with pytest.raises(rlt.SettingsError, match="'select'"):
        rlt.Run("run").distill(selct="best")


def test_writers_methods_are_not_public() -> None:
    public = {name for name in dir(rlt.Run) if not name.startswith("_")}
    readers = {"path", "info", "scan", "to_dataset", "stats"}
    assert public == readers | {"score", "rank", "distill", "push", "report"}
