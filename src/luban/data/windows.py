"""Windows of a token stream, for training (random order, exact epochs) and for evaluation (every token once).

Both predict token p + 1 from tokens up to p. A target of -100 counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from luban.data.shards import TokenShards
from luban.errors import InputError

IGNORED = -100
_ROUNDS = 6
_DOCUMENTS_AT_ONCE = 1 << 16
_WIDTH_STEP = 16
_BLOCK = 1024
"""Places in the walk that are computed at once: a permutation of eight costs nearly what one of a thousand does."""

Int64s = npt.NDArray[np.int64]
_UInt64s = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class WindowBatch:
    """Rows a model reads at once.

    Attributes:
        inputs: (rows, length) token ids.
        targets: (rows, length) the token after each input; -100 where nothing is to be predicted.
        targets_count: how many targets count.
        segments: (rows, length) the number of the document within its row, for a block-diagonal causal mask;
            None where attention runs along the whole row.
        positions: (rows, length) the place within the document's part of the row; None as above.
        documents: (rows,) the document of each row where every row has only one; None in training.
    """

    inputs: Int64s
    targets: Int64s
    targets_count: int
    segments: Int64s | None = None
    positions: Int64s | None = None
    documents: Int64s | None = None


class Windows:
    """Training windows as a pure function of (seed, epoch, position): no state, any place reached at once.

    The stream is read as a ring: behind the last document's end token comes the first document. Epoch `e`
    starts at a random phase, cuts the ring into `per_epoch` windows and walks them in a random order. So
    windows differ from epoch to epoch, each epoch has every token as a target exactly once, and one window
    at most is ragged.

    Arguments:
        shards: the tokens.
        length: tokens in a window.
        seed: of phases and orders.
        attention: "stream" attends across document ends; "document" gives segments and positions to attend
            only within a document. The end token that closes a document then opens the next one's segment, as
            the token that its first token is predicted from.
    """

    def __init__(
        self,
        shards: TokenShards,
        *,
        length: int,
        seed: int,
        attention: Literal["stream", "document"] = "stream",
    ) -> None:
        if length < 1:
            raise InputError("a window has at least one token", received=length, where="data.length")
        if not shards.tokens:
            raise InputError(f"there are no tokens in {shards.folder} ({shards.split})", fix="give more data")
        self.shards, self.length, self.seed, self.attention = shards, length, seed, attention
        self.per_epoch = -(-shards.tokens // length)
        self._block = min(_BLOCK, self.per_epoch)
        self._known: tuple[int, Int64s] = (-1, np.empty((0, 2), dtype=np.int64))

    def batch(self, first: int, count: int) -> WindowBatch:
        """Windows `first` to `first + count` of the endless walk; position // per_epoch is the epoch.

        Two ranks that take the two halves of a range see together exactly what one process sees.
        """
        return self._rows(self.starts(first, count), self.length)

    def halves(self, first: int, count: int) -> WindowBatch:
        """Half windows `first` to `first + count` of the same walk: window `n` is the halves 2 n and 2 n + 1.

        The length of a window must be even.
        """
        half = self.length // 2
        begins = np.repeat(self.starts(first // 2, -(-(first + count) // 2) - first // 2), 2, axis=0)
        begins[:, 1] *= 2
        begins[1::2] += [half, 1]
        return self._rows(begins[first % 2 :][:count], half)

    def _rows(self, begins: Int64s, length: int) -> WindowBatch:
        """Read the rows of `length` tokens at places, (n, 2) of the first target and the number in such a cut."""
        tokens = self.shards.tokens
        # The stream is a ring: from the first target's predecessor on, and behind the end the beginning again.
        ids = self.shards.gather((begins[:, :1] - 1 + np.arange(length + 1)) % tokens)
        inputs, targets = ids[:, :-1].copy(), ids[:, 1:].copy()
        # Only the last window of the cut is shorter: what is left of the ring. Of its halves one may be empty.
        sizes = np.clip(tokens - begins[:, 1] * length, 0, length)
        for row in np.flatnonzero(sizes < length).tolist():
            inputs[row, sizes[row] :], targets[row, sizes[row] :] = self.shards.end_id, IGNORED
        counted = int(sizes.sum())
        if self.attention == "stream":
            return WindowBatch(inputs, targets, counted)
        segments, positions = _segments(inputs == self.shards.end_id)
        return WindowBatch(inputs, targets, counted, segments, positions)

    def starts(self, first: int, count: int) -> Int64s:
        """Where each window begins, (count, 2): the place of its first target, its number in the cut."""
        size, last = self._block, first + count
        parts = [
            self._starts_of(number)[max(0, first - number * size) : last - number * size]
            for number in range(first // size, -(-last // size))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, 2), dtype=np.int64), *parts])

    def _starts_of(self, number: int) -> Int64s:
        """Where the windows of a block of places begin; a walk asks for one block many times in a row."""
        if self._known[0] != number:
            self._known = (number, self._computed(number * self._block, self._block))
        return self._known[1]

    def _computed(self, first: int, count: int) -> Int64s:
        out = np.empty((count, 2), dtype=np.int64)
        places = np.arange(first, first + count)
        for epoch in range(first // self.per_epoch, -(-(first + count) // self.per_epoch)):
            here = places // self.per_epoch == epoch
            keys = _keys(self.seed, epoch)
            phase = int(keys[-1]) % min(self.length, self.shards.tokens)
            numbers = shuffled(places[here] % self.per_epoch, self.per_epoch, keys[:-1])
            out[here, 0] = (phase + numbers * self.length) % self.shards.tokens
            out[here, 1] = numbers
        return out


def _keys(seed: int, epoch: int) -> _UInt64s:
    """Independent random numbers for each (seed, epoch): keys of the order, and last the phase's."""
    state = np.random.SeedSequence([seed % (1 << 64), epoch]).generate_state(_ROUNDS + 1, np.uint64)
    return state.astype(np.uint64)


