"""Figures of tags that are classes of single tokens, as parts of speech are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from luban.errors import DataError, InputError
from luban.metrics.class_counts import scores_of
from luban.metrics.classification import MOST_SHOWN
from luban.metrics.resampling import Drawn, Floats, Groups, Integers, RowMetric, ratio

_Row = tuple[tuple[int, int], ...]
"""Of each token its right tag and the tag answered, sorted."""


class Tags(RowMetric):
    """Figures of tagged sentences, whose rows are sentences: streaming, mergeable, resampled by sentences.

    token_accuracy, the share of tokens tagged rightly; sentence_accuracy, of sentences with all their tags right;
    macro_precision, macro_recall and macro_f1, means over the tags that occur among targets or answers. What would
    divide by zero is 0; token_accuracy is left out where there are no tokens.

    Arguments:
        labels: all tags there are.

    Example:
        >>> found = Tags(["DT", "NN", "VB"])
        >>> found.add([["DT", "NN"], ["VB"]], [["DT", "VB"], ["VB"]])
        >>> {name: round(found.figures()[name], 3) for name in ("token_accuracy", "sentence_accuracy", "macro_f1")}
        {'token_accuracy': 0.667, 'sentence_accuracy': 0.5, 'macro_f1': 0.556}
        >>> found.section()["confusion"]
        [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self._numbers = {label: number for number, label in enumerate(self.labels)}
        self._rows: list[_Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, predicted: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> None:
        """Count a batch of sentences.

        Raises:
            InputError: a sentence has more tags of one kind than of the other. DataError: a tag is none of the labels.
        """
        rows = []
        for said, right in zip(predicted, targets, strict=True):
            if len(said) != len(right):
                raise InputError("a sentence has as many tags as tokens", received=(len(said), len(right)))
            if unknown := [tag for tag in (*right, *said) if tag not in self._numbers]:
                raise DataError("not one of the tags", received=unknown[0])
            pairs = zip(right, said, strict=True)
            rows.append(tuple(sorted((self._numbers[a], self._numbers[b]) for a, b in pairs)))
        self._rows.extend(rows)
        self._changed()

    def merge(self, other: Tags) -> None:
        """Take in what another shard counted.

        Raises:
            InputError: the other has other labels.
        """
        if self.labels != other.labels:
            raise InputError(
                "only figures of the same tags can be merged", received=(self.labels, other.labels)
            )
        self._rows.extend(other._rows)
        self._changed()

    def _changed(self) -> None:
        for name in ("_tokens", "_came_as", "_kinds"):
            self.__dict__.pop(name, None)

    def _came(self) -> Integers:
        return self._came_as

    @cached_property
    def _came_as(self) -> Integers:
        return np.array(sorted(range(len(self)), key=self._rows.__getitem__), np.int64)

    @cached_property
    def _tokens(self) -> tuple[Integers, Integers, Integers]:
        """Of each token, the sentences in their order: its sentence, its right tag, the tag answered."""
        rows = [self._rows[number] for number in self._came_as]
        sentences = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        tags = np.array([pair for row in rows for pair in row], np.int64).reshape(-1, 2)
        return sentences, tags[:, 0], tags[:, 1]

    def _counts(self, drawn: Drawn) -> tuple[Floats, Floats, Floats]:
        """Return how often each tag was answered rightly, was answered, and was right, (tags, resamples) each."""
        hits, answered, support = (
            groups.sums(often * drawn[sentences]) for groups, sentences, often in self._kinds
        )
        return hits, answered, support

    @cached_property
    def _kinds(self) -> list[tuple[Groups, Integers, Floats]]:
        """Tags answered rightly, answered, and right: each tag of each sentence once, with how often it is there."""
        sentences, right, said = self._tokens
        hit, rows, found = right == said, max(1, len(self)), []
        for tags, of in ((right[hit], sentences[hit]), (said, sentences), (right, sentences)):
            cells, often = np.unique(tags * rows + of, return_counts=True)
            found.append(
                (Groups(cells // rows, len(self.labels)), cells % rows, often.astype(np.float64)[:, None])
            )
        return found

    def weighted(self, drawn: Drawn) -> dict[str, Floats]:
        """Return the figures; see `RowMetric.weighted`."""
        sentences, right, said = self._tokens
        wrong = np.bincount(sentences[right != said], minlength=len(self))
        hits, answered, support = self._counts(drawn)
        precision, recall, f1 = scores_of(hits, answered, support)
        occurring = np.maximum((answered + support > 0).sum(0), 1)
        return {
            "token_accuracy": ratio(hits.sum(0), support.sum(0)),
            "sentence_accuracy": (wrong == 0).astype(np.float64) @ drawn / drawn.sum(0, dtype=np.float64),
            "macro_precision": precision.sum(0) / occurring,
            "macro_recall": recall.sum(0) / occurring,
            "macro_f1": f1.sum(0) / occurring,
        }

    def section(self) -> dict[str, Any]:
        """Return what a report shows, ready for JSON, in the form of `Classification.section`.

        `labels`, `per_class`, and `confusion` of at most 50 labels, (right tags, tags answered).
        """
        if not len(self):
            return {}
        hits, answered, support = (counts[:, 0] for counts in self._counts(np.ones((len(self), 1))))
        columns = (*scores_of(hits, answered, support), support)
        names = ("label", "precision", "recall", "f1", "support")
        rows = zip(self.labels, *(column.tolist() for column in columns), strict=True)
        found: dict[str, Any] = {
            "labels": self.labels,
            "per_class": [dict(zip(names, (*row[:-1], int(row[-1])), strict=True)) for row in rows],
        }
        if len(self.labels) <= MOST_SHOWN:
            _, right, said = self._tokens
            count = len(self.labels)
            cells = np.bincount(right * count + said, minlength=count**2)
            found["confusion"] = cells.reshape(count, count).tolist()
        return found
