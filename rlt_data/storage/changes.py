"""Describe how two entries of run.json differ, with models and formats by name instead of hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Keys of ``depends_on`` whose values are fingerprints of models.
_MODELS = ("teacher", "student", "model")

#: Text of a changed setting.
CHANGED = "{key} was {old}, now {new}"


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys under which two mappings differ, sorted."""
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any], pattern: str = CHANGED) -> str:
    """Describe how the settings of two run.json entries of one step differ.

    Args:
        before: the first entry, with ``depends_on`` and, if the step ran a model, ``models`` and ``format``; that of
            ``evaluate`` has ``prompts``.
        now: the second entry.
        pattern: text of a difference, with ``{key}``, ``{old}`` and ``{new}``.

    Returns:
        For example ``student was 'Qwen/Qwen3-0.6B', now 'nano-student'; temperature was 1.0, now 0.7``.
    """
    keys = changed_keys(before.get("depends_on", {}), now.get("depends_on", {}))
    keys.sort(key=lambda key: key not in _MODELS)  # models first: they explain most other differences
    return "; ".join(_describe_change(key, before, now, pattern) for key in keys)


def _describe_change(key: str, before: Mapping[str, Any], now: Mapping[str, Any], pattern: str) -> str:
    # ``depends_on`` leaves out values that older rows lack, such as the engine transformers.
    old, new = (repr((entry.get("settings", {}) | entry.get("depends_on", {})).get(key)) for entry in (before, now))
    if key in _MODELS and (before.get("models") or now.get("models")):
        if same := _describe_same_name(key, before.get("models", {}).get(key), now.get("models", {}).get(key)):
            return same
        old, new = (_model_name(key, entry) for entry in (before, now))
    elif key == "format" and before.get("format") and now.get("format"):
        old, new = (repr(entry["format"]["name"]) for entry in (before, now))
        if old == new:
            prompts = [entry.get("prompts", {}).get("source") for entry in (before, now)]
            if None in prompts or prompts[0] == prompts[1]:
                return f"the texts of format {new} differ"
            key, (old, new) = "prompts", map(repr, prompts)
    elif key == "chat_template":
        return "the chat template differs"
    return pattern.format(key=key, old=old, new=new)


def _describe_same_name(role: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str | None:
    """Describe how two models of the same name differ; None if their names or revisions differ."""
    if not old or not new or (old["name"], old["revision"]) != (new["name"], new["revision"]):
        return None
    parts = [part for part in ("weights", "tokenizer") if old[part] != new[part]]
    return f"{role} {new['name']!r} has different {' and '.join(parts)}"


def _model_name(role: str, entry: Mapping[str, Any]) -> str:
    if model := entry.get("models", {}).get(role):
        return f"{model['name']!r}" + (f" at revision {model['revision']}" if model["revision"] else "")
    is_none = entry.get("depends_on", {}).get(role) == "none"
    return "'none'" if is_none else "the teacher of the traces"
