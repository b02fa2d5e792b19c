"""Calibration: bins against a plain loop, the temperature against a search by brute force and against the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.errors import InputError, NonFiniteError
from luban.metrics.calibration import HOTTEST, CalibrationError, bins_of, reliability, temperature


def log_loss(logits: np.ndarray, targets: np.ndarray, heat: float) -> float:
    scaled = logits / heat
    scaled = scaled - scaled.max(1, keepdims=True)
    return float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(targets)), targets]).mean())


def brute_force(logits: np.ndarray, targets: np.ndarray) -> float:
    """Refine a grid of temperatures until it stands."""
    low, high = np.log(1e-3), np.log(1e3)
    for _ in range(12):
        grid = np.linspace(low, high, 41)
        best = int(np.argmin([log_loss(logits, targets, float(np.exp(point))) for point in grid]))
        low, high = grid[max(0, best - 1)], grid[min(40, best + 1)]
    return float(np.exp((low + high) / 2))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(-4, 4))
def test_no_other_temperature_has_less_loss(seed: int, classes: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(60, classes)) * np.exp(scale)
    targets = np.where(random.random(60) < 0.5, logits.argmax(1), random.integers(0, classes, 60))
    found = temperature(logits, targets)
    expected = brute_force(logits, targets)
    assert log_loss(logits, targets, found) <= log_loss(logits, targets, expected) + 1e-12
    assert found == pytest.approx(expected, rel=1e-5)  # a flat bottom: the loss tells no finer


def test_the_slope_vanishes_at_the_temperature_found() -> None:
    random = np.random.default_rng(0)
    logits = 5 * random.normal(size=(500, 4))
    targets = np.where(random.random(500) < 0.6, logits.argmax(1), random.integers(0, 4, 500))
    heat = temperature(logits, targets)
    chances = np.exp(logits / heat) / np.exp(logits / heat).sum(1, keepdims=True)
    # At the optimum the mean logit under the model is the mean logit of what was right.
    assert (chances * logits).sum(1).mean() == pytest.approx(
        logits[np.arange(500), targets].mean(), abs=1e-10
    )


@pytest.mark.parametrize("truth", [0.05, 0.5, 1.0, 3.0, 20.0])
def test_it_finds_the_temperature_that_made_the_targets(truth: float) -> None:
    random = np.random.default_rng(1)
    logits = truth * 1.5 * random.normal(size=(20_000, 5))
    noise = random.gumbel(size=logits.shape)
    found = temperature(logits, (logits / truth + noise).argmax(1))
    assert found == pytest.approx(truth, rel=0.03)


def test_it_does_not_change_where_a_class_has_a_higher_logit() -> None:
    logits = np.array([[3.0, 1.0], [0.5, 2.0], [1.0, 4.0]])
    targets = np.array([0, 1, 0])
    assert temperature(logits + np.array([[7.0], [-300.0], [1e3]]), targets) == pytest.approx(
        temperature(logits, targets), rel=1e-9
    )


def test_where_the_rows_cannot_tell() -> None:
    assert temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1.0
    assert temperature(np.array([[2.0, 1.0], [0.0, 5.0]]), np.array([0, 1])) == 1.0
    assert temperature(np.ones((4, 3)), np.array([0, 1, 2, 0])) == 1.0
    assert temperature(np.array([[2.0, 1.0], [0.0, 5.0]]), np.array([1, 0])) == HOTTEST
    with pytest.raises(NonFiniteError):
        temperature(np.array([[np.nan, 1.0]]), np.array([0]))
    with pytest.raises(InputError):
        temperature(np.ones((2, 2)), np.array([0, 2]))
    with pytest.raises(InputError):
        temperature(np.ones((2, 2)), np.array([0]))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 1) | st.sampled_from([k / 15 for k in range(16)]), st.booleans()), min_size=1
    ),
    st.integers(1, 20),
)
def test_bins_and_error_are_those_of_a_loop(rows: list[tuple[float, bool]], bins: int) -> None:
    confidence = np.array([chance for chance, _ in rows])
    right = np.array([float(was) for _, was in rows])
    gap, told = 0.0, []
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = (confidence > low) & (confidence <= high) | ((confidence == 0) if number == 0 else False)
        if inside.any():
            told.append((low, high, confidence[inside].mean(), right[inside].mean(), inside.sum()))
            gap += abs(confidence[inside].mean() - right[inside].mean()) * inside.mean()
    found = reliability(confidence, right, bins)
    assert [tuple(one.values()) for one in found] == told
    (error,) = CalibrationError(confidence, right, bins).of(np.ones((len(rows), 1)))
    assert error == pytest.approx(gap, abs=1e-12)
    assert (bins_of(confidence, bins) < bins).all()


def test_a_model_that_is_right_as_often_as_it_says_has_little_error() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 50_000)
    honest = (random.random(50_000) < confidence).astype(float)
    ones = np.ones((50_000, 1))
    assert CalibrationError(confidence, honest).of(ones)[0] < 0.01
    assert CalibrationError(confidence, np.zeros(50_000)).of(ones)[0] == pytest.approx(0.75, abs=0.01)
