"""The Python API: keyword calls, what they return, their help, their errors, and that they print nothing."""

from __future__ import annotations

import inspect
import json
import logging
import os
import pydoc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest

import rlt_data as rlt
from rlt_data.steps.registry import STEPS
from tests.conftest import write_jsonl

FUNCTIONS = [step.function_name for step in STEPS.values()] + ["report"]
METHODS = ["score", "curate", "rank", "distill", "push", "report"]


@pytest.fixture
def run() -> rlt.Run:
    """Three questions with two traces each."""
    rlt.make_countdown("problems.jsonl", rows=3)
    return rlt.generate("problems.jsonl", teacher="nano", out="run", n=2, max_tokens=20)


def test_the_calls_of_the_readme_make_a_data_set(run: rlt.Run) -> None:
    assert run.summary.rows == 6 and run.path == Path("run").absolute() and repr(run) == f"Run({str(run.path)!r})"
    assert run.score(student="nano", lambda_=1.0).rank(by="r_ss") is run
    assert run.summary.questions == 3
    rows = run.distill(select="all", include="truncated")
    assert isinstance(rows, datasets.Dataset) and run.summary.out == run.path / "dataset"
    assert rows.to_list() == pl.read_parquet("run/dataset/data/*.parquet").to_dicts()
    assert run.stats().rows == rlt.stats("run").rows == {"questions": 3, "traces": 6, "scores": 6, "ranks": 6}
    assert run.report().out == Path("report.html") and Path("report.html").is_file()
    assert run.info["steps"]["score"]["settings"]["lambda"] == 1.0
    best = run.scan().filter(rank=1).collect()
    questions = [json.loads(line)["question"] for line in Path("problems.jsonl").read_text().splitlines()]
    assert best["question"].to_list() == questions
    assert run.to_dataset("traces").num_rows == 6


def test_a_call_takes_settings_a_path_or_a_run_and_keywords_override(run: rlt.Run) -> None:
    scored = rlt.score(run, student="nano", out=Path("other"))
    assert scored.path == Path("other").absolute() and scored.summary.new == 6
    assert run.score(student="nano", out="other").path == scored.path != run.path
    settings = rlt.RankSettings(input="other")
    assert rlt.rank(settings).info["steps"]["rank"]["settings"]["by"] == "reward"
    assert rlt.rank(settings, by="r_ss").info["steps"]["rank"]["settings"]["by"] == "r_ss"
    assert rlt.distill("other", out="set", include="truncated").num_rows == 3 and Path("set/train.jsonl").is_file()
    default = rlt.generate(in_="problems.jsonl", teacher="nano", max_tokens=5, n=1)
    assert default.path == Path("runs/problems-nano-teacher").absolute()


def test_a_pipeline_returns_its_run() -> None:
    rlt.make_countdown(out="problems.jsonl", rows=2)
    Path("pipeline.yaml").write_text(
        "out: run\ngenerate: {in: problems.jsonl, teacher: nano, n: 1, max_tokens: 9}\nscore: {student: nano}\n"
    )
    run = rlt.run_pipeline("pipeline.yaml")
    assert run.path == Path("run").absolute() and {name: step.rows for name, step in run.summary.items()} == {
        "generate": 2,
        "score": 2,
    }


def test_rows_from_memory_are_an_input() -> None:
    rows = [{"question": f"What is {i}?", "solution": f"It is {i}.", "tags": ["a"]} for i in range(2)]
    runs = [
        rlt.score(source, explanation_column="solution", student="nano", teacher="none", out="run")
        for source in (rows, pl.DataFrame(rows), pl.DataFrame(rows).to_pandas(), datasets.Dataset.from_list(rows))
    ]
    assert [run.summary.new for run in runs] == [2, 0, 0, 0]
    assert runs[0].scan().collect()["question"].to_list() == ["What is 0?", "What is 1?"]


def test_failed_rows_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    write_jsonl(Path("long.jsonl"), [{"question": "many " * 5000, "solution": "b"}, {"question": "a", "solution": "b"}])
    with caplog.at_level(logging.WARNING):
        run = rlt.generate("long.jsonl", teacher="nano", n=1, max_tokens=5, out="run")
    assert run.summary.failed and str(run.summary.failed) in caplog.text and "errors.jsonl" in caplog.text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_explains_its_arguments(name: str) -> None:
    function = getattr(rlt, name)
    step = next((step for step in STEPS.values() if step.function_name == name), None)
    settings = step.settings if step else rlt.ReportSettings
    parameters = inspect.signature(function).parameters
    assert parameters.keys() - {"progress"} == settings.model_fields.keys()
    assert ("progress" in parameters) == (step is None or step.has_progress)
    text = pydoc.render_doc(function, renderer=pydoc.plaintext)
    for field, info in settings.model_fields.items():
        assert f"\n        {field}: " in text and parameters[field].kind is not inspect.Parameter.VAR_KEYWORD
        assert info.is_required() or parameters[field].default == info.default
    assert "Returns:" in text and "Raises:" in text and "--" not in text.partition("Args:")[2].replace("--in", "")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_its_arguments(name: str) -> None:
    signature = inspect.signature(getattr(rlt.Run, name))
    assert "self" in signature.parameters and "input" not in signature.parameters
    text = pydoc.render_doc(getattr(rlt.Run, name), renderer=pydoc.plaintext)
    assert all(f"\n        {parameter}: " in text for parameter in signature.parameters if parameter != "self")
    assert "limit" not in inspect.signature(rlt.Run.score).parameters  # a run is scored completely


