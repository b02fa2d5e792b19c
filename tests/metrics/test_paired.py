"""Two models on the same rows: the p-value against all sign flips, against the binomial test, and as a promise."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.errors import InputError
from luban.metrics.intervals import paired_interval
from luban.metrics.paired import paired_difference


@settings(max_examples=60)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 9))
def test_right_and_wrong_give_the_exact_test_of_mcnemar(better: int, worse: int, same: int) -> None:
    a = np.array([0.0] * better + [1.0] * worse + [1.0] * same)
    b = np.array([1.0] * better + [0.0] * worse + [1.0] * same)
    count = better + worse
    tail = sum(math.comb(count, k) for k in range(min(better, worse) + 1)) / 2**count
    assert paired_difference(a, b, resamples=20).p == pytest.approx(min(1.0, 2 * tail), rel=1e-12)


def test_the_exact_test_holds_for_many_rows() -> None:
    """Against the normal distribution, to which it tends."""
    a = np.zeros(60_000)
    b = np.where(np.arange(60_000) < 30_300, 1.0, -1.0)
    z = 600 / math.sqrt(60_000)
    expected = math.erfc((z - 1 / math.sqrt(60_000)) / math.sqrt(2))
    assert paired_difference(a, b, resamples=2).p == pytest.approx(expected, rel=1e-3)


@settings(max_examples=15)
@given(st.lists(st.integers(-9, 9).map(float), min_size=2, max_size=9), st.integers(0, 99))
def test_the_drawn_p_is_that_of_all_sign_flips(changes: list[float], seed: int) -> None:
    changes_ = np.array(changes)
    flips = [abs(sum(s * c for s, c in zip(signs, changes, strict=True))) for signs in
             itertools.product((-1, 1), repeat=len(changes))]  # fmt: skip
    exact = np.mean(np.array(flips) >= abs(sum(changes)))
    found = paired_difference(np.zeros(len(changes)), changes_, resamples=4000, seed=seed).p
    assert found == pytest.approx(exact, abs=5 * math.sqrt(max(exact * (1 - exact), 1e-3) / 4000) + 1e-3)


def test_where_there_is_no_difference_p_is_small_as_seldom_as_it_says() -> None:
    random = np.random.default_rng(0)
    found = []
    for seed in range(400):
        hard = random.normal(size=60)
        a, b = (hard + random.exponential(size=60) for _ in range(2))
        found.append(paired_difference(a, b, resamples=199, seed=seed).p)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(found) <= level) == pytest.approx(
            level, abs=4 * math.sqrt(level * (1 - level) / 400)
        )


def test_difference_and_interval_are_those_of_the_paired_bootstrap() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=80), random.normal(size=80) + 0.3
    found = paired_difference(a, b, resamples=300, seed=4)
    expected = paired_interval((a, np.ones(80)), (b, np.ones(80)), resamples=300, seed=4)
    assert (found.difference, found.low, found.high) == expected
    turned = paired_difference(b, a, resamples=300, seed=4)
    assert turned.difference == -found.difference
    assert turned.p == found.p


def test_equal_scores_are_no_difference_and_a_clear_one_is_clear() -> None:
    scores = np.random.default_rng(0).normal(size=50)
    same = paired_difference(scores, scores)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    better = paired_difference(scores, scores + np.linspace(0.1, 0.2, 50), resamples=999)
    assert better.p == 1 / 1000
    assert better.low > 0


def test_scores_of_other_rows_are_refused() -> None:
    for a, b in ((np.ones(2), np.ones(3)), (np.ones((2, 1)), np.ones((2, 1))), (np.ones(0), np.ones(0))):
        with pytest.raises(InputError, match="same rows"):
            paired_difference(a, b)
    with pytest.raises(InputError, match="finite"):
        paired_difference(np.array([1.0, np.nan]), np.ones(2))
