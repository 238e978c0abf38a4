"""Who made the traces of a run and how, in the few lines at the top of the overview."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlt_data.publish.redact import redact_paths
from rlt_data.steps.makers import makers_of
from rlt_data.storage.data_set import DataSet
from rlt_data.storage.run import RunFolder


def facts(run: RunFolder, data_set: DataSet | None) -> dict[str, str]:
    """Return teacher, student, format and the main settings of a run, by name; steps that did not run are left out.

    Args:
        run: the run.
        data_set: its data set.
    """
    steps: Mapping[str, Any] = redact_paths(run.info.get("steps", {}))
    makers = [{"generate": maker} for maker in makers_of(steps.get("generate", {})).values()]
    author, scoring = (
        _listed(_model(maker, "generate", "teacher") for maker in makers),
        _model(steps, "score", "teacher"),
    )
    imported = steps.get("input", {}).get("settings", {}).get("in") if author is None else None
    pooled = author is not None and steps.get("input", {}).get("traces")
    found = {
        "traces": f"imported from {imported}" if imported else "generated and imported" if pooled else None,
        "teacher": author or scoring,
        "log-probs of the teacher": scoring if author and scoring not in (None, author) else None,
        "student": _model(steps, "score", "student"),
        "format": _format(steps),
        "sampling": _listed(
            _settings(
                maker, "generate", n="{} per question", temperature="temperature {}", max_tokens="at most {} tokens"
            )
            for maker in makers
        ),
        "reward": _reward(steps),
        "ranking": _settings(steps, "rank", by="by {}", buckets="buckets: {}"),
        "data set": _data_set(data_set),
    }
    return {name: text for name, text in found.items() if text}


def _listed(texts: Iterable[str | None]) -> str | None:
    """Return the different texts, one for each maker of traces; None if there are none."""
    return "; ".join(dict.fromkeys(filter(None, texts))) or None


def _model(steps: Mapping[str, Any], step: str, role: str) -> str | None:
    entry = steps.get(step, {})
    model = (entry.get("models") or {}).get(role) or {}
    name = model.get("name") or entry.get("settings", {}).get(role)
    return str(name) if name else None


def _format(steps: Mapping[str, Any]) -> str | None:
    for step in ("score", "generate"):
        if name := (steps.get(step, {}).get("format") or {}).get("name"):
            return str(name)
    return None


def _reward(steps: Mapping[str, Any]) -> str | None:
    settings = steps.get("score", {}).get("settings", {})
    name = settings.get("reward", "rlt")
    texts = {"lambda": "λ {}", "alpha": "α {}", "alpha_kl": "α of the maximum {}", "kl": "KL {}"}
    if settings.get("solution_weight", 1) != 1:
        texts["solution_weight"] = "weight of r_ss {}"
    terms = _settings(steps, "score", **texts, temperature="temperature {}")
    return ", ".join(filter(None, [name if name != "rlt" else None, terms])) if settings else None


def _data_set(data_set: DataSet | None) -> str | None:
    if data_set is None:
        return None
    settings = data_set.settings
    limits = {"limit": "at most {} rows", "max_tokens": "at most {} tokens each", "tokenizer": "tokens of {}"}
    chosen = [text.format(settings[key]) for key, text in limits.items() if settings.get(key)]
    outdated = [] if data_set.is_current else ["older than ranks or signals: run rlt-data distill again"]
    return ", ".join([str(settings.get("select")), f"{len(data_set.keys):,} rows", *chosen, *outdated])


def _settings(steps: Mapping[str, Any], step: str, **texts: str) -> str | None:
    """Return those settings of a step that have a value, each in the words of its template."""
    settings = steps.get(step, {}).get("settings", {})
    values = {key: settings[key] for key in texts if settings.get(key) is not None}
    return ", ".join(texts[key].format(f"{x:g}" if isinstance(x, float) else x) for key, x in values.items()) or None
