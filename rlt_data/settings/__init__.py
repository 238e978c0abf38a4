"""All settings. Each field is a flag, a YAML key and a keyword argument.

This package imports nothing heavy, so that ``rlt-data --help`` stays fast. Values are validated when a settings object
is created. :func:`parse_settings` reports one line per mistake, with the nearest valid key.
"""

from rlt_data.settings.base import Settings, parse_settings, parse_yaml
from rlt_data.settings.commands import (
    CompareSettings,
    FormatsSettings,
    RunPipelineSettings,
    ShowSettings,
    StatsSettings,
    ViewSettings,
)
from rlt_data.settings.curation import CurateSettings
from rlt_data.settings.distill import DistillSettings
from rlt_data.settings.engines import ModelSettings
from rlt_data.settings.inputs import CheckSettings, InputSettings, PreviewSettings
from rlt_data.settings.steps import (
    CountdownSettings,
    EvaluateSettings,
    GenerateSettings,
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
    "CompareSettings",
    "CountdownSettings",
    "CurateSettings",
    "DistillSettings",
    "EvaluateSettings",
    "FineTuneSettings",
    "FormatsSettings",
    "GenerateSettings",
    "InputSettings",
    "MergeSettings",
    "ModelSettings",
    "PipelineSettings",
    "PolicySettings",
    "PreviewSettings",
    "PushSettings",
    "RankSettings",
    "ReportSettings",
    "RewardSettings",
    "RunPipelineSettings",
    "SamplingSettings",
    "ScoreSettings",
    "Settings",
    "ShowSettings",
    "StatsSettings",
    "TrainSolverSettings",
    "TrainStudentSettings",
    "TrainTeacherSettings",
    "TrainingSettings",
    "ViewSettings",
    "WarmUpSettings",
    "parse_settings",
    "parse_yaml",
]
