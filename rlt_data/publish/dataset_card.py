"""The card of a data set: its contents, columns, statistics and limits; provenance.py writes how it was made.

The facts come from run.json and the tables of the run. Without the run, for a folder that ``distill`` wrote, they come
from distill.json alone (facts.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCardData

from rlt_data.publish.card import CITATION, data_files, licence_text, versions_line
from rlt_data.publish.facts import DatasetFacts, correct_counts, first_row
from rlt_data.publish.markdown import (
    MAX_EXCERPT_CHARS,
    code,
    cut,
    excerpt,
    fenced,
    images,
    inline,
    joined,
    listed,
    paragraphs,
    table,
)
from rlt_data.publish.origins import origins_table
from rlt_data.publish.provenance import models_table, provenance, sources, step_command
from rlt_data.publish.tables import Config
from rlt_data.signals.registry import MEANINGS as SIGNAL_MEANINGS
from rlt_data.steps import export_shapes
from rlt_data.storage import columns

_WHOLE_TEXT = (
    "By default its loss covers the complete conversation; with the layout `prompt-completion` it covers the "
    "assistant's turn."
)
_SYSTEM_TURN = "The chat template of the student must accept the system message."
_PAPER = "https://arxiv.org/abs/2506.08388"
_TAGS = ("rlt-data", "reasoning", "distillation", "reinforcement-learned-teachers")
#: The Hub's size categories, by their upper bound.
_SIZES = {
    10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M", 10**8: "10M<n<100M",
}  # fmt: skip


def dataset_metadata(facts: DatasetFacts) -> dict[str, Any]:
    """Return the metadata of a data set's card."""
    rows = _main_config(facts).row_count
    sizes = [size for bound, size in _SIZES.items() if rows < bound]
    data = DatasetCardData(
        pretty_name=facts.title,
        language=list(facts.language) or None,
        license=facts.licence,
        task_categories=["text-generation"],
        size_categories=sizes[:1] or ["n>100M"],
        source_datasets=[entry["name"] for entry in facts.inputs if entry["on_hub"]] or None,
        tags=["synthetic", *_TAGS] if "generate" in facts.steps else list(_TAGS),
        configs=[_config_entry(config) for config in facts.configs],
        dataset_info=[_dataset_info(config) for config in facts.configs],
    )
    return dict(data.to_dict())  # type: ignore[no-untyped-call]


def _main_config(facts: DatasetFacts) -> Config:
    """Return the configuration ``default``; on the branch of a stage, the last one."""
    return next((config for config in facts.configs if config.name == "default"), facts.configs[-1])


def _config_entry(config: Config) -> dict[str, Any]:
    default = {"default": True} if config.name == "default" else {}
    return {"config_name": config.name, **default, "data_files": data_files(config.name, config.splits)}


def _dataset_info(config: Config) -> dict[str, Any]:
    from datasets import DatasetInfo, Features
    from datasets.splits import SplitDict, SplitInfo

    splits = {
        split: SplitInfo(split, num_bytes=config.sizes[split], num_examples=rows)
        for split, rows in config.splits.items()
    }
    info = DatasetInfo(
        features=Features.from_arrow_schema(config.schema),
        splits=SplitDict(splits),
        download_size=sum((config.folder / name).stat().st_size for name in config.rows),
        dataset_size=sum(config.sizes.values()),
    )
    return {"config_name": config.name, **info._to_yaml_dict()}


def dataset_text(facts: DatasetFacts) -> str:
    """Return the generated block of a data set's card."""
    return joined(
        {
            "": _introduction(facts),
            "How to load it": _loading(facts),
            "Columns": _columns(facts),
            "A row": _row(facts),
            "How it was made": paragraphs(provenance(facts), origins_table(facts.distilled["counts"], facts.stats)),
            "Statistics": _statistics(facts),
            "Selection": _selection(facts),
            "Rows left out": _left_out(facts),
            "Limits": _limits(facts),
            "Examples": _examples(facts),
            "How to train on it": _training(facts),
            "Licence": licence_text(facts.licence, "The questions and the models have separate licences."),
            "Citation": fenced(CITATION, "bibtex"),
        }
    )


