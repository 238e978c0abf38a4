"""Settings from Python, flags and YAML: every mistake is one line of the documented kind."""

from __future__ import annotations

from typing import Any

import pytest

import rlt_data as rlt
from rlt_data.errors import InputError, SettingsError
from rlt_data.settings import (
    CompareSettings,
    DistillSettings,
    GenerateSettings,
    PipelineSettings,
    Settings,
    parse_settings,
    parse_yaml,
)


def test_wrong_values_from_python_are_settings_errors() -> None:
    with pytest.raises(rlt.RltDataError) as error:
        rlt.GenerateSettings(teacher="t", input="x", top_p=2, tempreature=1)  # type: ignore[call-arg]
    assert type(error.value) is rlt.SettingsError
    assert str(error.value).splitlines() == [
        "top_p: must be less than or equal to 1 (got 2)",
        "tempreature: unknown key; did you mean 'temperature'?",
    ]


def test_settings_inside_others_are_named_with_their_path() -> None:
    with pytest.raises(SettingsError, match=r"^generate\.n: must be greater than or equal to 1 \(got 0\)$"):
        PipelineSettings(out="run", generate={"in": "x", "teacher": "t", "n": 0})  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"^file: generate\.n: "):
        parse_settings(PipelineSettings, {"out": "run", "generate": {"in": "x", "teacher": "t", "n": 0}}, where="file")


@pytest.mark.parametrize("error", ["Disk", "Engine", "Hub", "Input", "Model", "RunFolder"])
def test_every_kind_of_error_is_exported(error: str) -> None:
    assert issubclass(getattr(rlt, f"{error}Error"), rlt.RltDataError)


@pytest.mark.parametrize(
    ("text", "what"), [("a\0b", "a NUL character"), ("\ud800", "half of a surrogate pair")], ids=["NUL", "surrogate"]
)
def test_a_text_that_no_file_can_have_or_hold_is_refused(text: str, what: str) -> None:
    with pytest.raises(SettingsError, match=f"^teacher: .*{what}"):
        GenerateSettings(teacher=text, input="x")
    with pytest.raises(SettingsError, match=f"^keep: .*{what}"):
        GenerateSettings(teacher="t", input="x", keep=("column", text))


@pytest.mark.parametrize("key", ["out", "ids", "tokenizer", "per"])
def test_an_empty_text_does_not_stand_for_a_missing_one(key: str) -> None:
    with pytest.raises(SettingsError, match=f"^{key}: must not be empty"):
        DistillSettings(input="run", **{key: ""})


def test_a_required_name_is_not_empty() -> None:
    with pytest.raises(SettingsError, match="^input: must not be empty"):
        DistillSettings(input="")
    with pytest.raises(SettingsError, match="^teacher: must not be empty"):
        GenerateSettings(teacher="", input="x")
    with pytest.raises(SettingsError, match="^input: must not be empty"):
        GenerateSettings(teacher="nano", input=("", "texts"))
    with pytest.raises(SettingsError, match="^input: must not be empty"):
        CompareSettings(input=("run", ""))


def test_a_number_that_no_column_can_hold_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^limit: must be less than 2\^63"):
        DistillSettings(input="run", limit=10**20)


#: YAML that raises something else than a YAMLError inside PyYAML.
NO_YAML = {
    "a date that is none": "when: 2001-99-99",
    "5,000 digits": "n: " + "9" * 5000,
    "depth": "n: " + "[" * 1500,
    "no integer": "n: !!int x",
    "no truth value": "n: !!bool x",
    "no time": "n: !!timestamp x",
    "an object": "n: !!python/object:os.system x",
}


@pytest.mark.parametrize("name", NO_YAML)
def test_what_is_no_yaml_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match="^file: not YAML: ") as error:
        parse_yaml(NO_YAML[name], "file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", [3, None, ("a",), 1.5])
def test_keys_that_are_no_texts_are_unknown(key: Any) -> None:
    with pytest.raises(SettingsError):
        parse_settings(GenerateSettings, {"in": "x", "teacher": "t", key: 1})


def test_a_preset_of_the_wrong_type() -> None:
    with pytest.raises(SettingsError, match="^preset: must be"):
        rlt.TrainStudentSettings(model="m", input="x", out="o", preset=["7b-1k"])  # type: ignore[arg-type]


def test_defaults_are_told_from_other_values() -> None:
    class Some(Settings):
        a: int = 1
        b: tuple[str, ...] = ()

    assert Some(a=1, b=()).not_default("a", "b") == [] and Some(a=2, b=("x",)).not_default("a", "b") == ["a", "b"]
