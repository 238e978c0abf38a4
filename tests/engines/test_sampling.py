from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlt_data.engines.transformers.sampling import Uniforms, draw


def test_uniforms_follow_from_the_seed_alone() -> None:
    first, second, other = Uniforms(7), Uniforms(7), Uniforms(8)
    numbers = [next(first) for _ in range(600)]
    assert numbers == [next(second) for _ in range(600)]
    assert numbers != [next(other) for _ in range(600)]
    assert 0 <= min(numbers) and max(numbers) < 1 and abs(np.mean(numbers) - 0.5) < 0.05


@pytest.mark.parametrize("vocabulary", [7, 512, 1300])
def test_tokens_are_drawn_with_their_probabilities(vocabulary: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(vocabulary) * 2
    draws = 40_000
    uniforms = np.random.default_rng(0).random(draws).tolist()
    tokens, logprobs = draw(logits.repeat(draws, 1), uniforms, 0.7, 1.0, 0)
    expected = (logits / 0.7).softmax(-1).numpy()
    counts = np.bincount(tokens, minlength=vocabulary)
    likely = expected > 50 / draws
    deviation = (counts - draws * expected)[likely] / np.sqrt(draws * expected[likely])
    assert np.abs(deviation).max() < 5
    assert np.allclose(logprobs[:50], np.log(expected[tokens[:50]]), atol=1e-5)


def test_the_ends_of_the_unit_interval_are_the_ends_of_the_vocabulary() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]]).repeat(3, 1)
    tokens, _ = draw(logits, [0.0, math.nextafter(0.5, 0), math.nextafter(1.0, 0)], 1.0, 1.0, 0)
    assert tokens == [0, 0, 2]  # never a token of probability 0


def test_a_peaked_distribution_gives_its_peak() -> None:
    logits = torch.full((1, 3000), -200.0)
    logits[0, 2999] = 50.0
    assert draw(logits, [0.999999999], 1.0, 1.0, 0) == ([2999], [pytest.approx(0.0)])


def test_ties_at_the_edge_of_top_k_stay_in() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]]).repeat(100, 1)
    uniforms = np.linspace(0, 0.999, 100).tolist()
    assert set(draw(logits, uniforms, 1.0, 1.0, 2)[0]) == {0, 1, 2}
