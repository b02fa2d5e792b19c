"""What is learned from a column of numbers before training: its bins."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def quantile_bins(values: ArrayLike, count: int) -> NDArray[np.float32]:
    """Return the edges of bins that hold equally many values each.

    Plain quantiles waste their edges on a value that many rows share: of a column nine tenths zero, they would leave
    four bins of 48 to all that is not zero. So a value of more rows than a bin may hold is an edge by itself, and the
    quantiles are those of the others. Where there are few distinct values (at most count + 1), the edges are those.
    NaN and infinity, also what is infinite in float32, do not count.

    Arguments:
        values: numbers of training rows, of any shape. count: the most bins there may be.

    Returns:
        at most count + 1 rising numbers; one where all values are equal, none where there is no value.

    Source: quantiles, Gorishniy et al. 2022, "On Embeddings for Numerical Features", section 3.2,
    https://arxiv.org/abs/2203.05556; values apart, as LightGBM finds its bins (Ke et al. 2017).

    Example:
        >>> quantile_bins([1, 2, 3, 4, 5, 6, 7, 8, 9], 2).tolist()
        [1.0, 5.0, 9.0]
        >>> quantile_bins([0, 0, 0, 0, 7, float("nan")], 48).tolist()
        [0.0, 7.0]
    """
    assert count >= 1, "at least one bin"
    with np.errstate(over="ignore"):
        narrow = np.asarray(values, np.float64).astype(np.float32).ravel()
    distinct, rows = np.unique(narrow[np.isfinite(narrow)], return_counts=True)
    edges = distinct if len(distinct) <= count + 1 else _edges(distinct, rows, count)
    # A bin must have a width that can be divided by.
    kept = np.diff(edges.astype(np.float64), prepend=-np.inf) >= np.finfo(np.float32).tiny
    return edges[kept]


def _edges(distinct: NDArray[np.float32], rows: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Return count + 1 edges at most, of more distinct values than that, each with its number of rows."""
    heavy = np.zeros(len(distinct), bool)
    while True:
        bins = count - int(heavy.sum())  # left for the others
        heavier = heavy | (rows * bins > rows[~heavy].sum())
        if heavier.sum() == heavy.sum():
            break
        heavy = heavier
    others = np.repeat(distinct[~heavy].astype(np.float64), rows[~heavy])
    quantiles = np.quantile(others, np.linspace(0.0, 1.0, bins + 1)).astype(np.float32)
    return np.unique(np.concatenate([distinct[heavy], quantiles]))
