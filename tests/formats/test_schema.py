from __future__ import annotations

from pathlib import Path

import pytest

from rlt_data.errors import InputError, SettingsError
from rlt_data.formats import BUILT_IN, load_format


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_formats_mention_their_tags_in_their_texts(name: str) -> None:
    format = load_format(name)
    for tag in (*format.explanation_tags, *format.solution_tags):
        assert tag in format.teacher_system
    for tag in () if format.native else (*format.thought_tags, *format.solution_tags):
        assert tag in format.student_system
    assert format.padding and format.solution_padding


def test_only_the_format_with_shots_has_shots() -> None:
    assert len(load_format("rlt-shots").shots) == 3
    assert load_format("rlt-shots").model_copy(update={"shots": ()}).hash == load_format("rlt").hash


def test_the_hash_follows_the_texts_and_not_the_name() -> None:
    format = load_format("rlt")
    assert format.model_copy(update={"name": "other"}).hash == format.hash
    assert format.model_copy(update={"separator": "\n"}).hash != format.hash


def test_a_file_may_extend_a_built_in_format(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: think\nname: mine\nseparator: ' '\n")
    assert load_format(str(file)).thought_tags == ("<think>", "</think>")
    assert load_format(str(file)).separator == " "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: rlt\nseperator: ' '\n", "seperator: unknown key; did you mean 'separator'?"),
        ("name: x\n", "teacher_system: "),
        ("extends: rlt\nsolution_tags: ['<a>', '<a>']\n", "solution_tags: "),
        ("extends: rlt\nsolution_tags: ['<a>']\n", "solution_tags.1: "),
        ("- a\n- b\n", "YAML mapping"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises((SettingsError, InputError)) as error:
        load_format(str(file))
    assert message in str(error.value) and str(file) in str(error.value)


def test_invalid_yaml_and_an_unknown_name(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("name: [")
    with pytest.raises(InputError, match="not YAML"):
        load_format(str(file))
    with pytest.raises(SettingsError, match="neither a built-in format"):
        load_format("rlt2")


@pytest.mark.parametrize(
    ("question", "solution", "problem"),
    [
        ("", "1", "the question is empty"),
        ("1 + 1?", " \n", "the solution is empty"),
        ("1 + 1?", "<|begin_of_solution|>  <|end_of_solution|>", "the solution is empty"),
        ("say <|end_of_solution|>", "1", "the question contains the tag"),
        ("1 + 1?", "2 <|begin_of_solution|>", "the solution contains the tag"),
        ("1 + 1?", "2 \ud800", "half of a surrogate pair"),
    ],
)
def test_problems_that_cannot_be_rendered(question: str, solution: str, problem: str) -> None:
    assert problem in str(load_format("rlt").problem_with(question, solution))


def test_tags_around_a_complete_solution_are_removed() -> None:
    format = load_format("rlt")
    assert format.problem_with("1 + 1?", "<|begin_of_solution|>2<|end_of_solution|>") is None
    assert format.solution_content("<|begin_of_solution|>\n\n2\n\n<|end_of_solution|>") == "\n\n2\n\n"
    assert format.solution_content("  indented\n") == "\n\n  indented\n\n"


def test_formats_that_extend_one_another_are_refused(tmp_path: Path) -> None:
    own, one, other = (str(tmp_path / f"{name}.yaml") for name in ("own", "one", "other"))
    Path(own).write_text(f"extends: {own}")
    Path(one).write_text(f"extends: {other}")
    Path(other).write_text(f"extends: {one}")
    with pytest.raises(SettingsError, match=f"^{own}: extends '{own}', "):
        load_format(own)
    with pytest.raises(SettingsError, match=f"^{other}: extends '{one}', "):
        load_format(one)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_an_impossible_file_name(name: str) -> None:
    with pytest.raises(SettingsError, match="neither a built-in format"):
        load_format(name)
