"""The manifest of a table: its part files, their states, and the tables that it was made from.

``RUN/manifests/<table>.json`` has one line per part. The manifest is written before the part file, so rlt-data did not
write a file that is not listed. A line keeps the earlier state of its part until the next change of the manifest,
because a kill may come between the two writes.
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
        state: state of the file.
        earlier: previous state, which the file may still have after a kill, or None.
        is_new: whether the file may not exist yet.
    """

    state: FileState
    earlier: FileState | None = None
    is_new: bool = False

    @property
    def states(self) -> list[FileState]:
        """The states that the file may be in."""
        return [self.state, *([self.earlier] if self.earlier else [])]


@dataclass
class Manifest:
    """The parts of a table.

    Attributes:
        parts: the parts by number.
        made_from: digests of the source tables by name, for a table that is derived from others.
    """

    parts: dict[int, Part] = field(default_factory=dict)
    made_from: dict[str, str] = field(default_factory=dict)
    _digest: str | None = field(default=None, repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Number of rows of all parts."""
        return sum(part.state.rows for part in self.parts.values())

    @property
    def digest(self) -> str:
        """Hash of the content of all parts."""
        if self._digest is None:
            states = [(number, part.state.xxh3) for number, part in sorted(self.parts.items())]
            self._digest = xxhash.xxh3_128_hexdigest(json.dumps(states).encode())
        return self._digest

    @property
    def has_pending(self) -> bool:
        """Whether a part file may not be in its listed state yet."""
        return any(part.earlier or part.is_new for part in self.parts.values())

    def clear_pending(self) -> None:
        """Forget earlier states, after all part files were written."""
        self.parts |= {n: Part(part.state) for n, part in self.parts.items() if part.earlier or part.is_new}
        self._digest = None

    def put(self, number: int, state: FileState) -> None:
        """Set the new state of a part, before its file is written."""
        before = self.parts.get(number)
        self.clear_pending()
        self.parts[number] = Part(state, before.state if before else None, is_new=before is None)

    def text(self) -> str:
        """Return the manifest as JSON, with one line per part."""
        lines = ",\n".join(_line(number, part) for number, part in sorted(self.parts.items()))
        return f'{{\n  "made_from": {json.dumps(self.made_from)},\n  "parts": {{\n{lines}\n  }}\n}}\n'

    @classmethod
    def from_text(cls, text: str) -> Manifest:
        """Parse a manifest.

        Raises:
            ValueError: the text is not a manifest.
        """
        try:
            content = json.loads(text)
            parts = {int(number): _part(entry) for number, entry in content["parts"].items()}
            return cls(parts, dict(content["made_from"]))
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not the manifest of a table ({error!r})") from None


@lru_cache(maxsize=2**16)  # every new part rewrites the manifest
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
