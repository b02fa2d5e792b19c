"""Figures of tags that are classes of single tokens, as parts of speech are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luban.errors import InputError
from luban.metrics.resampling import Drawn, Floats, Integers, RowMetric, RowTable, ratio


class Tags(RowMetric):
    """Token and sentence accuracy: streaming, mergeable, resampled by sentences.

    Example:
        >>> found = Tags()
        >>> found.add([["DT", "NN"], ["VB"]], [["DT", "VB"], ["VB"]])
        >>> {name: round(value, 3) for name, value in found.figures().items()}
        {'token_accuracy': 0.667, 'sentence_accuracy': 0.5}
    """

    def __init__(self) -> None:
        self._rows = RowTable()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, predicted: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> None:
        """Count a batch of sentences.

        Raises:
            InputError: a sentence has more tags of one kind than of the other.
        """
        for said, right in zip(predicted, targets, strict=True):
            if len(said) != len(right):
                raise InputError("a sentence has as many tags as tokens", received=(len(said), len(right)))
        hits = [
            sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(predicted, targets, strict=True)
        ]
        self._rows.add(np.array(hits, np.int64), np.array([len(right) for right in targets], np.int64))

    def merge(self, other: Tags) -> None:
        """Take in what another shard counted."""
        self._rows.merge(other._rows)

    def _came(self) -> Integers:
        return self._rows.came()

    def weighted(self, drawn: Drawn) -> dict[str, Floats]:
        """Return the figures; see `RowMetric.weighted`."""
        hits, tokens = (column.astype(np.float64) for column in self._rows.columns())
        whole = (hits == tokens).astype(np.float64)
        return {
            "token_accuracy": ratio(hits @ drawn, tokens @ drawn),
            "sentence_accuracy": whole @ drawn / drawn.sum(0, dtype=np.float64),
        }
