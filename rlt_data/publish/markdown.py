"""Pieces of Markdown in which a text stays a text: names, tables, and blocks that are shown as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rlt_data.statistics import figure

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#|~&$!])")


def plain(text: object) -> str:
    """Return a text in one line, without characters that cannot be seen."""
    return _visible(" ".join(str(text).split()))


def inline(text: object) -> str:
    """Return a text for the middle of a line, in which nothing is markup."""
    return _SPECIAL.sub(r"\\\1", plain(text))


def code(text: object) -> str:
    """Return a name in the type of code; in plain type where a table or a code span would end in it."""
    name = plain(text)
    return inline(name) if not name or set("`|\\") & set(name) else f"`{name}`"


def fenced(text: str, language: str) -> str:
    """Return a block of text as it is: its fence is longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{_visible(text)}\n{fence}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table: numbers to the right, texts as the Markdown that they are."""
    if not rows:
        return ""
    head = list(rows[0])
    lines = [
        [name.replace("_", " ") for name in head],
        ["---" if isinstance(rows[0][name], str) else "---:" for name in head],
        *([figure(row[name]) for name in head] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def images(paths: Sequence[str]) -> str:
    """Return images by their paths, each with its name in words."""
    return "\n\n".join(f"![{PurePath(path).stem.replace('-', ' ')}]({path})" for path in paths)


def joined(parts: Mapping[str, str]) -> str:
    """Return sections by their headings, without those that are empty; the first, without a heading, comes first."""
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in parts.items() if text)


def paragraphs(*parts: str) -> str:
    """Return the parts that are not empty, one after the other."""
    return "\n\n".join(part for part in parts if part)


def _visible(text: str) -> str:
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text.replace("\r\n", "\n"))
