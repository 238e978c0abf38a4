"""The settings of every step, stated once: each field is a flag, a YAML key and a documented argument.

Nothing heavy is imported here, so that ``rlt-data --help`` stays fast. Values are checked when a settings object is
made; :func:`parse_settings` turns what pydantic finds into one line per mistake, with the nearest valid key.
"""

from rlt_data.settings.base import Settings, parse_settings, parse_yaml
from rlt_data.settings.engines import ModelSettings
from rlt_data.settings.steps import (
    CheckSettings,
    CountdownSettings,
    DistillSettings,
    EvaluateSettings,
    GenerateSettings,
    InputSettings,
    MergeSettings,
    PipelineSettings,
    PushSettings,
    RankSettings,
    ReportSettings,
    RewardSettings,
    SamplingSettings,
    ScoreSettings,
)
from rlt_data.settings.training import (
    FineTuneSettings,
    PolicySettings,
    TrainingSettings,
    TrainSolverSettings,
    TrainStudentSettings,
    TrainTeacherSettings,
    WarmUpSettings,
)

__all__ = [
    "CheckSettings",
    "CountdownSettings",
    "DistillSettings",
    "EvaluateSettings",
    "FineTuneSettings",
    "GenerateSettings",
    "InputSettings",
    "MergeSettings",
    "ModelSettings",
    "PipelineSettings",
    "PolicySettings",
    "PushSettings",
    "RankSettings",
    "ReportSettings",
    "RewardSettings",
    "SamplingSettings",
    "ScoreSettings",
    "Settings",
    "TrainSolverSettings",
    "TrainStudentSettings",
    "TrainTeacherSettings",
    "TrainingSettings",
    "WarmUpSettings",
    "parse_settings",
    "parse_yaml",
]
