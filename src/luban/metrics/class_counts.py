"""Rows that a classifier answered, laid out once to be counted under any draw of them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.metrics.calibration import BINS, CalibrationError, bins_of
from luban.metrics.ranking import Bools, Ranking
from luban.metrics.resampling import Drawn, Floats, Groups, Integers, ratio

THRESHOLD = 0.5
_LEAST = float(np.finfo(np.float64).eps)
Counts = tuple[Floats, Floats, Floats]
"""How often each class was answered rightly, was answered, and was right: (classes, resamples) each."""


class OneOfMany:
    """Rows of one class each.

    Arguments:
        columns: what `columns` made of all rows. classes: how many classes there are.
    """

    def __init__(self, columns: tuple[NDArray[Any], ...], classes: int) -> None:
        self.targets, self.answers, self._confidence, self._loss, self._squared, self._chances = columns
        self._classes = classes
        self._right = self.targets == self.answers
        self._hits = Groups(self.targets[self._right], classes)
        self._answered, self._support = Groups(self.answers, classes), Groups(self.targets, classes)
        self._error = CalibrationError(*self.confidence())

    @staticmethod
    def columns(chances: Floats, targets: Integers, *, ranked: bool) -> tuple[NDArray[Any], ...]:
        """Return what is kept of a batch; the probabilities, (rows, classes), only where they are to be ranked."""
        rows = np.arange(len(chances))
        loss = -np.log(np.maximum(chances[rows, targets], _LEAST))
        errors = chances.copy()
        errors[rows, targets] -= 1
        squared = np.einsum("rc,rc->r", errors, errors)
        kept = chances if ranked else chances[:, :0]
        return targets, chances.argmax(1), chances.max(1), loss, squared, kept

    def counts(self, drawn: Drawn) -> Counts:
        """Count the classes of each resample."""
        return self._hits.sums(drawn[self._right]), self._answered.sums(drawn), self._support.sums(drawn)

    def weighted(self, drawn: Drawn) -> dict[str, Floats]:
        """Return all figures but the areas."""
        total = drawn.sum(0, dtype=np.float64)
        hits, answered, support = self.counts(drawn)
        accuracy = hits.sum(0) / total
        precision, recall, f1 = scores_of(hits, answered, support)
        occurring = (answered + support > 0).sum(0)
        return {
            "accuracy": accuracy,
            "balanced_accuracy": recall.sum(0) / (support > 0).sum(0),
            "macro_precision": precision.sum(0) / occurring,
            "macro_recall": recall.sum(0) / occurring,
            "macro_f1": f1.sum(0) / occurring,
            "micro_f1": accuracy,
            "weighted_f1": (f1 * support).sum(0) / total,
            "log_loss": self._loss @ drawn / total,
            "ece": self._error.of(drawn),
            "brier": self._squared @ drawn / total / (2 if self._classes == 2 else 1),
        }

    @cached_property
    def ranked(self) -> list[int]:
        """The classes that have areas: of two the second, whose rest is the first."""
        return list(range(1 if self._classes == 2 else 0, self._chances.shape[1]))

    def against_rest(self, label: int) -> tuple[Floats, Bools]:
        """Return the probabilities of a class, (rows,), and which rows have it."""
        return self._chances[:, label], self.targets == label

    def confidence(self) -> tuple[Floats, Floats]:
        """Return the probability of each answer, and 1.0 where it was right."""
        return self._confidence, self._right.astype(np.float64)


class AnyOfMany:
    """Rows of any number of labels each.

    Arguments:
        columns: probabilities and which labels are right, (rows, labels) each.
    """

    def __init__(self, columns: tuple[NDArray[Any], ...]) -> None:
        self._chances, self._targets = columns
        answers = self._chances >= THRESHOLD
        self._kinds = [
            kind.T.astype(np.float32) for kind in (answers & self._targets, answers, self._targets)
        ]
        self._wrong = (answers != self._targets).sum(1).astype(np.float64)
        right = np.where(self._targets, self._chances, 1.0 - self._chances)
        self._loss = -np.log(np.maximum(right, _LEAST)).mean(1)
        self.ranked = list(range(self._chances.shape[1]))
        # (rows, bins): how much more often than told the labels of a row are there, by the bin of their probability.
        rows, bins = np.arange(self._chances.size) // max(1, len(self.ranked)), bins_of(self._chances.ravel())
        gaps = (self._targets - self._chances).ravel()
        cells = np.bincount(rows * BINS + bins, gaps, minlength=len(self._chances) * BINS)
        self._gaps = cells.reshape(-1, BINS)

    def counts(self, drawn: Drawn) -> Counts:
        """Count the labels of each resample."""
        hits, answered, support = (np.asarray(kind @ drawn, np.float64) for kind in self._kinds)
        return hits, answered, support

    def weighted(self, drawn: Drawn) -> dict[str, Floats]:
        """Return all figures but the areas."""
        total = drawn.sum(0, dtype=np.float64)
        hits, answered, support = self.counts(drawn)
        of_all = scores_of(hits.sum(0), answered.sum(0), support.sum(0))
        of_each = scores_of(hits, answered, support)
        parts = ("precision", "recall", "f1")
        return {
            "accuracy": (self._wrong == 0).astype(np.float64) @ drawn / total,
            "hamming_loss": self._wrong @ drawn / total / len(self.ranked),
            **{f"micro_{part}": figures for part, figures in zip(parts, of_all, strict=True)},
            **{f"macro_{part}": figures.mean(0) for part, figures in zip(parts, of_each, strict=True)},
            "log_loss": self._loss @ drawn / total,
            "ece": np.abs(self._gaps.T @ drawn).sum(0) / total / len(self.ranked),
        }

    def against_rest(self, label: int) -> tuple[Floats, Bools]:
        """Return the probabilities of a label, (rows,), and which rows have it."""
        return self._chances[:, label], self._targets[:, label]

    def confidence(self) -> tuple[Floats, Floats]:
        """Return the probability of each label of each row, and 1.0 where it is there."""
        return self._chances.ravel(), self._targets.ravel().astype(np.float64)


def rankings(rows: OneOfMany | AnyOfMany) -> list[Ranking]:
    """Return the rows in the order of the probabilities of each class that has areas."""
    return [Ranking(*rows.against_rest(label)) for label in rows.ranked]


def mean_areas(ranked: list[Ranking], drawn: Drawn) -> dict[str, Floats]:
    """Return the means over classes of both areas, over those that a resample has rows with and without."""
    found = np.array([ranking.areas(drawn) for ranking in ranked])  # (classes, 2, resamples)
    defined = (~np.isnan(found[:, 0])).sum(0)
    roc, precision = np.nansum(found, axis=0)
    return {"roc_auc": ratio(roc, defined), "pr_auc": ratio(precision, defined)}


def scores_of(hits: Floats, answered: Floats, support: Floats) -> tuple[Floats, Floats, Floats]:
    """Return precision, recall and F1 from counts of one shape; 0 where there is nothing to divide by.

    Example:
        >>> [float(score) for score in scores_of(np.array(1.0), np.array(2.0), np.array(1.0))]
        [0.5, 1.0, 0.6666666666666666]
    """
    precision, recall = ratio(hits, answered, 0.0), ratio(hits, support, 0.0)
    return precision, recall, ratio(2 * hits, answered + support, 0.0)
