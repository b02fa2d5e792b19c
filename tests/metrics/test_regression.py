"""Figures of predicted numbers, against scikit-learn."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from luban.errors import InputError, NonFiniteError
from luban.metrics.regression import Regression

NUMBERS = st.floats(-1e6, 1e6).map(lambda value: round(value, 3)) | st.integers(-3, 3).map(float)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(0, 3)), min_size=2, max_size=40)


def measured(predicted: np.ndarray, targets: np.ndarray) -> Regression:
    found = Regression()
    found.add(predicted, targets)
    return found


@settings(max_examples=100)
@given(ROWS)
def test_figures_are_those_of_scikit_learn(rows: list[tuple[float, float, int]]) -> None:
    predicted, targets = (np.array(column, np.float64) for column in list(zip(*rows, strict=True))[:2])
    figures = measured(predicted, targets).figures()
    expected = {
        "mse": sk.mean_squared_error(targets, predicted),
        "rmse": sk.root_mean_squared_error(targets, predicted),
        "mae": sk.mean_absolute_error(targets, predicted),
        "median_absolute_error": sk.median_absolute_error(targets, predicted),
    }
    if np.ptp(targets) > 0:
        expected["r2"] = sk.r2_score(targets, predicted)
    assert figures == pytest.approx(expected, rel=1e-9)


@given(ROWS.filter(lambda rows: sum(count for *_, count in rows) > 1))
def test_under_counts_they_are_those_of_the_rows_repeated(rows: list[tuple[float, float, int]]) -> None:
    """The median too, for odd and even numbers of rows."""
    metric = measured(np.array([row[0] for row in rows]), np.array([row[1] for row in rows]))
    predicted, targets = metric._rows.columns()
    counts = {(p, t): 0 for p, t, _ in rows}
    for p, t, count in rows:
        counts[p, t] += count
    # Equal rows are drawn together: put all their draws on the first of them.
    drawn = np.array([counts.pop((p, t), 0) for p, t in zip(predicted, targets, strict=True)])
    again = [(p, t) for p, t, count in rows for _ in range(count)]
    expected = measured(np.array([p for p, _ in again]), np.array([t for _, t in again])).figures()
    found = {name: values[0] for name, values in metric.weighted(drawn[:, None].astype(float)).items()}
    # Of targets that are all but equal the share explained is rounding.
    found.pop("r2"), expected.pop("r2", None)
    assert found == pytest.approx(expected, rel=1e-8)


def test_equal_targets_have_no_share_explained_and_a_mean_explains_none() -> None:
    assert "r2" not in measured(np.array([1.0, 2.0]), np.array([0.1, 0.1])).figures()
    targets = 1e8 + np.random.default_rng(0).normal(size=1000)
    assert measured(np.full(1000, targets.mean()), targets).figures()["r2"] == pytest.approx(0, abs=1e-6)
    assert measured(targets, targets).figures()["r2"] == 1.0


@pytest.mark.parametrize("rows", [1, 7, 499, 500, 501, 3000])
def test_a_section_is_json_with_points_over_the_whole_range(rows: int) -> None:
    random = np.random.default_rng(rows)
    targets = random.lognormal(size=rows)
    predicted = targets + random.normal(size=rows)
    section = measured(predicted, targets).section()
    assert json.loads(json.dumps(section, allow_nan=False)) == section
    points = np.array(section["points"])
    assert len(points) == min(rows, 500)
    assert (np.diff(points[:, 0]) >= 0).all()
    assert points[0, 0] == targets.min() and points[-1, 0] == targets.max()
    rank = np.searchsorted(np.sort(targets), points[:, 0])
    assert np.diff(rank, prepend=0).max(initial=0) <= rows / 499 + 1
    pairs = {(t, p) for t, p in zip(targets, predicted, strict=True)}
    assert all(tuple(point) in pairs for point in section["points"])
    counts, edges = section["residuals"]["counts"], section["residuals"]["edges"]
    assert sum(counts) == rows and len(edges) == len(counts) + 1
    residuals = predicted - targets
    assert ((residuals > edges[3]) & (residuals < edges[4])).sum() == pytest.approx(counts[3], abs=1)


@pytest.mark.parametrize("residuals", [[0.0, 0.0], [1e17, 1e17], [1e17, 1e17 + 32], [5e-324, 0.0]])
def test_residuals_that_hardly_differ_have_a_histogram(residuals: list[float]) -> None:
    section = measured(np.array(residuals), np.zeros(2)).section()
    edges = np.array(section["residuals"]["edges"])
    assert (np.diff(edges) > 0).all()
    assert sum(section["residuals"]["counts"]) == 2


def test_what_is_no_number_is_refused() -> None:
    found = Regression()
    with pytest.raises(NonFiniteError, match="prediction"):
        found.add(np.array([1.0, np.nan]), np.zeros(2))
    with pytest.raises(NonFiniteError, match="target"):
        found.add(np.zeros(2), np.array([1.0, np.inf]))
    with pytest.raises(InputError):
        found.add(np.zeros((2, 1)), np.zeros(2))
    assert len(found) == 0 and found.section() == {}
