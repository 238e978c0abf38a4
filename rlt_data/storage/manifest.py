"""The manifest of a table: which part files there are, in which state, and what the table was made from.

``RUN/manifests/<table>.json`` has one line for each part. It is written before a part file appears, so a part that it
does not list is none of ours. The line keeps the part's earlier state until the next change of the manifest, because a
kill may come between the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import xxhash

from rlt_data.storage.folder import FileState


@dataclass(frozen=True)
class Part:
    """A part file.

    Attributes:
        state: of the file.
        earlier: the state that it may still have, or None.
        is_new: it may not be there yet.
    """

    state: FileState
    earlier: FileState | None = None
    is_new: bool = False

    @property
    def states(self) -> list[FileState]:
        """The states that the file may have."""
        return [self.state, *([self.earlier] if self.earlier else [])]


@dataclass
class Manifest:
    """The parts of a table.

    Attributes:
        parts: by number.
        made_from: for a table that is made as a whole, the digests of the tables that it was made from.
    """

    parts: dict[int, Part] = field(default_factory=dict)
    made_from: dict[str, str] = field(default_factory=dict)
    _digest: str | None = field(default=None, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """The rows of all parts together."""
        return sum(part.state.rows for part in self.parts.values())

    @property
    def digest(self) -> str:
        """A hash of the content of all parts."""
        if self._digest is None:
            states = [(number, part.state.xxh3) for number, part in sorted(self.parts.items())]
            self._digest = xxhash.xxh3_128_hexdigest(json.dumps(states).encode())
        return self._digest

    @property
    def settled(self) -> bool:
        """Whether every part file has the state that is listed."""
        return not any(part.earlier or part.is_new for part in self.parts.values())

    def settle(self) -> None:
        """Forget earlier states, once all part files are written."""
        self.parts |= {n: Part(part.state) for n, part in self.parts.items() if part.earlier or part.is_new}
        self._digest = None

    def put(self, number: int, state: FileState) -> None:
        """List a new state of a part; its file is written next."""
        before = self.parts.get(number)
        self.settle()
        self.parts[number] = Part(state, before.state if before else None, is_new=before is None)

    def text(self) -> str:
        """Return the manifest as JSON, one part a line."""
        lines = ",\n".join(_line(number, part) for number, part in sorted(self.parts.items()))
        return f'{{\n  "made_from": {json.dumps(self.made_from)},\n  "parts": {{\n{lines}\n  }}\n}}\n'

    @classmethod
    def from_text(cls, text: str) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: the text is none.
        """
        try:
            content = json.loads(text)
            parts = {int(number): _part(entry) for number, entry in content["parts"].items()}
            return cls(parts, dict(content["made_from"]))
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"no manifest of a table ({error!r})") from None


@lru_cache(maxsize=2**16)  # a manifest is written again with every part
def _line(number: int, part: Part) -> str:
    entry: dict[str, Any] = dict(vars(part.state))
    if part.earlier:
        entry["earlier"] = vars(part.earlier)
    if part.is_new:
        entry["is_new"] = True
    return f'    "{number}": {json.dumps(entry)}'


def _part(entry: Mapping[str, Any]) -> Part:
    earlier = entry.get("earlier")
    return Part(_state(entry), _state(earlier) if earlier else None, is_new=bool(entry.get("is_new")))


def _state(entry: Mapping[str, Any]) -> FileState:
    return FileState(int(entry["rows"]), int(entry["bytes"]), str(entry["xxh3"]))
