"""Finds documents seen before: the same text, or nearly the same by MinHash.

MinHash (Broder 1997, "On the resemblance and containment of documents") keeps of each document the least
value of 128 hash functions over its shingles; the share of equal values estimates the Jaccard similarity
of two sets of shingles, with a standard error of at most 0.045. Candidates come from bands of the
signature (locality-sensitive hashing, Indyk and Motwani 1998); each is then judged by the whole of it.
Memory per document kept: about 500 bytes, its text never.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.data.words import Shingles, mixed

PERMUTATIONS = 128
_LEAST_FOUND = 0.95
_MOST_CANDIDATES = 16
_BLOCK = 1 << 15
_SHORT = 32

Signatures = NDArray[np.uint16]
Digests = NDArray[np.uint64]


def digest(text: str) -> bytes:
    r"""Return 16 bytes that tell texts apart, white space aside: runs of it count as one space, at the ends
    as none.

    Example:
        >>> digest("to be,  or not\n") == digest(" to be, or not"), digest("to be") == digest("To be")
        (True, False)
    """
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8"), digest_size=16).digest()


def _constants(name: bytes) -> NDArray[np.uint32]:
    """128 numbers that stay the same on every machine and with every version of numpy."""
    blocks = [hashlib.blake2b(name + bytes([i]), digest_size=4).digest() for i in range(PERMUTATIONS)]
    return np.frombuffer(b"".join(blocks), "<u4").astype(np.uint32)


_FACTORS, _OFFSETS = _constants(b"factor") | np.uint32(1), _constants(b"offset")


def signatures(count: int, blocks: Sequence[Shingles]) -> Signatures:
    """Return the MinHash signatures of `count` texts from their shingles, (count, 128): 16 bits of each
    minimum."""
    least = np.full((PERMUTATIONS, count), 0xFFFFFFFF, np.uint32)
    for block in blocks:
        hashes = (block.hashes >> np.uint64(32)).astype(np.uint32)
        lengths = np.diff(block.starts)
        short = lengths <= _SHORT
        if short.any():
            _lower_short(least, block.owners[short], hashes, block.starts[:-1][short], lengths[short])
            hashes = hashes[np.repeat(~short, lengths)]
        starts = np.concatenate([[0], np.cumsum(lengths[~short])])
        for first, last, begin, end in _runs(starts):
            within = np.maximum(starts[first:last], begin) - begin
            _lower(least, block.owners[~short][first:last], hashes[begin:end], within)
    # A minimum over many shingles is a small number: mixing makes its low bits tell it from others.
    return mixed(least.T.astype(np.uint64)).astype(np.uint16)


def _runs(starts: NDArray[np.int64]) -> list[tuple[int, int, int, int]]:
    """Cut shingles into runs that fit the cache: (first part, last part + 1, first shingle, last shingle +
    1)."""
    edges = [*range(0, int(starts[-1]), _BLOCK), int(starts[-1])]
    return [
        (int(np.searchsorted(starts, a, "right")) - 1, int(np.searchsorted(starts, b, "left")), a, b)
        for a, b in itertools.pairwise(edges)
    ]


def _lower(
    least: NDArray[np.uint32],
    owners: NDArray[np.int64],
    hashes: NDArray[np.uint32],
    starts: NDArray[np.int64],
) -> None:
    """Lower `least` to the minima of one run of shingles under each of the 128 hash functions."""
    values = np.empty_like(hashes)
    for row, factor, offset in zip(least, _FACTORS, _OFFSETS, strict=True):
        np.multiply(hashes, factor, out=values)
        np.add(values, offset, out=values)
        _lower_row(row, owners, np.minimum.reduceat(values, starts))


def _lower_short(
    least: NDArray[np.uint32],
    owners: NDArray[np.int64],
    hashes: NDArray[np.uint32],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> None:
    """The same for parts of few shingles, many parts at a time: those of like length are columns of one
    table."""
    width = 1
    while width <= _SHORT:
        chosen = np.flatnonzero((lengths > width // 2) & (lengths <= width))
        within = np.minimum(np.arange(width)[:, None], lengths[chosen] - 1)
        table = hashes[starts[chosen] + within]  # (width, parts)
        values = np.empty_like(table)
        for row, factor, offset in zip(least, _FACTORS, _OFFSETS, strict=True) if len(chosen) else ():
            np.multiply(table, factor, out=values)
            np.add(values, offset, out=values)
            _lower_row(row, owners[chosen], values.min(axis=0))
        width *= 2


def _lower_row(row: NDArray[np.uint32], owners: NDArray[np.int64], minima: NDArray[np.uint32]) -> None:
    """Lower `row[owners]` to `minima`; owners ascend, and one that stands twice has several parts here."""
    if len(owners) == 1 or (owners[1:] > owners[:-1]).all():
        row[owners] = np.minimum(row[owners], minima)
    else:
        np.minimum.at(row, owners, minima)


def rows_per_band(threshold: float) -> int:
    """Return the longest band, of 1 to 64 values, that finds 95 % of the pairs exactly as similar as
    `threshold`.

    Example:
        >>> rows_per_band(0.85), rows_per_band(0.5)
        (8, 2)
    """
    for rows in (64, 32, 16, 8, 4, 2):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= _LEAST_FOUND:
            return rows
    return 1


@dataclass(frozen=True, slots=True)
class Match:
    """A document kept before that is like the one at hand.

    Arguments:
        number: which it is, counting kept documents from 0.
        exact: whether the texts are the same, white space aside.
        similarity: the estimated Jaccard similarity.
    """

    number: int
    exact: bool
    similarity: float


class DuplicateIndex:
    """Remembers kept documents by digest and signature and finds those that a new one is like.

    Keys lie in sorted arrays that are merged as they grow, so memory is a few hundred bytes a document and a
    whole batch is looked up at once.

    Arguments:
        threshold: the least estimated similarity that counts as nearly the same.

    Example:
        >>> from luban.data.words import analyse
        >>> texts = ["to be or not to be that is", "something else is here", "To be, or not to be: that is!"]
        >>> index = DuplicateIndex(0.85)
        >>> found = []
        >>> def keep(i, matches):
        ...     found.append([m.number for m in matches])
        ...     return not matches
        >>> index.add(pack_digests([digest(t) for t in texts]), signatures(3, analyse(texts)[1]), keep)
        >>> found
        [[], [], [0]]
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._rows = rows_per_band(threshold)
        self._levels: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]] = []
        self._digests = _Rows(np.uint64, 2)
        self._signatures = _Rows(np.uint16, PERMUTATIONS)

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, digests: Digests, signatures: Signatures, keep: Callable[[int, list[Match]], bool]) -> None:
        """Look up a batch of documents in order; those that `keep(position, matches)` accepts are remembered.

        Arguments:
            digests: (documents, 2), see `pack_digests`.
            signatures: (documents, 128).
            keep: gets the earlier kept documents like this one, the oldest first, at most 16 for each of its
                keys.
        """
        keys = self._keys(digests, signatures)
        earlier, shared = self._earlier(keys), _shared(keys)
        base = len(self)
        recent: dict[int, list[int]] = {}
        kept: list[int] = []
        for position in range(len(digests)):
            numbers = earlier.get(position, set())
            own = shared.get(position, ())
            if own:
                numbers = numbers.union(*(recent.get(key, ())[:_MOST_CANDIDATES] for key in own))
            matches = self._judge(digests, signatures, position, sorted(numbers), kept) if numbers else []
            if keep(position, matches):
                for key in own:
                    recent.setdefault(key, []).append(base + len(kept))
                kept.append(position)
        self._digests.extend(digests[kept])
        self._signatures.extend(signatures[kept])
        self._remember(keys[kept], base)

    def _keys(self, digests: Digests, signatures: Signatures) -> NDArray[np.uint64]:
        """One key for the whole text and one for each band, (documents, 1 + bands)."""
        bands = signatures.reshape(-1, PERMUTATIONS // self._rows, self._rows).astype(np.uint64)
        hashes = np.broadcast_to(np.arange(1, bands.shape[1] + 1, dtype=np.uint64), bands.shape[:2])
        for i in range(self._rows):
            hashes = mixed(hashes ^ bands[:, :, i])
        return np.concatenate([mixed(digests[:, :1]), hashes], axis=1)

    def _earlier(self, keys: NDArray[np.uint64]) -> dict[int, set[int]]:
        """Find the kept documents that share a key with each of a batch."""
        found: dict[int, set[int]] = {}
        flat = keys.ravel()
        for level_keys, numbers in self._levels:
            first = np.searchsorted(level_keys, flat, "left")
            hit = np.flatnonzero(level_keys[np.minimum(first, len(level_keys) - 1)] == flat)
            last = np.searchsorted(level_keys, flat[hit], "right")
            for at, begin, end in zip(hit.tolist(), first[hit].tolist(), last.tolist(), strict=True):
                owners = numbers[begin : min(end, begin + _MOST_CANDIDATES)].tolist()
                found.setdefault(at // keys.shape[1], set()).update(owners)
        return found

    def _judge(
        self, digests: Digests, signatures: Signatures, position: int, numbers: list[int], kept: list[int]
    ) -> list[Match]:
        """Compare one document of a batch with candidates from before the batch and from within it."""
        base = len(self)
        old = [n for n in numbers if n < base]
        new = [kept[n - base] for n in numbers if n >= base]
        theirs = np.concatenate([self._digests.values()[old], digests[new]])
        same = (theirs == digests[position]).all(axis=1)
        theirs = np.concatenate([self._signatures.values()[old], signatures[new]])
        similar = (theirs == signatures[position]).mean(axis=1)
        return [
            Match(number, bool(exact), 1.0 if exact else float(similarity))
            for number, exact, similarity in zip(numbers, same, similar, strict=True)
            if exact or similarity >= self.threshold
        ]

    def _remember(self, keys: NDArray[np.uint64], first: int) -> None:
        """Add the keys of newly kept documents as a level and merge levels of like size, the oldest number
        first."""
        if not len(keys):
            return
        numbers = np.repeat(np.arange(first, first + len(keys), dtype=np.uint32), keys.shape[1])
        level = _sorted(keys.ravel(), numbers)
        while self._levels and len(self._levels[-1][0]) < 2 * len(level[0]):
            older = self._levels.pop()
            level = _sorted(np.concatenate([older[0], level[0]]), np.concatenate([older[1], level[1]]))
        self._levels.append(level)


def pack_digests(digests: Sequence[bytes]) -> Digests:
    """Put 16-byte digests into an array, (documents, 2)."""
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def _sorted(
    keys: NDArray[np.uint64], numbers: NDArray[np.uint32]
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    order = np.argsort(keys, kind="stable")
    return keys[order], numbers[order]


def _shared(keys: NDArray[np.uint64]) -> dict[int, list[int]]:
    """Return, for each document of a batch, those of its keys that another document of the batch has too."""
    flat = keys.ravel()
    ordered = np.sort(flat)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    found: dict[int, list[int]] = {}
    for at in np.flatnonzero(np.isin(flat, twice)).tolist() if len(twice) else ():
        found.setdefault(at // keys.shape[1], []).append(int(flat[at]))
    return found


class _Rows:
    """Rows of an array that grows by doubling."""

    def __init__(self, dtype: type[np.generic], width: int) -> None:
        self._array: NDArray[Any] = np.empty((1024, width), dtype)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, rows: NDArray[Any]) -> None:
        while self._count + len(rows) > len(self._array):
            self._array = np.concatenate([self._array, np.empty_like(self._array)])
        self._array[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def values(self) -> NDArray[Any]:
        return self._array[: self._count]
