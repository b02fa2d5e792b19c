"""Whether one of two models is better on the same rows, or only seems so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.errors import InputError
from luban.metrics.intervals import paired_interval
from luban.metrics.resampling import Floats

_BLOCK = 4_000_000


@dataclass(frozen=True)
class PairedDifference:
    """What a second model scores more than a first on the same rows.

    Attributes:
        difference: mean of the second less mean of the first.
        low, high: its 95 % interval, by a paired bootstrap.
        p: chance of a difference at least this large, in either direction, if it did not matter which model is which.
    """

    difference: float
    low: float
    high: float
    p: float


def paired_difference(
    a: NDArray[Any], b: NDArray[Any], resamples: int = 1000, seed: int = 0
) -> PairedDifference:
    """Compare two models by their scores of the same rows.

    The p-value is that of Fisher's sign-flip permutation test (The Design of Experiments, 1935, section 21). Where all
    rows that differ do so by the same amount, as with right and wrong, it is computed exactly, and is that of McNemar's
    exact test; else it is estimated from `resamples` draws, and is at least 1 / (resamples + 1).

    Arguments:
        a, b: (rows,), scores of the first and of the second model.
        resamples: draws of the bootstrap, and of the permutation test.

    Raises:
        InputError: the scores are not finite numbers of the same rows, or there are none.

    Example:
        >>> first, second = np.array([1, 0, 0, 0, 0, 0, 0, 1.0]), np.array([1, 1, 1, 1, 1, 1, 1, 0.0])
        >>> found = paired_difference(first, second)
        >>> found.difference, round(found.p, 12)  # six rows better, one worse: 2 * (1 + 7) / 2^7
        (0.625, 0.125)
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise InputError(
            "two models are compared by scores of the same rows, (rows,) each", received=(a.shape, b.shape)
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("scores must be finite numbers")
    ones = np.ones(len(a))
    difference, low, high = paired_interval((a, ones), (b, ones), resamples=resamples, seed=seed)
    changes = b - a
    changes = changes[changes != 0]
    return PairedDifference(difference, low, high, _sign_flip_p(changes, resamples, seed))


def _sign_flip_p(changes: Floats, draws: int, seed: int) -> float:
    """Return the two-sided p of the sum of `changes`, none of them zero, if each sign were a coin's."""
    count = len(changes)
    if not count:
        return 1.0
    sizes = np.abs(changes)
    if np.ptp(sizes) <= 1e-12 * sizes[0]:
        fewer = min(int((changes > 0).sum()), int((changes < 0).sum()))
        return min(1.0, 2 * _coins(count, fewer))
    random = np.random.default_rng(seed)
    # What differs only by rounding is as large as what was observed.
    observed = abs(changes.sum()) - 1e-12 * sizes.sum()
    as_large, left = 0, draws
    while left > 0:
        block = min(left, max(1, _BLOCK // count))
        heads = random.integers(0, 2, (block, count), dtype=np.int8)
        as_large += int((np.abs(2 * (heads @ changes) - changes.sum()) >= observed).sum())
        left -= block
    return (1 + as_large) / (1 + draws)


def _coins(count: int, most: int) -> float:
    """Return the chance that of `count` coins at most `most` show heads."""
    log_all = math.lgamma(count + 1) - count * math.log(2)
    return math.fsum(
        math.exp(log_all - math.lgamma(heads + 1) - math.lgamma(count - heads + 1))
        for heads in range(most + 1)
    )
