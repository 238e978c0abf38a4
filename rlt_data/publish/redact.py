"""Redaction for publishing: reduce paths to names, and remove server URLs."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from rlt_data.libraries import hub_id

_URL = re.compile(r"[A-Za-z][\w+.-]*://")


def redact_paths(content: Any) -> Any:
    """Return JSON content with paths reduced to names and server URLs set to null; prompts are unchanged."""
    if isinstance(content, dict):
        return {key: _redact_value(str(key), value) for key, value in content.items()}
    if isinstance(content, list):
        return [redact_paths(item) for item in content]
    return public_name(content) if isinstance(content, str) else content


def _redact_value(key: str, value: Any) -> Any:
    if (key == "format" and isinstance(value, dict)) or key == "example_prompt":
        return value
    return None if value and (key == "url" or key.endswith("_url")) else redact_paths(value)


def public_name(name: str) -> str:
    """Return a name without its path: the Hub id if it is in the Hub's cache, else the last part of a path or URL."""
    if id := hub_id(name):
        return id
    if "\n" in name or not (_URL.match(name) or name.startswith("~") or _is_absolute(name)):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def _is_absolute(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