def test_help_of_settings_is_short_and_of_the_package_complete() -> None:
    text = pydoc.render_doc(rlt.GenerateSettings, renderer=pydoc.plaintext)
    assert len(text.splitlines()) < 150  # from Python 3.13 on, each argument is on its own line
    assert "temperature: " in text and "model_dump" not in text
    text = pydoc.render_doc(rlt, renderer=pydoc.plaintext)
    assert all(f"\n    {name}(" in text for name in FUNCTIONS)


def test_writers_methods_are_not_public() -> None:
    public = {name for name in dir(rlt.Run) if not name.startswith("_")}
    assert public == {"path", "info", "scan", "to_dataset", "stats", *METHODS}


ONES = np.ones(3)
MISTAKES: dict[str, tuple[Callable[[], Any], type[rlt.RltDataError], str]] = {
    "nothing": (lambda: rlt.generate(), rlt.SettingsError, "input"),
    "no teacher": (lambda: rlt.generate("q.jsonl"), rlt.SettingsError, "teacher"),
    "misspelled": (lambda: rlt.generate("q.jsonl", teacher="nano", temprature=1), rlt.SettingsError, "'temperature'"),
    "two inputs": (lambda: rlt.generate("q.jsonl", "nano"), rlt.SettingsError, "positional"),
    "given twice": (lambda: rlt.generate("q.jsonl", in_="q.jsonl", teacher="nano"), rlt.SettingsError, "in_"),
    "wrong type": (lambda: rlt.generate("q.jsonl", teacher="nano", n="many"), rlt.SettingsError, "n: .*'many'"),
    "out of range": (lambda: rlt.generate("q.jsonl", teacher="nano", n=0), rlt.SettingsError, "n: "),
    "input None": (lambda: rlt.generate(None, teacher="nano"), rlt.SettingsError, "input: "),
    "no file": (lambda: rlt.generate("no.jsonl", teacher="nano"), rlt.InputError, "no.jsonl"),
    "no model": (lambda: rlt.generate("q.jsonl", teacher="nosuch"), rlt.ModelError, "nosuch"),
    "other settings": (lambda: rlt.generate(rlt.RankSettings(input="x")), rlt.SettingsError, "RankSettings"),
    "invalid copy": (
        lambda: rlt.rank(rlt.RankSettings(input="x").model_copy(update={"buckets": "y"})),
        rlt.SettingsError,
        "buckets: ",
    ),
    "progress": (lambda: rlt.rank("x", progress="yes"), rlt.SettingsError, "progress"),
    "rows": (lambda: rlt.generate([{"question": {1}}], teacher="nano"), rlt.InputError, "JSON"),
    "one run": (lambda: rlt.merge("a", out="b"), rlt.SettingsError, "input: "),
    "no run": (lambda: rlt.Run("nosuch"), rlt.RunFolderError, "nosuch"),
    "run None": (lambda: rlt.Run(None), rlt.RunFolderError, "None"),  # type: ignore[arg-type]
    "run ''": (lambda: rlt.Run(""), rlt.RunFolderError, "''"),
    "stats": (lambda: rlt.stats("nosuch"), rlt.RunFolderError, "nosuch"),
    "format": (lambda: rlt.load_format("nosuch"), rlt.SettingsError, "nosuch"),
    "format 3": (lambda: rlt.load_format(3), rlt.SettingsError, "3"),  # type: ignore[arg-type]
    "no pipeline": (lambda: rlt.load_pipeline("nosuch.yaml"), rlt.InputError, "nosuch.yaml"),
    "pipeline 3": (lambda: rlt.load_pipeline(3), rlt.SettingsError, "int"),  # type: ignore[arg-type]
    "run pipeline 3": (lambda: rlt.run_pipeline(3), rlt.SettingsError, "int"),  # type: ignore[arg-type]
    "settings": (lambda: rlt.GenerateSettings(), rlt.SettingsError, "input: .*\nteacher: "),  # type: ignore[call-arg]
    "validate": (lambda: rlt.GenerateSettings.model_validate({"in": 3}), rlt.SettingsError, "in: "),
    "frozen": (lambda: setattr(rlt.RankSettings(input="x"), "by", "y"), rlt.SettingsError, "by: "),
    "shapes": (lambda: rlt.kl_terms(ONES, ONES[:2]), rlt.InputError, "kl_terms"),
    "estimate": (lambda: rlt.kl_terms(ONES, ONES, "k9"), rlt.InputError, "'k9'"),  # type: ignore[arg-type]
    "no solution": (
        lambda: rlt.reward_terms(solution=ONES[:0], thought=ONES, kl=None, closed=True),
        rlt.InputError,
        "reward_terms",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_errors_of_the_library(mistake: str) -> None:
    write_jsonl(Path("q.jsonl"), [{"question": "a", "solution": "b"}])
    call, kind, named = MISTAKES[mistake]
    with pytest.raises(kind, match=named) as error:
        call()
    assert type(error.value) is kind
    assert not Path("runs/q-nano-teacher").exists()


def test_mistakes_about_a_run(run: rlt.Run) -> None:
    for call, named in [
        (lambda: run.distill(selct="best"), "'select'"),
        (lambda: run.rank(input="other"), "input"),
        (lambda: run.score(student="nano", limit=1), "limit"),
        (lambda: run.scan("score"), "scores"),
        (lambda: run.scan(3), "3"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(rlt.SettingsError, match=named):
            call()


def test_the_library_prints_nothing() -> None:
    pytest.importorskip("trl", reason="needs the extra train")
    code = """
import rlt_data as rlt
rlt.make_countdown("problems.jsonl", rows=2)
run = rlt.generate("problems.jsonl", teacher="nano", n=2, max_tokens=20)
run.score(student="nano").rank()
data = run.distill(select="all", include="truncated")
rlt.evaluate("problems.jsonl", model="nano", benchmark="countdown", max_tokens=9)
rlt.train_student(data, model="nano", out="student", max_steps=1, batch_size=2)
"""
    hidden = ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
