"""Make and curate reasoning data with Reinforcement-Learned Teachers (RLT, arXiv 2506.08388).

Each step is a function that takes its settings and works on a run folder::

    import rlt_data as rlt

    rlt.generate(rlt.GenerateSettings(teacher="gemma-3-270m", input="questions.jsonl", out="run", n=4))
    rlt.score(rlt.ScoreSettings(student="gemma-3-270m", input="run"))
    rlt.rank(rlt.RankSettings(input="run"))
    rlt.distill(rlt.DistillSettings(input="run"))

Names are imported when they are first used, so ``import rlt_data`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlt_data.libraries import prepare_libraries

if TYPE_CHECKING:
    from rlt_data.errors import (
        DiskError,
        EngineError,
        HubError,
        InputError,
        ModelError,
        RltDataError,
        RunFolderError,
        SettingsError,
    )
    from rlt_data.formats import Format, load_format
    from rlt_data.inputs import check
    from rlt_data.publish.push import push
    from rlt_data.reporting.report import report
    from rlt_data.run import Run
    from rlt_data.scoring.reward import kl_terms, reward_terms
    from rlt_data.settings import (
        CheckSettings,
        CountdownSettings,
        DistillSettings,
        EvaluateSettings,
        GenerateSettings,
        MergeSettings,
        PipelineSettings,
        PushSettings,
        RankSettings,
        ReportSettings,
        ScoreSettings,
        TrainSolverSettings,
        TrainStudentSettings,
        TrainTeacherSettings,
        WarmUpSettings,
    )
    from rlt_data.statistics import stats
    from rlt_data.steps.countdown import make_countdown
    from rlt_data.steps.distill import distill
    from rlt_data.steps.evaluate import evaluate
    from rlt_data.steps.generate import generate
    from rlt_data.steps.merge import merge
    from rlt_data.steps.pipeline import load_pipeline, run_pipeline
    from rlt_data.steps.rank import rank
    from rlt_data.steps.score import score
    from rlt_data.training.sft import train_student
    from rlt_data.training.solver import train_solver
    from rlt_data.training.teacher import train_teacher, warm_up

__all__ = [
    "CheckSettings",
    "CountdownSettings",
    "DiskError",
    "DistillSettings",
    "EngineError",
    "EvaluateSettings",
    "Format",
    "GenerateSettings",
    "HubError",
    "InputError",
    "MergeSettings",
    "ModelError",
    "PipelineSettings",
    "PushSettings",
    "RankSettings",
    "ReportSettings",
    "RltDataError",
    "Run",
    "RunFolderError",
    "ScoreSettings",
    "SettingsError",
    "TrainSolverSettings",
    "TrainStudentSettings",
    "TrainTeacherSettings",
    "WarmUpSettings",
    "check",
    "distill",
    "evaluate",
    "generate",
    "kl_terms",
    "load_format",
    "load_pipeline",
    "make_countdown",
    "merge",
    "push",
    "rank",
    "report",
    "reward_terms",
    "run_pipeline",
    "score",
    "stats",
    "train_solver",
    "train_student",
    "train_teacher",
    "warm_up",
]

#: Modules of the names that are neither settings nor functions of steps.
_HOMES = {
    "Format": "formats",
    "Run": "run",
    "kl_terms": "scoring.reward",
    "load_format": "formats",
    "load_pipeline": "steps.pipeline",
    "report": "reporting.report",
    "reward_terms": "scoring.reward",
    "run_pipeline": "steps.pipeline",
    "stats": "statistics",
}

prepare_libraries()  # before any of them is imported


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rlt_data' has no attribute {name!r}")
    if name in _HOMES:
        home = f"rlt_data.{_HOMES[name]}"
    elif name.endswith("Settings"):
        home = "rlt_data.settings"
    elif name.endswith("Error"):
        home = "rlt_data.errors"
    else:
        from rlt_data.steps.registry import STEPS

        home = next(step.module for step in STEPS.values() if step.function_name == name)
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
