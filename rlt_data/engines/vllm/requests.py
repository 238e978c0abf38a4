"""Sampling parameters of vLLM for samples and for the log-probs of texts."""

from __future__ import annotations

from typing import Any

from rlt_data.engines.protocol import Ints, SampleRequest, Sampling
from rlt_data.engines.vllm.version import major_minor

#: The first version whose ``prompt_logprob_token_ids`` takes tokens per position. 0.31 takes one list of at most 20
#: tokens for all positions, so it gets ``prompt_logprobs`` instead.
_TOKENS_BY_POSITION = (0, 32)


def drawn(sample: SampleRequest, sampling: Sampling, max_tokens: int) -> dict[str, Any]:
    """Return vLLM's sampling parameters for a sample of at most ``max_tokens`` tokens."""
    return {
        "max_tokens": max_tokens,
        "temperature": 1.0 if sampling.temperature else 0.0,  # the model already divides its logits
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sample.signed_seed,
        "stop": [sampling.stop],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logprobs": 0,
    }


def picks_tokens(version: str, config: Any) -> bool:
    """Return whether this version and configuration of vLLM return the log-probs of one given token per position."""
    return major_minor(version) >= _TOKENS_BY_POSITION and bool(getattr(config, "use_v2_model_runner", False))


def scored(
    ids: Ints, start: int, last: int | None = None, *, picks_tokens: bool, reads_cache: bool = True
) -> dict[str, Any]:
    """Return vLLM's sampling parameters for scoring the tokens of a text after a position.

    Args:
        ids: token ids of the text, shape (tokens,).
        start: index of the token before the first scored one.
        last: a token after ``ids`` to score too. vLLM always samples one token, so a text that fills the context is
            sent without its last token.
        picks_tokens: result of :func:`picks_tokens`.
        reads_cache: where vLLM picks tokens, read the keys and values of a prefix that earlier texts share. vLLM
            returns no log-probs if the cached prefix ends after ``start``.
    """
    common: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
    if last is not None:
        common["logprob_token_ids"] = [last]
    if start + 1 == len(ids):
        return common
    if not picks_tokens:
        return common | {"prompt_logprobs": 0}  # vLLM then does not read the cache
    # vLLM computes logits only from ``start`` on and returns only the log-probs of the text's tokens.
    return common | {
        "prompt_logprob_token_ids": ids[start + 1 :, None],
        "prompt_logprob_start": start,
        "skip_reading_prefix_cache": not reads_cache,
    }
