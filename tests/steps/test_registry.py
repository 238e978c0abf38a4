from __future__ import annotations

import inspect
import typing
from typing import Any

import pytest
import typer.main

import rlt_data
from rlt_data.cli import output
from rlt_data.cli.main import app
from rlt_data.settings import PipelineSettings
from rlt_data.steps.registry import STEPS, Step
from rlt_data.storage.schemas import MADE_BY, SCHEMAS


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_names_its_function_and_what_prints_its_summary(step: Step) -> None:
    function = step.load()
    assert callable(getattr(rlt_data, step.function_name)) and step.function_name in dir(rlt_data)
    parameters = list(inspect.signature(function).parameters)
    assert typing.get_type_hints(function)[parameters[0]] is step.settings
    assert parameters[1:] == (["progress"] if step.has_progress else [])
    assert len(inspect.signature(getattr(output, step.output)).parameters) == 2
    assert set(step.reads) <= SCHEMAS.keys() and step.help.endswith(".")


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_step_is_a_command_with_its_settings_as_flags(step: Step) -> None:
    command: Any = typer.main.get_command(app)
    for word in step.command.split():
        command = command.commands[word]
    assert command.help == step.help
    flags = {parameter.name for parameter in command.params if parameter.param_type_name == "option"}
    assert flags == {*step.settings.model_fields, "config"}


def test_tables_and_sections_of_pipelines_belong_to_steps() -> None:
    assert MADE_BY.keys() == SCHEMAS.keys() and set(MADE_BY.values()) <= STEPS.keys()
    assert [table for step in STEPS.values() for table in step.writes] == list(SCHEMAS)
    assert PipelineSettings.model_fields.keys() - {"out"} <= STEPS.keys()


def test_names_and_commands_are_each_those_of_one_step() -> None:
    assert len({step.command for step in STEPS.values()}) == len(STEPS)
    assert len({step.function for step in STEPS.values()}) == len(STEPS)


def test_the_shell_completes_the_public_names() -> None:
    assert dir(rlt_data) == sorted(rlt_data.__all__) and "generate" in dir(rlt_data)
