"""The card of a trained model: what it is, how it was trained, how it did, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlt_data.publish.card import CITATION, Licence, command_line, licences, versions_line
from rlt_data.publish.markdown import code, fenced, images, inline, joined, paragraphs, table
from rlt_data.publish.models import TrainedModel

_TAGS = ("rlt-data", "reasoning", "reinforcement-learned-teachers")
_RLT = "Reinforcement-Learned Teachers ([arXiv 2506.08388](https://arxiv.org/abs/2506.08388))"
_WHAT = {
    "teacher": "A teacher: shown a question with its known solution, it writes an explanation of how to get there. "
    "Trained by GRPO on how much its explanations help a frozen student to find the solution by itself, the dense "
    f"reward of {_RLT}.",
    "warmed-up-teacher": "A warmed-up teacher: shown a question with its known solution, it writes an explanation of "
    "how to get there. Fine-tuned on explanations, and not yet rewarded for its own: the training of "
    f"{_RLT} begins from such a model.",
    "solver": "A solver: it thinks about a question and answers it. Trained by GRPO on whether its answers are right, "
    f"the baseline of {_RLT}.",
    "student": "A student: it thinks about a question and answers it. Fine-tuned on explanations, as in "
    f"{_RLT}.",
    "fine-tuned": "Fine-tuned in the format of `format.yaml`: a warmed-up teacher, which is shown a question with its "
    f"known solution and writes an explanation, or a student of such a model. See {_RLT}.",
}  # fmt: skip
_GIVEN = {
    "model": "model it began from",
    "student": "student that rewarded it",
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
        images: paths of the plots in the repository.
    """

    name: str
    title: str
    model: TrainedModel
    licence: Licence = None
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
        "datasets": list(model.data),
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
            "Figures": paragraphs(_figures(facts.model), images(facts.images)),
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
    if facts.model.kind in ("solver", "student"):
        shell = command_line("evaluate", {"model": facts.name, "benchmark": "math500"})
    else:
        shell = command_line("generate", {"in": "questions.jsonl", "teacher": facts.name, "out": "RUN"})
    return paragraphs(
        python, fenced(shell, "sh"), "`format.yaml` says how it is shown a problem; rlt-data finds it there."
    )


def _making(facts: ModelFacts) -> str:
    recorded = facts.model.recorded
    settings, plan = recorded["depends_on"], recorded.get("plan", {})
    return paragraphs(
        fenced(command_line(recorded["command"], recorded["settings"]), "sh") if "command" in recorded else "",
        _began_from(facts.model),
        table([{"what": word, "count": plan[key]} for key, word in _DATA.items() if plan.get(key)]),
        table(
            [
                {"setting": code(key.rstrip("_")), "value": code(value)}
                for key, value in settings.items()
                if key not in _GIVEN and value is not None
            ]
        ),
        versions_line(recorded.get("versions", {})),
    )


def _began_from(model: TrainedModel) -> str:
    """Return the table of what a training was given: hashes, and names where they are known."""
    hashes = model.recorded["depends_on"]
    recorded = model.recorded.get("models", {}) | {"data": model.recorded.get("data", {})}
    known = {"model": model.base, "data": ", ".join(model.data)}
    rows = []
    for key, word in _GIVEN.items():
        given = recorded.get(key, {})
        name = known.get(key) or given.get("name", "")
        revision = given.get("revision") if given.get("name") == name else None
        if hashes.get(key):
            row = {"what": word, "name": code(name), "revision": inline(revision or ""), "hash": code(hashes[key])}
            rows.append(row)
    return table(rows)


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
        entry = next((each for each in reversed(model.entries) if each.get(key) is not None), None)
        if entry:
            rows.append({"figure": word, "last logged": float(entry[key]), "at step": entry["step"]})
    return paragraphs(f"{said} {best}".strip(), table(rows))
