"""Which files an input names."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import rlt_data
from rlt_data.errors import InputError, SettingsError
from rlt_data.inputs import check
from rlt_data.inputs.files import digest_of, find_sources
from rlt_data.inputs.read import read_records
from rlt_data.settings import CheckSettings, GenerateSettings, InputSettings, parse_settings
from rlt_data.storage.layout import default_run_path
from tests.conftest import Rlt, write_jsonl


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that tests can use relative paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(*names: Any, **others: Any) -> InputSettings:
    return parse_settings(InputSettings, {"in": list(names), **others})


def questions(*names: Any, **others: Any) -> list[str]:
    return [str(record.data["question"]) for record in read_records(settings(*names, **others)) if record.data]


def notices(*names: Any, **others: Any) -> tuple[str, ...]:
    return find_sources(settings(*names, **others)).notices


def write(name: str, *questions: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_jsonl(path, [{"question": question, "solution": "s"} for question in questions])


def test_several_files_are_read_in_their_order_and_locations_name_them() -> None:
    write("b.jsonl", "1", "2")
    write("a.jsonl", "3")
    records = list(read_records(settings("b.jsonl", "a.jsonl")))
    assert [record.location for record in records] == ["b.jsonl line 1", "b.jsonl line 2", "a.jsonl line 1"]
    assert questions("b.jsonl", "a.jsonl", limit=2) == ["1", "2"]
    assert [record.location for record in read_records(settings("a.jsonl"))] == ["line 1"]


def test_files_of_the_same_name_are_told_apart() -> None:
    write("a/rows.jsonl", "1")
    write("b/rows.jsonl", "2")
    assert [record.location for record in read_records(settings("a", "b"))] == [
        "a/rows.jsonl line 1",
        "b/rows.jsonl line 1",
    ]


def test_a_folder_gives_all_its_data_files_and_names_the_others() -> None:
    write("data/b.jsonl", "2")
    (Path("data/c.csv")).write_text("question,solution\n3,s\n")
    pl.DataFrame({"question": ["4"], "solution": ["s"]}).write_parquet("data/d.parquet")
    write("data/a/inner.jsonl", "1")
    write("data/.hidden.jsonl", "hidden")
    write("data/.cache/rows.jsonl", "hidden")
    for name in ("README.md", "notes.txt"):
        Path("data", name).write_text("---\nlicense: mit\n---\n")
    Path("data/e.jsonl.gz").write_bytes(gzip.compress(b'{"question": "5", "solution": "s"}\n'))
    assert questions("data") == ["1", "2", "3", "4", "5"]
    assert notices("data") == ("data: skipped files of unknown types: README.md, notes.txt",)


def test_a_folder_with_several_splits_gives_one_of_them() -> None:
    write("data/train.jsonl", "1")
    write("data/test.jsonl", "2")
    assert questions("data") == ["1"] and questions("data", split="test") == ["2"]
    write("data/extra.jsonl", "3")
    assert questions("data") == ["1"]
    assert notices("data") == ("data: only the split 'train' is read (--split), not extra.jsonl, test.jsonl",)
    assert notices("data", split="test") == (
        "data: only the split 'test' is read (--split), not extra.jsonl, train.jsonl",
    )
    write("other/train.jsonl", "1")
    write("other/more.jsonl", "0")
    write("other/latest.jsonl", "2")  # contains "test", but not as a word
    assert sorted(questions("other")) == ["0", "1", "2"]


def test_a_pattern_is_expanded_and_a_file_of_that_name_is_preferred() -> None:
    for name in ("part 10.jsonl", "part 2.jsonl", "part[1].jsonl", "part1.jsonl"):
        write(name, name)
    assert questions("part *.jsonl") == ["part 10.jsonl", "part 2.jsonl"]
    assert questions("part[1].jsonl") == ["part[1].jsonl"]
    assert questions("part[12].jsonl") == ["part1.jsonl"]
    write("data/a/b/c.jsonl", "deep")
    Path("data/a/notes.txt").touch()
    assert questions("data/**/*.jsonl") == questions("data/**") == questions("data/*") == ["deep"]
    assert notices("data/**") == ("data: skipped files of unknown types: a/notes.txt",)


def test_a_file_that_is_named_twice_is_read_once() -> None:
    write("a.jsonl", "1")
    Path("link.jsonl").symlink_to("a.jsonl")
    assert questions("a.jsonl", "./a.jsonl", "link.jsonl", "*.jsonl") == ["1"]
    assert notices("a.jsonl", "link.jsonl") == ("link.jsonl: is named twice and read once",)


def test_loops_of_links_end() -> None:
    write("data/a.jsonl", "1")
    Path("data/loop").symlink_to(".", target_is_directory=True)
    Path("data/sub").mkdir()
    Path("data/sub/up").symlink_to("..", target_is_directory=True)
    assert questions("data") == ["1"]
    Path("self.jsonl").symlink_to("self.jsonl")
    with pytest.raises(InputError, match="^self.jsonl: "):
        questions("self.jsonl")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["*.csv"], "*.csv: no such file, and no file matches this pattern"),
        (["*.txt"], "*.txt: matches only files of unknown types: notes.txt"),
        (["texts"], "texts: has only files of unknown types: a.txt, b.md"),
        (["gone.jsonl", "texts"], "gone.jsonl: no such file or folder"),
        (["pipe.jsonl"], "pipe.jsonl: is not a regular file"),
        (["links"], "links/gone.jsonl: no such file"),
        ([" ", "texts"], "--in: is empty"),
        (["s3://bucket/rows.jsonl", "texts"], "s3://bucket/rows.jsonl: input must be on this machine"),
    ],
)
def test_what_cannot_be_read_is_one_line(names: list[str], message: str) -> None:
    Path("notes.txt").touch()
    Path("texts").mkdir()
    Path("texts/a.txt").touch()
    Path("texts/b.md").touch()
    os.mkfifo("pipe.jsonl")
    Path("links").mkdir()
    Path("links/gone.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(InputError) as error:
        questions(*names)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_file_that_disappears_is_one_line() -> None:
    write("a.jsonl", "1")
    write("b.jsonl", "2")
    records = read_records(settings("a.jsonl", "b.jsonl"))
    next(records)
    Path("b.jsonl").unlink()
    with pytest.raises(InputError, match="^b.jsonl: cannot be read: No such file"):
        list(records)


def test_settings_of_data_sets_have_no_effect_on_files() -> None:
    write("data/a.jsonl", "1")
    write("data/b.jsonl", "2")
    for names, option, kind in (
        (["data/a.jsonl"], "split", "which is a file"),
        (["data/a.jsonl", "data/b.jsonl"], "subset", "which are files"),
        (["data"], "revision", "which is a folder"),
    ):
        with pytest.raises(SettingsError, match=f"--{option}: has no effect on .*{kind}"):
            questions(*names, **{option: "x"})


def test_the_digest_covers_all_files() -> None:
    one, other = write("data/a.jsonl", "1"), write("data/b.jsonl", "2")
    alone = digest_of(find_sources(settings(one)))
    both = digest_of(find_sources(settings("data")))
    assert both == digest_of(find_sources(settings(one, other))) == digest_of(find_sources(settings("data/*.jsonl")))
    write("data/b.jsonl", "3")
    assert digest_of(find_sources(settings(one))) == alone != both != digest_of(find_sources(settings("data")))


def test_files_with_other_columns_have_their_own_layout() -> None:
    write("a.jsonl", "1")
    write_jsonl(Path("b.jsonl"), [{"query": "2", "response": "s"}])
    report = check(CheckSettings(input=("a.jsonl", "b.jsonl")))
    assert (report.good, report.preset) == (2, "question-solution, columns")
    write_jsonl(Path("c.jsonl"), [{"left": "2", "right": "s"}])
    with pytest.raises(InputError, match="^c.jsonl: no preset fits the columns 'left', 'right'"):
        check(CheckSettings(input=("a.jsonl", "c.jsonl")))
    write_jsonl(Path("d.jsonl"), [{"question": "3"}, {"question": "4", "solution": "s"}])
    with pytest.raises(InputError, match="d.jsonl line 1: solution: missing") as error:
        check(CheckSettings(input=("a.jsonl", "d.jsonl"), preset="question-solution")).refuse_bad_rows(skip=False)
    assert str(error.value).startswith("a.jsonl and 1 more: ")


def test_a_shard_whose_first_row_looks_different_is_read_like_the_others() -> None:
    write_jsonl(Path("a.jsonl"), [{"question": "1", "answer": "We add.\n#### 2"}])
    write_jsonl(Path("b.jsonl"), [{"question": "2", "answer": "2"}])
    report = check(CheckSettings(input=("a.jsonl", "b.jsonl")))
    assert report.preset == "gsm8k" and report.bad_rows == [
        ("b.jsonl line 1", "answer: no '####' before the final answer")
    ]


def test_one_input_stays_a_text_and_several_are_a_list() -> None:
    assert settings("a.jsonl").model_dump(mode="json", by_alias=True)["in"] == "a.jsonl"
    assert settings("a.jsonl", "b.jsonl").model_dump(mode="json", by_alias=True)["in"] == ["a.jsonl", "b.jsonl"]
    assert GenerateSettings(input=[Path("a.jsonl"), "b.jsonl"], teacher="nano").input == ("a.jsonl", "b.jsonl")
    for wrong in ([], 3, [1]):
        with pytest.raises(SettingsError, match="^--in: must be a path or a list of paths"):
            parse_settings(InputSettings, {"in": wrong}, flags=True)


def test_default_run_paths() -> None:
    assert str(default_run_path("data/my rows.v2.jsonl", "org/model.gguf")) == "runs/my-rows-model"
    assert str(default_run_path(("data/a.jsonl", "b.jsonl", "c.jsonl"), "m")) == "runs/a-and-2-more-m"
    assert str(default_run_path("data/*.jsonl", "m")) == "runs/data-m"
    assert str(default_run_path("---.jsonl", "m")) == "runs/-m"


def test_flags_and_arguments_name_several_files(rlt: Rlt) -> None:
    for name in ("a", "b", "c"):
        write(f"{name}.jsonl", name)
    for arguments in (
        ["a.jsonl", "b.jsonl"],
        ["--in", "a.jsonl", "--in", "b.jsonl"],
        ["[ab].jsonl"],
    ):
        assert json.loads(rlt("check", *arguments, "--json").stdout)["rows"] == 2
    Path("check.yaml").write_text("in: [a.jsonl, b.jsonl, c.jsonl]\n")
    assert json.loads(rlt("check", "--config", "check.yaml", "--json").stdout)["rows"] == 3
    message = rlt("check", "a.jsonl", "b.jsonl", "--in", "c.jsonl", code=2).stderr
    assert message == "error: --in: differs from the argument 'a.jsonl b.jsonl'; give one of them\n"


def test_every_step_with_an_input_takes_several_files(rlt: Rlt, tiny: Callable[..., Path]) -> None:
    for name in ("a", "b"):
        write_jsonl(Path(f"{name}.jsonl"), [{"question": name, "solution": "s", "answer": "s", "explanation": "e"}])
        chat = [{"role": "user", "content": name}, {"role": "assistant", "content": "s"}]
        write_jsonl(Path(f"{name}-chat.jsonl"), [{"messages": chat}])
    model = tiny()
    generated = rlt("generate", "a.jsonl", "b.jsonl", "--teacher", model, "--n", 1, "--max-tokens", 4, "--out", "run")
    assert "2 traces (2 new)" in generated.stdout
    assert (
        "2 scores (2 new)"
        in rlt("score", "[ab].jsonl", "--student", model, "--teacher", "none", "--out", "scored").stdout
    )
    evaluated = ["--benchmark", "math", "--in", "a.jsonl", "--in", "b.jsonl", "--model", model, "--max-tokens", 4]
    assert "2 answers to 2 questions" in rlt("evaluate", *evaluated, "--out", "answers").stdout
    for command, name in (("train-student", "chat"), ("train-teacher warmup", "")):
        files = [f"{letter}-{name}.jsonl" if name else f"{letter}.jsonl" for letter in "ab"]
        trained = rlt(*command.split(), *files, "--model", model, "--out", "trained", "--dry-run")
        assert "2 rows (0 left out" in trained.stdout
    message = rlt("score", "run", "a.jsonl", "--student", model, code=2).stderr
    assert message == "error: --in: run is a run, which is read alone; combine runs with rlt-data merge\n"


def test_a_run_of_several_files_continues_when_one_of_them_grows(rlt: Rlt, tiny: Callable[..., Path]) -> None:
    write("a.jsonl", "1")
    write("b.jsonl", "2")
    run = rlt_data.generate(["a.jsonl", "b.jsonl"], teacher=str(tiny()), n=1, max_tokens=4)
    assert run.path.name == f"a-and-1-more-{tiny().name}"
    assert run.scan("questions").collect()["question"].to_list() == ["1", "2"]
    write("a.jsonl", "1", "3")
    run = rlt_data.generate(input=["a.jsonl", "b.jsonl"], teacher=str(tiny()), n=1, max_tokens=4)
    assert run.scan("questions").collect()["question"].to_list() == ["1", "2", "3"]
