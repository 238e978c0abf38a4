from __future__ import annotations

import numpy as np
import pytest

from rlt_data.scoring.reward import kl_terms, reward_terms


def test_the_equations_on_a_worked_example() -> None:
    terms = reward_terms(
        solution=np.array([-1.0, -3.0]), thought=np.array([-2.0, -4.0]), kl=np.array([0.5, 1.5]), closed=True
    )
    assert terms.r_ss == pytest.approx(-2 + 0.01 * -3)
    assert terms.r_kl == pytest.approx(1 + 0.01 * 1.5)
    assert terms.reward == pytest.approx(-2.03 - 3 * 1.015)
    assert terms.reward_without_entropy == pytest.approx(-2.03 - 3 * (3 + 0.01 * 4))
    assert terms.penalty == 0


def test_lambda_alpha_and_the_missing_tag() -> None:
    terms = reward_terms(
        solution=np.array([-1.0]), thought=np.array([-1.0]), kl=np.array([2.0]), closed=False, lambda_=0.5, alpha=0.0
    )
    assert terms.penalty == -1
    assert terms.reward == pytest.approx(-1 - 0.5 * 2 - 1)


def test_each_term_has_its_own_weights() -> None:
    values = {"solution": np.array([-1.0, -3.0]), "thought": np.array([-2.0, -4.0]), "kl": np.array([0.5, 1.5])}
    without_solution = reward_terms(**values, closed=False, solution_weight=0.0)  # type: ignore[arg-type]
    assert without_solution.reward == pytest.approx(-3 * 1.015 - 1) and without_solution.r_ss == pytest.approx(-2.03)
    assert without_solution.reward_without_entropy == pytest.approx(-3 * 3.04 - 1)
    minimum_only = reward_terms(**values, closed=True, alpha=0.1, alpha_kl=0.0)  # type: ignore[arg-type]
    assert (minimum_only.r_ss, minimum_only.r_kl) == (pytest.approx(-2.3), 1.0)
    maximum_only = reward_terms(**values, closed=True, alpha=0.0, alpha_kl=0.1)  # type: ignore[arg-type]
    assert (maximum_only.r_ss, maximum_only.r_kl) == (-2.0, pytest.approx(1.15))
    assert reward_terms(**values, closed=True, alpha_kl=0.01) == reward_terms(**values, closed=True)  # type: ignore[arg-type]


def test_an_empty_explanation_has_the_values_of_the_released_code() -> None:
    terms = reward_terms(solution=np.array([-1.0]), thought=np.zeros(0), kl=np.zeros(0), closed=True)
    assert (terms.kl_mean, terms.kl_max) == (1.0, 1.0)
    assert terms.reward == pytest.approx(-1.01 - 3.03)
    assert terms.reward_without_entropy == pytest.approx(-1.01 + 3.03)


def test_without_a_teacher_only_the_entropy_free_reward_is_computed() -> None:
    terms = reward_terms(solution=np.array([-1.0]), thought=np.array([-1.0]), kl=None, closed=True)
    assert terms.reward is None and terms.r_kl is None and terms.kl_mean is None
    assert terms.reward_without_entropy == pytest.approx(-1.01 - 3.03)


def test_a_solution_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no token"):
        reward_terms(solution=np.zeros(0), thought=np.array([-1.0]), kl=None, closed=True)


def test_k3_is_never_negative_and_close_to_half_the_square_of_k1() -> None:
    teacher, student = np.array([-1.0, -2.0, -0.5]), np.array([-1.1, -1.9, -0.5])
    k1, k3 = kl_terms(teacher, student, "k1"), kl_terms(teacher, student, "k3")
    assert np.allclose(k1, [0.1, -0.1, 0.0])
    assert (k3 >= 0).all()
    assert np.allclose(k3, k1**2 / 2, atol=2e-4)


def test_both_estimates_agree_with_the_exact_divergence_on_average() -> None:
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(8)), random.dirichlet(np.ones(8))
    tokens = random.choice(8, 200_000, p=p)
    exact = float((p * np.log(p / q)).sum())
    for estimate in ("k1", "k3"):
        values = kl_terms(np.log(p)[tokens], np.log(q)[tokens], estimate)  # type: ignore[arg-type]
        assert values.mean() == pytest.approx(exact, abs=5 * values.std() / np.sqrt(len(values)))