def shuffled(places: Int64s, size: int, keys: _UInt64s) -> Int64s:
    """Where a random permutation of `range(size)` takes `places`; computed for each place, without a table.

    A Feistel network permutes the numbers of as many bits as `size` needs (Luby and Rackoff, 1988); a result
    beyond `size` is put in again until it falls inside ("cycle walking", Black and Rogaway, 2002).

    Arguments:
        places: (n,) numbers below `size`.
        keys: (rounds,) an even number of random 64-bit keys.

    Example:
        >>> keys = np.random.SeedSequence(0).generate_state(6, np.uint64)
        >>> sorted(shuffled(np.arange(10), 10, keys).tolist()) == list(range(10))
        True
    """
    bits = max(2, (size - 1).bit_length())
    out = places.astype(np.uint64)
    outside = np.ones(len(out), dtype=bool)
    while outside.any():
        out[outside] = _feistel(out[outside], bits, keys)
        outside = out >= np.uint64(size)
    return out.astype(np.int64)


def _feistel(numbers: _UInt64s, bits: int, keys: _UInt64s) -> _UInt64s:
    """One pass; the halves change places and widths in each round, and an even number restores them."""
    low_bits, high_bits = bits // 2, bits - bits // 2
    low = numbers & np.uint64((1 << low_bits) - 1)
    high = numbers >> np.uint64(low_bits)
    for key in keys:
        mixed = high ^ (_hash(low + key) >> np.uint64(64 - high_bits))
        high, low = low, mixed
        high_bits, low_bits = low_bits, high_bits
    return (high << np.uint64(low_bits)) | low


def _hash(values: _UInt64s) -> _UInt64s:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _segments(opens: npt.NDArray[np.bool_]) -> tuple[Int64s, Int64s]:
    """Segment numbers and places within them, both (rows, length), from where segments open."""
    segments = np.cumsum(opens, axis=1, dtype=np.int64)
    segments -= segments[:, :1]
    places = np.arange(opens.shape[1], dtype=np.int64)
    opened = np.maximum.accumulate(np.where(opens, places, 0), axis=1)
    return segments, places - opened


def sequential(
    shards: TokenShards, length: int, stride: int, *, rows: int = 16, begin: int | None = None
) -> Iterator[WindowBatch]:
    """Read every token of every document as a target exactly once, each document by itself.

    Each document is read behind a begin token, so that its first token is predicted too; its end token is its
    last target. A document longer than `length` becomes several rows, each `stride` further: with
    `stride < length` a row repeats `length - stride` tokens as context, and only its new targets count.

    Arguments:
        shards: the tokens.
        length: the longest row.
        stride: how far a row is behind the one before, 1 to `length`.
        rows: rows of full length in a batch; of shorter rows, which are sorted by length to pad little, a
            batch takes more, up to the same number of tokens.
        begin: the token a document is read behind; the end token when None.

    Raises:
        InputError: stride or length are out of range.
    """
    if not 1 <= stride <= length:
        raise InputError(
            "the stride lies from 1 to the length of a row", received=stride, where="evaluate.stride"
        )
    if rows < 1:
        raise InputError("a batch has at least one row", received=rows)
    begin = shards.end_id if begin is None else begin
    for block in range(0, len(shards.documents), _DOCUMENTS_AT_ONCE):
        parts = _parts(
            np.array(shards.documents[block : block + _DOCUMENTS_AT_ONCE, :2]), block, length, stride
        )
        parts = parts[np.argsort(-parts[:, 3], kind="stable")]
        at = 0
        while at < len(parts):
            width = min(length, -(-int(parts[at, 3]) // _WIDTH_STEP) * _WIDTH_STEP)
            count = max(rows, rows * length // width)
            yield _document_rows(shards, parts[at : at + count], width, begin)
            at += count


def _parts(documents: Int64s, offset: int, length: int, stride: int) -> Int64s:
    """Cut documents, (n, 2) of first token and tokens, into rows.

    Gives (rows, 5): the document, its first token, the row's first target within the document, the row's
    targets, and the first of them that is new.
    """
    tokens = documents[:, 1]
    pieces = 1 + np.maximum(0, -(-(tokens - length) // stride))
    document = np.repeat(np.arange(len(documents)), pieces)
    piece = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = piece * stride
    size = np.minimum(length, tokens[document] - start)
    new = np.where(piece > 0, length - stride, 0)
    return np.stack([document + offset, documents[document, 0], start, size, new], axis=1)


def _document_rows(shards: TokenShards, parts: Int64s, width: int, begin: int) -> WindowBatch:
    inputs = np.full((len(parts), width), shards.end_id, dtype=np.int64)
    targets = np.full((len(parts), width), IGNORED, dtype=np.int64)
    for row, (_, first, start, size, new) in enumerate(parts.tolist()):
        at = first + start
        ids = shards.read(at, at + size)
        inputs[row, 0] = begin if start == 0 else shards.read(at - 1, at)[0]
        inputs[row, 1:size] = ids[:-1]
        targets[row, new:size] = ids[new:]
    return WindowBatch(inputs, targets, int((targets != IGNORED).sum()), documents=parts[:, 0].copy())
