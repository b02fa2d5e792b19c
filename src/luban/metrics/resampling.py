"""Rows drawn again and again: what every metric over rows has in common.

A metric computes its figures under *counts*, how often each row was drawn. Once each gives the figure itself; counts of
a bootstrap give the figures of the resamples, all in one go. There is one definition of a figure, not two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Drawn = NDArray[np.floating[Any]]
"""(rows, resamples): how often each row was drawn, as whole numbers."""

MOST_DRAWS = 100_000_000
MOST_COSTLY = 100_000_000
FEWEST = 100
_BLOCK, _NARROWEST = 500_000, 8


class RowTable:
    """Columns of rows, taken in by batches, given back in an order that does not depend on the batches.

    Rows are ordered by their own bytes, so whatever is computed from the columns is the same to the last bit, however
    the rows were spread over batches and shards.

    Example:
        >>> one, other = RowTable(), RowTable()
        >>> one.add(np.array([3, 1])), other.add(np.array([2]))
        (None, None)
        >>> one.merge(other)
        >>> len(one), sorted(one.columns()[0].tolist())
        (3, [1, 2, 3])
    """

    def __init__(self) -> None:
        self._batches: list[tuple[NDArray[Any], ...]] = []
        self._ordered: tuple[NDArray[Any], ...] | None = None
        self._numbers: list[Integers] = []  # of the rows of each batch, in the order in which they came

    def __len__(self) -> int:
        return sum(len(batch[0]) for batch in self._batches)

    def add(self, *columns: NDArray[Any]) -> None:
        """Take in a batch: arrays of one length, (rows, ...) each, of the same types and widths every time."""
        first = len(self)
        self._batches.append(tuple(np.array(column) for column in columns))
        self._numbers.append(np.arange(first, first + len(columns[0])))
        self._ordered = None

    def merge(self, other: RowTable) -> None:
        """Take in another table's rows."""
        self._numbers.extend([numbers + len(self) for numbers in other._numbers])
        self._batches.extend(other._batches)
        self._ordered = None

    def columns(self) -> tuple[NDArray[Any], ...]:
        """Return all rows, column by column."""
        if self._ordered is None:
            whole = [np.concatenate(parts) for parts in zip(*self._batches, strict=True)]
            order = _byte_order(whole)
            self._ordered = tuple(column[order] for column in whole)
            self._batches = [self._ordered]
            self._numbers = [np.concatenate(self._numbers)[order]]
        return self._ordered

    def came(self) -> Integers:
        """Return of each row, as `columns` has them, its number in the order in which rows came."""
        self.columns()
        return self._numbers[0]


