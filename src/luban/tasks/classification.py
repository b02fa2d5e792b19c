"""What all classifiers have in common, whatever their rows are: labels, loss, probabilities, figures, calibration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from luban.data.row_sets import BadValue, Fitted
from luban.data.row_store import RowSet
from luban.errors import DataError, RecipeError, nearest
from luban.metrics.calibration import temperature
from luban.metrics.classification import Classification
from luban.models.classification_loss import classification_losses, multilabel_losses
from luban.row_recipe import Objective
from luban.tasks.rows import Array, RowTask, Scores, Tensors

Floats = NDArray[np.float64]
RARE, SHOWN = 0.02, 5
MAX_CLASSES = 100_000


class Classifier(RowTask):
    """A task whose answer is one of several labels, or with `multilabel` any of them.

    The fitted state has `labels` (in the order of the outputs) and `label_counts`; `settings.objective` is an
    `Objective`. A subclass reads the label with `label_of` and puts `encode_label` among a row's arrays.
    """

    primary = "accuracy"

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of the network's outputs."""
        return list(self.fitted.state["labels"])

    @property
    def multilabel(self) -> bool:
        """Whether a row may have any number of labels."""
        return bool(getattr(self.settings.data, "multilabel", False))

    @property
    def objective(self) -> Objective:
        """The recipe's section on the loss."""
        found: Objective = self.settings.objective
        return found

    def label_of(self, value: Any) -> Any:
        """Return a cell as a label, or as the list of labels; None where there is none.

        Raises:
            BadValue: what stands there is no label.
        """
        if not self.multilabel:
            if isinstance(value, list) and hasattr(self.settings.data, "multilabel"):
                detail = f"a row has one label, and this has the list {str(value)[:80]}"
                raise BadValue("bad_value", f"{detail}; data.multilabel=true takes several")
            return _name(value) or None
        parts = value if isinstance(value, list) else _name(value).split(self.settings.data.separator)
        return sorted({name for part in parts if (name := _name(part))})

    def learn_labels(self, labels: Iterator[Any]) -> tuple[dict[str, Any], list[dict[str, str]]]:
        """Return the state that labels make, and what is to be noted of them.

        Raises:
            DataError: there is nothing to tell apart, or more classes than can be meant.
        """
        counts: Counter[str] = Counter()
        rows = 0
        for label in labels:
            rows += 1
            counts.update(label if isinstance(label, list) else [label])
        if len(counts) < (1 if self.multilabel else 2):
            only = (
                f"all {rows:,} training rows have the label {next(iter(counts))!r}" if counts else "no labels"
            )
            raise DataError(
                "there is one class only: nothing to tell apart",
                received=only,
                fix="give rows of at least two classes",
            )
        if len(counts) > MAX_CLASSES:
            raise DataError(
                f"more than {MAX_CLASSES:,} classes", received=len(counts), fix="is data.label right?"
            )
        ordered = sorted(counts, key=_natural)
        return {"labels": ordered, "label_counts": [counts[label] for label in ordered]}, _notes(counts, rows)

    def encode_label(self, label: Any) -> Array:
        """Return a label as the network's target.

        Raises:
            BadValue: the label did not occur in training.
        """
        index = self._index()
        wanted = label if isinstance(label, list) else [label]
        for name in wanted:
            if name not in index:
                close = nearest(name, self.labels[:1000])
                hint = f"; did you mean {close!r}?" if close else ""
                raise BadValue("unknown_label", f"no training row has the label {name!r}{hint}")
        if not self.multilabel:
            return np.array(index[label], np.int64)
        target = np.zeros(len(index), np.float32)
        target[[index[name] for name in wanted]] = 1.0
        return target

    def _index(self) -> dict[str, int]:
        # Asked for once a row: kept.
        found = getattr(self, "_label_index", None)
        if found is None:
            found = self._label_index = {label: number for number, label in enumerate(self.labels)}
        return found

    def class_weights(self) -> Tensor | None:
        """Return what a row of each class counts, (classes,); their mean over the training rows is one."""
        return class_weights(self.objective.class_weights, self.labels, self.fitted.state["label_counts"])

    def weights(self, rows: RowSet) -> Floats | None:
        """Return how often each row is drawn: with balanced sampling as often of each class."""
        if self.objective.sampling == "natural":
            return None
        targets = rows.column("label")
        if self.multilabel:  # a row is as rare as its rarest label
            counts = np.maximum(targets.sum(0), 1.0)
            found: Floats = np.where(targets > 0, 1.0 / counts, 0.0).max(1)
            return np.maximum(found, 1.0 / len(rows))
        return 1.0 / np.bincount(targets, minlength=len(self.labels))[targets].astype(np.float64)

    def loss(self, outputs: Tensor, tensors: Tensors) -> Tensor:
        """Return the loss summed over the rows."""
        return self.row_losses(outputs, tensors["label"]).sum()

    def row_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row, (rows,)."""
        settings = self.objective
        function = multilabel_losses if self.multilabel else classification_losses
        return function(
            outputs,
            targets,
            label_smoothing=settings.label_smoothing,
            focal=settings.focal,
            weights=self._on_device(outputs.device),
        )

    def _on_device(self, device: torch.device) -> Tensor | None:
        if not hasattr(self, "_weights"):
            self._weights = self.class_weights()
        return None if self._weights is None else self._weights.to(device)

    def answers(self, model: nn.Module, tensors: Tensors) -> Sequence[Any]:
        """Return the logits of each row."""
        return list(self.outputs(model, tensors).float().cpu().numpy())

    def calibrate(self, answers: Sequence[Any], rows: RowSet) -> Self:
        """Scale the logits so that probabilities on validation rows are as good as one number can make them."""
        logits, targets = np.stack(answers).astype(np.float64), rows.column("label")
        if self.multilabel:  # each label of each row is one of two classes: there, or not
            there = logits.reshape(-1, 1)
            logits, targets = np.hstack([np.zeros_like(there), there]), targets.ravel().astype(np.int64)
        found = temperature(logits, targets)
        state = {**self.fitted.state, "temperature": found}
        return self.knowing(Fitted(state, self.fitted.tokenizers, self.fitted.notes))

    def probabilities(self, answers: Sequence[Any]) -> Floats:
        """Return logits as probabilities, (rows, classes)."""
        logits = np.stack(answers).astype(np.float64) / self.fitted.state.get("temperature", 1.0)
        found: Floats
        if self.multilabel:
            found = np.exp(-np.logaddexp(0.0, -logits))  # the sigmoid, without a number too large on the way
            return found
        raised = np.exp(logits - logits.max(1, keepdims=True))
        found = raised / raised.sum(1, keepdims=True)
        return found

    def decode(self, answer: Any) -> dict[str, Any]:
        """Return the label and all probabilities; of many classes the ten likeliest."""
        probabilities = self.probabilities([answer])[0]
        order = np.argsort(-probabilities, kind="stable")[:10]
        shown = {self.labels[n]: round(float(probabilities[n]), 6) for n in order}
        if self.multilabel:
            return {
                "labels": [self.labels[n] for n in order if probabilities[n] >= 0.5],
                "probabilities": shown,
            }
        return {"label": self.labels[order[0]], "probabilities": shown}

    def scores(self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]) -> Scores:
        """Measure probabilities against labels."""
        found = Classification(self.labels, multilabel=self.multilabel)
        found.add(self.probabilities(answers), rows.column("label")[numbers])
        return found

    def row_scores(
        self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]
    ) -> dict[str, Floats]:
        """Return accuracy and log loss of each row."""
        probabilities, targets = self.probabilities(answers), rows.column("label")[numbers]
        if self.multilabel:
            accurate = ((probabilities >= 0.5) == (targets > 0.5)).all(1)
            own = np.where(targets > 0.5, probabilities, 1.0 - probabilities)
        else:
            accurate = probabilities.argmax(1) == targets
            own = probabilities[np.arange(len(numbers)), targets][:, None]
        losses = -np.log(np.maximum(own, np.finfo(np.float64).eps)).mean(1)
        return {"accuracy": accurate.astype(np.float64), "log_loss": losses}

    def badness(self, answers: Sequence[Any], rows: RowSet, numbers: NDArray[np.int64]) -> Floats:
        """Return how sure a wrong answer is; below zero where it is right."""
        probabilities, targets = self.probabilities(answers), rows.column("label")[numbers]
        if self.multilabel:
            wrong: Floats = np.abs(probabilities - targets).max(1) - 0.5
            return wrong
        said = probabilities.argmax(1)
        sure = probabilities.max(1)
        return np.where(said == targets, -1.0, sure)

    def shown_answer(self, rows: RowSet, number: int, answer: Any) -> dict[str, Any]:
        """Return what was expected and what was said, for `show`."""
        decoded = self.decode(answer)
        target = rows.column("label")[number]
        right = (
            [self.labels[n] for n in np.flatnonzero(target)]
            if self.multilabel
            else [self.labels[int(target)]]
        )
        return {"expected": ", ".join(right), "answers": list(decoded["probabilities"].items())[:SHOWN]}

    def sections(self, scores: Scores) -> dict[str, Any]:
        """Return confusion, curves, classes and reliability."""
        assert isinstance(scores, Classification)
        found: dict[str, Any] = scores.section()
        found["temperature"] = self.fitted.state.get("temperature")
        return {"classification": found}


def class_weights(
    wanted: str | Mapping[str, float], labels: Sequence[str], counts: Sequence[int]
) -> Tensor | None:
    """Return what a term of each class counts, (classes,), its mean over the training terms being one; None for equal.

    Arguments:
        wanted: `equal`, `balanced`, or weights by label; a label that is not named has 1.
        counts: of each label in the training rows.

    Raises:
        RecipeError: a label that is weighed is not there.

    Example:
        >>> class_weights("balanced", ["no", "yes"], [3, 1])
        tensor([0.6667, 2.0000])
    """
    if wanted == "equal":
        return None
    often = np.array(counts, np.float64)
    if isinstance(wanted, str):
        weights = 1.0 / often
    else:
        unknown = sorted(set(wanted) - set(labels))
        if unknown:
            raise RecipeError(
                "no such label in the training rows",
                received=unknown,
                where="objective.class_weights",
                fix=f"labels: {', '.join(labels[:20])}",
            )
        weights = np.array([wanted.get(label, 1.0) for label in labels])
    return torch.from_numpy((weights * often.sum() / (weights * often).sum()).astype(np.float32))


def _name(value: Any) -> str:
    """Return a value as a label, empty where it is none: a number is the same label however a file writes it.

    Raises:
        BadValue: it is neither word nor number.

    Example:
        >>> _name(" good "), _name(0), _name(2.0), _name(None), _name(float("nan"))
        ('good', '0', '2', '', '')
    """
    if isinstance(value, list | dict | bytes | np.ndarray):
        raise BadValue("bad_value", f"a label is one word or number; received {str(value)[:80]!r}")
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        value = int(value) if value.is_integer() else value
    return "" if value is None else str(value).strip()


def _natural(label: str) -> tuple[int, float, str]:
    """Order numbers as numbers, before words.

    Example:
        >>> sorted(["10", "b", "9", "a"], key=_natural)
        ['9', '10', 'a', 'b']
    """
    try:
        number = float(label)
    except ValueError:
        return 1, 0.0, label
    return (0, number, label) if math.isfinite(number) else (1, 0.0, label)


def _notes(counts: Counter[str], rows: int) -> list[dict[str, str]]:
    rare = [label for label, count in counts.most_common() if count < RARE * rows / max(2, len(counts)) * 2]
    if not rare:
        return []
    told = ", ".join(f"{label!r} ({counts[label]:,})" for label in rare[:8])
    detail = f"rare among {rows:,} training rows: {told}; macro_f1 and balanced_accuracy tell more than accuracy here"
    return [{"kind": "imbalance", "detail": detail}]
