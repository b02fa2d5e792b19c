"""Which rows are held out: by a hash of the row, so that added rows move none and equal rows are on one side.

Rows are known here by a digest of what is given of them, so that equal ones are on one side whatever their targets. A
row's own draw chooses; only where that leaves a side empty, the row of the smallest draw goes there.
"""

from __future__ import annotations

from collections.abc import Sequence

from luban.data.fingerprint import Role
from luban.data.split import draw
from luban.errors import DataError, RecipeError
from luban.row_recipe import RowData

SPLITS: tuple[Role, ...] = ("train", "validation", "test")
SIDES = range(len(SPLITS))
"""A row's side is a number: its split's place in `SPLITS`."""


class RowSplit:
    """Takes validation and test rows out of those given for training, where they have no files of their own.

    Arguments:
        data: the shares, or the folds, and the seed.
        digests: of each row.
        given: of each row, the side whose files it stands in: 0, 1 or 2, as in `SPLITS`.

    Example:
        >>> digests = [bytes([number]) for number in range(10)]
        >>> RowSplit(RowData(train="rows.csv"), digests, [0] * 10).sides()
        [0, 0, 2, 0, 0, 0, 1, 0, 0, 0]
    """

    def __init__(self, data: RowData, digests: Sequence[bytes], given: Sequence[int]) -> None:
        self._data, self._digests, self._given = data, digests, given

    def sides(self) -> list[int]:
        """Say of each row whether it is for training (0), validation (1) or testing (2).

        Raises:
            RecipeError: the shares leave nothing to train on. DataError: there are too few different rows.
        """
        sides, taken = list(self._given), self._taken()
        fold = self._folds()
        for number, given in enumerate(self._given):
            if given != 0:
                continue
            if fold and fold[self._digests[number]] == (self._data.fold or 0):
                sides[number] = 2
                continue
            for side, fraction in taken.items():
                if draw(self._digests[number] + bytes([side]), self._data.seed) < fraction:
                    sides[number] = side
                    break
        for side in (*taken, 0):
            if side not in sides:
                self._force(sides, side)
        return sides

    def _taken(self) -> dict[int, float]:
        """Return by side the share of the rows left by the sides before it that goes to it."""
        data, taken = self._data, dict[int, float]()
        if data.folds is None and data.test is None and data.test_fraction:
            taken[2] = data.test_fraction
        if data.validation is None:
            left = 1.0 - taken.get(2, 0.0)
            if data.validation_fraction >= left:
                raise RecipeError(
                    "validation and test together take all rows",
                    received=f"validation_fraction {data.validation_fraction:g}, test_fraction {data.test_fraction:g}",
                    where="data",
                    fix="let them add up to less than 1",
                )
            taken[1] = data.validation_fraction / left
        return taken

    def _folds(self) -> dict[bytes, int]:
        """Return by digest the fold that tests a row; nothing where there are no folds."""
        count = self._data.folds
        if count is None:
            return {}
        different = {digest for digest, given in zip(self._digests, self._given, strict=True) if given == 0}
        folds = {digest: int(draw(digest + b"fold", self._data.seed) * count) for digest in different}
        if empty := count - len(set(folds.values())):
            raise DataError(
                f"{empty} of {count} folds have no row to test on",
                received=f"different rows: {len(different):,}",
                where="data.folds",
                fix="take fewer folds, or give more rows",
            )
        return folds

    def _force(self, sides: list[int], side: int) -> None:
        """Give an empty side, from the largest that can spare one, the row of the smallest draw, with its equals."""
        # Rows of files of their own stay, and so do those that a fold tests on: no other fold does.
        free = [
            n
            for n, given in enumerate(self._given)
            if given == 0 and (self._data.folds is None or sides[n] != 2)
        ]
        pools = [[n for n in free if sides[n] == one] for one in SIDES]
        pool = max(pools, key=lambda rows: (len({self._digests[n] for n in rows}) > 1, len(rows)))
        different = {self._digests[n] for n in pool}
        if len(different) < 2:
            raise DataError(
                "there are too few different rows to train on and to hold some out",
                received=f"rows: {len(self._given)}, different ones to choose from: {len(different)}",
                fix="give more rows, or files of their own in data.validation and data.test",
            )
        chosen = min(different, key=lambda digest: draw(digest + b"forced", self._data.seed))
        for number in pool:
            if self._digests[number] == chosen:
                sides[number] = side
