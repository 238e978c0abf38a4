"""A card, README.md of a repository: a block of ours between two markers, and some keys of the metadata.

Text outside the markers, other keys and other people's configurations stay as they are, so a maintainer may write
around it. What is in the block: dataset_card.py and model_card.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from rlt_data.errors import HubError
from rlt_data.publish.markdown import code, inline, plain

#: One, several, or nothing declared.
Licence: TypeAlias = str | list[str] | None

BEGIN, END = "<!-- rlt-data:begin -->", "<!-- rlt-data:end -->"

CITATION = """\
@article{cetin2025reinforcement,
  title   = {Reinforcement Learning Teachers of Test Time Scaling},
  author  = {Cetin, Edoardo and Zhao, Tianyu and Tang, Yujin},
  journal = {arXiv preprint arXiv:2506.08388},
  year    = {2025},
}"""
#: What others may have changed stays.
_THEIRS = {"library_name", "pipeline_tag"}
_UNITED = ("tags", "task_categories")

_METADATA = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """A card that is there, or an empty one.

    Attributes:
        metadata: its keys.
        before: text before our block.
        after: text after it.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict)
    before: str = "\n"
    after: str = "\n"

    def title(self, key: str, given: str | None, otherwise: str) -> str:
        """Return the title: the given one, else the one that is there under a key."""
        return plain(given or self.metadata.get(key) or otherwise)

    def licence(self, given: str | None) -> Licence:
        """Return the licence: the given one, else the one that is there."""
        return given or self.metadata.get("license")

    def with_block(self, metadata: Mapping[str, Any], text: str) -> str:
        """Return the card with our keys and our block in it."""
        data = yaml.safe_dump(
            _merged(dict(self.metadata), dict(metadata)), sort_keys=False, allow_unicode=True, width=1000
        )
        return f"---\n{data}---\n{self.before}{BEGIN}\n{text}\n{END}{self.after}"


def read_card(name: str, text: str | None) -> Card:
    """Take a card apart.

    Args:
        name: of the repository.
        text: the card, None where there is none.

    Raises:
        HubError: its metadata cannot be read, or our block has no end.
    """
    if not text:
        return Card()
    found = _METADATA.match(text)
    body = text[found.end() :] if found else text
    before, begins, rest = body.partition(BEGIN)
    # A trace that is shown in the block may hold the marker too, so the last one counts.
    _, ends, after = rest.rpartition(END)
    if begins and not ends:
        raise HubError(f"{name}: its README.md has {BEGIN} without {END}; put that back, or take the other out")
    metadata = _metadata(name, found[1]) if found else {}
    if begins:
        return Card(metadata, before, after)
    return Card(metadata, f"{body.rstrip()}\n\n" if body.strip() else "\n")


def _metadata(name: str, text: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise HubError(
            f"{name}: the metadata of its README.md cannot be read: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(data, dict):
        raise HubError(f"{name}: the metadata of its README.md is no mapping")
    return data


def licences(licence: Licence, rest: str) -> str:
    """Return what is said of a licence."""
    if not licence:
        return f"Nothing was declared. {rest}"
    names = licence if isinstance(licence, list) else [licence]
    return f"Declared by those who published it: {', '.join(map(code, names))}. {rest}"


def command_line(command: str, settings: Mapping[str, Any]) -> str:
    """Return a command of ours with its settings as flags.

    Args:
        command: such as ``train-teacher rl``.
        settings: by key; those that are None are left out.
    """
    flags = [each for key, value in settings.items() for each in _flags(key.replace("_", "-"), value)]
    return " ".join(["rlt-data", command, *flags])


def _flags(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [f"--{name} {shlex.quote(str(each))}" for each in values]


def versions_line(versions: Mapping[str, str]) -> str:
    """Return a sentence with the versions of packages; nothing where none are recorded."""
    listed = ", ".join(f"{inline(name)} {inline(version)}" for name, version in versions.items())
    return f"Versions: {listed}." if listed else ""


def data_files(config: str) -> list[dict[str, str]]:
    """Return where the files of a configuration of ours lie."""
    return [{"split": "train", "path": f"data/{config}/train-*.parquet"}]


def _merged(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Unite metadata: ours go before theirs, tags are added to theirs, other people's configurations stay."""
    merged = theirs | {key: value for key, value in ours.items() if key not in theirs or key not in _THEIRS}
    for key in _UNITED:
        if key in ours:
            merged[key] = list(dict.fromkeys([*_listed(theirs.get(key)), *ours[key]]))
    if "configs" in ours:
        names = {entry["config_name"] for entry in ours["configs"]} | _earlier(_listed(theirs.get("configs")))
        for key in ("configs", "dataset_info"):
            merged[key] = ours[key] + [each for each in _listed(theirs.get(key)) if _name(each) not in names]
    return merged


def _earlier(configs: list[Any]) -> set[str]:
    """Return the names of configurations that a push has made."""
    return {_name(entry) for entry in configs if entry.get("data_files") == data_files(_name(entry))}


def _name(entry: dict[str, Any]) -> str:
    return str(entry.get("config_name", "default"))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
