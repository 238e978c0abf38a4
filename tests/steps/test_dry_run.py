"""Dry runs: their counts are those of the step that follows, and they change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import rlt_data as package
from rlt_data.errors import SettingsError
from rlt_data.progress import SILENT, Silent
from rlt_data.settings import GenerateSettings
from rlt_data.steps.generate import generate
from tests.conftest import Rlt, write_jsonl
from tests.made_runs import files_of

Read = Callable[[Path, str], pl.DataFrame]
Tiny = Callable[..., Path]


def plan_of(rlt: Rlt, *arguments: Any) -> dict[str, Any]:
    """Return the plan that a command prints."""
    return dict(json.loads(rlt(*arguments, "--dry-run", "--json").stdout))


def work(run: str, step: str) -> dict[str, Any]:
    """Return what run.json says of a step."""
    return dict(json.loads(Path(run, "run.json").read_text())["steps"][step])


def test_the_plan_of_generate_is_what_generate_does(rlt: Rlt, read: Read, tiny: Tiny, problems: Path) -> None:
    options = ["generate", problems, "--teacher", tiny(), "--n", 3, "--max-tokens", 9, "--out", "run"]
    plan = plan_of(rlt, *options)
    assert not Path("run").exists()
    assert (plan["questions"], plan["rows"], plan["done"], plan["new"], plan["left_out"]) == (6, 18, 0, 18, 0)
    assert plan["tokens"] == 18 * 9 and plan["tokens_expected"] is None
    assert plan["tokens_per_second"] is plan["seconds"] is plan["cost"] is None and plan["gpus"] == 1
    rlt(*options, "--limit", 2)
    before, measured = files_of(Path("run")), work("run", "generate")["work"]
    plan = plan_of(rlt, *options, "--gpu-price", 3600)
    assert files_of(Path("run")) == before
    assert (plan["questions"], plan["rows"], plan["done"], plan["new"]) == (6, 18, 6, 12)
    assert plan["tokens_expected"] == pytest.approx(2 * measured["tokens"])
    assert plan["rate_from"] == "run" and plan["seconds"] == pytest.approx(2 * measured["seconds"])
    assert plan["cost"] == pytest.approx(plan["seconds"])  # one GPU at one per second
    rlt(*options)
    prompts = read(Path("run"), "traces").group_by("question_id", maintain_order=True).agg(pl.first("prompt_tokens"))
    assert plan["tokens_read"] == prompts["prompt_tokens"][2:].sum()
    assert plan["longest"] == prompts["prompt_tokens"][2:].max() + 9  # type: ignore[operator]
    done = plan_of(rlt, *options)
    assert (done["done"], done["new"], done["tokens"], done["memory"]) == (18, 0, 0, [])


def test_the_plan_of_score_is_what_score_does(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    rlt("generate", problems, "--teacher", tiny(), "--n", 2, "--max-tokens", 9, "--out", "run")
    score = ["score", "run", "--student", tiny("chat", 1)]
    before = files_of(Path("run"))
    plan = plan_of(rlt, *score)
    both = plan_of(rlt, *score, "--teacher", tiny("chat", 2))
    assert files_of(Path("run")) == before
    assert (plan["rows"], plan["new"], len(plan["memory"])) == (12, 12, 1)
    assert len(both["memory"]) == 2 and both["tokens"] == plan["tokens"] and both["tokens_read"] > plan["tokens_read"]
    rlt(*score)
    assert work("run", "score")["work"]["tokens"] == plan["tokens"] == plan["tokens_expected"]
    assert plan_of(rlt, *score)["done"] == 12


def test_the_plan_of_a_file_of_traces_imports_nothing(rlt: Rlt, tiny: Tiny) -> None:
    rows = [
        {"question": f"What is {i} + 1?", "solution": f"{i + 1}", "explanation": "We add 1. " * (400 if i == 3 else 1)}
        for i in range(4)
    ]
    options = ["score", write_jsonl(Path("traces.jsonl"), rows), "--student", tiny(), "--teacher", "none"]
    plan = plan_of(rlt, *options, "--out", "run")
    assert not Path("run").exists()
    assert (plan["questions"], plan["rows"], plan["new"], plan["left_out"]) == (4, 4, 3, 1)  # one is too long
    rlt(*options, "--out", "run", code=4)
    assert work("run", "score")["work"]["tokens"] == plan["tokens"]
    assert plan_of(rlt, *options, "--out", "run")["left_out"] == 1
    Path("traces.jsonl").write_text(Path("traces.jsonl").read_text() + "{}\n")
    assert "rows are bad" in rlt(*options, "--out", "new", "--dry-run", code=3).stderr


def test_a_dry_run_makes_the_checks_of_the_step(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    options = ["generate", problems, "--teacher", tiny(), "--n", 1, "--max-tokens", 9, "--out", "run"]
    rlt(*options)
    other = [*options, "--temperature", 0.5]
    assert rlt(*other, "--dry-run", code=5).stderr == rlt(*other, code=5).stderr
    rlt("score", "run", "--student", tiny())
    other = ["score", "run", "--student", tiny(), "--lambda", 1]
    assert rlt(*other, "--dry-run", code=5).stderr == rlt(*other, code=5).stderr
    bad = write_jsonl(Path("bad.jsonl"), [{"question": "What?", "solution": ""}])
    assert "rows are bad" in rlt("generate", bad, "--teacher", tiny(), "--out", "new", "--dry-run", code=3).stderr
    assert not Path("new").exists()


def test_vllm_is_planned_without_vllm(rlt: Rlt, tiny: Tiny, problems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlt_data.engines.choose.installed_version", lambda: None)
    options = ["generate", problems, "--teacher", tiny(), "--engine", "vllm", "--out", "run"]
    result = rlt(*options, "--dry-run")
    assert result.stderr.count("the step would fail: --engine vllm") == 1 and "with vllm" in result.stdout
    assert "--engine vllm" in rlt(*options, code=6).stderr and not Path("run").exists()


def test_an_evaluation_is_planned(rlt: Rlt, tiny: Tiny) -> None:
    pytest.importorskip("math_verify", reason="needs the extra eval")
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(5)]
    options: list[Any] = ["evaluate", "--model", tiny(), "--benchmark", "math", "--max-tokens", 8, "--out", "run"]
    options += ["--in", write_jsonl(Path("test.jsonl"), rows)]
    plan = plan_of(rlt, *options)
    assert (plan["rows"], plan["tokens"]) == (5, 40) and not Path("run").exists()
    rlt(*options)
    assert plan_of(rlt, *options)["rate_from"] == "run"


def test_without_a_rate_the_plan_says_what_to_measure(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    options = ["generate", problems, "--teacher", tiny(), "--n", 1, "--max-tokens", 10, "--out", "run", "--dry-run"]
    assert "time and cost: unknown" in rlt(*options).stdout
    printed = rlt(*options, "--tokens-per-second", 2, "--gpu-price", 2.5).stdout
    assert "time: at most 0:00:30 at 2 tokens/s (by --tokens-per-second)\n" in printed  # 60 tokens
    assert "cost: at most 0.02 at 2.5 per GPU and hour (GPUs: 1)\n" in printed


def test_extreme_rates_and_prices(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    options = ["generate", problems, "--teacher", tiny(), "--n", 6000, "--max-tokens", 400, "--out", "run", "--dry-run"]
    printed = rlt(*options, "--tokens-per-second", 0.001, "--gpu-price", 1e9).stdout
    assert "time: at most 166,666 days, 16:00:00 at 0.001 tokens/s" in printed  # 14.4 million tokens
    for flag, value in (("--tokens-per-second", 1e-310), ("--tokens-per-second", 1e300), ("--gpu-price", 1e308)):
        assert f"{flag}: must be " in rlt(*options, flag, value, code=2).stderr


def test_an_interrupted_step_has_measured_its_rate(tiny: Tiny, problems: Path) -> None:
    class Stop(Silent):
        def advance(self, rows: int = 1, tokens: int = 0) -> None:
            raise KeyboardInterrupt

    settings = GenerateSettings(input=problems, teacher=tiny(), n=1, max_tokens=9, out="run", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        generate(settings, Stop())
    interrupted = work("run", "generate")["work"]
    assert interrupted["tokens"] > 0 and interrupted["seconds"] > 0
    plan = generate(settings.model_copy(update={"dry_run": True}), SILENT).plan
    assert plan and plan.rate_from == "run" and plan.new == 5


def test_a_rate_counts_only_for_the_same_machines_and_models(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    options = ["generate", problems, "--n", 1, "--max-tokens", 9, "--out", "run"]
    rlt(*options, "--teacher", tiny())
    other = plan_of(rlt, *options, "--teacher", tiny("chat", 1), "--add")
    assert other["rate_from"] is None and other["tokens_expected"] is None
    assert plan_of(rlt, *options, "--teacher", tiny(), "--device", "cpu")["rate_from"] is None


def test_from_python(tiny: Tiny, problems: Path) -> None:
    run = package.generate(problems, teacher=tiny(), n=1, max_tokens=9, out="run", dry_run=True)
    assert run.summary.plan.new == 6 and not Path("run").exists()
    package.generate(problems, teacher=tiny(), n=1, max_tokens=9, out="run")
    assert package.Run("run").score(student=tiny(), dry_run=True).summary.plan.new == 6


def test_settings_of_a_dry_run_need_one(rlt: Rlt, tiny: Tiny, problems: Path) -> None:
    for flag in (["--json"], ["--gpu-price", 1], ["--tokens-per-second", 1]):
        assert (
            f"{flag[0]}: has no effect without --dry-run"
            in rlt("generate", problems, "--teacher", tiny(), *flag, code=2).stderr
        )
    Path("p.yaml").write_text(f"out: run\ngenerate: {{in: {problems}, teacher: {tiny()}, dry_run: true}}\n")
    assert "generate.dry_run: a pipeline computes its steps" in rlt("run", "p.yaml", code=2).stderr
    with pytest.raises(SettingsError):
        GenerateSettings(input="x", teacher="m", gpu_price=1.0)
