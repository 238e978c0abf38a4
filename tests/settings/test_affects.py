"""What each setting affects, and the dictionaries that keys of rows and recorded trainings are made of.

The values here are in the run.json and training.json of existing runs: another key, name or value would make their rows
those of other settings.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest

import rlt_data.settings
from rlt_data.settings import EvaluateSettings, GenerateSettings, ScoreSettings, Settings, parse_settings
from rlt_data.settings.base import declared, field
from rlt_data.steps import evaluate, generate, score

ALL = [
    getattr(rlt_data.settings, name)
    for name in rlt_data.settings.__all__
    if name.endswith("Settings") and name != "Settings"
]
MODEL: Any = SimpleNamespace(identity=SimpleNamespace(fingerprint="M", dtype="D", chat_template="C"))
FORMAT: Any = SimpleNamespace(hash="F")
TEACHER: Any = SimpleNamespace(fingerprint="T")
SERVER = {"engine": "server", "url": ["http://host:1/v1"]}

SAMPLED = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_tokens": None, "seed": 0}
MADE_WITH = {"dtype": "D", "chat_template": "C", "format": "F"}
SCORED = {
    "temperature": 0.7,
    "lambda": 3.0,
    "alpha": 0.01,
    "kl": "k1",
    "missing_tag_penalty": -1.0,
    "per_token": False,
}


def undeclared(settings: type[Settings]) -> list[str]:
    """Return the fields that say nothing of what they affect; sections of a pipeline are settings of their own."""
    return [
        name
        for name, info in settings.model_fields.items()
        if "affects" not in declared(info)
        and not any(isinstance(part, type) and issubclass(part, Settings) for part in get_args(info.annotation))
    ]


@pytest.mark.parametrize("settings", ALL)
def test_every_field_declares_what_it_affects(settings: type[Settings]) -> None:
    assert undeclared(settings) == []


def test_a_field_without_a_declaration_is_found_and_field_asks_for_one() -> None:
    class Some(Settings):
        bare: int = 1
        told: int = field(1, None, "", affects="speed")

    assert undeclared(Some) == ["bare"]
    with pytest.raises(TypeError, match="affects"):
        field(1, None, "")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"engine": "transformers"}, {}),
        ({"engine": "vllm", "gpu_memory": 0.5}, {"engine": "vllm"}),
        (SERVER, {"engine": "server"}),
        (
            {"engine": "transformers", "temperature": 1, "top_k": 5, "max_tokens": 9, "seed": 3},
            {"temperature": 1.0, "top_k": 5, "max_tokens": 9, "seed": 3},
        ),
        (
            {
                "engine": "transformers",
                "n": 3,
                "limit": 2,
                "out": "o",
                "batch_size": 2,
                "device": "cpu",
                "dtype": "float16",
                "retry_errors": True,
            },
            {},
        ),
    ],
)
def test_traces_and_answers_depend_on_what_they_did(more: dict[str, Any], expected: dict[str, Any]) -> None:
    asked = parse_settings(GenerateSettings, {"in": "x", "teacher": "t", **more})
    assert generate._dependencies(asked, MODEL, FORMAT) == {"teacher": "M", **MADE_WITH, **SAMPLED, **expected}
    assert asked.model_copy(update={"add": True, "origin": "o"}).depends_on() == asked.depends_on()
    given = {"in": "x", "model": "m", "benchmark": "math", "temperature": 0.7, **more}
    answered = {"model": "M", "benchmark": "math", **MADE_WITH, **SAMPLED, **expected}
    assert evaluate._dependencies(parse_settings(EvaluateSettings, given), MODEL, FORMAT) == answered


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, {}),
        ({"engine": "vllm", "gpu_memory": 0.5, "teacher_logprobs": "compute", "out": "o"}, {}),
        ({**SERVER, "temperature": 0.5, "served_temperature": 0.5}, {"temperature": 0.5}),
        ({"lambda": 1, "kl": "k3", "per_token": True}, {"lambda": 1.0, "kl": "k3", "per_token": True}),
        ({"solution_weight": 1, "alpha_kl": None}, {}),
        ({"solution_weight": 0, "alpha_kl": 0.5}, {"solution_weight": 0.0, "alpha_kl": 0.5}),
    ],
)
def test_scores_depend_on_what_they_did(more: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = parse_settings(ScoreSettings, {"in": "x", "student": "s", **more})
    made = score._dependencies(settings, MODEL, FORMAT, TEACHER)
    assert made == {"student": "M", "teacher": "T", **MADE_WITH, **SCORED, **expected}


FINE_TUNED = {
    "learning_rate": 1e-05,
    "schedule": "cosine",
    "adam_beta1": 0.9,
    "max_grad_norm": 1.0,
    "leave_out_long": False,
    "activation_checkpointing": True,
    "seed": 0,
    "dtype": "float32",
    "save_steps": 100,
    "max_steps": None,
    "max_length": 16384,
    "packing": False,
    "lora_rank": 0,
}
BY_POLICY = {
    "learning_rate": 1e-06,
    "schedule": "constant",
    "warmup": 0.0,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "leave_out_long": False,
    "activation_checkpointing": True,
    "seed": 0,
    "dtype": "float32",
    "save_steps": 25,
    "recipe": "paper",
    "questions": 16,
    "group": 64,
    "temperature": 0.7,
    "top_p": 1.0,
    "top_k": 0,
    "max_tokens": 16384,
    "loss": "grpo",
    "scale_rewards": "group",
    "epsilon": 0.2,
    "beta": 0.04,
    "bias_corrected_kl": False,
    "sync_steps": 32,
    "sync_mixup": 0.9,
    "vllm": "none",
    "vllm_url": None,
    "vllm_tensor_parallel": 1,
    "vllm_correction": False,
    "batch_tokens": None,
    "batch_size": None,
    "held_out": 64,
}
TRAINED = {
    "TrainStudentSettings": {
        **FINE_TUNED,
        "warmup": 0.1,
        "weight_decay": 0.0,
        "adam_beta2": 0.999,
        "epochs": 3,
        "batch_size": 32,
    },
    "WarmUpSettings": {
        **FINE_TUNED,
        "warmup": 0.05,
        "weight_decay": 0.0001,
        "adam_beta2": 0.95,
        "epochs": 10,
        "batch_size": 16,
    },
    "TrainTeacherSettings": {
        **BY_POLICY,
        "lambda_": 3.0,
        "alpha": 0.01,
        "kl": "k1",
        "missing_tag_penalty": -1.0,
        "student_dtype": "auto",
    },
    "TrainSolverSettings": {
        **BY_POLICY,
        "benchmark": "math",
        "unformatted_reward": -1.0,
        "wrong_reward": -0.5,
        "correct_reward": 1.0,
    },
}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_weights_depend_on_what_they_did(name: str) -> None:
    student = {"student": "s", "student_dtype": "auto"} if name == "TrainTeacherSettings" else {}
    free = {"micro_batch_size": 4, "device": "cpu", "keep_checkpoints": 1, "log_to": "none", "dry_run": True, **student}
    given = {"in": "x", "model": "m", "out": "o", "chat_template": "plain", **free}
    settings = parse_settings(getattr(rlt_data.settings, name), given)
    assert settings.depends_on() == TRAINED[name]  # the plan adds the steps of RL
    assert settings.depends_on(model="M", data="D") == {**TRAINED[name], "model": "M", "data": "D"}


def test_a_presets_values_count_and_its_name_does_not() -> None:
    preset = rlt_data.settings.TrainStudentSettings(model="m", input="x", out="o", preset="7b-17k")
    assert preset.depends_on() == {**TRAINED["TrainStudentSettings"], "batch_size": 96}
