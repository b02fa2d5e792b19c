"""Which column of a table is what, when a recipe names it and when it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luban.data.row_sets import Row
from luban.errors import DataError, nearest


def column_of(
    columns: Sequence[str], asked: str | None, known: Sequence[str], key: str, *, required: bool = True
) -> str | None:
    """Return the column that a recipe means.

    Arguments:
        columns: those there are. asked: the one that the recipe names. known: usual names, the likeliest first.
        key: the recipe's key, for errors.
        required: whether there must be one; then one that is alone is it.

    Raises:
        DataError: there is none, or it cannot be told which; with the key that says it.

    Example:
        >>> column_of(["id", "Review"], None, ("text", "review"), "data.text")
        'Review'
    """
    if asked is not None:
        if asked in columns:
            return asked
        close = nearest(asked, columns)
        fix = (f"did you mean {key}={close}? " if close else "") + f"there are: {', '.join(columns[:50])}"
        raise DataError("the rows have no such column", received=asked, where=key, fix=fix)
    lowered = {column.lower(): column for column in reversed(columns)}
    found = next((lowered[name] for name in known if name in lowered), None)
    if found is None and required:
        if len(columns) == 1:
            return columns[0]
        raise DataError(
            f"it cannot be told which column {key} is",
            received=list(columns)[:50],
            fix=f"name it: {key}=COLUMN",
        )
    return found


def labelled(row: Row, label: Any) -> Row:
    """Return the row with its label, where it has one."""
    return row if label is None else {**row, "label": label}
