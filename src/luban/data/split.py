"""Which text is held out: documents by a hash of their text, so that added data moves none, or a piece of it all."""

from __future__ import annotations

import hashlib
from array import array
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.errors import DataError


def draw(digest: bytes, seed: int) -> float:
    """Return a document's number in [0, 1): it depends on the text and the seed, on no other document.

    Arguments:
        digest: of the text, see `luban.data.duplicates.digest`.
        seed: `data.seed`.
    """
    hashed = hashlib.blake2b(
        digest, digest_size=8, key=b"split", salt=seed.to_bytes(16, "little", signed=True)
    )
    return int.from_bytes(hashed.digest(), "little") / 2**64


class _Draws:
    """The draws of the documents so far."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._draws = array("d")

    def add(self, digest: bytes) -> None:
        """Take the next document."""
        self._draws.append(draw(digest, self._seed))

    def _all(self) -> NDArray[np.float64]:
        return np.frombuffer(self._draws, np.float64) if self._draws else np.zeros(0)


class DocumentSplit(_Draws):
    """Holds out the documents whose draw lies below `fraction`.

    Where that would leave a side empty, the document of the smallest draw is held out all the same, or that
    of the greatest kept for training; its exact copies go with it. So two different documents are enough.

    Example:
        >>> split = DocumentSplit(fraction=0.001, seed=0)
        >>> for digest in (b"one", b"two", b"three"):
        ...     split.add(digest)
        >>> split.sides().tolist(), split.forced
        ([False, True, False], True)
    """

    def __init__(self, fraction: float, seed: int) -> None:
        super().__init__(seed)
        self._fraction = fraction
        self.forced = False

    def sides(self) -> NDArray[np.bool_]:
        """Return for each document whether it is held out, (documents,).

        Raises:
            DataError: there are no two different documents.
        """
        draws = self._all()
        held_out: NDArray[np.bool_] = draws < self._fraction
        if len(draws) and held_out.all() | ~held_out.any():
            self.forced = True
            held_out = draws != draws.max() if held_out.all() else draws == draws.min()
        if held_out.all() or not held_out.any():
            alike = ", all with the same text" if len(draws) > 1 else ""
            raise DataError(
                "one document cannot be split by documents",
                received=f"documents: {len(draws)}{alike}",
                fix="set data.split=tail to hold out the end of the text, or name files in data.validation",
            )
        return held_out

    def described(self) -> dict[str, Any]:
        """Return how the split was made, for the report."""
        return {
            "rule": "document",
            "validation_fraction": self._fraction,
            "seed": self._seed,
            "forced": self.forced,
        }


class DocumentFolds(_Draws):
    """Holds out the documents of one of several folds: those whose draw lies in that of as many equal parts of [0, 1).

    Example:
        >>> digests = (b"three", b"four", b"five")
        >>> for fold in range(2):
        ...     split = DocumentFolds(folds=2, fold=fold, seed=0)
        ...     for digest in digests:
        ...         split.add(digest)
        ...     print(split.sides().tolist())
        [True, True, False]
        [False, False, True]
    """

    def __init__(self, folds: int, fold: int, seed: int) -> None:
        super().__init__(seed)
        self._folds, self._fold = folds, fold

    def sides(self) -> NDArray[np.bool_]:
        """Return for each document whether it is held out, (documents,).

        Raises:
            DataError: a fold, this or another, has no document.
        """
        draws = self._all()
        folds = (draws * self._folds).astype(np.int64)
        if empty := self._folds - len(np.unique(folds)):
            raise DataError(
                f"{empty} of {self._folds} folds have no document to hold out",
                received=f"different documents: {len(np.unique(draws)):,}",
                where="data.folds",
                fix="take fewer folds, give more text, or set data.split=tail to make folds of equal pieces",
            )
        return np.asarray(folds == self._fold)

    def described(self) -> dict[str, Any]:
        """Return how the split was made, for the report."""
        return {"rule": "document", "folds": self._folds, "fold": self._fold, "seed": self._seed}


def piece_of(characters: int, folds: int, fold: int) -> range:
    """Return the characters that a fold holds out of a text: one of as many equal pieces, to the character.

    Raises:
        DataError: a piece would be empty.

    Example:
        >>> [piece_of(10, 3, fold) for fold in range(3)]
        [range(0, 3), range(3, 6), range(6, 10)]
    """
    if characters < folds:
        raise DataError(
            f"the text is too short to be cut into {folds} folds",
            received=f"{characters} characters",
            where="data.folds",
            fix="take fewer folds, or give more text",
        )
    return range(characters * fold // folds, characters * (fold + 1) // folds)


def tail_cut(characters: int, fraction: float) -> int:
    """Return how many characters come before the held-out tail: `int(characters * (1 - fraction))`.

    This is where nanoGPT cuts. `1 - fraction` is taken in decimal, so that 0.1 leaves 0.9 and not a neighbour
    of it.

    Raises:
        DataError: a side would be empty.

    Example:
        >>> tail_cut(1_115_394, 0.1)
        1003854
    """
    cut = int(characters * float(1 - Decimal(repr(fraction))))
    if not 0 < cut < characters:
        raise DataError(
            "the text is too short to hold out its tail",
            received=f"{characters} characters, data.validation_fraction={fraction}",
            fix="give more text, or name other files in data.validation",
        )
    return cut
