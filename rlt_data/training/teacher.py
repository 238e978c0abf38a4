"""Train a teacher: supervised on explanations first, then by GRPO on the dense reward of a frozen student."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import torch

from rlt_data.engines import Model, open_model
from rlt_data.engines.config import pick_device
from rlt_data.engines.models import tokenizer_fingerprint
from rlt_data.engines.transformers import TransformersEngine
from rlt_data.errors import InputError, SettingsError
from rlt_data.formats import Problem, Views, choose_format
from rlt_data.inputs.check import good_rows
from rlt_data.inputs.rows import Row, question_id
from rlt_data.plugins import REWARDS
from rlt_data.progress import SILENT, Progress
from rlt_data.settings import ModelSettings, TrainTeacherSettings, WarmUpSettings
from rlt_data.settings.base import name_of_input
from rlt_data.training.examples import TrainingText, tokenize_texts
from rlt_data.training.grpo import Policy, PolicySummary, train_policy
from rlt_data.training.models import find_base_model
from rlt_data.training.requirements import refuse_here
from rlt_data.training.rewards import DenseReward
from rlt_data.training.sft import TrainingSummary, fine_tune


def warm_up(settings: WarmUpSettings, progress: Progress = SILENT) -> TrainingSummary:
    """Fine-tune a model on explanations in the teacher format, as ``rlt-data train-teacher warmup`` does.

    The loss covers the text after the prefill: explanation, closing tag, and the end of the assistant's message.

    Raises:
        RltDataError: one of the errors in :mod:`rlt_data.errors`; existing files are kept.
    """
    checkpoint, tokenizer, template, control = find_base_model(settings)
    format = choose_format(settings.format, template, checkpoint.name, checkpoint.folder)
    views = Views(format, template, control)
    views.check_teacher()
    rows = good_rows(settings.as_input(), format, controls=[control])
    texts = teacher_texts(rows, views, name_of_input(settings.input))
    return fine_tune(settings, checkpoint, tokenizer, list(tokenize_texts(texts, tokenizer)), progress, format=format)


def train_teacher(settings: TrainTeacherSettings, progress: Progress = SILENT) -> PolicySummary:
    """Train a teacher by GRPO on the reward of ``rlt-data score``, as ``rlt-data train-teacher rl`` does.

    The last model is saved in OUT, the model with the highest held-out reward in OUT/best, checkpoints in
    OUT/checkpoint-N, samples of each checkpoint in OUT/samples, and all metrics in OUT/metrics.jsonl. The same call
    continues an interrupted training from the last complete checkpoint.

    Raises:
        RltDataError: one of the errors in :mod:`rlt_data.errors`; existing files are kept.
    """
    REWARDS.load(settings.reward)
    checkpoint, tokenizer, template, control = find_base_model(settings)
    student = open_student(settings)
    format = choose_format(settings.format, template, checkpoint.name, checkpoint.folder, student.template)
    Views(format, student.template).check()
    views = Views(format, template, control)
    views.check_teacher()
    problems: dict[str, Row] = {}  # several rows may be traces of one problem
    for row in good_rows(settings.as_input(), format, controls=[control, student.control]):
        problems.setdefault(question_id(row.question, row.solution, row.system), row)
    rows = [
        {
            "prompt": views.teacher_prompt(Problem(row.question, row.solution)),
            "question_id": key,
            "source_id": row.source_id,
            "question": row.question,
            "solution": row.solution,
            "system": row.system,
        }
        for key, row in problems.items()
    ]
    same_tokenizer = tokenizer_fingerprint(tokenizer) == student.identity.tokenizer
    policy = Policy(checkpoint, tokenizer, format, rows, format.explanation_tags[1], len(format.padding), student)

    def reward() -> DenseReward:
        student.load()
        if settings.student_device == "offload":
            assert isinstance(student.engine, TransformersEngine)
            student.engine.offload()
        return DenseReward(settings, student, format, tokenizer, same_tokenizer=same_tokenizer)

    with closing(student):
        return train_policy(settings, policy, reward, progress)


def open_student(settings: TrainTeacherSettings) -> Model:
    """Return the student that computes the reward, without loading it.

    Raises:
        ModelError: the model does not exist, or its tokenizer is unusable.
        SettingsError: this machine lacks the student's device.
    """
    prompts = {
        "template_option": settings.template_option,
        "template_date": settings.template_date,
        "control_tokens": settings.control_tokens,
        "trust_remote_code": settings.trust_remote_code,
    }
    if settings.student_url:
        served = ModelSettings(engine="server", url=settings.student_url, **prompts)
        return open_model(settings.student, served, scoring=True, served_temperature=settings.served_temperature)
    local = ModelSettings(
        engine="transformers",
        device=_student_device(settings),
        dtype=settings.student_dtype,
        batch_tokens=settings.batch_tokens,
        **prompts,
    )
    return open_model(settings.student, local, scoring=True)


def _student_device(settings: TrainTeacherSettings) -> str:
    """Return the device on which this process runs the student."""
    name = settings.student_device
    if name == "offload" and pick_device(settings.device).type != "cuda":
        refuse_here(settings, "--student-device offload: the policy does not train on a GPU; use auto")
    if (first := settings.student_gpu) is None:
        return settings.device if name in ("auto", "offload") else name
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1 and first < processes:
        raise SettingsError(
            f"--student-device {name}: the policy uses GPUs 0 to {processes - 1}; set cuda:{processes} or later"
        )
    gpu = first + int(os.environ.get("LOCAL_RANK", "0"))
    if gpu >= torch.cuda.device_count():
        refuse_here(settings, f"--student-device {name}: this machine has no GPU {gpu}")
        return settings.device
    return f"cuda:{gpu}"


def teacher_texts(rows: list[Row], views: Views, input: str) -> Iterator[TrainingText]:
    """Render rows as teacher prompts with their explanations.

    Raises:
        InputError: a row has no explanation, or one without a closing tag or with a control token.
    """
    format = views.format
    for row in rows:
        completion = row.completion if row.explanation is None else format.completion_of(row.explanation)
        if completion is None:
            raise InputError(
                f"{input}: row {row.source_id} has no explanation; set --explanation-column or --completion-column"
            )
        explanation, closing, _ = completion.partition(format.explanation_tags[1])
        if not closing:
            raise InputError(f"{input}: row {row.source_id}: the completion lacks {format.explanation_tags[1]}")
        problem = Problem(row.question, row.solution)
        if reason := views.control_token(problem, explanation):
            raise InputError(f"{input}: row {row.source_id}: {reason}")
        prompt = views.teacher_prompt(problem)
        yield TrainingText(prompt, views.mark(explanation) + closing + views.template.end)
