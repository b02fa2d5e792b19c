"""Training rows that say again what an earlier one said: counted, shown, and left in."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from luban.data.json_text import to_sorted_json

EXAMPLES = 10


class Repeats:
    """What rows have in common once their writing is evened out.

    Two rows are the same where all that is given of them (not what is asked for) is: texts without regard to case,
    white space and the width or composition of characters (NFKC), everything else exactly.
    """

    def __init__(self) -> None:
        self._given: list[bytes] = []
        self._asked: list[bytes] = []

    def add(self, given: Mapping[str, Any], asked: Mapping[str, Any], blob: bytes) -> None:
        """Take in the next row.

        Arguments:
            given, asked: JSON values. blob: a digest of what of the row is no JSON, as a picture.
        """
        self._given.append(_digest(given, blob))
        self._asked.append(_digest(asked, b""))

    def report(
        self, sides: Sequence[int], shown: Callable[[set[int]], Mapping[int, dict[str, Any]]]
    ) -> dict[str, Any]:
        """Return how many training rows (side 0) repeat an earlier one, and how many of these with another target.

        Arguments:
            shown: gives rows by number, as a person reads them.
        """
        first: dict[bytes, int] = {}
        pairs: list[tuple[int, int]] = []
        for number, (digest, side) in enumerate(zip(self._given, sides, strict=True)):
            if side == 0 and (earlier := first.setdefault(digest, number)) != number:
                pairs.append((earlier, number))
        others = [pair for pair in pairs if self._asked[pair[0]] != self._asked[pair[1]]]
        # Those that contradict each other tell most.
        told = [*others, *(pair for pair in pairs if pair not in set(others[:EXAMPLES]))][:EXAMPLES]
        rows = shown({number for pair in told for number in pair})
        examples = [{"first": rows[a], "again": rows[b]} for a, b in told]
        return {"rows": len(pairs), "other_target": len(others), "examples": examples}


def note_of(found: Mapping[str, Any], rows: int) -> dict[str, str] | None:
    """Return what is to be said of repeated rows; None where there are none.

    Example:
        >>> note_of({"rows": 2, "other_target": 1}, 1000)["detail"]
        '2 of 1,000 training rows repeat an earlier one, case and white space aside; 1 of them with another target'
    """
    if not found["rows"]:
        return None
    detail = f"{found['rows']:,} of {rows:,} training rows repeat an earlier one, case and white space aside"
    if found["other_target"]:
        detail += f"; {found['other_target']:,} of them with another target"
    return {"kind": "duplicates", "detail": detail}


def _digest(values: Mapping[str, Any], blob: bytes) -> bytes:
    text = to_sorted_json(_even(values)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text + blob, digest_size=16).digest()


def _even(value: Any) -> Any:
    """Return a value with its texts evened out.

    Example:
        >>> _even({"a": [" To  BE", "ｔｏ be"], "n": 2})
        {'a': ['to be', 'to be'], 'n': 2}
    """
    if isinstance(value, str):
        return _remembered(value) if len(value) <= _SHORT else _even_text(value)
    if isinstance(value, Mapping):
        return {name: _even(item) for name, item in value.items()}
    return [_even(item) for item in value] if isinstance(value, list) else value


def _even_text(text: str) -> str:
    whole = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(whole.casefold().split())


_SHORT = 64
_remembered = lru_cache(maxsize=1 << 16)(_even_text)
"""Of short texts: the cells of a table come again and again."""
