"""Make and curate reasoning data with Reinforcement-Learned Teachers (RLT, arXiv 2506.08388).

A teacher explains questions with their solutions, a student scores the explanations, and the best become a data set::

    import rlt_data as rlt

    run = rlt.generate("questions.jsonl", teacher="nano", n=4)
    run.score(student="nano")
    run.rank()
    dataset = run.distill(select="best")  # a datasets.Dataset

The functions are commands of ``rlt-data`` and take their flags as keyword arguments; see ``help(rlt.generate)``. All
errors derive from ``RltDataError``. Names are imported when they are first used, so ``import rlt_data`` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlt_data.libraries import prepare_libraries

if TYPE_CHECKING:
    from rlt_data.api import (
        check,
        compare,
        curate,
        distill,
        evaluate,
        generate,
        kl_terms,
        make_countdown,
        merge,
        preview,
        push,
        rank,
        report,
        reward_terms,
        run_pipeline,
        score,
        stats,
        train_solver,
        train_student,
        train_teacher,
        warm_up,
    )
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
    from rlt_data.run import Run
    from rlt_data.settings import (
        CheckSettings,
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
    from rlt_data.steps.pipeline import load_pipeline

__all__ = [
    "CheckSettings",
    "CountdownSettings",
    "CurateSettings",
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
    "PreviewSettings",
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
    "compare",
    "curate",
    "distill",
    "evaluate",
    "generate",
    "kl_terms",
    "load_format",
    "load_pipeline",
    "make_countdown",
    "merge",
    "preview",
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

#: Modules of the names that are not functions of the API, settings or errors.
_MODULES = {
    "Format": "formats",
    "Run": "run",
    "load_format": "formats",
    "load_pipeline": "steps.pipeline",
}

prepare_libraries()  # before other libraries are imported


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rlt_data' has no attribute {name!r}")
    if name.endswith("Settings"):
        module = "settings"
    elif name.endswith("Error"):
        module = "errors"
    else:
        module = _MODULES.get(name, "api")
    return getattr(import_module(f"rlt_data.{module}"), name)


def __dir__() -> list[str]:
    return __all__
