"""The tables of a run, each with an explicit, versioned Arrow schema.

Types are never inferred from data. Token lists are int32, log-probs float32 (as models return them), and reward terms
float64, so that they can be recomputed from each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

#: Version of the schemas and of the folder layout, stored in ``run.json`` and in the metadata of each file.
#: Version 1 has no manifests; versions 1 to 3 lack columns.
FIRST_VERSION, VERSION = 1, 4

#: Part k of each table contains the rows of questions k * 256 to k * 256 + 255, in the order of the questions.
QUESTIONS_PER_PART = 256


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={"rlt_data_version": str(VERSION)})


def _required(name: str, type: pa.DataType) -> pa.Field:
    return pa.field(name, type, nullable=False)


_TOKENS, _LOGPROBS = pa.list_(pa.int32()), pa.list_(pa.float32())

QUESTIONS = _schema(
    _required("question_id", pa.string()),  # hash of question, solution and system
    pa.field("source_id", pa.string()),  # id in the input, or the row number
    _required("question", pa.string()),
    _required("solution", pa.string()),  # empty if it is unknown, or if each trace has its own
    pa.field("system", pa.string()),  # the question's own system text; null: the format's. Older runs lack the column
    pa.field("answer", pa.string()),  # short final answer of the first row with the question, if it has one
    pa.field("meta", pa.string()),  # JSON of the --keep columns, unless the rows are traces
)

TRACES = _schema(
    _required("trace_id", pa.string()),  # hash of everything that made the row
    _required("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _required("sample_index", pa.int32()),  # 0 to n - 1 within the question, for each made_by
    _required("completion", pa.string()),  # raw text after the prefill
    pa.field("finish_reason", pa.string()),  # stop: closing tag; eos: no closing tag; length; null: unknown
    pa.field("token_ids", _TOKENS),  # as sampled; null for imported traces
    pa.field("logprobs", _LOGPROBS),  # of token_ids at logprob_temperature, over the full vocabulary
    pa.field("prefill_token_ids", _TOKENS),  # the prefill's padding before the explanation
    pa.field("prefill_logprobs", _LOGPROBS),
    pa.field("logprob_temperature", pa.float64()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("completion_tokens", pa.int32()),
    pa.field("seed", pa.uint64()),
    pa.field("teacher", pa.string()),  # fingerprint of model and tokenizer; null for imported traces
    _required("made_by", pa.string()),  # hash of the settings
    pa.field("origin", pa.string()),  # who wrote the trace: a model's name, or that of its settings
    pa.field("answer", pa.string()),  # short final answer of the trace's own row; null for generated traces
    pa.field("meta", pa.string()),  # JSON of the --keep columns of its row; null for generated traces
    pa.field("solution", pa.string()),  # the trace's own solution, if its row has one; null: the question's
)

SCORES = _schema(
    _required("trace_id", pa.string()),
    _required("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _required("sample_index", pa.int32()),
    pa.field("reward", pa.float64()),  # null without a teacher, or the value of --reward
    pa.field("reward_without_entropy", pa.float64()),  # null without a solution, as are the solution's terms
    _required("penalty", pa.float64()),
    pa.field("r_ss", pa.float64()),
    pa.field("r_kl", pa.float64()),
    pa.field("solution_logprob_mean", pa.float64()),
    pa.field("solution_logprob_min", pa.float64()),
    pa.field("kl_mean", pa.float64()),
    pa.field("kl_max", pa.float64()),
    _required("thought_tokens", pa.int32()),  # scored tokens of the explanation
    _required("solution_tokens", pa.int32()),
    _required("kl_tokens", pa.int32()),  # number of KL terms; fewer if the tokens of teacher and student differ
    _required("student_tokens", pa.int32()),  # length of the student's complete text
    _required("uncovered_chars", pa.int32()),  # visible characters that share a token with a tag
    pa.field("finish_reason", pa.string()),
    _required("closed", pa.bool_()),  # the closing explanation tag exists
    _required("truncated", pa.bool_()),  # finish_reason is length
    _required("empty", pa.bool_()),  # the explanation has no tokens or only white space
    _required("holds_tag", pa.bool_()),  # the explanation contains a tag of the format
    pa.field("control_token", pa.bool_()),  # question, solution or explanation contain a control token of the student
    _required("well_formed", pa.bool_()),  # closed, not truncated, not empty, no tag or control token inside
    _required("teacher_logprobs", pa.string()),  # trace, computed or none
    pa.field("solution_logprobs", _LOGPROBS),  # per token, with --per-token
    pa.field("solution_offsets", _TOKENS),  # first character of each token, within the solution's content
    pa.field("thought_logprobs", _LOGPROBS),
    pa.field("thought_offsets", _TOKENS),  # within the thought, padding included
    pa.field("thought_kl", _LOGPROBS),  # one value per KL term
    pa.field("kl_offsets", _TOKENS),
    _required("scored_by", pa.string()),  # hash of the settings and of the teacher of the KL
    pa.field("origin", pa.string()),  # of the trace, as is meta
    pa.field("meta", pa.string()),
    # Measures of the explanation under the student at --measure-temperature; docs/measures.md has the formulas.
    pa.field("thought_logprob_mean", pa.float64()),
    pa.field("thought_logprob_min", pa.float64()),
    pa.field("perplexity", pa.float64()),
    pa.field("token_rank_mean", pa.float64()),
    pa.field("rsr", pa.float64()),
    pa.field("surprising_share", pa.float64()),
    pa.field("ifd", pa.float64()),  # this and the rest only with --measures
    pa.field("local_logprob_mean", pa.float64()),
    pa.field("leak_drop", pa.float64()),
)

RANKS = _schema(
    _required("trace_id", pa.string()),
    _required("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _required("sample_index", pa.int32()),
    _required("rank", pa.int32()),  # 1 = best of its question
    _required("traces", pa.int32()),  # number of traces of the question
    pa.field("bucket", pa.int32()),  # 1 = best; with quantiles, null for traces with a flaw or without a value
    pa.field("value", pa.float64()),  # the value that was ranked by
    pa.field("flaw", pa.string()),  # empty, holds tag, control token, truncated or unclosed; null if well-formed
    _required("thought_tokens", pa.int32()),
    _required("scored_by", pa.string()),
    pa.field("origin", pa.string()),  # of the trace, as is meta
    pa.field("meta", pa.string()),
)

THOUGHTS = _schema(
    _required("thought_id", pa.string()),  # hash of everything that made the row
    _required("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _required("sample_index", pa.int32()),
    _required("extension", pa.int32()),  # 0: the first text of the thought
    _required("completion", pa.string()),  # sampled text, with the closing tag that ended it
    pa.field("finish_reason", pa.string()),  # stop: closing tag; eos; length
    pa.field("prompt_tokens", pa.int32()),
    _required("completion_tokens", pa.int32()),
    pa.field("seed", pa.uint64()),
    _required("made_by", pa.string()),
)

ANSWERS = _schema(
    _required("answer_id", pa.string()),  # hash of everything that made the row
    _required("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _required("sample_index", pa.int32()),
    _required("completion", pa.string()),  # raw text
    pa.field("finish_reason", pa.string()),  # stop: closing solution tag; eos: no closing tag; length
    pa.field("prompt_tokens", pa.int32()),
    _required("completion_tokens", pa.int32()),
    pa.field("seed", pa.uint64()),
    _required("made_by", pa.string()),
)

GRADES = _schema(
    _required("answer_id", pa.string()),
    _required("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _required("sample_index", pa.int32()),
    _required("answer", pa.string()),  # final answer extracted from the solution
    _required("correct", pa.bool_()),
    pa.field("note", pa.string()),  # why the answer is wrong, if the grader gives a reason
    _required("formatted", pa.bool_()),  # thought and solution are in their tags
    _required("truncated", pa.bool_()),
    _required("completion_tokens", pa.int32()),
)

SCHEMAS = {
    "questions": QUESTIONS,
    "traces": TRACES,
    "scores": SCORES,
    "ranks": RANKS,
    "thoughts": THOUGHTS,
    "answers": ANSWERS,
    "grades": GRADES,
}

#: The key column of each table, unique within the table.
KEYS = {
    "questions": "question_id",
    "traces": "trace_id",
    "scores": "trace_id",
    "ranks": "trace_id",
    "thoughts": "thought_id",
    "answers": "answer_id",
    "grades": "answer_id",
}


def content_hash(*parts: Any) -> str:
    """Return a hash of JSON-serialisable parts as 32 hex digits, equal in every process and version."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


