"""What text is made of: kinds of characters, words, and shingles of words as hashes, whole arrays at a time.

A word is a run of letters and digits, but each Chinese character and each kana is a word of its own. So a
shingle of four words is four English words or four Chinese characters, and one measure serves both.
"""

from __future__ import annotations

import functools
import hashlib
import string
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHINGLE = 4
BLOCK_CHARACTERS = 1 << 18

SPACE, LATIN, HAN, LETTER, KANA, DIGIT, MARK, PUNCTUATION, SYMBOL = range(9)
_KINDS = 9
_IN_WORD = np.array([False, True, False, True, False, True, True, False, False])
_ALONE = np.array([False, False, True, False, True, False, False, False, False])
_PUNCTUATION = ".,;:!?'\"()-–—…‘’“”«»、。，．；：！？（）《》〈〉「」『』【】〔〕·—～·"
_HAN_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_KANA_RANGES = ((0x3041, 0x30FF), (0x31F0, 0x31FF))

Words = NDArray[np.uint64]


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """The kind of every code point."""
    table = np.full(0x110000, SYMBOL, np.uint8)
    by_category = {"L": LETTER, "M": MARK, "N": DIGIT, "Z": SPACE}
    for code in range(0x20000):
        table[code] = by_category.get(unicodedata.category(chr(code))[0], SYMBOL)
    for kind, ranges in ((HAN, _HAN_RANGES), (KANA, _KANA_RANGES)):
        for first, last in ranges:
            table[first : last + 1] = kind
    table[[ord(c) for c in string.ascii_letters]] = LATIN
    table[[ord(c) for c in _PUNCTUATION]] = PUNCTUATION
    table[[ord(c) for c in "\t\n\v\f\r\x85"]] = SPACE
    return table


@functools.cache
def _letters() -> Words:
    """A hash of every code point, the same for upper and lower case."""
    codes = np.arange(0x110000, dtype=np.uint64)
    for code in range(0x20000):
        lower = chr(code).lower()
        if len(lower) == 1:
            codes[code] = ord(lower)
    return mixed(codes + np.uint64(1))


@dataclass(frozen=True, slots=True)
class Counts:
    """Characters of each kind per text, (texts, 9); and the shares that follow from them."""

    kinds: NDArray[np.int64]

    def languages(self) -> NDArray[np.int64]:
        """Return letters per text by script, (texts, 3): Latin without accents (en), Chinese (zh), all
        others."""
        k = self.kinds
        return np.stack([k[:, LATIN], k[:, HAN], k[:, LETTER] + k[:, KANA]], axis=1)

    def symbol_share(self) -> NDArray[np.float64]:
        """Return the share of symbols among what is not white space, (texts,)."""
        shown = self.kinds.sum(axis=1) - self.kinds[:, SPACE]
        share: NDArray[np.float64] = self.kinds[:, SYMBOL] / np.maximum(shown, 1)
        return share


@dataclass(frozen=True, slots=True)
class Shingles:
    """Hashes of the shingles of some texts: `hashes[starts[i]:starts[i + 1]]` belong to text `owners[i]`.

    A long text comes in several parts. Every part has at least one shingle.
    """

    hashes: Words
    starts: NDArray[np.int64]
    owners: NDArray[np.int64]


def analyse(texts: Sequence[str]) -> tuple[Counts, list[Shingles]]:
    """Count characters by kind and hash the shingles of `texts`; memory is bounded by blocks of 256 Ki
    characters.

    Upper and lower case count as the same; punctuation and white space only part words.
    """
    counts = np.zeros((len(texts), _KINDS), np.int64)
    blocks = [_block(part, counts) for part in _blocks(texts)]
    return Counts(counts), blocks


