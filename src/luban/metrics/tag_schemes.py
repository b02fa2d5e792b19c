"""Tags on tokens: how one is written, which scheme they are in, and which may follow which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scheme = Literal["IOB2", "BIOES", "BMES"]

PARTS: dict[Scheme, str] = {"IOB2": "BI", "BIOES": "BIES", "BMES": "BMES"}
"""What a tag of a span may begin with, by scheme."""
_INSIDE = {"B": True, "I": True, "M": True}
"""Parts after which a span goes on; of IOB2 it may also end there."""


def split_tag(tag: str) -> tuple[str, str]:
    """Return part and type of a tag; `O`, and what is no part of a span, has no type.

    Example:
        >>> split_tag("B-PER"), split_tag("M_ORG"), split_tag("B"), split_tag("O"), split_tag("NN")
        (('B', 'PER'), ('M', 'ORG'), ('B', ''), ('O', ''), ('NN', ''))
    """
    if tag[1:2] in ("-", "_") and tag[0] in "BIMESLU":
        return tag[0], tag[2:]
    return tag, ""


def scheme_of(tags: Iterable[str]) -> Scheme | Literal["none"]:
    """Return the scheme that all tags are in; `none` where they are classes of single tokens, as parts of speech.

    Example:
        >>> scheme_of(["O", "B-PER", "I-PER"]), scheme_of(["B-X", "M-X", "E-X", "S-X"]), scheme_of(["NN", "VB"])
        ('IOB2', 'BMES', 'none')
    """
    there = set(tags)
    scheme = likely_scheme(there)
    return "none" if scheme is None or misfits(there, scheme) else scheme


def likely_scheme(tags: Iterable[str]) -> Scheme | None:
    """Return the scheme that tags with a type are in, or most of them; None where there are none."""
    typed = [tag for tag in tags if split_tag(tag)[1]]
    likely: Scheme = min(PARTS, key=lambda scheme: len(misfits(typed, scheme)))
    return likely if typed else None


def misfits(tags: Iterable[str], scheme: Scheme) -> list[str]:
    """Return the tags that a scheme does not have, in order.

    Example:
        >>> misfits(["O", "B-PER", "X", "E-PER"], "IOB2")
        ['E-PER', 'X']
    """
    parts = {*PARTS[scheme], "O"}
    return sorted(tag for tag in tags if split_tag(tag)[0] not in parts)


def forbidden(
    tags: Sequence[str], scheme: Scheme | Literal["none"]
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
