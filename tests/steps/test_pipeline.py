from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlt_data.errors import InputError, RltDataError, SettingsError
from rlt_data.steps.pipeline import load_pipeline
from rlt_data.storage.run import RunFolder
from tests.conftest import Rlt
from tests.made_runs import files_of, make_run, trace

Tiny = Callable[..., Path]


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def table_files(run: Path) -> dict[str, bytes | None]:
    tables = ("questions/", "traces/", "scores/", "ranks/", "dataset/data/", "dataset/train.jsonl")
    return {name: content for name, content in files_of(run).items() if name.startswith(tables)}


def test_a_pipeline_equals_the_four_commands_in_order(rlt: Rlt, tiny: Tiny, problems: Path, tmp_path: Path) -> None:
    pipeline = {
        "out": "whole",
        "generate": {"in": str(problems), "teacher": str(tiny()), "n": 2, "max_tokens": 30},
        "score": {"student": str(tiny("chat", 1)), "lambda": 2},
        "rank": {"buckets": 2},
        "distill": {"select": "top:2", "include": "truncated", "shape": "sharegpt"},
    }
    file = write(tmp_path / "pipeline.yaml", pipeline)
    printed = rlt("run", file).stdout
    rlt("generate", "--in", problems, "--teacher", tiny(), "--n", 2, "--max-tokens", 30, "--out", "steps")
    rlt("score", "--in", "steps", "--student", tiny("chat", 1), "--lambda", 2)
    rlt("rank", "--in", "steps", "--buckets", 2)
    rlt("distill", "--in", "steps", "--select", "top:2", "--include", "truncated", "--shape", "sharegpt")
    before = table_files(Path("whole"))
    assert before == table_files(Path("steps")) and len(before) == 6
    for figure in ("12 traces (12 new)", "12 scores (12 new)", "12 traces of 6 questions ranked", "rows from"):
        assert figure in printed
    again = rlt("run", file).stdout
    assert "12 traces (0 new)" in again and "12 scores (0 new)" in again
    assert table_files(Path("whole")) == before


def test_sections_default_to_the_run_folder(tmp_path: Path) -> None:
    content = {
        "out": "run",
        "generate": {"in": "rows.jsonl", "teacher": "t"},
        "score": {"student": "s", "out": "scored"},
        "rank": {"in": "scored"},
        "distill": None,
    }
    settings = load_pipeline(write(tmp_path / "pipeline.yaml", content))
    assert settings.generate and settings.score and settings.rank and settings.distill
    assert settings.generate.out == "run"
    assert (settings.score.input, settings.score.out) == ("run", "scored")
    assert (settings.rank.input, settings.distill.input, settings.distill.out) == ("scored", "run", None)


def test_only_the_given_steps_run(rlt: Rlt, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trace("a", 0), trace("a", 1, 1.0)])
    rlt("run", write(tmp_path / "rank.yaml", "out: run\nrank:\n"))
    assert run.parts("ranks") == [0] and not (run.path / "dataset").exists()
    rlt("run", write(tmp_path / "distill.yaml", "out: run\ndistill:\n  out: elsewhere\n"))
    assert Path("elsewhere/train.jsonl").is_file() and "generate" not in RunFolder(run.path).info["steps"]


def test_a_step_without_its_input_names_it(rlt: Rlt, tmp_path: Path) -> None:
    assert "error: run: " in rlt("run", write(tmp_path / "p.yaml", "out: run\nrank:\n"), code=5).stderr


