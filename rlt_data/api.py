"""The functions of the Python API; ``rlt_data`` exports them.

Each takes the settings of its step as keyword arguments, or as one settings object. Signatures and docstrings follow
from the settings. Code inside the package calls the step functions directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from rlt_data.calls import call_step, documented, make_settings
from rlt_data.errors import InputError, SettingsError, one_line
from rlt_data.progress import Progress, choose_progress
from rlt_data.run import Run, read_dataset, run_of
from rlt_data.scoring import reward
from rlt_data.settings import (
    CheckSettings,
    CompareSettings,
    CountdownSettings,
    CurateSettings,
    DistillSettings,
    EvaluateSettings,
    GenerateSettings,
    MergeSettings,
    PipelineSettings,
    PreviewSettings,
    PushSettings,
    RankSettings,
    ReportSettings,
    ScoreSettings,
    TrainSolverSettings,
    TrainStudentSettings,
    TrainTeacherSettings,
    WarmUpSettings,
)

if TYPE_CHECKING:
    import datasets

    from rlt_data.inputs import CheckReport
    from rlt_data.publish.push import PushSummary
    from rlt_data.reporting.preview import Preview
    from rlt_data.reporting.report import ReportSummary
    from rlt_data.statistics import Stats
    from rlt_data.steps.compare import Comparison
    from rlt_data.steps.countdown import CountdownSummary
    from rlt_data.steps.evaluate import Evaluation
    from rlt_data.training.grpo import PolicySummary
    from rlt_data.training.sft import TrainingSummary

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _with_input_errors(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return a numerical function that raises InputError for wrong arguments."""

    @wraps(function)
    def call(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        try:
            return function(*arguments, **keywords)
        except (TypeError, ValueError) as error:
            raise InputError(f"{function.__name__}: {one_line(error)}") from error

    return call


kl_terms = _with_input_errors(reward.kl_terms)
reward_terms = _with_input_errors(reward.reward_terms)


@documented(CheckSettings)
def check(*settings: Any, **keywords: Any) -> CheckReport:
    """Validate an input without a model, and report what it holds.

    Returns:
        The number of rows, and what is wrong with the bad ones.
    """
    return call_step("check", settings, keywords, False)  # type: ignore[no-any-return]


@documented(PreviewSettings)
def preview(*settings: Any, **keywords: Any) -> Preview:
    """Show what teacher, student and solver see for one row of a run or a file, without loading weights.

    Returns:
        The texts, the ranges of the scored spans, and the token ids of the student's text.
    """
    return call_step("preview", settings, keywords, False)  # type: ignore[no-any-return]


@documented(GenerateSettings)
def generate(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> Run:
    """Sample explanations from a teacher that sees each question and its solution.

    Returns:
        The run; ``run.summary`` has rows, failed rows and tokens, or the ``plan`` of a dry run.
    """
    return _run("generate", settings, keywords, progress)


@documented(ScoreSettings)
def score(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> Run:
    """Score traces by how much they help a student, and how natural it finds them (the RLT reward).

    Returns:
        The run; ``run.summary`` has rows, failed rows and tokens, or the ``plan`` of a dry run.
    """
    return _run("score", settings, keywords, progress)


@documented(MergeSettings)
def merge(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> Run:
    """Merge runs of several machines, or of several teachers, into a new run.

    Returns:
        The merged run; ``run.summary`` has the rows of each table.
    """
    return _run("merge", settings, keywords, progress)


@documented(CurateSettings)
def curate(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> Run:
    """Check traces and questions. Findings are columns; no row is deleted.

    Returns:
        The run; ``run.scan()`` has the columns, and ``run.summary.signals`` counts the findings.
    """
    return _run("curate", settings, keywords, progress)


@documented(RankSettings)
def rank(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> Run:
    """Rank the traces of each question by reward, and sort them into buckets.

    Returns:
        The run; ``run.summary.table`` has a row for each bucket.
    """
    return _run("rank", settings, keywords, progress)


@documented(DistillSettings)
def distill(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> datasets.Dataset:
    """Choose traces and write them as a data set in the student's format.

    Returns:
        The rows to train on, which are also in ``out``, and there with those of ``holdout``.
    """
    return read_dataset(call_step("distill", settings, keywords, progress).out)


@documented(PushSettings)
def push(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> PushSummary:
    """Publish a distilled data set or a trained model on the Hugging Face Hub, with a card.

    Returns:
        What was published.
    """
    return call_step("push", settings, keywords, progress)  # type: ignore[no-any-return]


@documented(WarmUpSettings)
def warm_up(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> TrainingSummary:
    """Fine-tune a model on explanations in the teacher format; the same call continues a training.

    Returns:
        The number of steps, and the last loss.
    """
    return call_step("warmup", settings, keywords, progress)  # type: ignore[no-any-return]


@documented(TrainTeacherSettings)
def train_teacher(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> PolicySummary:
    """Train a teacher by GRPO on the dense reward of a frozen student; the same call continues a training.

    Returns:
        The number of steps, and the last and best rewards.
    """
    return call_step("teacher", settings, keywords, progress)  # type: ignore[no-any-return]


@documented(TrainStudentSettings)
def train_student(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> TrainingSummary:
    """Fine-tune a student on a distilled data set; the same call continues a training.

    Returns:
        The number of steps, and the last loss.
    """
    return call_step("student", settings, keywords, progress)  # type: ignore[no-any-return]


@documented(TrainSolverSettings)
def train_solver(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> PolicySummary:
    """Train a student by GRPO on whether its answers are correct; the same call continues a training.

    Returns:
        The number of steps, and the last and best rewards.
    """
    return call_step("solver", settings, keywords, progress)  # type: ignore[no-any-return]


@documented(EvaluateSettings)
def evaluate(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> Evaluation:
    """Measure a model's accuracy on a benchmark: sample answers in the student's format, and grade them.

    Returns:
        Accuracy with its 95 % interval, pass@k, and lengths; only ``plan`` after a dry run.
    """
    return call_step("evaluate", settings, keywords, progress)  # type: ignore[no-any-return]


@documented(CountdownSettings)
def make_countdown(*settings: Any, **keywords: Any) -> CountdownSummary:
    """Write Countdown problems with solutions; no problem is in both splits, whatever the seeds.

    Returns:
        The file, and the number of its problems.
    """
    return call_step("countdown", settings, keywords, False)  # type: ignore[no-any-return]


@documented(ReportSettings)
def report(*settings: Any, progress: bool | Progress = False, **keywords: Any) -> ReportSummary:
    """Write an HTML page about a run, or about two runs on the same questions.

    Returns:
        What was written.
    """
    from rlt_data.reporting.report import report

    return report(make_settings(ReportSettings, settings, keywords), choose_progress(progress))


def compare(first: str | PathLike[str], second: str | PathLike[str]) -> Comparison:
    """Compare two evaluations of one benchmark, question by question.

    Args:
        first: a run of :func:`evaluate`, its folder or its URL.
        second: another one.

    Returns:
        The difference of the accuracies with its 95 % interval, McNemar's exact test, and the overlap.

    Raises:
        RunFolderError: a run is not a finished evaluation.
        SettingsError: the evaluations have different benchmarks or questions, or scipy is missing.
    """
    from rlt_data.steps.compare import compare

    return compare(CompareSettings(input=(first, second)))


def run_pipeline(pipeline: PipelineSettings | str | PathLike[str], *, progress: bool | Progress = False) -> Run:
    """Run the steps of a pipeline; finished rows of an earlier call are kept.

    Args:
        pipeline: the YAML file, or what :func:`rlt_data.load_pipeline` returns.
        progress: True shows a bar in a notebook or on a terminal, and lines elsewhere.

    Returns:
        The run; ``run.summary`` has the summary of each step by name.

    Raises:
        RltDataError: a kind of it says what is wrong. Finished rows are kept.
    """
    from rlt_data.steps.pipeline import load_pipeline, run_pipeline

    if not isinstance(pipeline, PipelineSettings):
        if not isinstance(pipeline, str | PathLike):
            raise SettingsError(f"pipeline: takes a YAML file or PipelineSettings, not {type(pipeline).__name__}")
        pipeline = load_pipeline(Path(pipeline))
    summaries = {name: summary for name, _, summary in run_pipeline(pipeline, choose_progress(progress))}
    run = Run(pipeline.out)
    run.summary = summaries
    return run


def stats(run: Run | str | PathLike[str], *, where: str | Sequence[str] = ()) -> Stats:
    """Compute the figures of a run: rows, lengths, shares, and the distribution of each reward term.

    Args:
        run: the run, its folder or its URL.
        where: SQL expressions over the columns of all tables and signals; only traces for which all are true count.

    Raises:
        RunFolderError: the run does not exist or is damaged.
        SettingsError: an expression is wrong.
    """
    return (run if isinstance(run, Run) else Run(run)).stats(where=where)


def _run(step: str, settings: tuple[Any, ...], keywords: dict[str, Any], progress: bool | Progress) -> Run:
    return run_of(call_step(step, settings, keywords, progress))
