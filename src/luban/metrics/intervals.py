"""Bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4_000_000


def ratio_interval(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `sum(numerators) / sum(denominators)`, units drawn with replacement.

    The unit is what is independent: a document, or a window where there are too few documents. Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Arguments:
        numerators: (units,), for instance the loss of each document.
        denominators: (units,), for instance its number of tokens.
        resamples: how many times the units are drawn.
        level: share of resamples inside the interval.
        seed: the same seed gives the same interval.

    Returns:
        The lower and upper bound; both the ratio itself when there is one unit or no resampling, both NaN
        when the denominators are zero.

    Example:
        >>> low, high = ratio_interval(np.array([1.0, 2.0, 3.0]), np.ones(3))
        >>> bool(1.0 <= low <= 2.0 <= high <= 3.0)
        True
    """
    units = len(numerators)
    whole = float(denominators.sum())
    if units < 2 or resamples < 1 or whole <= 0:
        value = float(numerators.sum()) / whole if whole > 0 else float("nan")
        return value, value
    ratios = [_ratios(drawn, numerators, denominators) for drawn in _resamples(units, resamples, seed)]
    return _bounds(np.concatenate(ratios), level)


def paired_interval(
    first: tuple[NDArray[np.float64], NDArray[np.float64]],
    second: tuple[NDArray[np.float64], NDArray[np.float64]],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Difference of two ratios of sums over the same units, second less first, with a paired bootstrap interval.

    Each resample draws the same units for both, so what makes a unit hard for both does not widen the interval.
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8; for language models Koehn, Statistical
    Significance Tests for Machine Translation Evaluation, EMNLP 2004.

    Arguments:
        first, second: numerators and denominators, (units,) each; unit i of both is the same text.
        resamples, level, seed: as for `ratio_interval`.

    Returns:
        The difference, and the lower and upper bound of its interval; all the same with fewer than two units.

    Example:
        >>> hard = np.array([1.0, 5.0, 9.0])
        >>> found = paired_interval((hard, np.ones(3)), (hard + 0.5, np.ones(3)))
        >>> [round(bound, 6) for bound in found]
        [0.5, 0.5, 0.5]
    """
    ratio = [
        float(above.sum()) / float(below.sum()) if below.sum() > 0 else np.nan
        for above, below in (first, second)
    ]
    difference = float(ratio[1] - ratio[0])
    units = len(first[0])
    if units < 2 or resamples < 1 or not np.isfinite(difference):
        return difference, difference, difference
    differences = [
        _ratios(drawn, *second) - _ratios(drawn, *first) for drawn in _resamples(units, resamples, seed)
    ]
    return difference, *_bounds(np.concatenate(differences), level)


def _resamples(units: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each unit is drawn, (a block of resamples, units).

    Drawing n of n units with replacement is a multinomial count per unit; blocks bound the memory.
    """
    random = np.random.default_rng(seed)
    for block in _blocks(resamples, max(1, _BLOCK // units)):
        yield random.multinomial(units, np.full(units, 1.0 / units), size=block).astype(np.float64)


def _ratios(
    drawn: NDArray[np.float64], numerators: NDArray[np.float64], denominators: NDArray[np.float64]
) -> NDArray[np.float64]:
    below = drawn @ denominators
    ratios = np.full(len(drawn), np.nan)
    np.divide(drawn @ numerators, below, out=ratios, where=below > 0)
    return ratios


def _bounds(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _blocks(total: int, size: int) -> list[int]:
    return [size] * (total // size) + ([total % size] if total % size else [])
