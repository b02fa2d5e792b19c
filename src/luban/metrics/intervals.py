"""Bootstrap confidence intervals."""

from __future__ import annotations

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
    random = np.random.default_rng(seed)
    ratios = []
    # Drawing n of n units with replacement is a multinomial count per unit; blocks bound the memory.
    for block in _blocks(resamples, max(1, _BLOCK // units)):
        drawn = random.multinomial(units, np.full(units, 1.0 / units), size=block).astype(np.float64)
        below = drawn @ denominators
        ratios.append(np.divide(drawn @ numerators, below, out=np.full(block, np.nan), where=below > 0))
    low, high = np.nanquantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _blocks(total: int, size: int) -> list[int]:
    return [size] * (total // size) + ([total % size] if total % size else [])
