"""Redaction for publishing: paths become names, and addresses of servers are removed."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")
_URL = re.compile(r"[A-Za-z][\w+.-]*://")


def redact_paths(content: Any) -> Any:
    """Return JSON content with paths reduced to names and without addresses of servers; formats stay whole."""
    if isinstance(content, dict):
        return {key: _of_key(str(key), value) for key, value in content.items()}
    if isinstance(content, list):
        return [redact_paths(each) for each in content]
    return public_name(content) if isinstance(content, str) else content


def _of_key(key: str, value: Any) -> Any:
    if key == "format" and isinstance(value, dict):
        return value
    return None if key == "url" or key.endswith("_url") else redact_paths(value)


def public_name(name: str) -> str:
    """Return the last part of a path or URL, or the Hub id of a model in the Hub's cache; other names as they are."""
    if id := hub_id(name):
        return id
    if "\n" in name or not (_URL.match(name) or name.startswith("~") or _is_absolute(name)):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def hub_id(name: str) -> str | None:
    """Return the id of a model in the Hub's cache, given its path."""
    found = _CACHED.search(name)
    return f"{found[1]}/{found[2]}" if found else None


def _is_absolute(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
