"""The card of a data set: what it is and how it was made, from run.json and the figures of the run.

Of a folder that ``distill`` wrote, without its run, the card says what distill.json does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from rlt_data.publish.card import CITATION, Licence, command_line, data_files, licences, versions_line
from rlt_data.publish.markdown import code, fenced, images, inline, joined, paragraphs, table
from rlt_data.publish.redact import redact_paths
from rlt_data.publish.tables import STAGES, Config
from rlt_data.statistics import Stats
from rlt_data.steps.registry import STEPS
from rlt_data.storage.run import RunFolder

_TAGS = ("rlt-data", "reasoning", "distillation", "reinforcement-learned-teachers")
#: The Hub's words for numbers of rows.
_SIZES = {
    10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M", 10**8: "10M<n<100M",
}  # fmt: skip
_LONGEST_SAMPLE = 4000
_SAMPLING = ("n", "temperature", "top_p", "top_k", "max_tokens", "seed")
_REWARD = {
    "lambda": "λ",
    "alpha": "α",
    "kl": "KL",
    "temperature": "temperature",
    "missing_tag_penalty": "penalty without closing tag",
}


@dataclass(frozen=True)
class Facts:
    """What a card tells.

    Attributes:
        name: of the repository.
        title: of the data set.
        configs: the ways to load it.
        distilled: distill.json of the selection.
        stats: the figures of the run; None where the run is not there.
        licence: as declared by those who publish it.
        samples: the best and the worst trace, each with question, solution, completion and scores.
        images: paths of the plots in the repository.
    """

    name: str
    title: str
    configs: Sequence[Config]
    distilled: Mapping[str, Any]
    stats: Stats | None = None
    licence: Licence = None
    samples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    images: Sequence[str] = ()

    @property
    def steps(self) -> dict[str, Any]:
        """What is recorded of each step."""
        return dict(redact_paths(self.stats.steps if self.stats else self.distilled["steps"]))


def best_and_worst(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the well-formed traces of largest and of smallest value, with their texts; none where there are none."""
    ends: list[pl.DataFrame] = []
    for part in run.parts("ranks"):
        ranks = pl.DataFrame(run.read("ranks", part)).filter(pl.col("flaw").is_null(), pl.col("value").is_not_null())
        ranks = ranks.sort("value", "trace_id").with_columns(pl.lit(part).alias("part"))
        ends.append(pl.concat([ranks.head(1), ranks.tail(1)]))
    if not sum(map(len, ends)):
        return {}
    all_ends = pl.concat(ends).sort("value", "trace_id")
    return {name: _sample_texts(run, all_ends.row(row, named=True)) for name, row in (("Best", -1), ("Worst", 0))}


def _sample_texts(run: RunFolder, rank: dict[str, Any]) -> dict[str, Any]:
    traces = pl.DataFrame(run.read("traces", rank["part"], ["trace_id", "completion"]))
    questions = pl.DataFrame(run.read("questions", rank["part"]))
    question = questions.row(by_predicate=pl.col("question_id") == rank["question_id"], named=True)
    return {
        "reward": rank["value"],
        "thought_tokens": rank["thought_tokens"],
        "completion": traces.row(by_predicate=pl.col("trace_id") == rank["trace_id"], named=True)["completion"],
        "question": question["question"],
        "solution": question["solution"],
    }


def dataset_metadata(facts: Facts) -> dict[str, Any]:
    """Return the metadata of a data set's card."""
    rows = sum(sum(config.rows.values()) for config in facts.configs)
    sizes = [word for bound, word in _SIZES.items() if rows < bound]
    data: dict[str, Any] = {
        "pretty_name": facts.title,
        "task_categories": ["text-generation"],
        "tags": list(_TAGS),
        "size_categories": sizes[:1] or ["n>100M"],
        "configs": [_data_files(config) for config in facts.configs],
        "dataset_info": [_info(config) for config in facts.configs],
    }
    return data | ({"license": facts.licence} if facts.licence else {})


def _data_files(config: Config) -> dict[str, Any]:
    default = {"default": True} if config.name == "default" else {}
    return {"config_name": config.name, **default, "data_files": data_files(config.name)}


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


