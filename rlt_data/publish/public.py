"""What of settings others may see: names of models and files, not where they lie on the maker's machines."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")
_URL = re.compile(r"[A-Za-z][\w+.-]*://")


def without_places(content: Any) -> Any:
    """Return JSON content with places reduced to names; addresses of servers are left out, and formats kept whole."""
    if isinstance(content, dict):
        return {key: _of_key(str(key), value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_places(each) for each in content]
    return public_name(content) if isinstance(content, str) else content


def _of_key(key: str, value: Any) -> Any:
    if key == "format" and isinstance(value, dict):
        return value
    return None if key == "url" or key.endswith("_url") else without_places(value)


def public_name(name: str) -> str:
    """Return the last part of a place, or the Hub id of a model in the Hub's cache; other names as they are."""
    if id := hub_id(name):
        return id
    if "\n" in name or not (_URL.match(name) or name.startswith("~") or _is_absolute(name)):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def hub_id(name: str) -> str | None:
    """Return the id of a model that lies in the Hub's cache."""
    found = _CACHED.search(name)
    return f"{found[1]}/{found[2]}" if found else None


def _is_absolute(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