#: First part of the name of a signal's table.
SIGNAL_PREFIX = "signal_"

#: Types of the columns of signals, by their names in run.json.
SIGNAL_TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}


def signal_schema(level: str, columns: Mapping[str, str]) -> pa.Schema:
    """Return the schema of a signal's table.

    Args:
        level: ``trace`` or ``question``.
        columns: types of the columns by name, as in :data:`SIGNAL_TYPES`.
    """
    keys = [_required("question_id", pa.string())]
    if level == "trace":
        keys = [_required("trace_id", pa.string()), *keys, _required("sample_index", pa.int32())]
    return _schema(*keys, *(pa.field(name, SIGNAL_TYPES[type]) for name, type in columns.items()))


#: The step that makes each table, as named in run.json.
MADE_BY = {
    "questions": "generate",  # or another step that reads the input
    "traces": "generate",
    "scores": "score",
    "ranks": "rank",
    "thoughts": "evaluate",
    "answers": "evaluate",
    "grades": "evaluate",
}

#: The table that each step appends rows to. Failed rows are in errors.jsonl under the name of the step.
TABLE_OF_STEP = {MADE_BY[table]: table for table in ("traces", "scores", "answers")}


def to_table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Return an Arrow table with the schema of a table of the run. Missing columns are null."""
    return pa.Table.from_pylist(rows, schema=SCHEMAS[name])
