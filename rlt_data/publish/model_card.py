"""The card of a trained model: its purpose, use, training, results and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from rlt_data.publish.card import CITATION, Licence, command_line, licence_text, versions_line
from rlt_data.publish.evaluations import EvaluatedModel, evaluation_results, evaluations_text
from rlt_data.publish.markdown import code, fenced, images, inline, joined, paragraphs, table
from rlt_data.publish.models import TrainedModel

_TAGS = ("rlt-data", "reasoning", "reinforcement-learned-teachers")
_RLT = "Reinforcement-Learned Teachers ([arXiv 2506.08388](https://arxiv.org/abs/2506.08388))"
_INTRODUCTIONS = {
    "teacher": "A teacher model. It reads a question with its known solution and writes an explanation of how to reach "
    "the solution. It was trained with GRPO. Its reward was how much the explanation helps a frozen student model to "
    f"predict the solution: the dense reward of {_RLT}.",
    "warmed-up-teacher": "A warmed-up teacher model. It reads a question with its known solution and writes an "
    "explanation of how to reach the solution. It was fine-tuned on explanations, and is a starting point for the "
    f"reinforcement learning of {_RLT}.",
    "solver": "A solver model. It reasons about a question and then answers it. It was trained with GRPO on whether "
    f"its answers are right, the baseline of {_RLT}.",
    "student": "A student model. It reasons about a question and then answers it. It was fine-tuned on explanations, "
    f"as in {_RLT}.",
    "fine-tuned": "A model that was fine-tuned in the format of `format.yaml`. It is a warmed-up teacher, which reads "
    "a question with its known solution and writes an explanation, or a student of such a model. Background: "
    f"{_RLT}.",
}  # fmt: skip
_TEACHER_LIMIT = "It needs the known solution in its prompt: it explains solutions, and does not solve questions."
_LIMITS = {
    "teacher": f"{_TEACHER_LIMIT} Its explanations can be wrong: the reward checks neither steps nor answers.",
    "warmed-up-teacher": f"{_TEACHER_LIMIT} Its explanations can be wrong.",
    "solver": "Its answers can be wrong.",
    "student": "Its answers can be wrong.",
    "fine-tuned": "Its texts can be wrong.",
}
_TRAINING_RESULTS = "The results above come from its training, not from a benchmark."
_BENCHMARKS = "rlt-data did not compare the benchmarks with the training data (no decontamination)."
_INPUTS = {
    "model": "base model",
    "student": "student that gives the reward",
    "data": "training data",
    "format": "format",
}
_PLAN = {
    "rows": "rows",
    "questions": "questions",
    "held_out": "held-out questions",
    "left_out": "rows left out because they are too long",
    "parameters": "parameters",
    "steps": "steps",
    "processes": "processes",
}
#: Logged metrics, in words.
_METRICS = {
    "loss": "loss",
    "reward": "reward",
    "eval_reward": "reward on held-out questions",
    "kl": "KL to the reference model",
    "well_formed": "share of well-formed samples",
    "completion_tokens": "tokens per sample",
    "copied": "share of text copied from the solution",
    "repeated": "share of repeated text",
}


@dataclass(frozen=True)
class ModelFacts:
    """The facts on a model's card.

    Attributes:
        name: the repository, ``ORG/NAME``.
        title: the title of the model.
        model: the model and its training.
        licence: the licence that the publisher declares.
        language: the languages that the publisher declares.
        evaluations: evaluations of the model.
        images: paths of the plots in the repository.
    """

    name: str
    title: str
    model: TrainedModel
    licence: Licence = None
    language: Sequence[str] = ()
    evaluations: Sequence[EvaluatedModel] = ()
    images: Sequence[str] = ()


def model_metadata(facts: ModelFacts) -> dict[str, Any]:
    """Return the metadata of a model's card."""
    model = facts.model
    data = ModelCardData(
        model_name=facts.title,
        language=list(facts.language) or None,
        license=facts.licence,  # type: ignore[arg-type] # a list if the existing card has one
        library_name="peft" if model.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[*_TAGS, model.kind],
        base_model=model.base,
        datasets=list(model.data) or None,
        eval_results=evaluation_results(facts.evaluations) or None,
    )
    # With results, the library writes the name into model-index alone.
    return {"model_name": facts.title, **data.to_dict()}  # type: ignore[no-untyped-call]


