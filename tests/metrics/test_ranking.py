"""Curves and areas, against scikit-learn under the same weights, and against pairs counted one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from luban.metrics.ranking import MOST_POINTS, Ranking, precision_recall_points, roc_points

ROWS = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40)
"""(score, positive, how often drawn): few scores, so that there are ties."""


@settings(max_examples=150)
@given(ROWS)
def test_areas_are_those_of_scikit_learn_with_counts_as_weights(rows: list[tuple[int, bool, int]]) -> None:
    scores, positive, counts = (np.array(column) for column in zip(*rows, strict=True))
    drawn = np.stack([counts, np.ones(len(rows))], axis=1).astype(np.float32)
    roc, precision = Ranking(scores / 7, positive).areas(drawn)
    for at, weights in enumerate(drawn.T):
        there = weights > 0
        if len(set(positive[there].tolist())) < 2:
            assert np.isnan(roc[at]) and np.isnan(precision[at])
            continue
        assert roc[at] == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights), abs=1e-12)
        expected = average_precision_score(positive, scores, sample_weight=weights)
        assert precision[at] == pytest.approx(expected, abs=1e-12)


@given(ROWS)
def test_the_area_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool, int]]) -> None:
    above = [score for score, positive, _ in rows if positive]
    below = [score for score, positive, _ in rows if not positive]
    pairs = [(a > b) + (a == b) / 2 for a in above for b in below]
    scores, positive = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    (roc,), _ = Ranking(scores, positive).areas(np.ones((len(rows), 1)))
    assert (roc == pytest.approx(np.mean(pairs), abs=1e-12)) if pairs else np.isnan(roc)


def test_scores_without_ties_under_many_rows() -> None:
    random = np.random.default_rng(0)
    positive = random.random(5000) < 0.1
    scores = random.normal(size=5000) + positive
    (roc,), (precision,) = Ranking(scores, positive).areas(np.ones((5000, 1), np.float32))
    assert roc == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert precision == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


@given(ROWS)
def test_short_curves_are_whole(rows: list[tuple[int, bool, int]]) -> None:
    scores, positive = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    if positive.all() or not positive.any():
        return
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    assert roc_points(scores, positive) == [[a, b] for a, b in zip(false, true, strict=True)]
    precision, recall, _ = precision_recall_curve(positive, scores)
    expected = np.stack([recall, precision], 1)[::-1]
    assert np.array(precision_recall_points(scores, positive)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_long_curves_keep_their_form_in_101_points(share: float) -> None:
    random = np.random.default_rng(1)
    positive = random.random(20_000) < share
    scores = random.normal(size=20_000) + 2.5 * positive
    points = np.array(roc_points(scores, positive))
    assert len(points) <= MOST_POINTS
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1]
    assert (np.diff(points, axis=0) >= 0).all()
    # Two neighbours are at most a hundredth of the whole length, 2, apart: the area hardly changes.
    assert np.abs(np.diff(points, axis=0)).sum(1).max() < 0.03
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(
        roc_auc_score(positive, scores), abs=2e-3
    )
    curve = np.array(precision_recall_points(scores, positive))
    assert len(curve) <= MOST_POINTS
    assert curve[0].tolist() == [0, 1] and curve[-1] == pytest.approx([1, positive.mean()])
    area = average_precision_score(positive, scores)
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(area, abs=0.02)