def dataset_text(facts: Facts) -> str:
    """Return the block of a data set's card."""
    return joined(
        {
            "": _opening(facts),
            "How to load it": _loading(facts),
            "How it was made": _making(facts),
            "Figures": _figures(facts),
            "What was left out": _left_out(facts),
            "Samples": _samples(facts),
            "How to train on it": _training(facts),
            "Licences": licences(facts.licence, "Questions and models have licences of their own."),
            "Citation": fenced(CITATION, "bibtex"),
        }
    )


def stage_text(facts: Facts, stage: str, main: str) -> str:
    """Return the block of the card of a branch that holds the tables of a stage.

    Args:
        facts: of the branch.
        stage: the step that made the tables.
        main: the branch with the data set.
    """
    entry = facts.steps.get(stage, {})
    settings = [
        {"setting": code(key), "value": code(value)}
        for key, value in entry.get("settings", {}).items()
        if key not in ("in", "out") and value is not None
    ]
    names = " and ".join(f"`{config.name}`" for config in facts.configs)
    return joined(
        {
            "": f"# {inline(facts.title)}: {stage}\n\nThe tables of the stage `{stage}` whole, as they are in the run: "
            f"{names}. The data set that came of it, and its card, are on the branch {code(main)}.",
            "How to load it": _load_table(facts)
            + "\n\n"
            + fenced(
                "from datasets import load_dataset\n\n"
                f'rows = load_dataset("{facts.name}", "{facts.configs[-1].name}", revision="{stage}", split="train")',
                "python",
            ),
            "How it was made": paragraphs(
                fenced(_command(stage, entry["settings"]), "sh") if entry.get("settings") else "",
                _models_table(entry.get("models") or {}),
                table(settings),
                versions_line(entry.get("versions", {})),
            ),
        }
    )


def _opening(facts: Facts) -> str:
    models = _models(facts)
    teacher = f" by {code(models['teacher']['name'])}" if "teacher" in models else ""
    student = f" {code(models['student']['name'])}" if "student" in models else " a student"
    version = facts.steps.get("score", {}).get("versions", {}).get("rlt-data", "")
    return (
        f"# {inline(facts.title)}\n\nExplanations of how to get from questions to their known solutions, "
        f"written{teacher}. Each is scored by how much it helps{student} to find the solution by itself: the dense "
        "reward of Reinforcement-Learned Teachers ([arXiv 2506.08388](https://arxiv.org/abs/2506.08388)). Made with "
        f"[rlt-data](https://pypi.org/project/rlt-data/) {inline(version)}".rstrip()
        + "."
    )


def _loading(facts: Facts) -> str:
    second = next((config.name for config in facts.configs if config.name.startswith(("rank", "bucket"))), None)
    lines = ["from datasets import load_dataset", "", f'selection = load_dataset("{facts.name}", split="train")']
    if second:
        lines.append(f'others = load_dataset("{facts.name}", "{second}", split="train")')
    return f"{_load_table(facts)}\n\n{fenced(chr(10).join(lines), 'python')}"


def _load_table(facts: Facts) -> str:
    return table(
        [
            {"configuration": code(each.name), "rows": sum(each.rows.values()), "what it holds": _holds(each, facts)}
            for each in facts.configs
        ]
    )


_HOLDS = {
    "traces": "every trace with its question, scores and rank",
    "questions": "the questions and their solutions",
    "scores": "every score with all its terms",
    "ranks": "the rank of every scored trace",
}


def _holds(config: Config, facts: Facts) -> str:
    kind, _, number = config.name.partition("_")
    if config.name == "default":
        return f"the selection, {code('--select ' + str(facts.distilled['settings']['select']))}"
    if config.name == "traces" and "token_ids" in config.schema.names:
        return "every trace with its tokens and their log-probs"
    return _HOLDS.get(config.name) or f"well-formed traces of {kind} {int(number)} (1 is the best)"


