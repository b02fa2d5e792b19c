"""Which way a figure is better, by its name."""

from __future__ import annotations

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
