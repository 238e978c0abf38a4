"""Train a solver: GRPO on the correctness of a student's own answers."""

from __future__ import annotations

from functools import partial

from rlt_data.formats import Views, choose_format
from rlt_data.inputs.check import good_rows
from rlt_data.inputs.rows import question_id
from rlt_data.progress import SILENT, Progress
from rlt_data.settings import TrainSolverSettings
from rlt_data.tasks.benchmarks import BENCHMARKS, BenchmarkReader
from rlt_data.tasks.grading import Grader
from rlt_data.training.grpo import Policy, PolicySummary, train_policy
from rlt_data.training.models import find_base_model
from rlt_data.training.rewards import CorrectnessReward


def train_solver(settings: TrainSolverSettings, progress: Progress = SILENT) -> PolicySummary:
    """Train a student on the correctness of its answers, as ``rlt-data train-solver`` does.

    Prompts and grading are those of ``rlt-data evaluate``; the output files are those of
    :func:`~rlt_data.training.teacher.train_teacher`.

    Raises:
        RltDataError: one of the errors in :mod:`rlt_data.errors`; existing files are kept.
    """
    benchmark = BENCHMARKS[settings.benchmark]
    checkpoint, tokenizer, template, control = find_base_model(settings)
    format = choose_format(settings.format, template, checkpoint.name, checkpoint.folder, template)
    views = Views(format, template, control)
    views.check()
    benchmark_rows = good_rows(settings.as_input(), None, partial(BenchmarkReader, benchmark, settings), [control])
    rows = [
        {
            "prompt": views.solver_prompt(row.question, row.system),
            "question_id": question_id(row.question, row.solution, row.system),
            "source_id": row.source_id,
            "question": row.question,
            "answer": row.answer,
            "problem": row.meta or "{}",
        }
        for row in benchmark_rows
    ]
    with Grader(benchmark.kind) as grader:
        policy = Policy(checkpoint, tokenizer, format, rows, views.solver_stop)
        return train_policy(
            settings, policy, lambda: CorrectnessReward(settings, views.solution_in, benchmark.kind, grader), progress
        )
