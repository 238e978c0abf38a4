"""Read the log-probs of a prompt from servers that return them: vLLM's, and servers that echo a prompt with log-probs.

They are always at temperature 1, even if a request names another temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlt_data.engines.protocol import Floats
from rlt_data.engines.server.transport import Refusal

#: Parameters that make servers return the log-probs of a prompt, in order of preference.
SCORING_PARAMETERS: Sequence[Mapping[str, Any]] = (
    {"temperature": 1.0, "max_tokens": 1, "prompt_logprobs": 0},  # vLLM
    {"temperature": 1.0, "max_tokens": 0, "echo": True, "logprobs": 0},
    {"temperature": 1.0, "max_tokens": 1, "echo": True, "logprobs": 1},
)


def read_prompt_logprobs(answer: Mapping[str, Any], ids: Sequence[int]) -> Floats:
    """Return the log-probs of a prompt's tokens, shape (tokens,). The first token has none and gets NaN.

    Args:
        answer: the response to a request with one of :data:`SCORING_PARAMETERS`.
        ids: the prompt.

    Raises:
        Refusal: the log-probs belong to other tokens than those of the prompt.
        LookupError, TypeError, ValueError, OverflowError: the response has no log-probs.
    """
    choice = answer["choices"][0]
    if choice.get("prompt_logprobs") is None:
        values = choice["logprobs"]["token_logprobs"][1 : len(ids)]
    else:
        entries = choice["prompt_logprobs"]
        values = [entry.get(str(id), {}).get("logprob") for entry, id in zip(entries[1:], ids[1:], strict=False)]
    if len(values) != len(ids) - 1 or None in values:
        raise Refusal("the server returned log-probs of other tokens than those sent", 200)
    return read_floats([np.nan, *values])


def read_floats(values: Sequence[Any]) -> Floats:
    """Convert log-probs of a response to float32, shape (values,); null becomes NaN, too large numbers infinite.

    Raises:
        TypeError, ValueError, OverflowError: a value is not a number.
    """
    if not all(value is None or isinstance(value, (int, float)) for value in values):
        raise TypeError("a log-prob is not a number")
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)
