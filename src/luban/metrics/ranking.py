"""How well scores put what is right above what is wrong: the ROC and the precision-recall curve, and their areas."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luban.metrics.resampling import Drawn, Floats, ratio

Bools = NDArray[np.bool_]
MOST_POINTS = 101


class Ranking:
    """Rows in the order of their scores, to have the areas under many counts.

    The area under the ROC curve is the share of pairs of a positive and a negative row in which the positive has the
    higher score, ties counting half (Mann and Whitney, 1947). Average precision is the mean over positive rows of the
    precision among all rows with their score or a higher one; it is not interpolated.

    Arguments:
        scores, positive: (rows,).

    Example:
        >>> ranking = Ranking(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1], bool))
        >>> roc, precision = ranking.areas(np.ones((4, 1)))
        >>> round(float(roc[0]), 6), round(float(precision[0]), 6)
        (0.75, 0.833333)
    """

    def __init__(self, scores: Floats, positive: Bools) -> None:
        self._one_kind = bool(positive.all() or not positive.any())
        if self._one_kind:
            return
        self._order = np.argsort(scores, kind="stable")
        scores, positive = scores[self._order], positive[self._order]
        # Only scores that a positive row has matter; the rows between two of them are summed as one.
        different = np.unique(scores[positive])
        first, last = np.searchsorted(scores, different, "left"), np.searchsorted(scores, different, "right")
        self._cuts = np.unique(np.concatenate([[0], first, last[last < len(scores)]]))
        self._at = np.searchsorted(self._cuts, first)
        self._positive = self._order[positive]
        self._starts = np.searchsorted(np.flatnonzero(positive), first)

    def areas(self, drawn: Drawn) -> tuple[Floats, Floats]:
        """Return the area under the ROC curve and the average precision of each resample.

        Arguments:
            drawn: (rows, resamples), how often each row counts.

        Returns:
            Twice (resamples,); NaN where a resample has no positive or no negative row.
        """
        if self._one_kind:
            undefined = np.full(drawn.shape[1], np.nan)
            return undefined, undefined.copy()
        sums = np.add.reduceat(drawn[self._order], self._cuts, axis=0)  # (pieces, resamples)
        hits = np.add.reduceat(
            drawn[self._positive], self._starts, axis=0
        )  # (scores of positive rows, resamples)
        upto, hits_upto = np.cumsum(sums, axis=0, dtype=np.float64), np.cumsum(hits, axis=0, dtype=np.float64)
        total, positives = upto[-1], hits_upto[-1]
        # Of each of these scores: rows below it, and below or at it.
        at = upto[self._at]
        below = at - sums[self._at]
        hits_below = hits_upto - hits
        pairs = np.einsum("sr,sr->r", hits, below + at - hits_below - hits_upto) / 2
        precise = np.einsum("sr,sr->r", hits, ratio(positives - hits_below, total - below, 0.0))
        roc = ratio(pairs, positives * (total - positives))
        return roc, np.where(np.isnan(roc), np.nan, ratio(precise, positives))


def roc_points(scores: Floats, positive: Bools) -> list[list[float]]:
    """Return the ROC curve as at most 101 points [false positive rate, true positive rate], from (0, 0) to (1, 1).

    Arguments:
        scores, positive: (rows,); at least one row of each kind.

    Example:
        >>> roc_points(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1], bool))
        [[0.0, 0.0], [0.0, 0.5], [0.5, 0.5], [0.5, 1.0], [1.0, 1.0]]
    """
    hits, taken = _thresholds(scores, positive)
    false, negatives = taken - hits, len(positive) - positive.sum()
    return _thinned(np.append(0.0, false / negatives), np.append(0.0, hits / positive.sum()))


def precision_recall_points(scores: Floats, positive: Bools) -> list[list[float]]:
    """Return the curve as at most 101 points [recall, precision], from (0, 1) on with falling threshold.

    Arguments:
        scores, positive: (rows,); at least one positive row.

    Example:
        >>> precision_recall_points(np.array([0.1, 0.9, 0.8]), np.array([1, 1, 0], bool))
        [[0.0, 1.0], [0.5, 1.0], [0.5, 0.5], [1.0, 0.6666666666666666]]
    """
    hits, taken = _thresholds(scores, positive)
    return _thinned(np.append(0.0, hits / positive.sum()), np.append(1.0, hits / taken))


def _thresholds(scores: Floats, positive: Bools) -> tuple[Floats, Floats]:
    """Return how many rows have at least a score, positive ones and all, for each score from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    return np.cumsum(positive[order])[ends].astype(np.float64), ends + 1.0


def _thinned(x: Floats, y: Floats) -> list[list[float]]:
    """Keep points evenly spread along the length of the curve, the first and the last always."""
    if len(x) > MOST_POINTS:
        along = np.append(0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
        wanted = np.linspace(0.0, along[-1], MOST_POINTS)
        kept = np.unique(np.concatenate([[0], np.searchsorted(along, wanted[1:-1]), [len(x) - 1]]))
        x, y = x[kept], y[kept]
    return [[float(across), float(up)] for across, up in zip(x, y, strict=True)]
