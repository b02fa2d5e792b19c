"""How well probabilities of classes fit the right ones: counts, ranking, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.errors import InputError, NonFiniteError
from luban.metrics.calibration import BINS, CalibrationError, reliability
from luban.metrics.class_counts import AnyOfMany, OneOfMany, mean_areas, rankings, scores_of
from luban.metrics.ranking import Bools, Ranking, precision_recall_points, roc_points
from luban.metrics.resampling import Drawn, Floats, Integers, RowMetric, RowTable

MOST_SHOWN, MOST_CURVES, MOST_RANKED = 50, 10, 1000


class Classification(RowMetric):
    """Figures of a classifier, over rows whose right class is known.

    Every row has one class: accuracy, balanced_accuracy (mean recall of the classes that have rows), macro_precision,
    macro_recall, macro_f1 (means over the classes that occur among targets or answers), weighted_f1 (mean weighted by
    rows), micro_f1 (which is the accuracy), roc_auc and pr_auc (average precision; of two classes those of the
    second, of more the mean of each class against the rest), log_loss (nats), ece (see `CalibrationError`), and
    brier (mean squared error summed over the classes; of two classes half of that). Multilabel: accuracy (all labels
    of a row right), hamming_loss, precision, recall and F1 of all labels together (micro_) and as the mean over
    labels (macro_), log_loss (nats, mean over labels), ece (of the probabilities of all labels), roc_auc and pr_auc
    (means over labels); a label is given from a probability of 0.5 on.

    What would divide by zero is 0, as in scikit-learn with `zero_division=0`. A class that all rows have, or none,
    has no area and is left out of their mean. Beyond 1,000 classes areas are not computed, probabilities not kept.

    Arguments:
        labels: names, in the order of the probabilities. multilabel: whether a row may have any number of labels.

    Raises:
        InputError: labels that are not different from each other, or fewer than two where every row has one.

    Example:
        >>> found = Classification(["cat", "dog"])
        >>> found.add(np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]), np.array([0, 0, 1, 1]))
        >>> figures = found.figures()
        >>> figures["accuracy"], figures["roc_auc"], round(figures["macro_f1"], 4)
        (0.75, 1.0, 0.7333)
        >>> found.confusion().tolist()
        [[1, 1], [0, 2]]
    """

    def __init__(self, labels: Sequence[str], multilabel: bool = False) -> None:
        self.labels, self.multilabel = list(labels), multilabel
        if len(set(self.labels)) < len(self.labels) or len(self.labels) < (1 if multilabel else 2):
            raise InputError("labels must be at least two, all different", received=self.labels)
        self._ranked = len(self.labels) <= MOST_RANKED
        self._rows = RowTable()
        self._laid_out: OneOfMany | AnyOfMany | None = None
        self._rankings: list[Ranking] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, probabilities: NDArray[Any], targets: NDArray[Any]) -> None:
        """Count a batch of rows.

        Arguments:
            probabilities: (rows, classes), between 0 and 1, and summing to 1 where every row has one class.
            targets: (rows,), the number of the class; multilabel (rows, classes), 0 or 1.

        Raises:
            InputError: shapes or values are not these. NonFiniteError: a probability is not a number.
        """
        chances, wanted = np.asarray(probabilities, np.float64), np.asarray(targets)
        self._check(chances, wanted)
        if self.multilabel:
            self._rows.add(chances, wanted.astype(np.bool_))
        else:
            self._rows.add(*OneOfMany.columns(chances, wanted.astype(np.int64), ranked=self._ranked))
        self._changed()

    def _check(self, chances: Floats, targets: NDArray[Any]) -> None:
        classes = len(self.labels)
        expected = chances.shape if self.multilabel else chances.shape[:1]
        if chances.ndim != 2 or chances.shape[1] != classes or targets.shape != expected:
            raise InputError(
                f"probabilities are (rows, {classes}) and targets {'alike' if self.multilabel else '(rows,)'}",
                received=(chances.shape, targets.shape),
            )
        if not np.isfinite(chances).all():
            row = int(np.flatnonzero(~np.isfinite(chances).all(1))[0])
            raise NonFiniteError(
                "a probability is not a number", received=chances[row].tolist()[:10], where=f"row {row}"
            )
        wrong = (chances < -1e-6).any(1) | (chances > 1 + 1e-6).any(1)
        if not self.multilabel:
            wrong |= np.abs(chances.sum(1) - 1) > 1e-3
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                "these are not probabilities", received=chances[row].tolist()[:10], where=f"row {row}",
                fix="pass what softmax (multilabel: sigmoid) makes of the logits",
            )  # fmt: skip
        most = 1 if self.multilabel else classes - 1
        if targets.size and (
            targets.min() < 0 or targets.max() > most or (targets != np.floor(targets)).any()
        ):
            raise InputError(
                f"targets are whole numbers from 0 to {most}", received=np.unique(targets).tolist()[:10]
            )

    def merge(self, other: Classification) -> None:
        """Take in what another shard counted.

        Raises:
            InputError: the other has other labels.
        """
        if (self.labels, self.multilabel) != (other.labels, other.multilabel):
            raise InputError(
                "only figures of the same labels can be merged", received=(self.labels, other.labels)
            )
        self._rows.merge(other._rows)
        self._changed()

    # Figures under counts.

    def _came(self) -> Integers:
        return self._rows.came()

    def weighted(self, drawn: Drawn) -> dict[str, Floats]:
        """Return all figures but the areas; see `RowMetric.weighted`."""
        return self._answered().weighted(drawn)

    def weighted_costly(self, drawn: Drawn) -> dict[str, Floats]:
        """Return the areas; see `RowMetric.weighted_costly`."""
        rows = self._answered()
        if not rows.ranked:
            return {}
        if self._rankings is None:
            self._rankings = rankings(rows)
        return mean_areas(self._rankings, drawn)

    def _cost(self) -> int:
        return len(self) * len(self._answered().ranked)

    def _answered(self) -> OneOfMany | AnyOfMany:
        """Return all rows, laid out for counting; kept until there are others."""
        if self._laid_out is None:
            columns = self._rows.columns()
            classes = len(self.labels)
            self._laid_out = AnyOfMany(columns) if self.multilabel else OneOfMany(columns, classes)
        return self._laid_out

    def _changed(self) -> None:
        self._laid_out = self._rankings = None

    # What a report shows.

    def per_class(self) -> list[dict[str, Any]]:
        """Return `label`, `precision`, `recall`, `f1` and `support` (rows that have it) of every class."""
        hits, answered, support = self._whole_counts()
        precision, recall, f1 = scores_of(hits, answered, support)
        return [
            {
                "label": label,
                "precision": float(precision[number]),
                "recall": float(recall[number]),
                "f1": float(f1[number]),
                "support": int(support[number]),
            }
            for number, label in enumerate(self.labels)
        ]

    def _whole_counts(self) -> tuple[Floats, Floats, Floats]:
        if not len(self):
            return (np.zeros(len(self.labels)),) * 3
        hits, answered, support = self._answered().counts(np.ones((len(self), 1)))
        return hits[:, 0], answered[:, 0], support[:, 0]

    def confusion(self) -> Integers:
        """Return how many rows of each class were answered with each, (right classes, answered classes).

        Raises:
            InputError: multilabel rows have no such table.
        """
        if self.multilabel:
            raise InputError("rows with any number of labels have no confusion matrix", fix="use per_class()")
        classes = len(self.labels)
        if not len(self):
            return np.zeros((classes, classes), np.int64)
        rows = self._answered()
        assert isinstance(rows, OneOfMany)
        cells = rows.targets * classes + rows.answers
        return np.bincount(cells, minlength=classes**2).reshape(classes, classes)

    def roc(self, label: int) -> dict[str, Any]:
        """Return the ROC curve of a class against the rest: `label`, `points` [[fpr, tpr]] (at most 101), `auc`.

        Raises:
            InputError: all rows have the class, or none; or there are more than 1,000 classes.
        """
        scores, positive = self._curve(label)
        roc, _ = Ranking(scores, positive).areas(np.ones((len(scores), 1)))
        return {"label": self.labels[label], "points": roc_points(scores, positive), "auc": float(roc[0])}

    def precision_recall(self, label: int) -> dict[str, Any]:
        """Return `label`, `points` [[recall, precision]] (at most 101) and `average_precision`; otherwise as `roc`."""
        scores, positive = self._curve(label)
        _, precision = Ranking(scores, positive).areas(np.ones((len(scores), 1)))
        points = precision_recall_points(scores, positive)
        return {"label": self.labels[label], "points": points, "average_precision": float(precision[0])}

    def _curve(self, label: int) -> tuple[Floats, Bools]:
        if not self._ranked:
            raise InputError(f"more than {MOST_RANKED:,} classes have no curves", received=len(self.labels))
        if not 0 < int(self._whole_counts()[2][label]) < len(self):
            raise InputError(
                "a curve needs rows with and rows without the class", received=self.labels[label]
            )
        return self._answered().against_rest(label)

    def reliability(self, bins: int = BINS) -> list[dict[str, Any]]:
        """Return how often answers of each confidence are right, see `luban.metrics.calibration.reliability`.

        With `multilabel` how often a label is there, by its probability.
        """
        return reliability(*self._answered().confidence(), bins) if len(self) else []

    def section(self) -> dict[str, Any]:
        """Return what a report shows, ready for JSON.

        `labels`, `confusion` (of at most 50 labels), `per_class`, `roc` and `precision_recall` (of two labels the
        second, of more than 50 the 10 with most errors, else all), and `reliability` (`bins`, `ece`).
        """
        if not len(self):
            return {}
        hits, answered, support = self._whole_counts()
        curves = [n for n in self._answered().ranked if 0 < support[n] < len(self)]
        if len(self.labels) > MOST_SHOWN:
            errors = answered + support - 2 * hits
            curves = sorted(sorted(curves, key=lambda n: -errors[n])[:MOST_CURVES])
        confidence, right = self._answered().confidence()
        found: dict[str, Any] = {
            "labels": self.labels,
            "per_class": self.per_class(),
            "roc": [self.roc(n) for n in curves],
            "precision_recall": [self.precision_recall(n) for n in curves],
            "reliability": {
                "bins": self.reliability(),
                "ece": float(CalibrationError(confidence, right).of(np.ones((len(right), 1)))[0]),
            },
        }
        if not self.multilabel and len(self.labels) <= MOST_SHOWN:
            found["confusion"] = self.confusion().tolist()
        return found
