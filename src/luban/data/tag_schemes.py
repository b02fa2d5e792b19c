"""Schemes of tags on tokens: which tag may follow which, and whether the tags are spans or single words' classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scheme = Literal["IOB2", "BIOES", "BMES", "none"]

_PARTS: dict[str, frozenset[str]] = {
    "IOB2": frozenset("BI"),
    "BIOES": frozenset("BIES"),
    "BMES": frozenset("BMES"),
}
_INSIDE = {"B": True, "I": True, "M": True}
"""Parts after which a span goes on; of IOB2 it may also end there."""


def split_tag(tag: str) -> tuple[str, str]:
    """Return part and type of a tag; `O` has neither type.

    Example:
        >>> split_tag("B-PER"), split_tag("M_ORG"), split_tag("O"), split_tag("NN")
        (('B', 'PER'), ('M', 'ORG'), ('O', ''), ('NN', ''))
    """
    if len(tag) > 2 and tag[1] in "-_" and tag[0] in "BIMESLU":
        return tag[0], tag[2:]
    return tag, ""


def scheme_of(tags: Iterable[str]) -> Scheme:
    """Return the scheme that tags are in; `none` where they are classes of single tokens, as parts of speech.

    Example:
        >>> scheme_of(["O", "B-PER", "I-PER"]), scheme_of(["B-X", "M-X", "E-X", "S-X"]), scheme_of(["NN", "VB"])
        ('IOB2', 'BMES', 'none')
    """
    parts = {part for part, kind in map(split_tag, set(tags)) if kind}
    if not parts:
        return "none"
    for scheme in ("IOB2", "BIOES", "BMES"):
        if parts <= _PARTS[scheme]:
            return scheme
    return "none"


def forbidden(
    tags: Sequence[str], scheme: Scheme
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which tag may not follow which (tags, tags), which may not be first, and which may not be last (tags,).

    Example:
        >>> between, first, _ = forbidden(["O", "B-A", "I-A", "I-B"], "IOB2")
        >>> between[1].tolist(), first.tolist()
        ([False, False, False, True], [False, False, True, True])
    """
    size = len(tags)
    between = np.zeros((size, size), np.bool_)
    first, last = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    if scheme == "none":
        return between, first, last
    parted = [split_tag(tag) for tag in tags]
    closing = scheme != "IOB2"
    for i, (part, kind) in enumerate(parted):
        goes_on = closing and _INSIDE.get(part, False) and bool(kind)
        last[i] = goes_on
        first[i] = bool(kind) and part in "IME"
        for j, (then, other) in enumerate(parted):
            continues = bool(other) and then in "IME"
            fits = part in "BIM" and bool(kind) and kind == other
            between[i, j] = (continues and not fits) or (goes_on and not (continues and fits))
    return between, first, last
