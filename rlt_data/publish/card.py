"""A card, the README.md of a repository: a generated block between two markers, and some metadata keys.

A push replaces the block. Text outside the markers, other metadata keys and other people's configurations are kept, so
maintainers can write around the block. dataset_card.py and model_card.py write the block.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from rlt_data.errors import HubError
from rlt_data.publish.markdown import code, inline, plain

#: One licence, several, or none declared.
Licence: TypeAlias = str | list[str] | None

BEGIN, END = "<!-- rlt-data:begin -->", "<!-- rlt-data:end -->"

CITATION = """\
@article{cetin2025reinforcement,
  title   = {Reinforcement Learning Teachers of Test Time Scaling},
  author  = {Cetin, Edoardo and Zhao, Tianyu and Tang, Yujin},
  journal = {arXiv preprint arXiv:2506.08388},
  year    = {2025},
}"""
#: Metadata keys that keep their existing value.
_KEPT_KEYS = {"library_name", "pipeline_tag"}
#: Metadata keys whose lists are extended.
_EXTENDED_KEYS = ("tags", "task_categories", "source_datasets")

#: Argument that marks the evaluation results of a push among those in ``model-index``.
RESULT_MARK = {"made_by": "rlt-data evaluate"}

_METADATA = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """An existing card, or an empty one.

    Attributes:
        metadata: the keys of its YAML header.
        before: text before the generated block.
        after: text after the generated block.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict)
    before: str = "\n"
    after: str = "\n"

    def title(self, key: str, title: str | None, default: str) -> str:
        """Return the requested title, else the one in the metadata under ``key``, else the default."""
        return plain(title or self.metadata.get(key) or default)

    def licence(self, licence: str | None) -> Licence:
        """Return the requested licence, else the one in the metadata."""
        return licence or self.metadata.get("license")

    def with_block(self, metadata: Mapping[str, Any], text: str) -> str:
        """Return the text of the card with new metadata and a new generated block."""
        data = yaml.safe_dump(
            _merged(dict(self.metadata), dict(metadata)), sort_keys=False, allow_unicode=True, width=1000
        )
        return f"---\n{data}---\n{self.before}{BEGIN}\n{text}\n{END}{self.after}"


def read_card(name: str, content: bytes | None) -> Card:
    """Split a card into metadata, and the text before and after the generated block.

    Args:
        name: the repository, ``ORG/NAME``.
        content: the card; None if it does not exist.

    Raises:
        HubError: the card is not UTF-8, its metadata cannot be read, or the end marker is missing.
    """
    if not content:
        return Card()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise HubError(f"{name}: its README.md is not UTF-8 ({error.reason} at byte {error.start})") from None
    header = _METADATA.match(text)
    body = text[header.end() :] if header else text
    before, begin, tail = body.partition(BEGIN)
    # A trace quoted in the block may contain the marker too, so the last one counts.
    _, end, after = tail.rpartition(END)
    if begin and not end:
        raise HubError(f"{name}: its README.md has {BEGIN} without {END}; restore the second or delete the first")
    metadata = _parse_metadata(name, header[1]) if header else {}
    if begin:
        return Card(metadata, before, after)
    return Card(metadata, f"{body.rstrip()}\n\n" if body.strip() else "\n")


def _parse_metadata(name: str, text: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text) or {}
    except Exception as error:  # noqa: BLE001 - for an invalid date or number, PyYAML raises what Python raises
        raise HubError(
            f"{name}: the metadata of its README.md cannot be read: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(data, dict):
        raise HubError(f"{name}: the metadata of its README.md is not a mapping")
    return data


def licence_text(licence: Licence, note: str) -> str:
    """Return the section about the licence.

    Args:
        licence: the declared licence.
        note: a sentence to add.
    """
    if not licence:
        return f"No licence was declared. {note}"
    names = licence if isinstance(licence, list) else [licence]
    return f"Declared by the publisher: {', '.join(map(code, names))}. {note}"


def command_line(command: str, settings: Mapping[str, Any]) -> str:
    """Return a command of rlt-data with its settings as flags.

    Args:
        command: the command, such as ``train-teacher rl``.
        settings: values by key; None values are left out.
    """
    flags = [flag for key, value in settings.items() for flag in _flags(key.replace("_", "-"), value)]
    return " ".join(["rlt-data", command, *flags])


def _flags(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [f"--{name} {shlex.quote(str(item))}" for item in values]


def versions_line(versions: Mapping[str, str]) -> str:
    """Return a sentence with package versions; empty if none are recorded."""
    names = ", ".join(f"{inline(name)} {inline(version)}" for name, version in versions.items())
    return f"Versions: {names}." if names else ""


def data_files(config: str, splits: Iterable[str]) -> list[dict[str, str]]:
    """Return the ``data_files`` entry of a configuration that a push writes."""
    return [{"split": split, "path": f"data/{config}/{split}-*.parquet"} for split in splits]


def _merged(existing: dict[str, Any], generated: dict[str, Any]) -> dict[str, Any]:
    """Merge metadata: generated keys win, lists of tags are united, and other people's configurations are kept."""
    merged = existing | {key: value for key, value in generated.items() if key not in existing or key not in _KEPT_KEYS}
    for key in _EXTENDED_KEYS:
        if key in generated:
            merged[key] = list(dict.fromkeys([*_as_list(existing.get(key)), *generated[key]]))
    if results := _merged_results(existing.get("model-index"), generated.get("model-index")):
        merged["model-index"] = results
    else:
        merged.pop("model-index", None)
    if "configs" in generated:
        replaced = {entry["config_name"] for entry in generated["configs"]}
        replaced |= _names_of_pushed(_as_list(existing.get("configs")))
        for key in ("configs", "dataset_info"):
            foreign = [entry for entry in _as_list(existing.get(key)) if _config_name(entry) not in replaced]
            merged[key] = generated[key] + foreign
    return merged


def _merged_results(existing: Any, generated: Any) -> Any:
    """Merge evaluation results: those of an earlier push are replaced, and other people's are kept."""
    entries = [entry for entry in _as_list(existing) if isinstance(entry, dict)]
    kept = [
        entry | {"results": [result for old in _as_list(entry.get("results")) if (result := _without_pushed(old))]}
        for entry in entries
    ]
    kept = [entry for entry in kept if entry["results"]]
    if not generated or not kept:
        return generated or kept
    return [kept[0] | {"results": [*kept[0]["results"], *generated[0]["results"]]}, *kept[1:]]


def _without_pushed(result: Any) -> Any:
    """Return an evaluation result without the metrics of an earlier push; None if no metric is left."""
    metrics = _as_list(result.get("metrics")) if isinstance(result, dict) else []
    kept = [metric for metric in metrics if not _is_pushed(metric)]
    return result if len(kept) == len(metrics) else result | {"metrics": kept} if kept else None


def _is_pushed(metric: Any) -> bool:
    args = metric.get("args") if isinstance(metric, dict) else None
    return isinstance(args, dict) and args.items() >= RESULT_MARK.items()


def _names_of_pushed(configs: list[Any]) -> set[str]:
    """Return the names of the configurations that an earlier push wrote."""
    return {
        name
        for entry in configs
        for name in [_config_name(entry)]
        if entry.get("data_files") in (data_files(name, ["train"]), data_files(name, ["train", "test"]))
    }


def _config_name(entry: dict[str, Any]) -> str:
    return str(entry.get("config_name", "default"))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
