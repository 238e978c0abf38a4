"""Markdown from untrusted text: names, tables and code blocks in which nothing becomes markup."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rlt_data.statistics import figure

#: Characters of a text in an excerpt.
MAX_EXCERPT_CHARS = 4000
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#|~&$!])")


def plain(text: object) -> str:
    """Return a text on one line, with invisible characters replaced."""
    return _visible(" ".join(str(text).split()))


def inline(text: object) -> str:
    """Return a text on one line, with Markdown escaped."""
    return _SPECIAL.sub(r"\\\1", plain(text))


def code(text: object) -> str:
    """Return a name as inline code, or escaped where inline code could not hold it."""
    name = plain(text)
    return inline(name) if not name or set("`|\\") & set(name) else f"`{name}`"


def fenced(text: str, language: str) -> str:
    """Return a code block whose fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{_visible(text)}\n{fence}"


def cut(text: str) -> str:
    """Return a text of at most :data:`MAX_EXCERPT_CHARS` characters; `` […]`` shows that it continues."""
    return text if len(text) <= MAX_EXCERPT_CHARS else text[:MAX_EXCERPT_CHARS] + " […]"


def excerpt(text: str) -> str:
    """Return the beginning of a text as a code block."""
    return fenced(cut(text), "text")


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence: ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with numbers aligned right; strings must be Markdown already."""
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
    """Return images, with alternative texts from their file names."""
    return "\n\n".join(f"![{PurePath(path).stem.replace('-', ' ')}]({path})" for path in paths)


def joined(sections: Mapping[str, str]) -> str:
    """Return the sections that are not empty, by their headings; the heading "" is left out."""
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text)


def paragraphs(*texts: str) -> str:
    """Return the texts that are not empty, as paragraphs."""
    return "\n\n".join(text for text in texts if text)


def _visible(text: str) -> str:
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text.replace("\r\n", "\n"))
