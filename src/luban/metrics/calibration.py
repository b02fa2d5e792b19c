"""Whether a model is right as often as it says: reliability, expected calibration error, temperature scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.errors import InputError, NonFiniteError
from luban.metrics.resampling import Drawn, Floats, Groups, Integers

BINS = 15
COLDEST, HOTTEST = 1e-3, 1e3


def bins_of(confidence: Floats, bins: int = BINS) -> Integers:
    """Return the bin of each probability: of `bins` equal parts, each with its upper and without its lower end.

    Example:
        >>> bins_of(np.array([0.0, 0.1, 0.11, 1.0]), bins=10).tolist()
        [0, 0, 1, 9]
    """
    # Against the edges themselves: confidence times bins could round to the other side of one.
    found = np.searchsorted(np.arange(1, bins + 1) / bins, confidence, side="left")
    return np.minimum(found, bins - 1).astype(np.int64)


class CalibrationError:
    """Expected calibration error: the mean gap between confidence and accuracy over bins of equal width.

    Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015; Guo et al., On
    calibration of modern neural networks, ICML 2017, section 2.

    Arguments:
        confidence: (rows,), the probability of what was answered. right: (rows,), 1.0 where it was so, else 0.0.

    Example:
        >>> CalibrationError(np.array([0.8, 0.8]), np.array([1.0, 0.0])).of(np.ones((2, 1))).round(6).tolist()
        [0.3]
    """

    def __init__(self, confidence: Floats, right: Floats, bins: int = BINS) -> None:
        self._gaps = (right - confidence)[:, None]
        self._bins = Groups(bins_of(confidence, bins), bins)

    def of(self, drawn: Drawn) -> Floats:
        """Return the error of each resample, (rows, resamples) -> (resamples,); each has at least one row."""
        gaps = self._bins.sums(self._gaps * drawn)
        found: Floats = np.abs(gaps).sum(0) / drawn.sum(0, dtype=np.float64)
        return found


def reliability(confidence: Floats, right: Floats, bins: int = BINS) -> list[dict[str, Any]]:
    """Return confidence and accuracy of each bin that has rows: `low`, `high`, `confidence`, `accuracy`, `count`.

    Example:
        >>> reliability(np.array([0.9, 0.95]), np.array([1.0, 0.0]), bins=5)
        [{'low': 0.8, 'high': 1.0, 'confidence': 0.925, 'accuracy': 0.5, 'count': 2}]
    """
    of = bins_of(confidence, bins)
    found = []
    for number in np.unique(of).tolist():
        inside = of == number
        found.append(
            {
                "low": number / bins,
                "high": (number + 1) / bins,
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(right[inside].mean()),
                "count": int(inside.sum()),
            }
        )
    return found


def temperature(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """Return the number to divide logits by so that the log loss of these rows is least.

    Guo et al., On calibration of modern neural networks, ICML 2017, section 4.2. The loss is convex in 1 / temperature;
    its minimum is found by Newton's method, with a bisection wherever a step would leave the bracket.

    Arguments:
        logits: (rows, classes). targets: (rows,), the number of the right class.

    Returns:
        The temperature, in 0.001 to 1000. 1.0 where these rows cannot tell: there are none, or the right class has
        the highest logit in all of them, so that the loss falls for ever as the temperature does. 1000 where the
        logits are no better than chance.

    Raises:
        InputError: shapes or targets do not fit. NonFiniteError: a logit is not a finite number.

    Example:
        >>> logits = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> round(temperature(logits, np.array([0, 0, 1, 1])), 6)  # right 3 times of 4: logits should differ by log 3
        1.820478
    """
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets)
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise InputError(
            "logits are (rows, classes) and targets (rows,)", received=(logits.shape, targets.shape)
        )
    if not len(logits):
        return 1.0
    if not np.isfinite(logits).all():
        raise NonFiniteError("a logit is not a finite number", where="temperature")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise InputError(
            "targets number the classes from 0", received=(int(targets.min()), int(targets.max()))
        )
    # (rows, classes): how far each logit is above that of the right class.
    margins = logits - np.take_along_axis(logits, targets.astype(np.int64)[:, None], axis=1)
    if margins.max() <= 0:
        return 1.0
    low, high = 1 / HOTTEST, 1 / COLDEST  # of the inverse temperature, in which the slope of the loss rises
    if _slope(margins, low)[0] >= 0:
        return HOTTEST
    if _slope(margins, high)[0] <= 0:
        return COLDEST
    inverse = 1.0
    for _ in range(200):
        slope, curvature = _slope(margins, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = -slope / curvature if curvature > 0 else np.inf
        if abs(step) <= 1e-13 * inverse:
            break
        inverse += step
        if not low < inverse < high:
            inverse = float(np.sqrt(low * high))
    return float(1 / inverse)


def _slope(margins: Floats, inverse: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean log loss by the inverse temperature."""
    raised = margins * inverse
    weights = np.exp(raised - raised.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    mean = (weights * margins).sum(1)
    spread = (weights * (margins - mean[:, None]) ** 2).sum(1)
    return float(mean.mean()), float(spread.mean())