def stage_text(facts: DatasetFacts, stage: str, main: str) -> str:
    """Return the generated block of the card on the branch of a stage.

    Args:
        facts: the facts of the branch.
        stage: the step that wrote the tables.
        main: the branch of the data set.
    """
    entry = facts.steps.get(stage, {})
    entries = [one for one in (facts.makers if stage == "generate" else [entry]) if one.get("settings")]
    models = entry.get("models") or {}
    if stage == "generate":
        models |= {f"teacher {number}": teacher for number, teacher in enumerate(facts.teachers[1:], 2)}
    settings = [
        {"setting": code(key), "value": code(value)}
        for key, value in entry.get("settings", {}).items()
        if key not in ("in", "out") and value is not None
    ]
    names = " and ".join(f"`{config.name}`" for config in facts.configs)
    return joined(
        {
            "": f"# {inline(facts.title)}: {stage}\n\nThis branch has the complete tables of the step `{stage}`: "
            f"{names}. The branch {code(main)} has the data set that was made from them, and its card.",
            "How to load it": _config_table(facts)
            + "\n\n"
            + fenced(
                "from datasets import load_dataset\n\n"
                f'rows = load_dataset("{facts.name}", "{facts.configs[-1].name}", revision="{stage}", split="train")',
                "python",
            ),
            "Columns": paragraphs(*(_folded_columns(config, facts) for config in facts.configs)),
            "How it was made": paragraphs(
                sources(facts) if stage == "generate" else "",
                fenced("\n".join(step_command(stage, one["settings"], facts) for one in entries), "sh")
                if entries
                else "",
                models_table(models),
                table(settings),
                versions_line(entry.get("versions", {})),
            ),
        }
    )


def _introduction(facts: DatasetFacts) -> str:
    counts = facts.distilled["counts"]
    version = facts.steps.get("score", {}).get("versions", {}).get("rlt-data", "")
    explanation = "an explanation"
    names = [code(teacher["name"]) for teacher in facts.teachers]
    if len(names) == 1:
        explanation += f" by {names[0]}, a teacher model that saw both"
    elif names:
        explanation += f" by one of the teacher models {listed(names)}, which saw both"
    if names and facts.has_imports:
        explanation += ", or imported from another source"
    return (
        f"# {inline(facts.title)}\n\nQuestions with known solutions, each with {explanation}. {_ranking(facts)} The "
        f"default configuration has the {counts['rows']:,} selected explanations, ready for fine-tuning a student.\n\n"
        f"{paragraphs(sources(facts), f'Made with rlt-data {inline(version)}'.rstrip() + '.')}"
    )


def _ranking(facts: DatasetFacts) -> str:
    """Return a sentence about the number that the explanations are ranked by."""
    models = facts.models
    student = code(models["student"]["name"]) if "student" in models else "a student model"
    settings = facts.steps.get("rank", {}).get("settings", {})
    by = settings.get("by", "reward")
    method = f"Reinforcement-Learned Teachers ([arXiv 2506.08388]({_PAPER}))"
    if by != "reward":
        meaning = columns.MEANINGS.get(by, "an expression over the columns of the configuration traces")
        return (
            f"The explanations are ranked by {code(by)}: {inline(meaning.partition(';')[0])}. The method is {method}."
        )
    if facts.reward != "rlt":
        return (
            f"The explanations are ranked by the reward function {code(facts.reward)}, not by the reward of {method}, "
            "whose terms are columns of the data set."
        )
    return (
        f"The score of an explanation says how much it helps {student} to predict the solution: the dense reward of "
        f"{method}{_weights(settings)}."
    )


def _weights(settings: Mapping[str, Any]) -> str:
    """Return the weights that ``rank`` computed the reward with, if it did."""
    weights = [f"{name} = {settings[name]:g}" for name in ("lambda", "alpha") if settings.get(name) is not None]
    return f", computed with {listed(weights)}" if weights else ""


def _loading(facts: DatasetFacts) -> str:
    default = _main_config(facts)
    lines = ["from datasets import load_dataset", "", f'rows = load_dataset("{facts.name}", split="train")']
    held_out = ""
    if "test" in default.splits:
        lines.append(f'held_out = load_dataset("{facts.name}", split="test")')
        counts = facts.distilled["counts"]
        unsplit = "; the other configurations contain these questions too" if len(facts.configs) > 1 else ""
        held_out = (
            f"The split `test` of `default` has the {counts['held_out']:,} rows of {counts['held_out_questions']:,} "
            f"randomly drawn questions. The split `train` has no row of these questions{unsplit}."
        )
    ranked = next((config.name for config in facts.configs if config.name.startswith(("rank", "bucket"))), None)
    if ranked in ("ranks", "buckets"):
        lines.append(f'ranked = load_dataset("{facts.name}", "{ranked}", split="train")')
        lines.append(f'best = ranked.filter(lambda row: row["{ranked[:-1]}"] == 1)')
    elif ranked:
        lines.append(f'best = load_dataset("{facts.name}", "{ranked}", split="train")')
    return paragraphs(_config_table(facts), held_out, fenced("\n".join(lines), "python"))


def _config_table(facts: DatasetFacts) -> str:
    return table(
        [
            {"configuration": code(config.name), "rows": config.row_count, "content": _content(config, facts)}
            for config in facts.configs
        ]
    )


