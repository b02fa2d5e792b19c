"""How far predicted numbers are from the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.errors import InputError, NonFiniteError
from luban.metrics.resampling import Drawn, Floats, Integers, RowMetric, RowTable, ratio

MOST_POINTS, RESIDUAL_BINS = 500, 30


class Regression(RowMetric):
    """mse, rmse, mae, median_absolute_error, and r2 (share of the targets' variance explained).

    In the units of the target, mse in their square. There is no r2 where all targets are the same.

    Example:
        >>> found = Regression()
        >>> found.add(np.array([1.0, 2.0, 5.0]), np.array([1.0, 3.0, 4.0]))
        >>> {name: round(value, 4) for name, value in found.figures().items()}
        {'mse': 0.6667, 'rmse': 0.8165, 'mae': 0.6667, 'median_absolute_error': 1.0, 'r2': 0.5714}
    """

    def __init__(self) -> None:
        self._rows = RowTable()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, predicted: NDArray[Any], targets: NDArray[Any]) -> None:
        """Count a batch of rows, (rows,) each.

        Raises:
            InputError: the shapes do not fit. NonFiniteError: a number is NaN or infinite.
        """
        predicted, targets = np.asarray(predicted, np.float64), np.asarray(targets, np.float64)
        if predicted.ndim != 1 or predicted.shape != targets.shape:
            raise InputError("predictions and targets are (rows,)", received=(predicted.shape, targets.shape))
        for name, values in (("prediction", predicted), ("target", targets)):
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values))[0])
                raise NonFiniteError(
                    f"a {name} is not a finite number", received=float(values[row]), where=f"row {row}"
                )
        self._rows.add(predicted, targets)

    def merge(self, other: Regression) -> None:
        """Take in what another shard counted."""
        self._rows.merge(other._rows)

    def _came(self) -> Integers:
        return self._rows.came()

    def weighted(self, drawn: Drawn) -> dict[str, Floats]:
        """Return the figures; see `RowMetric.weighted`."""
        predicted, targets = self._rows.columns()
        errors = predicted - targets
        total = drawn.sum(0, dtype=np.float64)
        squares = errors**2 @ drawn
        # About the median the sums stay small against the variance, and those of equal targets are zero.
        centred = targets - np.median(targets)
        variation = centred**2 @ drawn - (centred @ drawn) ** 2 / total
        mse = squares / total
        return {
            "mse": mse,
            "rmse": np.sqrt(mse),
            "mae": np.abs(errors) @ drawn / total,
            "median_absolute_error": _medians(np.abs(errors), drawn),
            "r2": 1 - ratio(squares, np.maximum(variation, 0.0)),
        }

    def section(self) -> dict[str, Any]:
        """Return what a report shows, ready for JSON.

        `points`: [target, predicted] of at most 500 rows, evenly spread over the sorted targets. `residuals`: a
        histogram of predicted less target, `edges` (one more than `counts`) and `counts`.
        """
        if not len(self):
            return {}
        predicted, targets = self._rows.columns()
        order = np.lexsort((predicted, targets))
        kept = order[np.unique(np.linspace(0, len(order) - 1, MOST_POINTS).round().astype(np.int64))]
        residuals = predicted - targets
        edges = _edges(float(residuals.min()), float(residuals.max()))
        counts, _ = np.histogram(residuals, edges)
        return {
            "points": np.stack([targets[kept], predicted[kept]], axis=1).tolist(),
            "residuals": {"edges": edges.tolist(), "counts": counts.tolist()},
        }


def _medians(values: Floats, drawn: Drawn) -> Floats:
    """Return the median of each resample; of an even number of rows the mean of the two in the middle."""
    order = np.argsort(values, kind="stable")
    values, upto = values[order], np.cumsum(drawn[order], axis=0, dtype=np.float64)  # (rows, resamples)
    total = upto[-1]
    below, above = ((upto <= place).sum(0) for place in ((total - 1) // 2, total // 2))
    found: Floats = (values[below] + values[above]) / 2
    return found


def _edges(low: float, high: float) -> Floats:
    """Cut the range into equal bins; fewer where so many different numbers do not exist."""
    if low == high:
        spread = max(0.5, abs(low) * 1e-6)
        low, high = low - spread, high + spread
    return np.unique(np.linspace(low, high, RESIDUAL_BINS + 1))
