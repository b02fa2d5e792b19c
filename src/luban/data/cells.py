"""What a cell of a table can be read as: nothing, a number, a date, the name of a category."""

from __future__ import annotations

import datetime
import math
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "-"})
_TRUTH = {"true": 1.0, "false": 0.0}
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_LARGEST = float(np.finfo(np.float32).max)
_REMEMBERED, _REMEMBERED_LENGTH = 1 << 16, 64


class Cell(NamedTuple):
    """A cell, read in every way there is.

    Attributes:
        missing: it says nothing. number: that float32 can hold. date: an ISO date, with or without a time.
        name: of a category. decimal_comma: it may be a number with a comma for a point, which is read as a name.
    """

    missing: bool
    number: float | None
    date: datetime.datetime | None
    name: str
    decimal_comma: bool = False


def read_cell(value: object) -> Cell:
    """Read a cell; the texts of short cells come again and again, so that what they are is remembered.

    Commas are read where they part thousands, and nowhere else: 3,5 is three and a half to one writer and two numbers
    to another. True and false are 1 and 0, as JSON or as text has them.

    Example:
        >>> [read_cell(value).number for value in (" 1,234.5 ", "true", "3,5", "3 rooms")]
        [1234.5, 1.0, None, None]
        >>> [read_cell(value).missing for value in (None, "?", " NA ", float("nan"), 0, "no")]
        [True, True, True, True, False, False]
        >>> read_cell("2024-02-29").date.year, read_cell("2024/02/29 10:30").date.hour, read_cell("today").date
        (2024, 10, None)
        >>> [read_cell(value).name for value in (3.0, " Private ", True, "TRUE")]
        ['3', 'Private', 'true', 'true']
    """
    if isinstance(value, str):
        return _remembered(value) if len(value) <= _REMEMBERED_LENGTH else _of_text(value)
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return Cell(missing, _number(value), None, _name(value))


def _of_text(text: str) -> Cell:
    text = text.strip()
    lower = text.lower()
    if lower in MISSING:
        return Cell(True, None, None, text)
    if lower in _TRUTH:
        return Cell(False, _TRUTH[lower], None, lower)
    # Python reads 12_345 as a number too; in a table it is the name of something.
    plain = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text.replace("_", " ")
    return Cell(False, _number(plain), _date(text), text, _DECIMAL_COMMA.fullmatch(text) is not None)


_remembered = lru_cache(maxsize=_REMEMBERED)(_of_text)


def _number(value: object) -> float | None:
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) <= _LARGEST else None  # NaN is none either


def _date(text: str) -> datetime.datetime | None:
    if not 8 <= len(text) <= 40:
        return None
    try:
        found = datetime.datetime.fromisoformat(text.replace("/", "-"))
    except ValueError:
        return None
    return found.replace(tzinfo=None)


def _name(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = str(value).strip()
    return name.lower() if name.lower() in _TRUTH else name
