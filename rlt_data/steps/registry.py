"""The registry of steps, which the command line, the Python API, pipelines, reports, cards and recipes share.

A step names its function by an import string, so that listing the steps imports no heavy library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rlt_data.progress import Progress, choose_progress
from rlt_data.settings import (
    CheckSettings,
    CountdownSettings,
    CurateSettings,
    DistillSettings,
    EvaluateSettings,
    GenerateSettings,
    MergeSettings,
    PreviewSettings,
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
        name: name in run.json, and of its section in pipelines and recipes.
        command: name on the command line, such as ``train-teacher rl``.
        settings: settings class.
        function: import string of the function, ``module:name``; its arguments are the settings and, if
            ``has_progress`` is true, a progress.
        help: help text of the command.
        output: name of the function in ``rlt_data.cli.output`` that prints the summary; its arguments are settings and
            summary, and it returns the exit code, or None for 0.
        reads: tables of a run that the step requires.
        has_progress: whether the function reports progress.
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
        """The module of the function."""
        return self.function.partition(":")[0]

    @property
    def function_name(self) -> str:
        """The name of the function, in its module and in ``rlt_data``."""
        return self.function.partition(":")[2]

    @property
    def writes(self) -> tuple[str, ...]:
        """The tables of a run that the step writes."""
        from rlt_data.storage.schemas import MADE_BY

        return tuple(table for table, step in MADE_BY.items() if step == self.name)

    @property
    def trains(self) -> bool:
        """Whether the step trains a model."""
        return issubclass(self.settings, TrainingSettings)

    def load(self) -> Callable[..., Any]:
        """Import and return the function."""
        function: Callable[..., Any] = getattr(import_module(self.module), self.function_name)
        return function

    def run(self, settings: Settings, progress: bool | Progress = False) -> Any:
        """Run the step and return its summary; :func:`rlt_data.progress.choose_progress` explains ``progress``."""
        options = [choose_progress(progress)] if self.has_progress else []
        return self.load()(settings, *options)


#: Steps from questions to a published data set, in their order.
DATA_STEPS = (
    Step(
        name="check",
        command="check",
        settings=CheckSettings,
        function="rlt_data.steps.check:check",
        help="Validate an input and show how it is read, without loading a model.",
        output="print_check",
        has_progress=False,
    ),
    Step(
        name="preview",
        command="preview",
        settings=PreviewSettings,
        function="rlt_data.reporting.preview:preview",
        help="Show what teacher, student and solver see for one row of a run or a file, without loading weights.",
        output="print_preview",
        has_progress=False,
    ),
    Step(
        name="generate",
        command="generate",
        settings=GenerateSettings,
        function="rlt_data.steps.generate:generate",
        help="Generate traces: a teacher sees each question and its solution, and explains them.",
        output="print_traces",
    ),
    Step(
        name="score",
        command="score",
        settings=ScoreSettings,
        function="rlt_data.steps.score:score",
        help="Score traces by how much they help a student (the RLT reward).",
        output="print_scores",
        reads=("questions", "traces"),
    ),
    Step(
        name="curate",
        command="curate",
        settings=CurateSettings,
        function="rlt_data.steps.curate:curate",
        help="Check traces and questions. Findings are columns for --where and distill; no row is deleted.",
        output="print_signals",
        reads=("questions", "traces"),
    ),
    Step(
        name="merge",
        command="merge",
        settings=MergeSettings,
        function="rlt_data.steps.merge:merge",
        help="Merge runs of several machines, or of several teachers, into a new run.",
        output="print_merge",
        reads=("questions", "traces", "scores"),
    ),
    Step(
        name="rank",
        command="rank",
        settings=RankSettings,
        function="rlt_data.steps.rank:rank",
        help="Rank the traces of each question, by default by reward, and assign them to buckets.",
        output="print_ranks",
        reads=("scores",),
    ),
    Step(
        name="distill",
        command="distill",
        settings=DistillSettings,
        function="rlt_data.steps.distill:distill",
        help="Select traces and write them as a data set in the student's format.",
        output="print_dataset",
        reads=("questions", "traces", "ranks"),
    ),
    Step(
        name="push",
        command="push",
        settings=PushSettings,
        function="rlt_data.publish.push:push",
        help="Publish a distilled data set or a trained model on the Hugging Face Hub, with a card.",
        output="print_push",
        reads=("questions", "traces", "scores", "ranks"),
    ),
)

#: Steps that train or evaluate models, and that make problems for them.
MODEL_STEPS = (
    Step(
        name="warmup",
        command=WarmUpSettings.command,
        settings=WarmUpSettings,
        function="rlt_data.training.teacher:warm_up",
        help="Fine-tune a model on explanations in the teacher's format. Run it again to continue.",
        output="print_training",
    ),
    Step(
        name="teacher",
        command=TrainTeacherSettings.command,
        settings=TrainTeacherSettings,
        function="rlt_data.training.teacher:train_teacher",
        help="Train a teacher by GRPO on the dense reward of a frozen student. Run it again to continue.",
        output="print_policy_training",
    ),
    Step(
        name="student",
        command=TrainStudentSettings.command,
        settings=TrainStudentSettings,
        function="rlt_data.training.sft:train_student",
        help="Fine-tune a student on a distilled data set. Run it again to continue.",
        output="print_training",
    ),
    Step(
        name="solver",
        command=TrainSolverSettings.command,
        settings=TrainSolverSettings,
        function="rlt_data.training.solver:train_solver",
        help="Train a student by GRPO on the correctness of its answers. Run it again to continue.",
        output="print_policy_training",
    ),
    Step(
        name="evaluate",
        command="evaluate",
        settings=EvaluateSettings,
        function="rlt_data.steps.evaluate:evaluate",
        help="Measure a model's accuracy on a benchmark: sample answers and grade them.",
        output="print_evaluation",
    ),
    Step(
        name="countdown",
        command="countdown make",
        settings=CountdownSettings,
        function="rlt_data.steps.countdown:make_countdown",
        help="Write Countdown problems with solutions. The splits never share a problem.",
        output="print_problems",
        has_progress=False,
    ),
)

STEPS = {step.name: step for step in (*DATA_STEPS, *MODEL_STEPS)}
