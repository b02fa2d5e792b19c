"""What the columns of a table are, learned from its training rows: numbers, categories, dates; what to make of each."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.data.cells import read_cell

Floats = NDArray[np.float64]

MAX_CATEGORIES = 10_000
_MOST_TOLD = 20
_SHARE_READ = 0.98
"""Of the values that are there, so many must read as numbers (as dates) for the column to be one."""
DATE_PARTS = ("days", "year", "month", "weekday", "hour")
_KEPT = 1e-7
"""Of a column's spread, what rounding to float32 may change."""


def nearly_numbers(targets: Iterable[object], few: int) -> str | None:
    """Say what keeps the values of a target, most of which read as numbers, from meaning numbers; None where they are
    few, or most of them are names.

    Example:
        >>> nearly_numbers(["inf", *range(30)], 20)
        "1 of 31 values is no number, such as 'inf'"
        >>> nearly_numbers(["0", "1", "1"], 20), nearly_numbers(["red", "blue", "1"], 0)
        (None, None)
    """
    seen = _Seen()
    for target in targets:
        seen.add(target)
    there = seen.rows - seen.missing
    if len(seen.values) <= few or not 0.5 * there < seen.numbers < there:
        return None
    names = there - seen.numbers
    return f"{names:,} of {there:,} values {'is' if names == 1 else 'are'} no number, such as {seen.no_number[:80]!r}"


def mean_numbers(targets: Iterable[object], few: int) -> bool:
    """Whether the values of a target mean numbers, in whatever order they come: nearly all read as numbers, and there
    are fractions among them or more than `few` different ones. Else they name classes.

    Example:
        >>> mean_numbers(["0", "1", "1"], 20), mean_numbers(["0.5", "1"], 20), mean_numbers(["red", *range(30)], 20)
        (False, True, False)
    """
    different: set[float] = set()
    count = read = 0
    for target in targets:
        number, missing = read_cell(target).number, read_cell(target).missing
        count += not missing
        if number is None:
            continue
        read += 1
        if len(different) <= few:
            different.add(number)
    if read < _SHARE_READ * count:
        return False
    return len(different) > few or any(not number.is_integer() for number in different)


def date_parts(date: datetime.datetime) -> list[float]:
    """Return a date as numbers, by DATE_PARTS: days since 1970, year, month, weekday from Monday, hour."""
    days = (date - datetime.datetime(1970, 1, 1)).total_seconds() / 86_400
    hour = date.hour + date.minute / 60 + (date.second + date.microsecond / 1e6) / 3600
    return [days, float(date.year), float(date.month), float(date.weekday()), hour]


def origin_of(column: Floats) -> float:
    """Return what is taken off a column so that float32 tells its values apart; 0 where it does so as they are.

    float32 has 24 bits: of seconds since 1970 those of two minutes are one number, of days those of three.

    Example:
        >>> origin_of(np.array([1.7e9, 1.7e9 + 60])), origin_of(np.array([1.5, 20.25]))
        (1700000030.0, 0.0)
    """
    there = column[np.isfinite(column)]
    if len(there) == 0:
        return 0.0
    off = np.abs(there.astype(np.float32).astype(np.float64) - there).max()
    return 0.0 if off <= _KEPT * there.std() else float(np.round(there.mean()))


@dataclass
class _Seen:
    """What came by in one column."""

    rows: int = 0
    missing: int = 0
    numbers: int = 0
    dates: int = 0
    decimal_commas: int = 0
    no_number: str = ""
    """The first value that is there and reads as no number."""
    no_date: str = ""
    values: Counter[str] = field(default_factory=Counter)
    overfull: bool = False

    def add(self, value: object) -> None:
        self.rows += 1
        cell = read_cell(value)
        if cell.missing:
            self.missing += 1
            return
        self.numbers += cell.number is not None
        self.dates += cell.date is not None
        self.decimal_commas += cell.decimal_comma
        if cell.number is None:
            self.no_number = self.no_number or cell.name
        if cell.date is None:
            self.no_date = self.no_date or cell.name
        if len(self.values) <= MAX_CATEGORIES:
            self.values[cell.name] += 1
        else:
            self.overfull = True


