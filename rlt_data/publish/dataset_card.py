"""The card of a data set: its contents, columns, provenance, statistics and limits.

The facts come from run.json and the tables of the run. Without the run, for a folder that ``distill`` wrote, they come
from distill.json alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa

from rlt_data.publish.card import CITATION, Licence, command_line, data_files, licence_text, versions_line
from rlt_data.publish.markdown import code, fenced, images, inline, joined, paragraphs, table
from rlt_data.publish.origins import origins_table
from rlt_data.publish.redact import redact_paths
from rlt_data.publish.tables import STAGES, Config
from rlt_data.statistics import MEANINGS, Stats
from rlt_data.steps.registry import STEPS
from rlt_data.storage.run import RunFolder

_TAGS = ("rlt-data", "reasoning", "distillation", "reinforcement-learned-teachers")
#: The Hub's size categories, by their upper bound.
_SIZES = {
    10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M", 10**8: "10M<n<100M",
}  # fmt: skip
#: Characters of a text in an example.
_MAX_EXAMPLE_CHARS = 4000
_SAMPLING = ("n", "temperature", "top_p", "top_k", "max_tokens", "seed")
_REWARD = {
    "lambda": "λ",
    "alpha": "α",
    "kl": "KL estimate",
    "temperature": "temperature",
    "missing_tag_penalty": "penalty",
}

#: What the columns of the published tables mean, in one line.
_COLUMNS = {
    **MEANINGS,
    "messages": "conversation to train on: system prompt, question, and the assistant's turn, which has the "
    "explanation as its thought and then the solution",
    "prompt": "chat turns before the assistant's: system prompt and question",
    "conversations": "conversation to train on: question, and the assistant's turn, which has the explanation as its "
    "thought and then the solution",
    "system": "system prompt",
    "question_id": "key of the question: hash of question and solution",
    "trace_id": "key of the trace: hash of everything that shaped it",
    "source_id": "id of the question in the input, or its row number",
    "question": "the question",
    "solution": "the known solution, which the teacher saw",
    "answer": "short final answer, if the input has one",
    "meta": "JSON of the input columns kept with --keep: of the trace in tables of traces, else of the question",
    "question_meta": "JSON of the question's input columns kept with --keep",
    "sample_index": "number of the sample within its question, from 0",
    "completion": "text that the teacher wrote",
    "token_ids": "sampled tokens; null for imported traces",
    "logprobs": "log-probs of token_ids under the teacher",
    "prefill_token_ids": "tokens of the padding that the prompt put before the explanation",
    "prefill_logprobs": "log-probs of prefill_token_ids under the teacher",
    "logprob_temperature": "temperature of the stored log-probs",
    "prompt_tokens": "length of the teacher's prompt in tokens",
    "seed": "random seed of the sample",
    "teacher": "hash of the teacher's weights and tokenizer; null for imported traces",
    "made_by": "hash of the settings that made the trace",
    "kl_tokens": "number of KL values: fewer than tokens if teacher and student tokenize differently",
    "student_tokens": "length of the student's complete text in tokens",
    "uncovered_chars": "visible characters without a value, because they share a token with a tag",
    "teacher_logprobs": "source of the teacher's log-probs: trace, computed or none",
    "solution_logprobs": "log-prob of each token of the solution under the student",
    "solution_offsets": "first character of each token of the solution",
    "thought_logprobs": "log-prob of each token of the explanation under the student",
    "thought_offsets": "first character of each token of the explanation, padding included",
    "thought_kl": "KL between teacher and student at each token of the explanation",
    "kl_offsets": "first character of each KL value",
    "scored_by": "hash of the settings of the score",
    "traces": "number of traces of the question",
}
_TRAINED_COMPLETION = "the assistant's turn: the explanation as its thought, then the solution"


@dataclass(frozen=True)
class DatasetFacts:
    """The facts on a data set's card.

    Attributes:
        name: the repository, ``ORG/NAME``.
        title: the title of the data set.
        configs: its configurations.
        distilled: the content of distill.json.
        stats: the statistics of the run; None without the run.
        licence: the licence that the publisher declares.
        samples: the best and the worst trace, each with question, solution, completion, reward and length.
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
        """The recorded entries of the steps, without local paths."""
        return dict(redact_paths(self.stats.steps if self.stats else self.distilled["steps"]))


