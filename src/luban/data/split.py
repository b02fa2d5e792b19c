"""Which documents are held out: by a hash of the text, so that added data moves none, or the tail."""

from __future__ import annotations

import hashlib
from array import array
from decimal import Decimal

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


class DocumentSplit:
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
        self._fraction, self._seed = fraction, seed
        self._draws = array("d")
        self.forced = False

    def add(self, digest: bytes) -> None:
        """Take the next document."""
        self._draws.append(draw(digest, self._seed))

    def sides(self) -> NDArray[np.bool_]:
        """Return for each document whether it is held out, (documents,).

        Raises:
            DataError: there are no two different documents.
        """
        draws = np.frombuffer(self._draws, np.float64) if self._draws else np.zeros(0)
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
