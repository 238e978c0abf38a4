"""The facts at the top of the overview."""

from __future__ import annotations

import re
from pathlib import Path

from rlt_data.reporting.facts import facts
from rlt_data.reporting.overview import overview
from rlt_data.storage.data_set import read_data_set
from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt
from tests.made_runs import distilled, make_run, ranked, trace


def test_facts_of_a_run_of_all_steps(rlt: Rlt) -> None:
    rlt("countdown", "make", "--out", "q.jsonl", "--rows", 2, "--most", 3, "--largest", 14, "--largest-target", 120)
    rlt("generate", "--teacher", "nano", "--in", "q.jsonl", "--n", 2, "--max-tokens", 60, "--out", "run")
    rlt("score", "--in", "run", "--student", "nano-student", "--lambda", 2)
    rlt("rank", "--in", "run")
    run = RunFolder.existing("run")
    found = facts(run, None)
    assert list(found) == ["teacher", "student", "format", "sampling", "reward", "ranking"]
    assert (found["teacher"], found["student"], found["format"]) == ("nano-teacher", "nano-student", "nano")
    assert found["sampling"] == "2 per question, temperature 0.7, at most 60 tokens"
    assert found["reward"] == "λ 2, α 0.01, KL k1, temperature 0.7"
    assert found["ranking"] == "by reward, buckets: ranks"
    shown = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", overview({"run": run}).partition('class="cards"')[0])
    assert dict(shown) == found


def test_facts_of_imported_traces(rlt: Rlt) -> None:
    Path("traces.jsonl").write_text('{"question": "3 + 4?", "solution": "7", "explanation": "3 + 4 = 7"}\n')
    rlt("score", "--in", "traces.jsonl", "--student", "nano-student", "--teacher", "none", "--out", "run")
    found = facts(RunFolder.existing("run"), None)
    assert (found["traces"], found["teacher"]) == ("imported from traces.jsonl", "none")
    assert "sampling" not in found


def test_facts_of_another_scoring_teacher_and_no_facts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0)])
    assert facts(run, None) == {"format": "rlt"}
    run.record("generate", {"models": {"teacher": {"name": "one"}}, "settings": {"n": 1}})
    run.record("score", {"models": {"teacher": {"name": "/home/me/other"}}, "settings": {"reward": "mine"}})
    assert facts(run, None) == {
        "teacher": "one", "log-probs of the teacher": "other", "format": "rlt", "sampling": "1 per question",
        "reward": "mine",
    }  # fmt: skip


def test_weights_of_the_reward_are_facts_unless_the_formula_implies_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0)])
    weights = {"lambda": 1.0, "alpha": 0.0, "alpha_kl": None, "solution_weight": 1.0}
    for more, expected in (
        ({}, "λ 1, α 0"),
        ({"alpha_kl": 0.1, "solution_weight": 0.0}, "λ 1, α 0, α of the maximum 0.1, weight of r_ss 0"),
    ):
        run.record("score", {"settings": weights | more})
        assert facts(run, None)["reward"] == expected


def test_the_data_set_is_a_fact_and_may_be_outdated(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", i, float(i)) for i in range(2)])
    ranked(run)
    distilled(run, limit=5)
    assert facts(run, read_data_set(run))["data set"] == "best, 1 rows, at most 5 rows"
    ranked(run, by="r_ss")
    run = RunFolder.existing(str(run.path))
    assert facts(run, read_data_set(run))["data set"].endswith(
        "older than ranks or signals: run rlt-data distill again"
    )