def best_and_worst(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the well-formed traces with the largest and the smallest value, with their texts; empty if none exist."""
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


def dataset_metadata(facts: DatasetFacts) -> dict[str, Any]:
    """Return the metadata of a data set's card."""
    rows = sum(sum(config.rows.values()) for config in facts.configs)
    sizes = [size for bound, size in _SIZES.items() if rows < bound]
    data: dict[str, Any] = {
        "pretty_name": facts.title,
        "task_categories": ["text-generation"],
        "tags": list(_TAGS),
        "size_categories": sizes[:1] or ["n>100M"],
        "configs": [_config_entry(config) for config in facts.configs],
        "dataset_info": [_dataset_info(config) for config in facts.configs],
    }
    return data | ({"license": facts.licence} if facts.licence else {})


def _config_entry(config: Config) -> dict[str, Any]:
    default = {"default": True} if config.name == "default" else {}
    return {"config_name": config.name, **default, "data_files": data_files(config.name)}


def _dataset_info(config: Config) -> dict[str, Any]:
    from datasets import DatasetInfo, Features
    from datasets.splits import SplitDict, SplitInfo

    file_bytes = sum((config.folder / name).stat().st_size for name in config.rows)
    split = SplitInfo("train", num_bytes=config.size, num_examples=sum(config.rows.values()))
    info = DatasetInfo(
        features=Features.from_arrow_schema(config.schema),
        splits=SplitDict({"train": split}),
        download_size=file_bytes,
        dataset_size=config.size,
    )
    return {"config_name": config.name, **info._to_yaml_dict()}


def dataset_text(facts: DatasetFacts) -> str:
    """Return the generated block of a data set's card."""
    return joined(
        {
            "": _introduction(facts),
            "How to load it": _loading(facts),
            "Columns": _columns(facts),
            "How it was made": paragraphs(_provenance(facts), origins_table(facts.distilled["counts"], facts.stats)),
            "Statistics": _statistics(facts),
            "Rows left out": _left_out(facts),
            "Limits": _LIMITS,
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
            "Columns": paragraphs(*(_folded_columns(config) for config in facts.configs)),
            "How it was made": paragraphs(
                fenced(_command(stage, entry["settings"]), "sh") if entry.get("settings") else "",
                _models_table(entry.get("models") or {}),
                table(settings),
                versions_line(entry.get("versions", {})),
            ),
        }
    )


def _introduction(facts: DatasetFacts) -> str:
    models = _models(facts)
    student = code(models["student"]["name"]) if "student" in models else "a student model"
    counts = facts.distilled["counts"]
    version = facts.steps.get("score", {}).get("versions", {}).get("rlt-data", "")
    made_with = f"Made with [rlt-data](https://pypi.org/project/rlt-data/) {inline(version)}".rstrip()
    explanation = "an explanation"
    if teacher := (facts.steps.get("generate", {}).get("models") or {}).get("teacher"):
        explanation += f" by {code(teacher['name'])}, a teacher model that saw both"
    return (
        f"# {inline(facts.title)}\n\nQuestions with known solutions, each with {explanation}. The score of an "
        f"explanation says how much it helps {student} to predict the solution: the dense reward of "
        "Reinforcement-Learned Teachers ([arXiv 2506.08388](https://arxiv.org/abs/2506.08388)). The default "
        f"configuration has the {counts['rows']:,} selected explanations, ready for fine-tuning a student.\n\n"
        f"{made_with}."
    )


def _loading(facts: DatasetFacts) -> str:
    ranked = next((config.name for config in facts.configs if config.name.startswith(("rank", "bucket"))), None)
    lines = ["from datasets import load_dataset", "", f'rows = load_dataset("{facts.name}", split="train")']
    if ranked:
        lines.append(f'best = load_dataset("{facts.name}", "{ranked}", split="train")')
    return f"{_config_table(facts)}\n\n{fenced(chr(10).join(lines), 'python')}"


def _config_table(facts: DatasetFacts) -> str:
    return table(
        [
            {"configuration": code(config.name), "rows": sum(config.rows.values()), "content": _content(config, facts)}
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
    if config.name in _CONTENTS:
        return _CONTENTS[config.name]
    best = ", the best" if int(number) == 1 else ""
    return f"well-formed traces of {kind} {int(number)}{best}"


def _columns(facts: DatasetFacts) -> str:
    """Explain the columns of ``default``, which the ranks and buckets share, and those of ``traces``."""
    by_name = {config.name: config for config in facts.configs}
    others = [name for name in by_name if name not in ("default", "traces")]
    note = f" and of {code(others[0])} to {code(others[-1])}" if others else ""
    return paragraphs(
        f"Columns of {code('default')}{note}:",
        _column_table(by_name["default"].schema),
        _folded_columns(by_name["traces"]) if "traces" in by_name else "",
    )


def _folded_columns(config: Config) -> str:
    summary = f"<details>\n<summary>Columns of {config.name}</summary>"
    return f"{summary}\n\n{_column_table(config.schema)}\n\n</details>"


def _column_table(schema: pa.Schema) -> str:
    return table([{"column": code(column.name), "meaning": inline(meaning_of(column))} for column in schema])


def meaning_of(column: pa.Field) -> str:
    """Return one line on what a column of a published table holds; empty for columns of other origin."""
    if column.name == "completion" and pa.types.is_list(column.type):
        return _TRAINED_COMPLETION
    return _COLUMNS.get(column.name, "")


def _provenance(facts: DatasetFacts) -> str:
    steps, distilled = facts.steps, redact_paths(dict(facts.distilled))
    commands = [_command(step, steps[step].get("settings", {})) for step in STAGES if step in steps]
    commands.append(_command("distill", distilled["settings"]))
    score = steps.get("score", {})
    settings, format_hash = score.get("settings", {}), score.get("format_hash")
    sampled = steps.get("generate", {}).get("settings", {})
    sampling = ", ".join(
        f"{key.replace('_', '-')} {inline(sampled[key])}" for key in _SAMPLING if sampled.get(key) is not None
    )
    weights = ", ".join(f"{symbol} {inline(settings[key])}" for key, symbol in _REWARD.items() if key in settings)
    return paragraphs(
        fenced("\n".join(commands), "sh"),
        _models_table(_models(facts)),
        f"Sampling settings: {sampling}." if sampling else "",
        f"Reward: `r_ss - λ * r_kl + penalty`, with {weights}." if weights else "",
        f"Prompt format: {code(distilled['format']['name'])}, hash {code(format_hash)}." if format_hash else "",
        versions_line(score.get("versions", {})),
        "`rlt-data.json` in this repository has all settings, prompts and versions.",
    )


def _models(facts: DatasetFacts) -> dict[str, dict[str, Any]]:
    models: dict[str, dict[str, Any]] = {}
    for step in facts.steps.values():
        models |= step.get("models") or {} if isinstance(step, dict) else {}
    return models


def _models_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    return table(
        [
            {"role": inline(role), "model": code(model["name"]), "revision": inline(model.get("revision") or ""),
             "hash of the weights": code(model["weights"]), "dtype": inline(model["dtype"])}
            for role, model in models.items()
        ]
    )  # fmt: skip


def _command(step: str, settings: Mapping[str, Any]) -> str:
    """Return the command line of a step, without flags that have their default value."""
    fields = STEPS[step].settings.model_fields
    defaults = {field.alias or name: field.default for name, field in fields.items()}
    paths = {"in": "RUN" if STEPS[step].reads else "questions.jsonl", "out": None}
    changed = {key: value for key, value in settings.items() if value != defaults.get(key) and value not in ([], "")}
    return command_line(step, paths | changed | paths)


def _statistics(facts: DatasetFacts) -> str:
    counts, stats = facts.distilled["counts"], facts.stats
    selection = (
        f"Selection: {counts['rows']:,} rows from {counts['questions']:,} questions, with "
        f"{counts['mean_thought_tokens']:.1f} tokens per explanation on average."
    )
    if stats is None:
        return selection
    rows = ", ".join(f"{count:,} {name}" for name, count in stats.rows.items() if count)
    shares = ", ".join(f"{flag.replace('_', ' ')} {share:.1%}" for flag, share in stats.shares.items())
    reasons = ", ".join(f"{inline(reason)} {count:,}" for reason, count in stats.finish_reasons.items())
    buckets = table(stats.buckets.to_dicts())
    return paragraphs(
        selection,
        f"Run: {rows}; {stats.completion_tokens:,} sampled tokens.",
        f"Finish reasons of the traces: {reasons}." if reasons else "",
        f"Shares of the scored traces: {shares}." if shares else "",
        "Means per bucket, of which bucket 1 is the best:" if buckets else "",
        buckets,
        "Distribution of each term of the score:",
        table([row | {"term": code(row["term"])} for row in stats.terms.to_dicts()]),
        images(facts.images),
    )


def _left_out(facts: DatasetFacts) -> str:
    read = facts.steps.get("input", {})
    counts = facts.distilled["counts"]
    failed = facts.stats.failed if facts.stats else {}
    rows = {
        "invalid input rows": read.get("bad_rows", 0),
        "duplicate input rows": read.get("duplicates", 0),
        **{f"rows that failed in {inline(step)}": count for step, count in failed.items()},
        "selected traces that are not well-formed": counts.get("malformed", 0),
        "selected traces over the length limit": counts.get("too_long", 0),
        "questions without a row in the selection": counts.get("without_row", 0),
    }
    return table([{"reason": reason, "rows": count} for reason, count in rows.items()])


_LIMITS = """\
- Explanations can be wrong. The reward measures how well the student predicts the known solution; it checks neither the
  steps nor the final answer of an explanation.
- Scores depend on the student. Another student can rank the same traces differently.
- rlt-data did not compare the questions with any benchmark (no decontamination)."""


def _examples(facts: DatasetFacts) -> str:
    return "\n\n".join(
        f"<details>\n<summary>{which}: reward {sample['reward']:.3f}, {sample['thought_tokens']} tokens</summary>\n\n"
        f"Question\n\n{_example_text(sample['question'])}\n\nExplanation\n\n{_example_text(sample['completion'])}\n\n"
        f"Solution\n\n{_example_text(sample['solution'])}\n\n</details>"
        for which, sample in facts.samples.items()
    )


def _example_text(text: str) -> str:
    return fenced(text if len(text) <= _MAX_EXAMPLE_CHARS else text[:_MAX_EXAMPLE_CHARS] + " […]", "text")


def _training(facts: DatasetFacts) -> str:
    command = fenced(f"rlt-data train-student --model STUDENT --in {facts.name} --out student", "sh")
    shape = code(facts.distilled["settings"]["shape"])
    return f"{command}\n\nThe rows have the columns of the layout {shape}, which TRL's `SFTTrainer` reads unchanged."
