"""The bootstrap interval: it covers the truth as often as it says, and equals the plain way to compute it."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from luban.metrics import intervals
from luban.metrics.intervals import paired_interval, ratio_interval

Floats = NDArray[np.float64]


def documents(units: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Losses and lengths of documents whose loss per token differs: the ratio of the expectations is 2."""
    tokens = random.integers(20, 400, units).astype(np.float64)
    return tokens * random.gamma(16.0, 2.0 / 16.0, units), tokens


def test_the_interval_covers_the_truth_as_often_as_its_level_says() -> None:
    random, trials, hits = np.random.default_rng(7), 400, {0.95: 0, 0.5: 0}
    for seed in range(trials):
        nats, tokens = documents(80, random)
        for level in hits:
            low, high = ratio_interval(nats, tokens, resamples=300, level=level, seed=seed)
            hits[level] += low <= 2.0 <= high
    for level, count in hits.items():
        # Three standard errors of the count, and 2 % that a percentile interval of 80 units falls short.
        slack = 3 * math.sqrt(level * (1 - level) / trials) + 0.02
        assert abs(count / trials - level) < slack, (level, count / trials)


def test_the_interval_is_that_of_a_plain_loop() -> None:
    random = np.random.default_rng(3)
    nats, tokens = documents(50, random)
    ratios = []
    for _ in range(20_000):
        drawn = random.integers(0, 50, 50)
        ratios.append(nats[drawn].sum() / tokens[drawn].sum())
    expected = np.quantile(ratios, [0.025, 0.975])
    found = ratio_interval(nats, tokens, resamples=20_000)
    assert found == pytest.approx(expected, abs=0.03 * (expected[1] - expected[0]))


def test_the_width_shrinks_with_the_root_of_the_units() -> None:
    random = np.random.default_rng(5)
    widths = []
    for units in (100, 1600):
        low, high = ratio_interval(*documents(units, random))
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.25)


def test_the_seed_decides_and_scale_does_not_matter() -> None:
    nats, tokens = documents(60, np.random.default_rng(1))
    first = ratio_interval(nats, tokens, seed=4)
    assert ratio_interval(nats, tokens, seed=4) == first
    assert ratio_interval(nats, tokens, seed=5) != first
    assert ratio_interval(nats * 3, tokens, seed=4) == pytest.approx([3 * bound for bound in first])


def test_blocks_bound_the_memory_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nats, tokens = documents(40, np.random.default_rng(2))
    whole = ratio_interval(nats, tokens, resamples=101)
    monkeypatch.setattr(intervals, "_BLOCK", 400)
    assert ratio_interval(nats, tokens, resamples=101) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(
    ("nats", "tokens", "more", "expected"),
    [
        ([3.0], [2.0], {}, 1.5),
        ([1.0, 2.0], [1.0, 1.0], {"resamples": 0}, 1.5),
        ([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], {}, 2.0),
        ([], [], {}, math.nan),
        ([0.0], [0.0], {}, math.nan),
        ([0.0, 0.0], [0.0, 0.0], {}, math.nan),
    ],
)
def test_where_there_is_no_spread_both_bounds_are_the_ratio(
    nats: list[float], tokens: list[float], more: dict[str, Any], expected: float
) -> None:
    bounds = ratio_interval(np.array(nats), np.array(tokens), **more)
    assert bounds == pytest.approx((expected, expected), nan_ok=True)


def test_units_without_a_denominator_do_no_harm() -> None:
    low, high = ratio_interval(np.array([2.0, 0.0]), np.array([1.0, 0.0]))
    assert low == high == 2.0


def test_a_paired_interval_is_that_of_the_differences_where_all_units_weigh_the_same() -> None:
    random = np.random.default_rng(3)
    first = random.gamma(4.0, 1.0, 60)
    second = first + random.normal(0.05, 0.1, 60)
    one = np.ones(60)
    found = paired_interval((first, one), (second, one), resamples=4000, seed=5)
    low, high = ratio_interval(second - first, one, resamples=4000, seed=5)
    assert found == pytest.approx(((second - first).mean(), low, high), rel=1e-9)


def test_a_paired_interval_shows_what_two_single_ones_do_not() -> None:
    """What makes a document hard is the same for both: it widens the single intervals, not the paired one."""
    random = np.random.default_rng(11)
    nats, tokens = documents(80, random)
    better = nats * 0.99 + random.normal(0, 0.2, 80)
    difference, low, high = paired_interval((nats, tokens), (better, tokens), resamples=1000)
    assert low < difference < high < 0
    single = ratio_interval(nats, tokens), ratio_interval(better, tokens)
    assert single[1][1] > single[0][0]  # apart they overlap
    assert paired_interval((better, tokens), (nats, tokens), resamples=1000) == pytest.approx(
        (-difference, -high, -low)
    )


def test_a_paired_interval_covers_the_truth_as_often_as_its_level_says() -> None:
    random, trials, hits = np.random.default_rng(2), 300, 0
    for seed in range(trials):
        nats, tokens = documents(80, random)
        other = nats + tokens * random.normal(0.1, 0.3, 80)  # the expected difference per token is 0.1
        _, low, high = paired_interval((nats, tokens), (other, tokens), resamples=200, seed=seed)
        hits += low <= 0.1 <= high
    assert abs(hits / trials - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / trials) + 0.02


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_one_unit_or_none_has_no_paired_interval(value: float) -> None:
    one = np.array([value])
    assert paired_interval((one, np.ones(1)), (2 * one, np.ones(1))) == pytest.approx(
        (value,) * 3, nan_ok=True
    )
    none = np.zeros(0)
    assert all(math.isnan(bound) for bound in paired_interval((none, none), (none, none)))