def _making(facts: Facts) -> str:
    steps, distilled = facts.steps, redact_paths(dict(facts.distilled))
    lines = [_command(step, steps[step].get("settings", {})) for step in STAGES if step in steps]
    lines.append(_command("distill", distilled["settings"]))
    score = steps.get("score", {})
    settings, format_hash = score.get("settings", {}), score.get("format_hash")
    sampled = steps.get("generate", {}).get("settings", {})
    sampling = ", ".join(
        f"{key.replace('_', '-')} {inline(sampled[key])}" for key in _SAMPLING if sampled.get(key) is not None
    )
    reward = ", ".join(f"{word} {inline(settings[key])}" for key, word in _REWARD.items() if key in settings)
    return paragraphs(
        fenced("\n".join(lines), "sh"),
        _models_table(_models(facts)),
        f"Sampling: {sampling}." if sampling else "",
        f"Reward: {reward}." if reward else "",
        f"Format: {code(distilled['format']['name'])}, {code(format_hash)}." if format_hash else "",
        versions_line(score.get("versions", {})),
        "`rlt-data.json` in this repository holds all settings, prompts and versions.",
    )


def _models(facts: Facts) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for step in facts.steps.values():
        found |= step.get("models") or {} if isinstance(step, dict) else {}
    return found


def _models_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    return table(
        [
            {"role": inline(role), "model": code(model["name"]), "revision": inline(model.get("revision") or ""),
             "weights": code(model["weights"]), "arithmetic": inline(model["dtype"])}
            for role, model in models.items()
        ]
    )  # fmt: skip


def _command(step: str, settings: Mapping[str, Any]) -> str:
    """Return the command line of a step, without flags that say what is said anyway."""
    fields = STEPS[step].settings.model_fields
    usual = {field.alias or name: field.default for name, field in fields.items()}
    places = {"in": "RUN" if STEPS[step].reads else "questions.jsonl", "out": None}
    said = {key: value for key, value in settings.items() if value != usual.get(key) and value not in ([], "")}
    return command_line(step, places | said | places)


def _figures(facts: Facts) -> str:
    counts, stats = facts.distilled["counts"], facts.stats
    selection = (
        f"In the selection: {counts['rows']:,} rows of {counts['questions']:,} questions, "
        f"{counts['mean_thought_tokens']:.1f} tokens an explanation."
    )
    if stats is None:
        return selection
    rows = ", ".join(f"{count:,} {name}" for name, count in stats.rows.items() if count)
    shares = ", ".join(f"{flag.replace('_', ' ')} {share:.1%}" for flag, share in stats.shares.items())
    reasons = ", ".join(f"{inline(reason)} {count:,}" for reason, count in stats.finish_reasons.items())
    return paragraphs(
        selection,
        f"In the run: {rows}; {stats.completion_tokens:,} sampled tokens.",
        f"Traces ended by: {reasons}." if reasons else "",
        f"Of the scored traces: {shares}." if shares else "",
        table(stats.buckets.to_dicts()),
        table([row | {"term": code(row["term"])} for row in stats.terms.to_dicts()]),
        images(facts.images),
    )


def _left_out(facts: Facts) -> str:
    read = facts.steps.get("input", {})
    counts = facts.distilled["counts"]
    failed = facts.stats.failed if facts.stats else {}
    rows = {
        "input rows that could not be used": read.get("bad_rows", 0),
        "input rows that were there twice": read.get("duplicates", 0),
        **{f"rows that failed in {inline(step)}": count for step, count in failed.items()},
        "chosen traces that are not well-formed": counts.get("malformed", 0),
        "traces that are too long": counts.get("too_long", 0),
        "questions without a row in the selection": counts.get("without_row", 0),
    }
    return paragraphs(
        table([{"what": what, "rows": count} for what, count in rows.items()]),
        "The questions were not checked against any benchmark by rlt-data.",
    )


def _samples(facts: Facts) -> str:
    return "\n\n".join(
        f"<details>\n<summary>{what}: reward {sample['reward']:.3f}, {sample['thought_tokens']} tokens</summary>\n\n"
        f"Question\n\n{_sample(sample['question'])}\n\nExplanation\n\n{_sample(sample['completion'])}\n\n"
        f"Solution\n\n{_sample(sample['solution'])}\n\n</details>"
        for what, sample in facts.samples.items()
    )


def _sample(text: str) -> str:
    return fenced(text if len(text) <= _LONGEST_SAMPLE else text[:_LONGEST_SAMPLE] + " […]", "text")


def _training(facts: Facts) -> str:
    command = fenced(f"rlt-data train-student --model STUDENT --in {facts.name} --out student", "sh")
    shape = code(facts.distilled["settings"]["shape"])
    return f"{command}\n\nThe rows are in the shape {shape}, which TRL's `SFTTrainer` takes as it is."