@dataclass(frozen=True)
class TableColumns:
    """The columns that are used, and how.

    Attributes:
        numbers: columns of numbers. dates: columns of dates, each of which gives DATE_PARTS numbers.
        categories: column -> its values in training; any other value is unknown.
        notes: columns left out, and why.
    """

    numbers: Sequence[str]
    dates: Sequence[str]
    categories: Mapping[str, Sequence[str]]
    notes: Sequence[Mapping[str, str]] = ()

    @property
    def number_names(self) -> list[str]:
        """Return a name for each number of a row."""
        return [*self.numbers, *(f"{name}.{part}" for name in self.dates for part in DATE_PARTS)]

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {
            "numbers": list(self.numbers),
            "dates": list(self.dates),
            "categories": {n: list(v) for n, v in self.categories.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TableColumns:
        """Read what `as_json` gave."""
        return cls(value["numbers"], value["dates"], value["categories"])

    def number_row(self, row: Mapping[str, Any]) -> list[float]:
        """Return the numbers of a row; NaN where one is missing, or none where a number should be."""
        found = []
        for name in self.numbers:
            number = read_cell(row.get(name)).number
            found.append(math.nan if number is None else number)
        for name in self.dates:
            date = read_cell(row.get(name)).date
            found += [math.nan] * len(DATE_PARTS) if date is None else date_parts(date)
        return found


def learn_columns(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str], named: Collection[str] = ()
) -> TableColumns:
    """Find out what each column is, and which say nothing.

    A column is one of numbers (of dates) where nearly every value that is there reads as one; else it is one of
    categories. One whose value never changes is left out, and so is one of text that differs in (nearly) every row: an
    identifier tells nothing of the next row.

    Arguments:
        rows: training rows. names: columns other than the target. named: those that the recipe says are of categories.
    """
    seen = {name: _Seen() for name in names}
    for row in rows:
        for name, column in seen.items():
            column.add(row.get(name))
    numbers, dates, categories, notes = [], [], {}, []
    for name, column in seen.items():
        there = column.rows - column.missing
        if column.decimal_commas > 0.5 * there and column.numbers < _SHARE_READ * there:
            detail = f"{name} holds numbers with a decimal comma, which are read as names: write a point"
            notes.append({"kind": "decimal_comma", "detail": detail})
        if len(column.values) < 2 and not (column.missing and there):
            held = next(iter(column.values), "nothing")
            notes.append(
                {"kind": "constant", "detail": f"{name} is {held!r} in every training row: left out"}
            )
        elif name not in named and column.numbers >= _SHARE_READ * there:
            numbers.append(name)
            notes += _stray(name, "numbers", there - column.numbers, column.no_number)
        elif name not in named and column.dates >= _SHARE_READ * there:
            dates.append(name)
            notes += _stray(name, "dates", there - column.dates, column.no_date)
        elif column.overfull or (
            name not in named and len(column.values) > 0.9 * there and there > _MOST_TOLD
        ):
            detail = f"{name} differs in nearly every row ({len(column.values):,} values): left out"
            notes.append({"kind": "identifier", "detail": detail})
        else:
            categories[name] = [
                value for value, _ in sorted(column.values.items(), key=lambda i: (-i[1], i[0]))
            ]
    return TableColumns(numbers, dates, categories, notes)


def _stray(name: str, kind: str, count: int, first: str) -> list[dict[str, str]]:
    if not count:
        return []
    told = f"{name} is a column of {kind}, and {count:,} of its values are none, such as {first[:80]!r}"
    return [{"kind": "stray", "detail": f"{told}: taken for missing"}]


def leaks(
    columns: TableColumns, rows: Sequence[Mapping[str, Any]], target: Floats, *, classes: bool
) -> list[dict[str, str]]:
    """Name columns that give the target away alone: what no one could know at the time is often among the columns.

    Arguments:
        rows: training rows, or some of them. target: (rows,), class numbers or the number itself.
    """
    found = []
    # What a guess of the commonest class misses: where that is nothing, nothing is given away.
    others = len(rows) - max(Counter(target.tolist()).values(), default=0)
    for name, values in columns.categories.items():
        if classes and others and len(values) <= len(rows) / 10:
            pairs = Counter(
                (read_cell(row.get(name)).name, int(t)) for row, t in zip(rows, target, strict=True)
            )
            best: Counter[str] = Counter()
            for (value, _), count in pairs.items():
                best[value] = max(best[value], count)
            missed = len(rows) - sum(best.values())
            if missed <= min(0.001 * len(rows), 0.1 * others):
                found.append(_leak(name, "each of its values goes with one class"))
    table = np.array([columns.number_row(row) for row in rows]).reshape(len(rows), -1)
    for number, name in enumerate(columns.number_names):
        column = table[:, number]
        there = np.isfinite(column)
        if there.sum() > max(20, 0.5 * len(rows)) and _gives_away(column[there], target[there], classes):
            found.append(_leak(name, "its order is that of the target"))
    return found


def _gives_away(column: Floats, target: Floats, classes: bool) -> bool:
    if len(np.unique(column)) < 2 or len(np.unique(target)) < 2:
        return False
    if not classes:
        return bool(abs(np.corrcoef(column, target)[0, 1]) > 0.9999)
    labels = np.unique(target)
    if len(labels) > 2:
        order = np.argsort(column, kind="stable")
        return int((np.diff(target[order]) != 0).sum()) == len(labels) - 1 and len(column) > 10 * len(labels)
    first, second = (column[target == label] for label in labels)
    return bool(first.max() < second.min() or second.max() < first.min())


def _leak(name: str, why: str) -> dict[str, str]:
    return {
        "kind": "leak",
        "detail": f"{name} gives the target away: {why}; will it be known when the model is asked?",
    }