def test_failed_rows_set_the_exit_code_and_later_steps_run(rlt: Rlt, tiny: Tiny, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", f"question,solution\nshort,1\n{'long ' * 2000},2\n")
    model = str(tiny())
    content = {"out": "run", "generate": {"in": str(rows), "teacher": model, "n": 1, "max_tokens": 5},
               "score": {"student": model}, "rank": None}  # fmt: skip
    printed = rlt("run", write(tmp_path / "p.yaml", content), code=4).stdout
    assert "1 failed" in printed and "1 traces of 1 questions ranked" in printed


#: Invalid pipelines, and the message of each.
MISTAKES: dict[str, tuple[Any, type[RltDataError], str]] = {
    "an unknown step": (
        {"out": "r", "rank": {}, "destill": {}},
        SettingsError,
        "destill: unknown key; did you mean 'distill'?",
    ),
    "an unknown key of a step": (
        {"out": "r", "generate": {"in": "x", "teacher": "t", "temprature": 1}},
        SettingsError,
        "generate.temprature: unknown key; did you mean 'temperature'?",
    ),
    "a misspelt key that differs from its Python name": (
        {"out": "r", "score": {"student": "s", "lamda": 1}},
        SettingsError,
        "score.lamda: unknown key; did you mean 'lambda'?",
    ),
    "a key that is like none": (
        {"out": "r", "rank": {"zzzzzz": 1}},
        SettingsError,
        "rank.zzzzzz: unknown key; known: in, by, lambda, alpha, where, buckets",
    ),
    "text for a number": (
        {"out": "r", "generate": {"in": "x", "teacher": "t", "n": "many"}},
        SettingsError,
        "generate.n: must be a valid integer (got 'many')",
    ),
    "a number out of range": (
        {"out": "r", "generate": {"in": "x", "teacher": "t", "top_p": 1.5}},
        SettingsError,
        "generate.top_p: must be less than or equal to 1 (got 1.5)",
    ),
    "a list for a section": ({"out": "r", "rank": ["by"]}, SettingsError, "rank: must be a valid dictionary"),
    "an unknown choice": (
        {"out": "r", "distill": {"select": "worst"}},
        SettingsError,
        "distill.select: ",
    ),
    "no teacher": ({"out": "r", "generate": {"in": "x"}}, SettingsError, "generate.teacher: "),
    "no run folder": ({"rank": {"in": "r"}}, SettingsError, "out: "),
    "no step": ({"out": "r"}, SettingsError, "has no step; "),
    "a number for a key": ("out: r\nrank:\n1: 2\n", SettingsError, "1: "),
    "a list": (["rank"], InputError, "a pipeline is a YAML mapping"),
    "text": ("rank", InputError, "a pipeline is a YAML mapping"),
    "nothing": ("", InputError, "a pipeline is a YAML mapping"),
    "not YAML": ("out: [r\nrank: }", InputError, "not YAML: "),
    "a tab": ("out: r\nrank:\n\tby: r_ss\n", InputError, "not YAML: "),
    "a date that is none": ("out: 2024-13-45", InputError, "not YAML: "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_file_and_the_key(rlt: Rlt, tmp_path: Path, name: str) -> None:
    content, kind, message = MISTAKES[name]
    file = write(tmp_path / "pipeline.yaml", content)
    with pytest.raises(kind) as error:
        load_pipeline(file)
    assert str(error.value).startswith(f"{file}: {message}") and "\n" not in str(error.value)
    assert rlt("run", file, code=kind.exit_code).stderr == f"error: {error.value}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline.yaml"]


def test_all_mistakes_of_a_file_are_reported_together(tmp_path: Path) -> None:
    file = write(tmp_path / "pipeline.yaml", {"out": "r", "rnak": {}, "rank": {"bye": 1}, "score": {"alpha": -1}})
    with pytest.raises(SettingsError) as error:
        load_pipeline(file)
    assert [line.split(": ")[1] for line in sorted(str(error.value).splitlines())] == [
        "rank.bye", "rnak", "score.alpha", "score.student"
    ]  # fmt: skip


def test_a_file_that_cannot_be_read_is_named(rlt: Rlt, tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("out: été".encode("latin-1"))
    (tmp_path / "folder.yaml").mkdir()
    for name, message in {
        "nothing.yaml": "cannot be read: No such file or directory",
        "folder.yaml": "cannot be read: Is a directory",
        "latin.yaml": "not UTF-8 at byte 6",
    }.items():
        assert rlt("run", tmp_path / name, code=3).stderr.startswith(f"error: {tmp_path / name}: {message}")


def test_a_single_misspelt_section_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "pipeline.yaml", {"out": "run", "genrate": {"in": "x", "teacher": "t"}})
    with pytest.raises(SettingsError, match="genrate: .*'generate'"):
        load_pipeline(file)
