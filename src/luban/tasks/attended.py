"""What a network looked at, as the report reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

ATTENDED, ATTENDED_ALONE = 48, 200
"""Tokens of a side whose attention is kept, and of the one side where there is no other."""


def attention_part(
    method: str, rows: Sequence[str], columns: Sequence[str], weights: Tensor
) -> dict[str, Any]:
    """Return what a network looked at as the report reads it; of long texts the beginning.

    Arguments:
        method: how the weights came about: see `RowTask.attended`.
        weights: (rows, columns), each row of sum 1.
    """
    high, wide = ATTENDED, ATTENDED if len(rows) > 1 else ATTENDED_ALONE
    return {
        "kind": "attention",
        "method": method,
        "rows": list(rows[:high]),
        "columns": list(columns[:wide]),
        "weights": [[round(weight, 4) for weight in line] for line in weights[:high, :wide].tolist()],
        "cut": len(rows) > high or len(columns) > wide,
    }
