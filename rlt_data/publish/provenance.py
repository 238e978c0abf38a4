"""The sections of a data set's card on where it came from: inputs, commands, models, reward and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from rlt_data.publish.card import command_line, versions_line
from rlt_data.publish.facts import DatasetFacts
from rlt_data.publish.markdown import code, excerpt, fenced, inline, listed, paragraphs, table
from rlt_data.publish.redact import redact_paths
from rlt_data.publish.tables import STAGES
from rlt_data.steps.registry import STEPS

_SAMPLING = ("n", "temperature", "top_p", "top_k", "max_tokens", "seed")
_REWARD = {
    "lambda": "λ",
    "alpha": "α",
    "kl": "KL estimate",
    "temperature": "temperature",
    "missing_tag_penalty": "penalty",
    "solution_weight": "weight of r_ss",
    "alpha_kl": "α of the maximum",
}
#: Values of settings that the formula implies.
_IMPLIED = {"solution_weight": 1.0, "alpha_kl": None}
#: The steps that render prompts, with the role of their model and what the prompt is.
_PROMPTS = {
    "generate": ("teacher", "teacher_system", "The teacher continues this prompt with an explanation"),
    "score": ("student", "student_system", "The student reads this before the explanation"),
}


def provenance(facts: DatasetFacts) -> str:
    """Return the section on how the data set was made."""
    steps, distilled = facts.steps, redact_paths(dict(facts.distilled))
    commands = [
        step_command(step, entry.get("settings", {}), facts)
        for step in STAGES
        if step in steps
        for entry in (facts.makers if step == "generate" else [steps[step]])
    ]
    commands.append(step_command("distill", distilled["settings"], facts))
    sampling = "; ".join(dict.fromkeys(filter(None, map(_sampled, facts.makers))))
    return paragraphs(
        fenced("\n".join(commands), "sh"),
        models_table(facts.models),
        f"Sampling settings: {sampling}." if sampling else "",
        _reward(facts),
        _signals(facts),
        *_prompts(facts),
        versions_line(steps.get("score", {}).get("versions", {})),
        "`rlt-data.json` in this repository has all settings, prompts and versions.",
    )


def _sampled(maker: Mapping[str, Any]) -> str:
    sampled = maker.get("settings", {})
    return ", ".join(
        f"{key.replace('_', '-')} {inline(sampled[key])}" for key in _SAMPLING if sampled.get(key) is not None
    )


def sources(facts: DatasetFacts) -> str:
    """Return a sentence that names the inputs; empty if they are not recorded."""
    content = "Questions and solutions"
    if facts.has_imports:
        content = f"Questions, solutions and {'some of the ' * bool(facts.makers)}explanations"
    names = listed([_source(entry) for entry in facts.inputs])
    return f"{content} come from {names}." if names else ""


def _source(entry: Mapping[str, Any]) -> str:
    if not entry["on_hub"]:
        return code(entry["name"])
    details = [f"{key} {code(entry[key])}" for key in ("subset", "split", "revision") if entry.get(key)]
    link = f"[{inline(entry['name'])}](https://huggingface.co/datasets/{quote(entry['name'])})"
    return f"{link} ({', '.join(details)})" if details else link


def _reward(facts: DatasetFacts) -> str:
    settings = facts.steps.get("score", {}).get("settings", {})
    named = {key: value for key, value in settings.items() if key not in _IMPLIED or value != _IMPLIED[key]}
    weights = ", ".join(f"{symbol} {inline(named[key])}" for key, symbol in _REWARD.items() if key in named)
    formula = "`r_ss - λ * r_kl + penalty`" + (f", with {weights}" if weights else "")
    if facts.reward == "rlt":
        return f"Reward: {formula}." if weights else ""
    return (
        f"Reward: the function {code(facts.reward)} instead of the RLT reward. Its argument includes the terms of the "
        f"RLT reward, {formula}."
    )


def _signals(facts: DatasetFacts) -> str:
    """Return a sentence on the signals of the run with their settings and, for contamination, the benchmarks."""
    texts = []
    for name, entry in facts.steps.get("curate", {}).get("signals", {}).items():
        depends_on = entry["depends_on"]
        details = [f"{key.replace('_', '-')} {inline(value)}" for key, value in depends_on["settings"].items()]
        if name == "contamination":
            details += [f"against {code(benchmark)}" for benchmark, _ in depends_on["content"] or ()]
        texts.append(code(name) + (f" ({', '.join(details)})" if details else ""))
    return f"Signals of `rlt-data curate`: {listed(texts)}." if texts else ""


def _prompts(facts: DatasetFacts) -> list[str]:
    """Return the name of the format, and for each model its chat template and its prompt for one question."""
    format, steps = facts.distilled["format"], facts.steps
    hash = steps.get("score", {}).get("format_hash")
    texts = [f"Prompt format: {code(format['name'])}, hash {code(hash)}." if hash else ""]
    for step, (role, system, explained) in _PROMPTS.items():
        entry = steps.get(step, {})
        prompt, model = entry.get("example_prompt"), (entry.get("models") or {}).get(role, {})
        template = entry.get("settings", {}).get("chat_template")
        named = f"{code(template)}, " if template else ""
        if model.get("chat_template"):
            texts.append(f"Chat template of the {role}: {named}hash {code(model['chat_template'])}.")
        if prompt:
            texts.append(f"{explained}, shown here with one of the questions:\n\n{excerpt(prompt)}")
        elif entry and format.get(system):
            texts.append(f"System prompt of the {role}:\n\n{excerpt(format[system])}")
    return texts


def models_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of models by their roles."""
    return table(
        [
            {"role": inline(role), "model": code(model["name"]), "revision": inline(model.get("revision") or ""),
             "hash of the weights": code(model["weights"]), "dtype": inline(model["dtype"])}
            for role, model in models.items()
        ]
    )  # fmt: skip


def step_command(step: str, settings: Mapping[str, Any], facts: DatasetFacts) -> str:
    """Return the command line of a step, without flags that have their default value.

    Args:
        step: the step.
        settings: its recorded settings.
        facts: name the input. A run is called ``RUN``.
    """
    fields = STEPS[step].settings.model_fields
    defaults = {field.alias or name: field.default for name, field in fields.items()}
    reads_input = step == "generate" or (step == "score" and facts.is_imported)
    names = [entry["name"] for entry in facts.inputs] or ["questions.jsonl"]
    own = str(settings.get("in"))  # a pool may have traces of several inputs
    name = next((name for name in (own, PurePath(own).name) if name in names), names[-1])
    paths = {"in": name if reads_input else "RUN", "out": None}
    changed = {key: value for key, value in settings.items() if value != defaults.get(key) and value not in ([], "")}
    return command_line(step, paths | changed | paths)
