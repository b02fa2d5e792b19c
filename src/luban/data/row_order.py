"""Which rows a step trains on: a pure function of (seed, epoch, position), so that a resumed run sees the same ones."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

POOL = 32
"""Batches whose rows are sorted by length together: enough that batches hold rows of like length, few enough that
an epoch is still shuffled."""


class RowOrder:
    """Cuts each epoch of rows, in a random order, into the batches of steps; no batch spans two epochs.

    Arguments:
        count: rows there are.
        batch: rows of a step. None, or the most rows there may be, with `batch_cost`.
        seed: of the order.
        costs: (rows,), what a row costs, for instance its length. Rows of like cost then share a batch, so that little
            is padded.
        batch_cost: with `costs`: as many rows as cost this much together when each costs as much as the dearest of
            them.
        weights: (rows,), how often a row is drawn: an epoch then draws `count` rows with replacement.

    Example:
        >>> order = RowOrder(5, 2, seed=0)
        >>> [order.rows(step).tolist() for step in range(3)]
        [[2, 4], [3, 0], [1]]
        >>> order.epoch(3)
        1.0
    """

    def __init__(
        self,
        count: int,
        batch: int | None,
        *,
        seed: int,
        costs: Integers | None = None,
        batch_cost: int | None = None,
        weights: Floats | None = None,
    ) -> None:
        assert count > 0 and (batch_cost or batch), "an order needs rows and a batch"
        self._count, self._batch, self._seed = count, batch or count, seed
        self._costs, self._batch_cost, self._weights = costs, batch_cost, weights
        self._epoch = lru_cache(maxsize=2)(self._batches_of)
        self._starts = lru_cache(maxsize=2)(self._starts_of)
        self._ends = [0]

    def rows(self, step: int) -> Integers:
        """Return the numbers of the rows of a step, (batch,); the last step of an epoch may have fewer."""
        epoch, within = self._place(step)
        return self._epoch(epoch)[within]

    def positions(self, step: int) -> Integers:
        """Return where each row of a step stands in the run, counted from its first row: the seed of its draws."""
        epoch, within = self._place(step)
        first, end = self._starts(epoch)[within : within + 2]
        return np.arange(first, end, dtype=np.int64)

    def epoch(self, step: int) -> float:
        """Return how many epochs `step` steps are."""
        epoch, within = self._place(step)
        return epoch + within / len(self._epoch(epoch))

    def steps(self, epochs: float) -> int:
        """Return how many steps so many epochs are, rounded up."""
        whole = int(epochs)
        part = int(np.ceil((epochs - whole) * self._length(whole))) if epochs > whole else 0
        return self._end(whole) + part

    def _place(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step, and its number within it."""
        if self._batch_cost is None:
            return divmod(step, self._length(0))
        while self._ends[-1] <= step:
            self._ends.append(self._ends[-1] + self._length(len(self._ends) - 1))
        epoch = int(np.searchsorted(self._ends, step, side="right")) - 1
        return epoch, step - self._ends[epoch]

    def _length(self, epoch: int) -> int:
        if self._batch_cost is None:
            return -(-self._count // self._batch)
        return len(self._epoch(epoch))

    def _end(self, epochs: int) -> int:
        """Return how many steps the first epochs have together."""
        return sum(self._length(epoch) for epoch in range(epochs))

    def _batches_of(self, epoch: int) -> list[Integers]:
        draws = np.random.default_rng([self._seed % 2**32, epoch])
        if self._weights is not None:
            order = draws.choice(self._count, self._count, p=self._weights / self._weights.sum())
        else:
            order = draws.permutation(self._count)
        order = order.astype(np.int64)
        if self._costs is None:
            return [order[at : at + self._batch] for at in range(0, self._count, self._batch)]
        batches = self._of_like_cost(order, self._costs)
        # A short batch stays the last: the others are of one size, and an epoch has as many as its rows ask for.
        last = [batches.pop()] if self._batch_cost is None and len(batches[-1]) < self._batch else []
        return [batches[number] for number in draws.permutation(len(batches))] + last

    def _starts_of(self, epoch: int) -> Integers:
        """Return where each batch of an epoch begins, counted from the run's first row, and where the last ends."""
        sizes = [len(rows) for rows in self._epoch(epoch)]
        return np.concatenate(([0], np.cumsum(sizes))) + epoch * self._count

    def _of_like_cost(self, order: Integers, costs: Integers) -> list[Integers]:
        pool = POOL * (
            self._batch if self._batch_cost is None else min(self._batch, self._rows_within(costs))
        )
        batches: list[Integers] = []
        for at in range(0, len(order), pool):
            rows = order[at : at + pool]
            rows = rows[np.argsort(costs[rows], kind="stable")]
            if self._batch_cost is None:
                batches += [rows[first : first + self._batch] for first in range(0, len(rows), self._batch)]
            else:
                batches += _cut(rows, costs[rows], self._batch_cost, self._batch)
        return batches

    def _rows_within(self, costs: Integers) -> int:
        assert self._batch_cost is not None
        return max(1, int(self._batch_cost / max(1.0, float(costs.mean()))))


def _cut(rows: Integers, costs: Integers, limit: int, most: int) -> list[Integers]:
    """Cut rows of rising cost into batches of at most `most` that cost at most `limit`, each row counted as the dearest
    of its batch."""
    batches, first = [], 0
    for at in range(len(rows)):
        if at - first == most or (at > first and int(costs[at]) * (at - first + 1) > limit):
            batches.append(rows[first:at])
            first = at
    return [*batches, rows[first:]]
