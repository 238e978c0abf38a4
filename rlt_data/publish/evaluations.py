"""Results of ``rlt-data evaluate`` for the card of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult

from rlt_data.errors import RunFolderError, SettingsError
from rlt_data.inputs import recorded_inputs
from rlt_data.publish.card import RESULT_MARK
from rlt_data.publish.markdown import code, excerpt, listed, paragraphs, table
from rlt_data.publish.models import TrainedModel
from rlt_data.publish.redact import redact_paths
from rlt_data.storage.run import RunFolder

_SAMPLING = ("n", "temperature", "top_p", "top_k", "max_tokens", "seed")
_BUDGET = ("max_thought", "waits", "min_thought", "wait_text")


@dataclass(frozen=True)
class EvaluatedModel:
    """The result of an evaluation.

    Attributes:
        figures: the content of evaluation.json.
        settings: the settings of ``evaluate``.
        inputs: where the questions came from; see :func:`~rlt_data.inputs.recorded_inputs`.
    """

    figures: dict[str, Any]
    settings: dict[str, Any]
    inputs: list[dict[str, Any]]

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of sampling, and of budget forcing if there was any."""
        budget = _BUDGET if self.settings.get("max_thought") or self.settings.get("waits") else ()
        return {key: self.settings.get(key) for key in (*_SAMPLING, *budget)}

    @property
    def prompts(self) -> str:
        """Source and version of the prompts; empty if they are not recorded, as in early versions."""
        prompts = self.figures.get("prompts") or {}
        return " ".join(filter(None, (prompts.get("source"), prompts.get("version"))))


def read_evaluations(runs: Sequence[str], model: TrainedModel) -> list[EvaluatedModel]:
    """Read evaluations of a model.

    Args:
        runs: folders or URLs of runs of ``evaluate``.
        model: the model that is published.

    Raises:
        RunFolderError: a run is not a finished evaluation.
        SettingsError: a run evaluated other weights.
    """
    return [_read_evaluation(run, model) for run in runs]


def _read_evaluation(path: str, model: TrainedModel) -> EvaluatedModel:
    from rlt_data.engines import find_checkpoint  # imports torch
    from rlt_data.engines.models import weights_fingerprint

    run = RunFolder.existing(path)
    entry = run.step("evaluate")
    try:
        figures = json.loads(run.folder.read("evaluation.json"))
        evaluated = entry["models"]["model"]
    except (OSError, ValueError, KeyError):
        raise RunFolderError(f"{path}: is not a finished evaluation; run rlt-data evaluate --out {path}") from None
    if evaluated["weights"] != weights_fingerprint(find_checkpoint(str(model.folder))):
        raise SettingsError(
            f"--evaluation: {path} evaluated {evaluated['name']}, whose weights are not those of {model.folder}"
        )
    inputs = recorded_inputs(redact_paths(run.step("input")))
    return EvaluatedModel(figures, redact_paths(entry["settings"]), inputs)


def evaluation_results(evaluations: Sequence[EvaluatedModel]) -> list[EvalResult]:
    """Return the results for the metadata of the card."""
    return [result for evaluation in evaluations for result in _results_of(evaluation)]


def _results_of(evaluation: EvaluatedModel) -> list[EvalResult]:
    figures = evaluation.figures
    source = evaluation.inputs[-1] if evaluation.inputs else {}
    args = RESULT_MARK | {key: value for key, value in evaluation.sampling.items() if value is not None}
    args |= {"prompts": evaluation.prompts} if evaluation.prompts else {}
    interval = {"confidence_interval_95": [round(figures["low"], 4), round(figures["high"], 4)]}
    shares = {f"pass@{k}": share for k, share in figures["pass_at"].items()} | {"pass@1": figures["accuracy"]}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=source["name"] if source.get("on_hub") else figures["benchmark"],
            dataset_name=figures["benchmark"],
            dataset_config=source.get("subset"),
            dataset_split=source.get("split"),
            dataset_revision=source.get("revision"),
            metric_type=name,
            metric_value=round(share, 4),
            metric_args=args | (interval if name == "pass@1" else {}),
        )
        for name, share in sorted(shares.items(), key=lambda pair: int(pair[0].partition("@")[2]))
    ]


def evaluations_text(evaluations: Sequence[EvaluatedModel]) -> str:
    """Return the figures as a Markdown table, and the prompts; empty without evaluations."""
    prompts = {_prompts_text(evaluation): None for evaluation in evaluations if evaluation.prompts}
    return paragraphs(table([_row(evaluation) for evaluation in evaluations]), *prompts)


def _prompts_text(evaluation: EvaluatedModel) -> str:
    prompts = evaluation.figures["prompts"]
    system = [f"System text:\n\n{excerpt(prompts['solver_system'])}"] if prompts["solver_system"] else []
    message = f"User message ({code(evaluation.prompts)}):\n\n{excerpt(prompts['question_template'])}"
    return paragraphs(message, *system)


def _row(evaluation: EvaluatedModel) -> dict[str, Any]:
    figures = evaluation.figures
    others = [f"pass@{k} {share:.1%}" for k, share in figures["pass_at"].items() if k != "1"]
    sampling = ", ".join(f"{key.replace('_', '-')} {value}" for key, value in evaluation.sampling.items() if value)
    return {
        "benchmark": code(figures["benchmark"]),
        "data": listed([code(entry["name"]) for entry in evaluation.inputs]),
        "questions": figures["questions"],
        "pass@1": f"{figures['accuracy']:.1%}",
        "95 % interval": f"{figures['low']:.1%} to {figures['high']:.1%}",
        "more": ", ".join([*others, f"majority vote {figures['majority']:.1%}"] if others else []),
        "truncated": f"{figures['truncated']:.1%}",
        "mean tokens": float(figures["mean_tokens"]),
        "prompts": code(evaluation.prompts) if evaluation.prompts else "",
        "sampling": sampling or "greedy",
    }
