"""Measures of an explanation under the student. docs/measures.md has formulas, papers and limits.

Only arithmetic and texts: token log-probs and ranks in, measures out. All log-probs are natural logarithms at the
measure temperature.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlt_data.formats.spans import Ints
from rlt_data.scoring.reward import Floats

#: Ranks above this count as this in the rank-surprisal ratio (arXiv 2601.14249).
RANK_LIMIT = 100
#: A token is surprising if its log-prob is below this: if its probability is less than 1 %.
SURPRISING = math.log(0.01)
#: Local naturalness scores each step after the question and this many steps before it.
WINDOW_STEPS = 4
#: Words of the shortest run that counts as repeated from the solution. A shorter solution counts as a whole.
REPEATED_WORDS = 8

#: Where a step ends: after a full stop, or before a line break.
_STEP_END = re.compile(r"(?<=[.!?])(?=\s)|(?<=[。！？])|(?=\n)")
#: A piece with fewer visible characters, such as the number of a list item, belongs to the step after it.
_SHORTEST_STEP = 4
_WORD = re.compile(r"\w+|[^\w\s]")


def explanation_measures(logprobs: Floats | None, ranks: Ints | None) -> dict[str, float | None]:
    """Return the measures that need no further forward pass.

    Args:
        logprobs: the student's log-probs of the explanation's tokens given the question, shape (tokens,); None if the
            engine does not return them at the measure temperature.
        ranks: ranks of the same tokens, 1 for the likeliest, shape (tokens,); None if the engine does not return them.

    Returns:
        The columns of the scores table, None where values are missing or there is no token.
    """
    logprobs = None if logprobs is None or not len(logprobs) else np.asarray(logprobs, np.float64)
    ranks = None if ranks is None or not len(ranks) else ranks
    return {
        "thought_logprob_mean": None if logprobs is None else float(logprobs.mean()),
        "thought_logprob_min": None if logprobs is None else float(logprobs.min()),
        "perplexity": None if logprobs is None else _exp(-float(logprobs.mean())),
        "token_rank_mean": None if ranks is None else float(ranks.mean()),
        "rsr": None if logprobs is None or ranks is None else rank_surprisal_ratio(logprobs, ranks),
        "surprising_share": None if logprobs is None else float((logprobs < SURPRISING).mean()),
    }


def rank_surprisal_ratio(logprobs: npt.NDArray[np.floating], ranks: Ints) -> float | None:
    """Return the sum of clipped ranks divided by the sum of surprisals (arXiv 2601.14249).

    Args:
        logprobs: log-probs of the tokens, shape (tokens,).
        ranks: their ranks, shape (tokens,).

    Returns:
        The ratio, in ranks per nat; None if the student is certain of every token.
    """
    surprisal = -float(np.sum(logprobs, dtype=np.float64))
    return float(np.minimum(ranks, RANK_LIMIT).sum()) / surprisal if surprisal > 0 else None


def instruction_following_difficulty(with_question: Floats, without_question: Floats) -> float:
    """Return the perplexity of an explanation given its question divided by that without it (arXiv 2308.12032).

    Args:
        with_question: log-probs of the explanation's tokens after the question, shape (tokens,).
        without_question: log-probs of the same tokens after the same prompt without the question, shape (tokens,).
    """
    return _exp(float(np.mean(without_question, dtype=np.float64) - np.mean(with_question, dtype=np.float64)))


def local_logprob_mean(steps: Sequence[Floats]) -> float:
    """Return the mean over steps of the mean log-prob of each step's tokens (arXiv 2510.03988).

    Args:
        steps: log-probs of the tokens of each step after its window, at least one step; shape (tokens,) each.
    """
    return float(np.mean([np.mean(step, dtype=np.float64) for step in steps]))


def token_steps(text: str, first_characters: Ints) -> list[tuple[int, int]]:
    """Divide the tokens of an explanation into steps: sentences and lines.

    Args:
        text: the explanation.
        first_characters: first character of each token in the text, ascending, shape (tokens,).

    Returns:
        Half-open ranges of tokens that cover all of them. A token belongs to the step of its first character.
    """
    starts, start = [0], 0
    for end in [match.start() for match in _STEP_END.finditer(text)]:
        if len("".join(text[start:end].split())) >= _SHORTEST_STEP:
            starts.append(end)
            start = end
    if len(starts) > 1 and len("".join(text[start:].split())) < _SHORTEST_STEP:
        starts.pop()
    bounds = [*np.searchsorted(first_characters, starts).tolist(), len(first_characters)]
    bounds[0] = 0
    return [(first, last) for first, last in zip(bounds, bounds[1:], strict=False) if first < last]


def without_repeats(explanation: str, solution: str) -> str:
    """Remove the runs of words that an explanation shares with the solution.

    Words are compared without regard to case and white space; each sign is a word. A run has at least
    :data:`REPEATED_WORDS` words, or is the complete solution if that is shorter.
    """
    words = [match[0].casefold() for match in _WORD.finditer(solution)]
    matches = list(_WORD.finditer(explanation))
    size = min(REPEATED_WORDS, len(words))
    if not size or len(matches) < size:
        return explanation
    runs = {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}
    found = [match[0].casefold() for match in matches]
    repeated = np.zeros(len(matches), bool)
    for start in range(len(found) - size + 1):
        if tuple(found[start : start + size]) in runs:
            repeated[start : start + size] = True
    kept, position = [], 0
    for index in np.flatnonzero(repeated).tolist():
        follows = index > 0 and repeated[index - 1]
        kept.append("" if follows else explanation[position : matches[index].start()])
        position = matches[index].end()
    return "".join(kept) + explanation[position:]


def _exp(value: float) -> float:
    """Return the exponential, infinite where it is too large for a float."""
    return math.exp(value) if value < 700 else math.inf
