"""The tables of a run: one explicit, versioned Arrow schema each.

Types are never inferred from data. Token lists are int32, log-probs float32 (what models give), reward terms float64
(so that they can be recomputed from one another).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

#: Version of the schemas and of the folder layout; kept in ``run.json`` and in each file's metadata. Version 1 had no
#: manifests.
VERSION = 2

#: Part k of every table holds the rows of the questions k * 256 to k * 256 + 255, in the order of the questions.
QUESTIONS_PER_PART = 256


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={"rlt_data_version": str(VERSION)})


def _needed(name: str, type: pa.DataType) -> pa.Field:
    return pa.field(name, type, nullable=False)


_TOKENS, _LOGPROBS = pa.list_(pa.int32()), pa.list_(pa.float32())

QUESTIONS = _schema(
    _needed("question_id", pa.string()),  # hash of question and solution
    pa.field("source_id", pa.string()),  # the input's id, or its row number
    _needed("question", pa.string()),
    _needed("solution", pa.string()),
    pa.field("answer", pa.string()),  # short final answer, where the source has one
    pa.field("meta", pa.string()),  # JSON of the columns named by --keep, where the rows hold no traces
)

TRACES = _schema(
    _needed("trace_id", pa.string()),  # hash of all that made it
    _needed("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _needed("sample_index", pa.int32()),  # 0 to n - 1 within the question
    _needed("completion", pa.string()),  # raw text after the prefill
    pa.field("finish_reason", pa.string()),  # stop: closing tag; eos: ended without it; length; null: not known
    pa.field("token_ids", _TOKENS),  # as sampled; null for imported traces
    pa.field("logprobs", _LOGPROBS),  # of token_ids at logprob_temperature, over the whole vocabulary
    pa.field("prefill_token_ids", _TOKENS),  # tokens of the padding that the prefill put before the explanation
    pa.field("prefill_logprobs", _LOGPROBS),
    pa.field("logprob_temperature", pa.float64()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("completion_tokens", pa.int32()),
    pa.field("seed", pa.uint64()),
    pa.field("teacher", pa.string()),  # fingerprint of model and tokenizer; null for imported traces
    _needed("made_by", pa.string()),  # hash of the settings that made it
    pa.field("meta", pa.string()),  # JSON of the columns named by --keep; null for generated traces
)

SCORES = _schema(
    _needed("trace_id", pa.string()),
    _needed("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _needed("sample_index", pa.int32()),
    pa.field("reward", pa.float64()),  # null where there was no teacher
    _needed("reward_without_entropy", pa.float64()),
    _needed("penalty", pa.float64()),
    _needed("r_ss", pa.float64()),
    pa.field("r_kl", pa.float64()),
    _needed("solution_logprob_mean", pa.float64()),
    _needed("solution_logprob_min", pa.float64()),
    pa.field("kl_mean", pa.float64()),
    pa.field("kl_max", pa.float64()),
    _needed("thought_tokens", pa.int32()),  # tokens of the explanation that were scored
    _needed("solution_tokens", pa.int32()),
    _needed("kl_tokens", pa.int32()),  # KL terms: fewer where teacher's and student's tokens differ
    _needed("student_tokens", pa.int32()),  # length of the student's whole text
    _needed("uncovered_chars", pa.int32()),  # visible characters that share a token with a tag
    pa.field("finish_reason", pa.string()),
    _needed("closed", pa.bool_()),  # the closing explanation tag is there
    _needed("truncated", pa.bool_()),  # finish_reason is length
    _needed("empty", pa.bool_()),  # the explanation has no token, or nothing but white space
    _needed("holds_tag", pa.bool_()),  # a tag of the format stands inside the explanation
    _needed("well_formed", pa.bool_()),  # closed, not truncated, not empty, holds no tag
    _needed("teacher_logprobs", pa.string()),  # trace, computed or none
    pa.field("solution_logprobs", _LOGPROBS),  # per token, with --per-token
    pa.field("solution_offsets", _TOKENS),  # character where each token begins, within the solution's content
    pa.field("thought_logprobs", _LOGPROBS),
    pa.field("thought_offsets", _TOKENS),  # likewise within the thought (padding included)
    pa.field("thought_kl", _LOGPROBS),  # one value per KL term
    pa.field("kl_offsets", _TOKENS),
    _needed("scored_by", pa.string()),  # hash of the settings that made it
)

RANKS = _schema(
    _needed("trace_id", pa.string()),
    _needed("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _needed("sample_index", pa.int32()),
    _needed("rank", pa.int32()),  # 1 = best of its question
    _needed("traces", pa.int32()),  # how many traces the question has
    pa.field("bucket", pa.int32()),  # 1 = best; null for traces with a flaw or without value under quantiles
    pa.field("value", pa.float64()),  # what was ranked by
    pa.field("flaw", pa.string()),  # empty, holds tag, truncated or unclosed; null for a well-formed trace
    _needed("thought_tokens", pa.int32()),
    _needed("scored_by", pa.string()),
)

ANSWERS = _schema(
    _needed("answer_id", pa.string()),  # hash of all that made it
    _needed("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _needed("sample_index", pa.int32()),
    _needed("completion", pa.string()),  # raw text
    pa.field("finish_reason", pa.string()),  # stop: closing solution tag; eos; length
    pa.field("prompt_tokens", pa.int32()),
    _needed("completion_tokens", pa.int32()),
    pa.field("seed", pa.uint64()),
    _needed("made_by", pa.string()),
)

GRADES = _schema(
    _needed("answer_id", pa.string()),
    _needed("question_id", pa.string()),
    pa.field("source_id", pa.string()),
    _needed("sample_index", pa.int32()),
    _needed("answer", pa.string()),  # the final answer that was found in the solution
    _needed("correct", pa.bool_()),
    pa.field("note", pa.string()),  # why it is wrong, where the grader says
    _needed("formatted", pa.bool_()),  # thought and solution in their tags
    _needed("truncated", pa.bool_()),
    _needed("completion_tokens", pa.int32()),
)

SCHEMAS = {
    "questions": QUESTIONS,
    "traces": TRACES,
    "scores": SCORES,
    "ranks": RANKS,
    "answers": ANSWERS,
    "grades": GRADES,
}

#: The column that names a row; unique within its table.
KEYS = {
    "questions": "question_id",
    "traces": "trace_id",
    "scores": "trace_id",
    "ranks": "trace_id",
    "answers": "answer_id",
    "grades": "answer_id",
}

#: The step that makes a table, by its name in run.json.
MADE_BY = {
    "questions": "generate",  # or whichever step of a run reads the input
    "traces": "generate",
    "scores": "score",
    "ranks": "rank",
    "answers": "evaluate",
    "grades": "evaluate",
}

#: The table that a step adds to row by row; rows that fail are in errors.jsonl under the step's name.
TABLE_OF_STEP = {MADE_BY[table]: table for table in ("traces", "scores", "answers")}


def to_table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Make an Arrow table of the named schema from row dicts; a column that a row lacks is null."""
    return pa.Table.from_pylist(rows, schema=SCHEMAS[name])