def model_text(facts: ModelFacts) -> str:
    """Return the generated block of a model's card."""
    return joined(
        {
            "": f"# {inline(facts.title)}\n\n{_INTRODUCTIONS[facts.model.kind]}",
            "How to use it": _use(facts),
            "How it was trained": _training(facts.model),
            "Results": paragraphs(_results(facts.model), images(facts.images)),
            "Evaluation": evaluations_text(facts.evaluations),
            "Limits": _limits(facts),
            "Licence": licence_text(facts.licence, "The base model and the training data have separate licences."),
            "Citation": fenced(CITATION, "bibtex"),
        }
    )


def _limits(facts: ModelFacts) -> str:
    kind = facts.model.kind
    if facts.evaluations:
        return f"{_LIMITS[kind]} {_BENCHMARKS}"
    return _LIMITS[kind] if kind.endswith("teacher") else f"{_LIMITS[kind]} {_TRAINING_RESULTS}"


def _use(facts: ModelFacts) -> str:
    if facts.model.is_adapter:
        return fenced(
            "from peft import AutoPeftModelForCausalLM\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{facts.name}")',
            "python",
        )
    python = fenced(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{facts.name}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{facts.name}", dtype="auto")',
        "python",
    )
    if not facts.model.has_format:
        return python
    if facts.model.kind in ("solver", "student"):
        shell = command_line("evaluate", {"model": facts.name, "benchmark": "math500"})
    else:
        shell = command_line("generate", {"in": "questions.jsonl", "teacher": facts.name, "out": "RUN"})
    return paragraphs(
        python, fenced(shell, "sh"), "`format.yaml` defines the prompts of the model; rlt-data uses it automatically."
    )


def _training(model: TrainedModel) -> str:
    recorded = model.recorded
    plan = recorded.get("plan", {})
    settings = table(
        [
            {"setting": code(key.rstrip("_")), "value": code(value)}
            for key, value in recorded["depends_on"].items()
            if key not in _INPUTS and value is not None
        ]
    )
    return paragraphs(
        fenced(command_line(recorded["command"], recorded["settings"]), "sh") if "command" in recorded else "",
        _inputs_table(model),
        table([{"size": label, "count": plan[key]} for key, label in _PLAN.items() if plan.get(key)]),
        f"<details>\n<summary>Settings</summary>\n\n{settings}\n\n</details>" if settings else "",
        versions_line(recorded.get("versions", {})),
    )


def _inputs_table(model: TrainedModel) -> str:
    """Return a table of the models and data of a training: their hashes, and their names if known."""
    hashes = model.recorded["depends_on"]
    recorded = model.recorded.get("models", {}) | {"data": model.recorded.get("data", {})}
    public_names = {"model": model.base, "data": ", ".join(model.data)}
    rows = []
    for key, label in _INPUTS.items():
        entry = recorded.get(key, {})
        name = public_names.get(key) or entry.get("name", "")
        revision = entry.get("revision") if entry.get("name") == name else None
        if hashes.get(key):
            row = {"input": label, "name": code(name), "revision": inline(revision or ""), "hash": code(hashes[key])}
            rows.append(row)
    return table(rows)


def _results(model: TrainedModel) -> str:
    recorded = model.recorded
    sentences = [f"Trained for {recorded['steps']:,} steps."]
    for key in ("loss", "reward"):
        if recorded.get(key) is not None:
            sentences.append(f"Mean {key} over the last ten logged steps: {recorded[key]:.4f}.")
            break
    if recorded.get("best_reward") is not None:
        best_step = recorded.get("best_step")
        step = best_step if model.is_best else recorded["steps"]
        sentences.append(
            f"Best reward on held-out questions: {recorded['best_reward']:.4f}, at step {best_step}. These weights are "
            f"from step {step}."
        )
    rows = []
    for key, label in _METRICS.items():
        last = next((entry for entry in reversed(model.entries) if entry.get(key) is not None), None)
        if last:
            rows.append({"metric": label, "last logged": float(last[key]), "at step": last["step"]})
    return paragraphs(" ".join(sentences), table(rows))
