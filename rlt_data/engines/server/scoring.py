"""Read the log-probs and ranks of a prompt from servers that return them: vLLM's, or any that echoes a prompt.

They are always at temperature 1, even if a request names another temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlt_data.engines.protocol import Floats, Ints
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


def read_prompt_ranks(answer: Mapping[str, Any], ids: Sequence[int]) -> Ints | None:
    """Return the ranks of a prompt's tokens, shape (tokens,), with 0 for the first; None if the response has none.

    Args:
        answer: a response that :func:`read_prompt_logprobs` has read.
        ids: the prompt.

    Raises:
        TypeError, OverflowError: a rank is not a number of 32 bits.
    """
    entries = answer["choices"][0].get("prompt_logprobs")
    ranks = [entry[str(id)].get("rank") for entry, id in zip(entries[1:], ids[1:], strict=True)] if entries else [None]
    if None in ranks:
        return None
    if not all(isinstance(rank, int) for rank in ranks):
        raise TypeError("a rank is not an integer")
    return np.asarray([0, *ranks], np.int32)


def read_floats(values: Sequence[Any]) -> Floats:
    """Convert log-probs of a response to float32, shape (values,); null becomes NaN, too large numbers infinite.

    Raises:
        TypeError, ValueError, OverflowError: a value is not a number.
    """
    if not all(value is None or isinstance(value, (int, float)) for value in values):
        raise TypeError("a log-prob is not a number")
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)