def _blocks(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Group texts, long ones cut, into blocks of (index of the text, part of it)."""
    block: list[tuple[int, str]] = []
    size = 0
    for index, text in enumerate(texts):
        for start in range(0, max(len(text), 1), BLOCK_CHARACTERS):
            part = text[start : start + BLOCK_CHARACTERS]
            if size + len(part) > BLOCK_CHARACTERS and block:
                yield block
                block, size = [], 0
            block.append((index, part))
            size += len(part)
    if block:
        yield block


def _block(parts: Sequence[tuple[int, str]], counts: NDArray[np.int64]) -> Shingles:
    """Add the kinds of characters of one block to `counts` and hash its shingles."""
    owners = np.array([index for index, _ in parts])
    joined = "\n".join([text for _, text in parts])
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.intp)
    kinds = _kinds().take(codes)
    lengths = np.array([len(text) for _, text in parts])
    starts = np.concatenate([[0], np.cumsum(lengths[:-1] + 1)])  # one line feed between parts
    part_of = np.repeat(np.arange(len(parts)), lengths + 1)[: len(codes)]
    found = np.bincount(part_of * _KINDS + kinds, minlength=len(parts) * _KINDS).reshape(-1, _KINDS)
    found[:-1, SPACE] -= 1
    np.add.at(counts, owners, found)
    words, first = _words(codes, kinds)
    words_before = np.searchsorted(first, np.append(starts, len(codes) + 1))
    per_part = np.diff(words_before)
    hashes, out = _shingles(words, per_part)
    for part in np.flatnonzero(per_part == 0).tolist():
        # Texts without a word ("!!!", "***") are like each other only where they are the same.
        digest = hashlib.blake2b(parts[part][1].encode("utf-8", "surrogatepass"), digest_size=8).digest()
        hashes[out[part]] = int.from_bytes(digest, "little")
    return Shingles(hashes, out, owners)


def _words(codes: NDArray[np.intp], kinds: NDArray[np.uint8]) -> tuple[Words, NDArray[np.intp]]:
    """Return the hash of each word, over its letters and where in the word they stand, and the position it
    starts at."""
    in_word, alone = _IN_WORD.take(kinds), _ALONE.take(kinds)
    begins = in_word.copy()
    begins[1:] &= ~in_word[:-1]
    begins |= alone
    kept = np.flatnonzero(in_word | alone)
    heads = np.flatnonzero(begins.take(kept))
    if not len(heads):
        return np.zeros(0, np.uint64), np.zeros(0, np.intp)
    within = np.arange(len(kept), dtype=np.uint64)
    within -= np.repeat(within.take(heads), np.diff(heads, append=len(kept)))
    within *= _POWERS[0]
    within += _letters().take(codes.take(kept))
    within ^= within >> np.uint64(32)
    within *= _POWERS[1]
    return mixed(np.add.reduceat(within, heads)), kept.take(heads)


def _shingles(words: Words, per_part: NDArray[np.int64]) -> tuple[Words, NDArray[np.int64]]:
    """Hash each run of four words within a part; a part of fewer words is one shingle."""
    padded = np.maximum(per_part, SHINGLE)
    starts = np.concatenate([[0], np.cumsum(padded)])
    if len(words) == starts[-1]:
        filled = words
    else:
        filled = np.zeros(starts[-1], np.uint64)
        offset = np.repeat(starts[:-1] - np.concatenate([[0], np.cumsum(per_part)[:-1]]), per_part)
        filled[np.arange(len(words)) + offset] = words
    count = len(filled) - SHINGLE + 1
    hashes = filled[:count] * _POWERS[0]
    for i in range(1, SHINGLE):
        hashes += filled[i : i + count] * _POWERS[i]
    per_part = padded - SHINGLE + 1
    out = np.concatenate([[0], np.cumsum(per_part)])
    within = np.ones(count, bool)
    for i in range(1, SHINGLE):
        within[starts[1:-1] - i] = False
    return mixed(hashes[within]), out


def mixed(values: Words) -> Words:
    """Spread 64-bit values over all 64 bits (the finalizer of SplitMix64)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


_POWERS = mixed(np.arange(1, SHINGLE + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
