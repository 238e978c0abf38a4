"""The card of a trained model: what it is, how it was trained, how it did, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rlt_data.publish.card import CITATION, licences
from rlt_data.publish.dataset_card import shown
from rlt_data.publish.markdown import code, fenced, inline, joined, paragraphs, table
from rlt_data.publish.models import TrainedModel

_TAGS = ("rlt-data", "reasoning", "reinforcement-learned-teachers")
_RLT = "Reinforcement-Learned Teachers ([arXiv 2506.08388](https://arxiv.org/abs/2506.08388))"
_WHAT = {
    "teacher": "A teacher: shown a question with its known solution, it writes an explanation of how to get there. "
    "Trained by GRPO on how much its explanations help a frozen student to find the solution by itself, the dense "
    f"reward of {_RLT}.",
    "solver": "A solver: it thinks about a question and answers it. Trained by GRPO on whether its answers are right, "
    f"the baseline of {_RLT}.",
    "student": "A student: it thinks about a question and answers it. Fine-tuned on explanations, as in "
    f"{_RLT}.",
    "fine-tuned": "Fine-tuned in the format of `format.yaml`: a warmed-up teacher, which is shown a question with its "
    f"known solution and writes an explanation, or a student of such a model. See {_RLT}.",
}  # fmt: skip
_HASHES = {
    "model": "weights it began from",
    "student": "weights of the student that rewarded it",
    "data": "rows it was trained on",
    "format": "format",
}
_DATA = {
    "rows": "rows",
    "questions": "questions",
    "held_out": "held-out questions",
    "left_out": "rows left out as too long",
    "parameters": "parameters",
    "steps": "steps",
    "processes": "processes",
}
_SAVED = {"Transformers": "transformers_version", "PEFT": "peft_version"}
#: Of what is logged, in words.
_LOGGED = {
    "loss": "loss",
    "reward": "reward",
    "eval_reward": "reward on held-out questions",
    "kl": "KL to the reference",
    "well_formed": "share well-formed",
    "completion_tokens": "tokens of a sample",
    "copied": "share copied from the solution",
    "repeated": "share repeated",
}


@dataclass(frozen=True)
class ModelFacts:
    """What a card tells.

    Attributes:
        name: of the repository.
        title: of the model.
        model: the model.
        licence: as declared by those who publish it.
        data: Hub ids of what it was trained on.
        images: paths of the plots in the repository.
    """

    name: str
    title: str
    model: TrainedModel
    licence: str | list[str] | None = None
    data: Sequence[str] = ()
    images: Sequence[str] = ()


def model_metadata(facts: ModelFacts) -> dict[str, Any]:
    """Return the metadata of a model's card."""
    model = facts.model
    data = {
        "model_name": facts.title,
        "library_name": "peft" if model.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*_TAGS, model.kind],
        "base_model": model.base,
        "datasets": list(facts.data),
        "license": facts.licence,
    }
    return {key: value for key, value in data.items() if value}


def model_text(facts: ModelFacts) -> str:
    """Return the block of a model's card."""
    return joined(
        {
            "": f"# {inline(facts.title)}\n\n{_WHAT[facts.model.kind]}",
            "How to use it": _use(facts),
            "How it was made": _making(facts),
            "Figures": paragraphs(_figures(facts.model), shown(facts.images)),
            "Licence": licences(facts.licence, "The model it began from and the data have licences of their own."),
            "Citation": fenced(CITATION, "bibtex"),
        }
    )


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
    shell = f"hf download {facts.name} --local-dir model\n"
    if facts.model.kind == "solver":
        shell += "rlt-data evaluate --model model --benchmark math500"
    else:
        shell += "rlt-data generate --in questions.jsonl --teacher model --out RUN"
    return paragraphs(
        python, fenced(shell, "sh"), "`format.yaml` says how it is shown a problem; rlt-data finds it there."
    )


def _making(facts: ModelFacts) -> str:
    model = facts.model
    settings, plan = model.recorded["depends_on"], model.recorded.get("plan", {})
    began = f"It began from {code(model.base)}." if model.base else ""
    data = f"It was trained on {', '.join(map(code, facts.data))}." if facts.data else ""
    saved = [f", saved by {name} {inline(model.config[key])}" for name, key in _SAVED.items() if key in model.config]
    return paragraphs(
        " ".join(filter(None, (began, data))),
        table([{"what": word, "count": plan[key]} for key, word in _DATA.items() if plan.get(key)]),
        table([{"what": word, "hash": code(settings[key])} for key, word in _HASHES.items() if settings.get(key)]),
        table(
            [
                {"setting": code(key.rstrip("_")), "value": code(value)}
                for key, value in settings.items()
                if key not in _HASHES and value is not None
            ]
        ),
        f"Published with rlt-data {metadata.version('rlt-data')}{''.join(saved)}.",
    )


def _figures(model: TrainedModel) -> str:
    recorded = model.recorded
    last = [f"{key} {recorded[key]:.4f}" for key in ("loss", "reward") if recorded.get(key) is not None]
    said = f"{recorded['steps']:,} steps" + (f"; mean {last[0]} over the last ten logged steps" if last else "") + "."
    best = ""
    if recorded.get("best_reward") is not None:
        step = recorded.get("best_step")
        which = "these weights" if model.is_best or step == recorded["steps"] else "not of these weights"
        best = f"The best reward on held-out questions, {recorded['best_reward']:.4f}, is that of step {step}, {which}."
    rows = []
    for key, word in _LOGGED.items():
        if entry := _last(model.entries, key):
            rows.append({"figure": word, "last logged": float(entry[key]), "at step": entry["step"]})
    return paragraphs(f"{said} {best}".strip(), table(rows))


def _last(entries: Sequence[Mapping[str, Any]], key: str) -> Mapping[str, Any] | None:
    return next((entry for entry in reversed(entries) if entry.get(key) is not None), None)