_CONTENTS = {
    "traces": "all traces, with questions, scores and ranks",
    "questions": "the questions and their solutions",
    "scores": "the score of each trace, with all its terms",
    "ranks": "the rank of each scored trace",
}


def _content(config: Config, facts: DatasetFacts) -> str:
    kind, _, number = config.name.partition("_")
    if config.name == "default":
        return f"the selected traces ({code('--select ' + str(facts.distilled['settings']['select']))})"
    if config.name == "traces" and "token_ids" in config.schema.names:
        return "all traces, with token ids and log-probs"
    if config.name in ("ranks", "buckets") and _main_config(facts).name == "default":
        return f"well-formed traces of all {config.name}; the column {code(kind[:-1])} has the number, 1 is the best"
    if config.name in _CONTENTS:
        return _CONTENTS[config.name]
    best = ", the best" if int(number) == 1 else ""
    return f"well-formed traces of {kind} {int(number)}{best}"


def _columns(facts: DatasetFacts) -> str:
    """Explain the columns of ``default``, which the ranks and buckets share, and those of ``traces``."""
    by_name = {config.name: config for config in facts.configs}
    default = by_name["default"].schema
    others = [name for name in by_name if name not in ("default", "traces")]
    note = " and of " + " to ".join(code(name) for name in dict.fromkeys([others[0], others[-1]])) if others else ""
    more = [name for name in by_name[others[0]].schema.names if name not in default.names] if others else []
    note += f", which also has {listed([code(name) for name in more])}" if more else ""
    return paragraphs(
        f"Columns of {code('default')}{note}:",
        _column_table(default, facts, facts.distilled.get("columns", {}) | export_shapes.MEANINGS),
        _folded_columns(by_name["traces"], facts) if "traces" in by_name else "",
    )


def _folded_columns(config: Config, facts: DatasetFacts) -> str:
    summary = f"<details>\n<summary>Columns of {config.name}</summary>"
    return f"{summary}\n\n{_column_table(config.schema, facts)}\n\n</details>"


def _column_table(schema: pa.Schema, facts: DatasetFacts, more: Mapping[str, str] | None = None) -> str:
    """Explain columns.

    Args:
        schema: the columns.
        facts: name the reward function.
        more: meanings that differ from those of a run's tables.
    """
    known = columns.MEANINGS | SIGNAL_MEANINGS | dict(more or {})
    meanings = {name: inline(known.get(name, "column of a user-defined signal")) for name in schema.names}
    if facts.reward != "rlt":
        meanings["reward"] = f"value of the reward function {code(facts.reward)}"
    return table([{"column": code(name), "meaning": meanings[name]} for name in schema.names])


def _row(facts: DatasetFacts) -> str:
    """Show one row as JSON."""
    whole = first_row(_main_config(facts))
    row = _with_cut_texts(whole)
    note = "" if row == whole else f" Texts longer than {MAX_EXCERPT_CHARS:,} characters are cut at `[…]`."
    text = json.dumps(row, indent=2, ensure_ascii=False)
    return f"The first row of {code('default')}:{note}\n\n{fenced(text, 'json')}"


def _with_cut_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_cut_texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_cut_texts(item) for item in value]
    return cut(value) if isinstance(value, str) else value


def _statistics(facts: DatasetFacts) -> str:
    counts, stats = facts.distilled["counts"], facts.stats
    selection = (
        f"Selection: {counts['rows']:,} rows from {counts['questions']:,} questions, with "
        f"{counts['mean_thought_tokens']:.1f} tokens per explanation on average."
    )
    correct = _correct(facts)
    if stats is None:
        return paragraphs(selection, *correct)
    rows = ", ".join(f"{count:,} {name}" for name, count in stats.rows.items() if count)
    shares = ", ".join(f"{flag.replace('_', ' ')} {share:.1%}" for flag, share in stats.shares.items())
    reasons = ", ".join(f"{inline(reason)} {count:,}" for reason, count in stats.finish_reasons.items())
    buckets = table(stats.buckets.to_dicts())
    return paragraphs(
        selection,
        *correct,
        f"Run: {rows}; {stats.completion_tokens:,} sampled tokens.",
        f"Finish reasons of the traces: {reasons}." if reasons else "",
        f"Shares of the scored traces: {shares}." if shares else "",
        "Means per bucket, of which bucket 1 is the best:" if buckets else "",
        buckets,
        "Distribution of each term of the score:",
        table([row | {"term": code(row["term"])} for row in stats.terms.to_dicts()]),
        images(facts.images),
    )


