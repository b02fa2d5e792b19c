"""Tables of counts or weights whose cells are coloured: the confusion matrix, and what a model attended to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.evaluation import formats, page
from luban.evaluation.records import JsonObject, numbers, real, words

MAX_LABELS = 50
MAX_CLASSES = 500
"""Larger matrices than this are not read."""
MAX_PAIRS = 8
MAX_WRITTEN = 20
"""With more columns than this, counts are read by pointing at a cell."""
MAX_TOKENS, MAX_ALONE = 48, 200
"""Tokens of a side, and of the one side where there is no other."""
SHADES = 10
MAX_LABEL = 60

Floats = NDArray[np.float64]


def labels_of(value: object, limit: int = MAX_CLASSES) -> list[str]:
    """Return the words of a list of labels as a page can hold them; one that is none is a dash."""
    found = value[:limit] if isinstance(value, list) else []
    return [page.plain(words(label, MAX_LABEL)) or formats.DASH for label in found]


def matrix_of(value: object, rows: int, columns: int) -> Floats | None:
    """Return a list of lists of numbers as (rows, columns); None where it is none, or has a number below zero."""
    if not isinstance(value, list) or len(value) != rows or not rows or not columns:
        return None
    lines = [numbers(line, columns + 1) for line in value]
    if any(len(line) != columns for line in lines):
        return None
    found = np.array(lines, dtype=np.float64)
    return found if bool((found >= 0).all()) else None


def confusion_matrix(classification: JsonObject) -> dict[str, Any] | None:
    """Return what is shown of how often each class was taken for each; None where the file does not say.

    Of more than `MAX_LABELS` classes those are shown that have most errors, in their own order.
    """
    labels = labels_of(classification.get("labels"))
    counts = matrix_of(classification.get("confusion"), len(labels), len(labels))  # (true, answered)
    if counts is None:
        return None
    wrong = counts - np.diag(np.diag(counts))
    kept = np.arange(len(labels))
    if len(labels) > MAX_LABELS:
        errors = wrong.sum(0) + wrong.sum(1)
        kept = np.sort(np.argsort(-errors, kind="stable")[:MAX_LABELS])
    totals = counts.sum(1)  # (true,)
    shares = counts / np.maximum(totals, 1.0)[:, None]
    rows = []
    for true in kept.tolist():
        cells = [_count(labels, counts, shares, true, answered) for answered in kept.tolist()]
        rows.append({"label": labels[true], "cells": cells, "total": formats.whole(float(totals[true]))})
    return {
        "columns": [labels[at] for at in kept.tolist()],
        "rows": rows,
        "written": len(kept) <= MAX_WRITTEN,
        "left_out": formats.whole(len(labels) - len(kept)) if len(labels) > len(kept) else None,
        "pairs": _confused(labels, wrong, shares) if len(labels) > 2 else [],
    }


def _count(labels: list[str], counts: Floats, shares: Floats, true: int, answered: int) -> dict[str, Any]:
    count, share = float(counts[true, answered]), float(shares[true, answered])
    written = formats.whole(count)["en"]
    # The square root: a few errors in a hundred should be seen beside many right answers.
    shade = f"{'right' if true == answered else 'wrong'} s{shade_of(math.sqrt(share))}" if count else ""
    says = f"{labels[true]} → {labels[answered]}: {written} ({formats.percent(share)['en']})"
    return {"written": written if count else "·", "shade": shade, "says": says}


def shade_of(share: float) -> int:
    """Return the shade of a share of one: 0 for none, 1 to `SHADES` for the rest.

    Example:
        >>> shade_of(0.0), shade_of(0.001), shade_of(0.5), shade_of(1.0)
        (0, 1, 5, 10)
    """
    return math.ceil(min(max(share, 0.0), 1.0) * SHADES)


def _confused(labels: list[str], wrong: Floats, shares: Floats) -> list[dict[str, Any]]:
    """The commonest mistakes of one class for another."""
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    found = []
    for true, answered in zip(*(axis.tolist() for axis in np.unravel_index(order, wrong.shape)), strict=True):
        if wrong[true, answered] > 0:
            count = formats.whole(float(wrong[true, answered]))
            share = formats.percent(float(shares[true, answered]))
            found.append({"true": labels[true], "answered": labels[answered], "count": count, "share": share})
    return found


def looked_at(part: JsonObject) -> dict[str, Any] | None:
    """Return the tokens of a text with how much each counted, of one row of weights; None where there is none.

    An even share has the middle shade, twice of it and more the darkest.
    """
    tokens = labels_of(part.get("columns"))
    weights = matrix_of(part.get("weights"), 1, len(tokens))
    if weights is None:
        return None
    even = 1.0 / len(tokens)
    shown = [
        {
            "token": token,
            "shade": _shade(share / (2 * even)),
            "says": f"{token}: {formats.percent(share)['en']}",
        }
        for token, share in zip(tokens[:MAX_ALONE], weights[0].tolist(), strict=False)
    ]
    return {"tokens": shown, "cut": part.get("cut") is True or len(tokens) > MAX_ALONE}


def _shade(share: float) -> str:
    return f"right s{shade_of(share)}" if share else ""


def attention(part: JsonObject) -> dict[str, Any] | None:
    """Return what is shown of attention weights, (rows, columns) of tokens; None where the file does not say."""
    rows, columns = (labels_of(part.get(side)) for side in ("rows", "columns"))
    weights = matrix_of(part.get("weights"), len(rows), len(columns))
    if weights is None:
        return None
    most = float(weights.max()) or 1.0
    shown = []
    for row, line in zip(rows[:MAX_TOKENS], weights[:MAX_TOKENS].tolist(), strict=True):
        cells = [
            {
                "written": "",
                "shade": _shade(weight / most),
                "says": f"{row} → {column}: {formats.number(real(weight), 3)['en']}",
            }
            for column, weight in zip(columns[:MAX_TOKENS], line, strict=False)
        ]
        shown.append({"label": row, "cells": cells, "total": None})
    cut = part.get("cut") is True or max(len(rows), len(columns)) > MAX_TOKENS
    return {"columns": columns[:MAX_TOKENS], "rows": shown, "written": False, "cut": cut}
