"""Every step, stated once: what the command line, the Python namespace, pipelines, pages, cards and recipes know of it.

A step's function is named by an import string, so listing the steps imports neither the functions nor their libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rlt_data.settings import (
    CheckSettings,
    CountdownSettings,
    DistillSettings,
    EvaluateSettings,
    GenerateSettings,
    MergeSettings,
    PushSettings,
    RankSettings,
    ScoreSettings,
    Settings,
    TrainingSettings,
    TrainSolverSettings,
    TrainStudentSettings,
    TrainTeacherSettings,
    WarmUpSettings,
)


@dataclass(frozen=True)
class Step:
    """A step: a function of settings, and a command with the same settings as flags.

    Attributes:
        name: in run.json, and of its section in pipelines and recipes.
        command: on the command line, such as ``train-teacher rl``.
        settings: class of its settings.
        function: its function, as ``module:name``; takes the settings, and a progress where ``has_progress`` is true.
        help: what ``--help`` says.
        output: function of ``rlt_data.cli.output`` that prints its summary; takes settings and summary, and returns
            the exit code if that is not always 0.
        reads: tables of a run that it needs.
        has_progress: whether its function reports progress.
    """

    name: str
    command: str
    settings: type[Settings]
    function: str
    help: str
    output: str
    reads: tuple[str, ...] = ()
    has_progress: bool = True

    @property
    def module(self) -> str:
        """The module of its function."""
        return self.function.partition(":")[0]

    @property
    def function_name(self) -> str:
        """The name of its function, in its module and in ``rlt_data``."""
        return self.function.partition(":")[2]

    @property
    def writes(self) -> tuple[str, ...]:
        """The tables of a run that it makes."""
        from rlt_data.storage.schemas import MADE_BY

        return tuple(table for table, step in MADE_BY.items() if step == self.name)

    @property
    def trains(self) -> bool:
        """Whether it trains a model."""
        return issubclass(self.settings, TrainingSettings)

    def load(self) -> Callable[..., Any]:
        """Import its function."""
        function: Callable[..., Any] = getattr(import_module(self.module), self.function_name)
        return function


#: From questions to a published data set, in the order of the commands.
DATA_STEPS = (
    Step(
        name="check",
        command="check",
        settings=CheckSettings,
        function="rlt_data.inputs:check",
        help="Validate an input without a model, and show what is understood of it.",
        output="print_check",
        has_progress=False,
    ),
    Step(
        name="generate",
        command="generate",
        settings=GenerateSettings,
        function="rlt_data.steps.generate:generate",
        help="Sample explanations from a teacher that sees each question and its solution.",
        output="print_traces",
    ),
    Step(
        name="score",
        command="score",
        settings=ScoreSettings,
        function="rlt_data.steps.score:score",
        help="Score traces by how much they help a student, and how natural it finds them (the RLT reward).",
        output="print_scores",
        reads=("questions", "traces"),
    ),
    Step(
        name="merge",
        command="merge",
        settings=MergeSettings,
        function="rlt_data.steps.merge:merge",
        help="Merge runs of the same settings, such as those of machines that shared the questions, into a new one.",
        output="print_merge",
        reads=("questions", "traces", "scores"),
    ),
    Step(
        name="rank",
        command="rank",
        settings=RankSettings,
        function="rlt_data.steps.rank:rank",
        help="Rank the traces of each question by reward, and sort them into buckets.",
        output="print_ranks",
        reads=("scores",),
    ),
    Step(
        name="distill",
        command="distill",
        settings=DistillSettings,
        function="rlt_data.steps.distill:distill",
        help="Choose traces and write them as a data set in the student's format.",
        output="print_dataset",
        reads=("questions", "traces", "ranks"),
    ),
    Step(
        name="push",
        command="push",
        settings=PushSettings,
        function="rlt_data.publish.push:push",
        help="Publish a distilled data set or a trained model on the Hugging Face Hub, with a card about its making.",
        output="print_push",
        reads=("questions", "traces", "scores", "ranks"),
    ),
)

#: Training and measuring models, and making problems for that; names are those of recipes.
MODEL_STEPS = (
    Step(
        name="warmup",
        command=WarmUpSettings.command,
        settings=WarmUpSettings,
        function="rlt_data.training.teacher:warm_up",
        help="Fine-tune a model on explanations in the teacher format; run it again to continue.",
        output="print_training",
    ),
    Step(
        name="teacher",
        command=TrainTeacherSettings.command,
        settings=TrainTeacherSettings,
        function="rlt_data.training.teacher:train_teacher",
        help="Train a teacher by GRPO on the dense reward of a frozen student; run it again to continue.",
        output="print_policy_training",
    ),
    Step(
        name="student",
        command=TrainStudentSettings.command,
        settings=TrainStudentSettings,
        function="rlt_data.training.sft:train_student",
        help="Fine-tune a student on a distilled data set; run it again to continue, under accelerate for many GPUs.",
        output="print_training",
    ),
    Step(
        name="solver",
        command=TrainSolverSettings.command,
        settings=TrainSolverSettings,
        function="rlt_data.training.solver:train_solver",
        help="Train a student by GRPO on whether its answers are right; run it again to continue.",
        output="print_policy_training",
    ),
    Step(
        name="evaluate",
        command="evaluate",
        settings=EvaluateSettings,
        function="rlt_data.steps.evaluate:evaluate",
        help="Measure a model's accuracy on a benchmark: sample answers in the student's format, and grade them.",
        output="print_evaluation",
    ),
    Step(
        name="countdown",
        command="countdown make",
        settings=CountdownSettings,
        function="rlt_data.steps.countdown:make_countdown",
        help="Write problems with solutions; no problem is in both splits, whatever the seeds.",
        output="print_problems",
        has_progress=False,
    ),
)

STEPS = {step.name: step for step in (*DATA_STEPS, *MODEL_STEPS)}
