"""Cuts a running text into passages whose ends depend on what stands there, not on how far in it stands.

So text added in one place moves no passage elsewhere, and a passage stays on its side of the split. The idea
is that of content-defined chunking (Muthitacharoen et al. 2001, "A Low-bandwidth Network File System").
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

LEAST_CHARACTERS = 1000
MOST_CHARACTERS = 8000
_ENDS_OF_SENTENCES = "。！？.!?;； "
_MIX = 0x9E3779B1


@dataclass(slots=True)
class _Boundary:
    """A place where a passage may end: after a blank line (strong) or only after a line."""

    weak: bool
    draw: int
    parts: int
    size: int


class Passages:
    r"""Collects lines and gives passages; put together, the passages are the text, to the character.

    A passage of at least `least` characters ends at a blank line where a hash of the paragraph before it
    says so (one in four). A passage that would pass `most` ends at the blank line, or else the line end, of
    the smallest hash so far, and only where there is none in the midst of a line.

    Example:
        >>> passages = Passages(least=5, most=20)
        >>> lines = ["one two\n", "\n", "three\n", "four five six seven\n"]
        >>> given = [p for number, line in enumerate(lines, 1) for p in passages.feed(number, line)]
        >>> given += passages.finish()
        >>> "".join(text for _, text in given)
        'one two\n\nthree\nfour five six seven\n'
    """

    def __init__(self, least: int = LEAST_CHARACTERS, most: int = MOST_CHARACTERS) -> None:
        self._least, self._most = least, most
        self._parts: list[tuple[int, str]] = []
        self._size = 0
        self._boundaries: list[_Boundary] = []
        self._paragraph = 0
        self._line = 0
        self._after_blank = False

    def feed(self, number: int, text: str) -> Iterator[tuple[int, str]]:
        """Take a line (with its line end) or a piece of a long one; give the passages that end before it."""
        for piece in _pieces(text, self._most // 2):
            if self._parts and self._at_boundary(piece):
                yield self._emit(len(self._parts))
            while self._parts and self._size + len(piece) > self._most:
                yield self._emit(self._best_cut())
            self._parts.append((number, piece))
            self._size += len(piece)
            self._note(piece)

    def finish(self) -> Iterator[tuple[int, str]]:
        """Give what is left at the end of the text."""
        if self._parts:
            yield self._emit(len(self._parts))

    def _at_boundary(self, piece: str) -> bool:
        """Look at the place before `piece`: end here, or remember it in case the passage grows too long."""
        if not self._parts[-1][1].endswith("\n") or not piece.strip():
            return False
        strong = self._after_blank
        draw = ((self._paragraph if strong else self._line) * _MIX & 0xFFFFFFFF) >> 8
        if strong:
            self._paragraph = 0
            if self._size >= self._least and draw % 4 == 0:
                return True
        self._boundaries.append(_Boundary(not strong, draw, len(self._parts), self._size))
        return False

    def _note(self, piece: str) -> None:
        raw = piece.encode("utf-8", "surrogatepass")
        self._after_blank = not piece.strip()
        if not self._after_blank:
            self._paragraph = zlib.crc32(raw, self._paragraph)
            self._line = zlib.crc32(raw)

    def _best_cut(self) -> int:
        able = [b for b in self._boundaries if b.size >= self._least]
        if not able:
            return len(self._parts)
        return min(able, key=lambda b: (b.weak, b.draw, -b.size)).parts

    def _emit(self, count: int) -> tuple[int, str]:
        number, text = self._parts[0][0], "".join(part for _, part in self._parts[:count])
        del self._parts[:count]
        self._size -= len(text)
        self._boundaries = [
            _Boundary(b.weak, b.draw, b.parts - count, b.size - len(text))
            for b in self._boundaries
            if b.parts > count
        ]
        return number, text


def _pieces(text: str, most: int) -> Iterator[str]:
    """Cut a text longer than `most` after line ends, or else after the last end of a sentence that fits."""
    if "\n" in text[:-1]:
        for line in text.split("\n")[:-1]:
            yield from _pieces(line + "\n", most)
        if not text.endswith("\n"):
            yield from _pieces(text[text.rindex("\n") + 1 :], most)
        return
    start = 0
    while len(text) - start > most:
        window = text[start : start + most]
        cut = max(window.rfind(end, most // 2) for end in _ENDS_OF_SENTENCES) + 1 or most
        yield window[:cut]
        start += cut
    if start < len(text):
        yield text[start:]
