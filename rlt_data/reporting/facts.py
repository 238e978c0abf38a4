"""Who made the traces of a run and how, in the few lines at the top of the overview."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlt_data.publish.redact import redact_paths
from rlt_data.reporting.data_set import DataSet
from rlt_data.storage.run import RunFolder


def facts(run: RunFolder, data_set: DataSet | None) -> dict[str, str]:
    """Return teacher, student, format and the main settings of a run, by name; steps that did not run are left out.

    Args:
        run: the run.
        data_set: its data set.
    """
    steps: Mapping[str, Any] = redact_paths(run.info.get("steps", {}))
    found = {
        "teacher": _teacher(steps),
        "student": _model(steps, "score", "student"),
        "format": _format(steps),
        "sampling": _settings(
            steps, "generate", n="{} per question", temperature="temperature {}", max_tokens="at most {} tokens"
        ),
        "reward": _reward(steps),
        "ranking": _settings(steps, "rank", by="by {}", buckets="buckets: {}"),
        "data set": _data_set(data_set),
    }
    return {name: text for name, text in found.items() if text}


def _model(steps: Mapping[str, Any], step: str, role: str) -> str | None:
    entry = steps.get(step, {})
    model = (entry.get("models") or {}).get(role) or {}
    name = model.get("name") or entry.get("settings", {}).get(role)
    return str(name) if name else None


def _teacher(steps: Mapping[str, Any]) -> str | None:
    """Return the author of the traces, and the model whose log-probs score them if it is another one."""
    scoring = _model(steps, "score", "teacher")
    if "generate" in steps and (author := _model(steps, "generate", "teacher")):
        scored_by = "" if scoring in (None, "none", author) else f"; log-probs of {scoring}"
        return author + scored_by
    source = steps.get("input", {}).get("settings", {}).get("in") if steps.get("input", {}).get("traces") else None
    if source is None:
        return scoring
    log_probs = f"log-probs of {scoring}" if scoring not in (None, "none") else "scored without a teacher"
    return f"traces from {source}; {log_probs}"


def _format(steps: Mapping[str, Any]) -> str | None:
    for step in ("score", "generate"):
        if name := (steps.get(step, {}).get("format") or {}).get("name"):
            return str(name)
    return None


def _reward(steps: Mapping[str, Any]) -> str | None:
    settings = steps.get("score", {}).get("settings", {})
    name = settings.get("reward", "rlt")
    terms = _settings(steps, "score", **{"lambda": "λ {}", "alpha": "α {}", "kl": "KL {}"}, temperature="temperature {}")
    return ", ".join(filter(None, [name if name != "rlt" else None, terms])) if settings else None


def _data_set(data_set: DataSet | None) -> str | None:
    if data_set is None:
        return None
    settings = data_set.settings
    limits = {"limit": "at most {} rows", "max_tokens": "at most {} tokens each", "tokenizer": "tokens of {}"}
    chosen = [text.format(settings[key]) for key, text in limits.items() if settings.get(key)]
    outdated = [] if data_set.is_current else ["older than the ranks: run rlt-data distill again"]
    return ", ".join([f"{len(data_set.keys):,} rows", f"select {settings.get('select')}", *chosen, *outdated])


def _settings(steps: Mapping[str, Any], step: str, **texts: str) -> str | None:
    """Return those settings of a step that have a value, each in the words of its template."""
    settings = steps.get(step, {}).get("settings", {})
    return ", ".join(text.format(settings[key]) for key, text in texts.items() if settings.get(key) is not None) or None
