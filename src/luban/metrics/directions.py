"""Which way a figure is better, and how far it can go, by its name."""

from __future__ import annotations

import math

LOWER_IS_BETTER = frozenset(
    {
        "loss",
        "log_loss",
        "bits_per_byte",
        "nats_per_character",
        "perplexity",
        "brier",
        "ece",
        "hamming_loss",
        "mse",
        "rmse",
        "mae",
        "median_absolute_error",
    }
)
"""Figures of which a smaller value is better; of all others a larger one is."""

_OF_ONE = ("accuracy", "precision", "recall", "f1", "auc", "ece", "hamming_loss")
_OF_HUNDRED = ("bleu", "chrf", "chrf++")


def bounds(name: str) -> tuple[float, float]:
    """Return the least and the most that a figure can be; infinite where it has no such end, or none is known.

    Example:
        >>> bounds("macro_f1"), bounds("rmse"), bounds("r2"), bounds("my_own")
        ((0.0, 1.0), (0.0, inf), (-inf, 1.0), (-inf, inf))
    """
    if name == "r2":
        return -math.inf, 1.0
    if name.endswith(_OF_ONE):
        return 0.0, 1.0
    if name.endswith(_OF_HUNDRED):
        return 0.0, 100.0
    return (0.0 if name in LOWER_IS_BETTER else -math.inf), math.inf
