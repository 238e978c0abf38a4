"""Log-probs of a text's own tokens, from servers that tell them: vLLM's, and those that echo a prompt with log-probs.

They are those of the model's own distribution, at temperature 1, whatever temperature a request names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlt_data.engines.protocol import Floats
from rlt_data.engines.server.transport import Refusal

#: Parameters with which servers tell log-probs of a prompt, the best way first.
SCORING_WAYS: Sequence[Mapping[str, Any]] = (
    {"temperature": 1.0, "max_tokens": 1, "prompt_logprobs": 0},  # vLLM
    {"temperature": 1.0, "max_tokens": 0, "echo": True, "logprobs": 0},
    {"temperature": 1.0, "max_tokens": 1, "echo": True, "logprobs": 1},
)


def read_prompt_logprobs(answer: Mapping[str, Any], ids: Sequence[int]) -> Floats:
    """Return the log-probs of a prompt's tokens, shape (tokens,); the first, which has none, is NaN.

    Args:
        answer: to a request with one of :data:`SCORING_WAYS`.
        ids: the prompt.

    Raises:
        Refusal: they are of other tokens than those of the prompt.
        LookupError, TypeError, ValueError, OverflowError: the answer holds none.
    """
    choice = answer["choices"][0]
    if choice.get("prompt_logprobs") is None:
        values = choice["logprobs"]["token_logprobs"][1 : len(ids)]
    else:
        entries = choice["prompt_logprobs"]
        values = [entry.get(str(id), {}).get("logprob") for entry, id in zip(entries[1:], ids[1:], strict=False)]
    if len(values) != len(ids) - 1 or None in values:
        raise Refusal("the server's log-probs are of other tokens than those that were sent", 200)
    return read_floats([np.nan, *values])


def read_floats(values: Sequence[Any]) -> Floats:
    """Return log-probs as an answer holds them, shape (values,); null is NaN, and what float32 cannot hold infinite.

    Raises:
        TypeError, ValueError, OverflowError: they are no numbers.
    """
    if not all(value is None or isinstance(value, (int, float)) for value in values):
        raise TypeError("a log-prob is no number")
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)
