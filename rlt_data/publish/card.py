"""The card of a data set: what it is and how it was made, from run.json and the figures of the run.

The card is a block between two markers and some keys of the metadata. Text outside the markers, other keys and other
people's configurations stay as they are, so a maintainer may write around it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from rlt_data.errors import HubError
from rlt_data.publish.tables import Config
from rlt_data.steps.stats import Stats

BEGIN, END = "<!-- rlt-data:begin -->", "<!-- rlt-data:end -->"

_TAGS = ("rlt-data", "reasoning", "distillation", "reinforcement-learned-teachers")
#: The Hub's words for numbers of rows.
_SIZES = {
    10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M", 10**8: "10M<n<100M",
}  # fmt: skip
_METADATA = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_LONGEST_SAMPLE = 4000
_CITATION = """\
@article{cetin2025reinforcement,
  title   = {Reinforcement Learning Teachers of Test Time Scaling},
  author  = {Cetin, Edoardo and Zhao, Tianyu and Tang, Yujin},
  journal = {arXiv preprint arXiv:2506.08388},
  year    = {2025},
}"""


@dataclass(frozen=True)
class Facts:
    """What a card tells.

    Attributes:
        name: of the repository.
        title: of the data set.
        configs: the ways to load it.
        stats: the figures of the run.
        distilled: distill.json of the selection.
        licence: as declared by the one who pushes.
        samples: the best and the worst trace, each with question, solution, completion and scores.
    """

    name: str
    title: str
    configs: Sequence[Config]
    stats: Stats
    distilled: Mapping[str, Any]
    licence: str | None = None
    samples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_card(facts: Facts, existing: str | None = None) -> str:
    """Return the card, put into one that is there already.

    Raises:
        HubError: the metadata of the one that is there cannot be read.
    """
    data, body = _taken_apart(facts.name, existing or "")
    data = _merged(data, _metadata(facts))
    block = f"{BEGIN}\n{_text(facts)}\n{END}"
    before, found, rest = body.partition(BEGIN)
    if found:
        body = before + block + rest.partition(END)[2]
    else:
        body = f"{body.rstrip()}\n\n{block}\n" if body.strip() else f"\n{block}\n"
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)}---\n{body}"


def _taken_apart(name: str, card: str) -> tuple[dict[str, Any], str]:
    found = _METADATA.match(card)
    if not found:
        return {}, card
    try:
        data = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        raise HubError(
            f"{name}: the metadata of its README.md cannot be read: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(data, dict):
        raise HubError(f"{name}: the metadata of its README.md is no mapping")
    return data, card[found.end() :]


def _metadata(facts: Facts) -> dict[str, Any]:
    rows = sum(sum(config.rows.values()) for config in facts.configs)
    sizes = [word for bound, word in _SIZES.items() if rows < bound]
    data = {
        "pretty_name": facts.title,
        "task_categories": ["text-generation"],
        "tags": list(_TAGS),
        "size_categories": sizes[:1] or ["n>100M"],
        "configs": [_data_files(config) for config in facts.configs],
        "dataset_info": [_info(config) for config in facts.configs],
    }
    return data | ({"license": facts.licence} if facts.licence else {})


def _data_files(config: Config) -> dict[str, Any]:
    entry: dict[str, Any] = {"config_name": config.name}
    if config.name == "default":
        entry["default"] = True
    return entry | {"data_files": [{"split": "train", "path": f"data/{config.name}/train-*.parquet"}]}


def _info(config: Config) -> dict[str, Any]:
    from datasets import DatasetInfo, Features
    from datasets.splits import SplitDict, SplitInfo

    stored = sum((config.folder / name).stat().st_size for name in config.rows)
    split = SplitInfo("train", num_bytes=config.size, num_examples=sum(config.rows.values()))
    info = DatasetInfo(
        features=Features.from_arrow_schema(config.schema),
        splits=SplitDict({"train": split}),
        download_size=stored,
        dataset_size=config.size,
    )
    return {"config_name": config.name, **info._to_yaml_dict()}


def _merged(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Unite metadata: our configurations take the place of theirs of the same name, tags are added, the rest stays."""
    merged = theirs | {key: value for key, value in ours.items() if key not in theirs or key == "size_categories"}
    if "license" in ours:
        merged["license"] = ours["license"]
    for key in ("configs", "dataset_info"):
        there = theirs.get(key) or []
        others = [entry for entry in ([there] if isinstance(there, dict) else there) if not _is_ours(entry, ours[key])]
        merged[key] = ours[key] + others
    for key in ("tags", "task_categories"):
        there = theirs.get(key) or []
        merged[key] = list(dict.fromkeys([*([there] if isinstance(there, str) else there), *ours[key]]))
    return merged