def _correct(facts: DatasetFacts) -> list[str]:
    """Return a sentence for each kept column of imported traces that says which traces are correct."""
    if not facts.is_imported:
        return []
    shares: dict[str, list[str]] = {}
    for config in facts.configs:
        if config.name in ("default", "traces"):
            for name, (correct, known) in correct_counts(config).items():
                shares.setdefault(name, []).append(
                    f"{correct / known:.1%} of the {known:,} rows of {code(config.name)} with a value"
                )
    return [
        f"Correct according to the column {code(name)} of the input: {listed(parts)}." for name, parts in shares.items()
    ]


def _selection(facts: DatasetFacts) -> str:
    """Return what each condition dropped; empty for data sets of earlier versions."""
    funnel = facts.distilled.get("funnel", [])
    applied = [
        {"condition": code(step["condition"]), "traces": step["rows_in"], "left": step["rows_out"],
         "questions left": step["questions_out"], "dropped as null": step["unknown"],
         "dropped, for example": ", ".join(code(key) for key in step["examples"])}
        for step in funnel
        if not step["note"]
    ]  # fmt: skip
    notes = [
        f"- {code(step['condition'])}: {inline(step['note'] or step['remark'])}"
        for step in funnel
        if step["note"] or step["remark"]
    ]
    return paragraphs(
        "Traces and questions before and after each condition:" if applied else "",
        table(applied),
        "\n".join(notes),
    )


def _is_applied(facts: DatasetFacts, condition: str) -> bool:
    return any(step["condition"] == condition and not step["note"] for step in facts.distilled.get("funnel", []))


def _left_out(facts: DatasetFacts) -> str:
    read = facts.steps.get("input", {})
    counts = facts.distilled["counts"]
    failed = facts.stats.failed if facts.stats else {}
    rows = {
        "invalid input rows": read.get("bad_rows", 0),
        "duplicate input rows": read.get("duplicates", 0),
        **{f"rows that failed in {inline(step)}": count for step, count in failed.items()},
    }
    if "funnel" not in facts.distilled:
        rows |= {
            "selected traces that are not well-formed": counts.get("malformed", 0),
            "selected traces over the length limit": counts.get("too_long", 0),
            "questions without a row in the selection": counts.get("without_row", 0),
        }
    return table([{"reason": reason, "rows": count} for reason, count in rows.items()])


def _limits(facts: DatasetFacts) -> str:
    reward = (
        " The reward measures how well the student predicts the known solution; it checks neither the\n  steps nor the "
        "final answer of an explanation."
    )
    compared = "rlt-data did not compare the questions with any benchmark (no decontamination)."
    if _is_applied(facts, "contaminated"):
        compared = "Decontamination finds shared texts, not translations or free paraphrases."
    return f"""\
- Explanations can be wrong.{reward if facts.reward == "rlt" else ""}
- Scores depend on the student. Another student can rank the same traces differently.
- {compared}"""


def _examples(facts: DatasetFacts) -> str:
    by = inline(facts.steps.get("rank", {}).get("settings", {}).get("by", "reward"))
    return "\n\n".join(
        f"<details>\n<summary>{which}: {by} {sample['value']:.3f}, {sample['thought_tokens']} tokens</summary>\n\n"
        f"Question\n\n{excerpt(sample['question'])}\n\nExplanation\n\n{excerpt(sample['completion'])}\n\n"
        f"Solution\n\n{excerpt(sample['solution'])}\n\n</details>"
        for which, sample in facts.samples.items()
    )


def _training(facts: DatasetFacts) -> str:
    """Say what trains on the rows, as far as it follows from their columns (tested with TRL 1.16)."""
    row = first_row(_main_config(facts))
    command = fenced(f"rlt-data train-student --model STUDENT --in {facts.name} --out student", "sh")
    layout = f"The rows have the columns of the layout {code(facts.distilled['settings']['shape'])}"
    if "messages" in row or {"prompt", "completion"} <= row.keys():
        turns = row.get("messages") or row.get("prompt")
        first = turns[0] if isinstance(turns, list) and turns else None
        return " ".join(
            [
                f"{command}\n\n{layout}, which TRL's `SFTTrainer` reads.",
                _WHOLE_TEXT if "messages" in row else "Its loss covers the assistant's turn.",
                _SYSTEM_TURN if isinstance(first, dict) and first.get("role") == "system" else "",
            ]
        ).rstrip()
    if "privileged_context" in row:
        return f"{layout}, which TRL's `SDFTTrainer` reads."
    if isinstance(row.get("conversations"), list):
        reason = "ignores the column `system`" if "system" in row else "keeps the roles `human` and `gpt`"
        other = "use the rows of `rlt-data distill --shape prompt-completion` for it"
        return f"{command}\n\n{layout}. TRL's `SFTTrainer` {reason}; {other}."
    return f"{layout}."
