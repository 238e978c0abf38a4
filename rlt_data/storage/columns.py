"""What each column of the tables means, in one line, for the report page and the cards.

A new column of :mod:`rlt_data.storage.schemas` needs a line here. The columns that ``distill`` writes in addition are
explained in :mod:`rlt_data.steps.export_shapes`.
"""

from __future__ import annotations

MEANINGS = {
    "question_id": "key of the question: hash of question and solution",
    "trace_id": "key of the trace: hash of everything that shaped it",
    "source_id": "id of the question in the input, or its row number",
    "question": "the question",
    "system": "the question's own system text; null: the format's",
    "solution": "the known solution, which the teacher saw; or the trace's own",
    "question_solution": "the question's known solution; empty if it is unknown",
    "answer": "short final answer, if the input has one",
    "meta": "JSON of the input columns kept with --keep",
    "question_meta": "JSON of the question's input columns kept with --keep",
    "question_answer": "short final answer of the question, if the input has one",
    "sample_index": "number of the sample for its question and the settings that made it, from 0",
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
    "scored_by": "hash of the settings of the score and of the teacher of the KL",
    "traces": "number of traces of the question",
    "reward": "how much the explanation helps the student: r_ss - lambda * r_kl + penalty, with --solution-weight as a "
    "factor of r_ss; higher is better",
    "reward_without_entropy": "the reward with -log p(student) in place of each KL value, so that no teacher is "
    "needed; higher is better",
    "r_ss": "how well the student predicts the solution after reading the explanation: solution_logprob_mean + alpha * "
    "solution_logprob_min; closer to 0 is better",
    "r_kl": "how surprising the explanation is to the student, compared with the teacher, which knows the solution: "
    "kl_mean + alpha * kl_max; lower is better",
    "penalty": "added to the reward if the closing tag is missing (by default -1), else 0",
    "solution_logprob_mean": "mean log-prob of the solution's tokens under the student",
    "solution_logprob_min": "lowest log-prob of a token of the solution under the student",
    "kl_mean": "mean KL between teacher and student over the tokens of the explanation",
    "kl_max": "largest KL between teacher and student at a token of the explanation",
    "thought_tokens": "length of the explanation in tokens of the student",
    "solution_tokens": "length of the solution in tokens of the student",
    "origin": "who wrote the explanation: a model, or the name of its settings; null if unknown",
    "completion_tokens": "number of tokens that the teacher sampled",
    "finish_reason": "why the trace ended: stop (closing tag), eos (no closing tag), length (token limit); null if "
    "unknown",
    "closed": "whether the explanation ends with its closing tag",
    "truncated": "whether the trace hit the token limit",
    "empty": "whether the explanation has no text",
    "control_token": "whether question, solution or explanation contain a control token of the student",
    "holds_tag": "whether a tag of the format occurs inside the explanation",
    "well_formed": "whether the trace is closed, not truncated, not empty, and has no tag or control token inside",
    "rank": "place of the trace among the traces of its question, by value; 1 is the best",
    "bucket": "group of traces over all questions: those of one rank or, with rank --buckets, of one quantile of the "
    "values; 1 is the best",
    "value": "the number that traces are ranked by, by default the reward",
    "thought_logprob_mean": "mean log-prob of the explanation's tokens under the student",
    "thought_logprob_min": "lowest log-prob of a token of the explanation under the student",
    "perplexity": "perplexity of the explanation under the student; lower is less surprising",
    "token_rank_mean": "mean rank of the explanation's tokens among the student's predictions; 1 is the likeliest",
    "rsr": "rank-surprisal ratio: mean token rank divided by mean surprisal; lower suits the student better",
    "surprising_share": "share of the explanation's tokens to which the student gives less than 1 % probability",
    "ifd": "instruction-following difficulty: perplexity of the explanation with the question divided by without it",
    "local_logprob_mean": "local naturalness: mean log-prob of the explanation's steps, each given only the question "
    "and the four steps before it",
    "leak_drop": "drop in r_ss when the parts of the explanation that repeat the solution are removed",
    "flaw": "why the trace is not well-formed: empty, holds tag, control token, truncated or unclosed; null if it is",
}