def _is_ours(entry: dict[str, Any], ours: list[dict[str, Any]]) -> bool:
    name = str(entry.get("config_name", "default"))
    # Ranks and buckets of an earlier push that are not there any more are ours too.
    return name in {each["config_name"] for each in ours} or bool(re.fullmatch(r"rank_\d\d+|bucket_\d+", name))


# The text


def _text(facts: Facts) -> str:
    sections = {
        "": _opening(facts),
        "How to load it": _loading(facts),
        "How it was made": _making(facts),
        "Figures": _figures(facts),
        "What was left out": _left_out(facts),
        "Samples": _samples(facts),
        "How to train on it": _training(facts),
        "Licences": _licences(facts),
        "Citation": f"```bibtex\n{_CITATION}\n```",
    }
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text)


def _opening(facts: Facts) -> str:
    models = _models(facts)
    teacher = f" by `{models['teacher']['name']}`" if "teacher" in models else ""
    student = f" `{models['student']['name']}`" if "student" in models else " a student"
    return (
        f"# {facts.title}\n\nExplanations of how to get from questions to their known solutions, written{teacher}. "
        f"Each is scored by how much it helps{student} to find the solution by itself: the dense reward of "
        "Reinforcement-Learned Teachers ([arXiv 2506.08388](https://arxiv.org/abs/2506.08388)). Made with "
        f"[rlt-data](https://pypi.org/project/rlt-data/) {_version(facts)}."
    )


def _loading(facts: Facts) -> str:
    rows = [
        {"configuration": f"`{config.name}`", "rows": sum(config.rows.values()), "what it holds": _holds(config, facts)}
        for config in facts.configs
    ]
    second = next((config.name for config in facts.configs if config.name.startswith(("rank", "bucket"))), "traces")
    return f"""{_table(rows)}

```python
from datasets import load_dataset

selection = load_dataset("{facts.name}", split="train")
others = load_dataset("{facts.name}", "{second}", split="train")
```"""


def _holds(config: Config, facts: Facts) -> str:
    kind, _, number = config.name.partition("_")
    if config.name == "default":
        return f"the selection, `--select {facts.distilled['settings']['select']}`"
    if config.name == "traces":
        return "every trace with its question, scores and rank"
    return f"well-formed traces of {kind} {int(number)} (1 is the best)"


def _making(facts: Facts) -> str:
    lines = []
    for step in ("generate", "score", "rank"):
        entry = facts.stats.steps.get(step)
        if entry:
            lines.append(_command(step, entry.get("settings", {})))
    lines.append(_command("distill", facts.distilled["settings"] | {"in": "RUN"}))
    rows = [
        {"role": role, "model": f"`{model['name']}`", "revision": model.get("revision") or "",
         "weights": f"`{model['weights']}`", "arithmetic": model["dtype"]}
        for role, model in _models(facts).items()
    ]  # fmt: skip
    score = facts.stats.steps.get("score", {})
    settings = score.get("settings", {})
    reward = ", ".join(
        f"{word} {settings[key]}"
        for key, word in {"lambda": "λ", "alpha": "α", "kl": "KL", "temperature": "temperature",
                          "missing_tag_penalty": "penalty without closing tag"}.items()
        if key in settings
    )  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in score.get("versions", {}).items())
    parts = [
        "```sh\n" + "\n".join(lines) + "\n```",
        _table(rows),
        f"Reward: {reward}." if reward else "",
        f"Format: `{score['format']['name']}` (`{score['format_hash']}`)." if "format_hash" in score else "",
        f"Versions: {versions}." if versions else "",
        "`rlt-data.json` in this repository holds all settings, prompts and versions.",
    ]
    return "\n\n".join(part for part in parts if part)