class RowMetric(ABC):
    """Figures of rows: streaming, mergeable, with intervals. A subclass says what its figures are under counts."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def weighted(self, drawn: Drawn) -> dict[str, Floats]:
        """Return each figure of each resample, (resamples,); NaN where it is not defined."""

    @abstractmethod
    def _came(self) -> Integers:
        """Return of each row, in the order that `weighted` counts them, its number in the order in which rows came."""

    def weighted_costly(self, drawn: Drawn) -> dict[str, Floats]:
        """Return the figures that take `_cost()` steps for each resample; the same form."""
        del drawn
        return {}

    def _cost(self) -> int:
        return 1

    def figures(self) -> dict[str, float]:
        """Return the figures by name; one that is not defined for these rows is left out.

        The same to the last bit in whatever order, batches and shards the rows came.
        """
        return {name: value for name, value in self._each().items() if np.isfinite(value)}

    def names(self) -> list[str]:
        """Return the names of all figures, those too that these rows do not define."""
        return list(self._each())

    def _each(self) -> dict[str, float]:
        if not len(self):
            return {}
        once = np.ones((len(self), 1), np.float32)
        found = {**self.weighted(once), **self.weighted_costly(once)}
        return {name: float(values[0]) for name, values in found.items()}

    def intervals(self, resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return 95 % percentile bootstrap intervals of the figures, rows drawn with replacement.

        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. Resamples in which a figure is not
        defined do not count.

        Arguments:
            resamples: how many times the rows are drawn, see `resampled`; 0, like a single row, gives the figures as
                bounds.
            seed: the same rows and seed give the same intervals.
        """
        return bounds(self.figures(), self.resampled(resamples, seed))

    def resampled(
        self, resamples: int = 1000, seed: int = 0, ranks: Integers | None = None
    ) -> dict[str, Floats]:
        """Return the figures of each resample, rows drawn with replacement: name -> (resamples,).

        From 100,000 rows on fewer resamples are drawn, at least 100. Areas under curves take as many as fit 100 million
        rows x classes, and are left out where those are fewer than 100. Of a single row there are none.

        Arguments:
            seed: the same rows and seed give the same resamples.
            ranks: (rows,), of each row in the order in which they came its place in an order that another model's rows
                have too: both are then drawn alike.
        """
        rows = len(self)
        if rows < 2 or resamples < 1:
            return {}
        resamples = min(resamples, max(FEWEST, MOST_DRAWS // rows))
        affordable = min(resamples, MOST_COSTLY // max(1, self._cost()))
        if affordable < min(FEWEST, resamples):
            affordable = 0
        found: dict[str, list[Floats]] = {}
        done = 0
        places = None if ranks is None else ranks[self._came()]
        for drawn in drawn_counts(rows, resamples, seed):
            if places is not None:
                drawn = drawn[places]
            _collect(found, self.weighted(drawn))
            if done < affordable:
                _collect(found, self.weighted_costly(drawn[:, : affordable - done]))
            done += drawn.shape[1]
        return {name: np.concatenate(blocks) for name, blocks in found.items()}


def bounds(
    figures: Mapping[str, float], resampled: Mapping[str, Floats], level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of figures from those of resamples; where there are no resamples, the figure itself.

    Example:
        >>> bounds({"a": 1.0}, {"a": np.array([0.0, 1.0, 2.0])}, level=0.5)
        {'a': (0.5, 1.5)}
    """
    if not resampled:
        return {name: (value, value) for name, value in figures.items()}
    found = {name: _bounds(resampled[name], level) for name in figures if name in resampled}
    return {name: bound for name, bound in found.items() if bound is not None}


def drawn_counts(rows: int, resamples: int, seed: int) -> Iterator[Drawn]:
    """Yield how often each row is drawn when as many rows as there are are drawn with replacement, in blocks.

    Returns:
        (rows, resamples of the block); single precision, in which sums of fewer than 2^24 rows are exact.

    Example:
        >>> [drawn.sum(0).tolist() for drawn in drawn_counts(rows=5, resamples=3, seed=0)]
        [[5.0, 5.0, 5.0]]
    """
    random = np.random.default_rng(seed)
    dtype = np.float32 if rows < 1 << 24 else np.float64
    size = max(_NARROWEST, _BLOCK // rows)
    for start in range(0, resamples, size):
        width = min(size, resamples - start)
        which = random.integers(0, rows, (width, rows))
        cells = which * width + np.arange(width)[:, None]
        yield np.bincount(cells.ravel(), minlength=rows * width).reshape(rows, width).astype(dtype)


class Groups:
    """Rows in groups, to be summed under many counts.

    Arguments:
        groups: (rows,), which of `count` groups a row is of.

    Example:
        >>> Groups(np.array([2, 0, 2]), 3).sums(np.array([[1.0], [2.0], [4.0]])).tolist()
        [[2.0], [0.0], [5.0]]
    """

    def __init__(self, groups: Integers, count: int) -> None:
        self._count = count
        self._order = np.argsort(groups, kind="stable")
        self._there, self._starts = np.unique(groups[self._order], return_index=True)

    def sums(self, values: Drawn) -> Floats:
        """Sum the rows of each group, (rows, resamples) -> (count, resamples); zero where a group has none."""
        sums = np.zeros((self._count, values.shape[1]))
        if len(self._there):
            sums[self._there] = np.add.reduceat(values[self._order], self._starts, axis=0)
        return sums


def ratio(above: Any, below: Any, empty: float = np.nan) -> Floats:
    """Divide; `empty` where the divisor is zero.

    Example:
        >>> ratio(np.array([1.0, 1.0]), np.array([2.0, 0.0])).tolist()
        [0.5, nan]
    """
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    found: Floats = np.divide(above, below, out=np.full(above.shape, empty), where=below != 0)
    return found


def _collect(found: dict[str, list[Floats]], block: Mapping[str, Floats]) -> None:
    for name, values in block.items():
        found.setdefault(name, []).append(values)


def _bounds(values: Floats, level: float) -> tuple[float, float] | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _byte_order(columns: list[NDArray[Any]]) -> NDArray[np.intp]:
    rows = len(columns[0])
    parts = [np.ascontiguousarray(column).reshape(rows, -1) for column in columns]
    raw = np.concatenate([part.view(np.uint8) for part in parts if part.size], axis=1)
    return np.argsort(np.ascontiguousarray(raw).view(f"V{raw.shape[1]}").ravel(), kind="stable")