def _command(step: str, settings: Mapping[str, Any]) -> str:
    """Return the command line of a step, with what differs from nothing; places of the maker's machine by name."""
    flags = []
    for key, value in settings.items():
        if value in (None, False, [], "", "auto") or key in ("out", "url"):
            continue
        if key in ("in", "input"):
            value = "questions.jsonl" if step == "generate" else "RUN"
            key = "in"
        flag = "--" + key.replace("_", "-")
        flags += (
            [flag] if value is True else [f"{flag} {each}" for each in (value if isinstance(value, list) else [value])]
        )
    return " ".join(["rlt-data", step, *dict.fromkeys(flags)])


def _figures(facts: Facts) -> str:
    stats = facts.stats
    counts = ", ".join(f"{count:,} {table}" for table, count in stats.rows.items() if count)
    shares = ", ".join(f"{flag.replace('_', ' ')} {share:.1%}" for flag, share in stats.shares.items())
    parts = [
        f"In this run: {counts}; {stats.completion_tokens:,} sampled tokens.",
        f"Of the scored traces: {shares}." if shares else "",
        _table(stats.buckets.to_dicts()),
        _table(stats.terms.to_dicts()),
    ]
    return "\n\n".join(part for part in parts if part)


def _left_out(facts: Facts) -> str:
    read = facts.stats.steps.get("input", {})
    counts = facts.distilled["counts"]
    rows = {
        "input rows that could not be used": read.get("bad_rows", 0),
        "input rows that were there twice": read.get("duplicates", 0),
        **{f"rows that failed in {step}": count for step, count in facts.stats.failed.items()},
        "chosen traces that are not well-formed": counts.get("malformed", 0),
        "traces that are too long": counts.get("too_long", 0),
        "questions without a row in the selection": counts.get("without_row", 0),
    }
    table = _table([{"what": what, "rows": count} for what, count in rows.items()])
    truncated = facts.stats.shares.get("truncated")
    share = f"\n\nTruncated at the token limit: {truncated:.1%} of the scored traces." if truncated is not None else ""
    return f"{table}{share}\n\nThe questions were not checked against any benchmark by rlt-data."


def _samples(facts: Facts) -> str:
    return "\n\n".join(
        f"<details>\n<summary>{what}: reward {sample['reward']:.3f}, {sample['thought_tokens']} tokens</summary>\n\n"
        f"Question\n\n{_quoted(sample['question'])}\n\nExplanation\n\n{_quoted(sample['completion'])}\n\n"
        f"Solution\n\n{_quoted(sample['solution'])}\n\n</details>"
        for what, sample in facts.samples.items()
    )


def _training(facts: Facts) -> str:
    return f"""```sh
rlt-data train-student --model STUDENT --in {facts.name} --out student
```

The rows are in the shape `{facts.distilled["settings"]["shape"]}`, which TRL's `SFTTrainer` takes as it is."""


def _licences(facts: Facts) -> str:
    if facts.licence:
        return (
            f"Declared by those who published it: `{facts.licence}`. Questions and models have licences of their own."
        )
    return "Nothing was declared. Questions and models have licences of their own."


def _models(facts: Facts) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for step in facts.stats.steps.values():
        found |= step.get("models") or {} if isinstance(step, dict) else {}
    return found


def _version(facts: Facts) -> str:
    return str(facts.stats.steps.get("score", {}).get("versions", {}).get("rlt-data", ""))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    head = list(rows[0])
    lines = [head, ["---" if isinstance(rows[0][name], str) else "---:" for name in head]]
    lines += [[_cell(row[name]) for name in head] for row in rows]
    return "\n".join("| " + " | ".join(name.replace("_", " ") for name in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _quoted(text: str) -> str:
    """Show text so that nothing in it is markup: as a code block with a longer fence than any in it."""
    if len(text) > _LONGEST_SAMPLE:
        text = text[:_LONGEST_SAMPLE] + " […]"
    text = "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text.replace("\r\n", "\n"))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
