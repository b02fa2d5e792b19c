"""Entities in tagged sentences: which stretches of tokens were found, with which type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from luban.errors import DataError, InputError
from luban.metrics.class_counts import scores_of
from luban.metrics.resampling import Drawn, Floats, Integers, RowMetric
from luban.metrics.row_scores import OF
from luban.metrics.tag_schemes import PARTS, Scheme, split_tag

Span = tuple[str, int, int]
"""Type, first token, and one past the last token."""

_Row = tuple[tuple[tuple[str, int, int, int], ...], tuple[int, int, int], int, int]
"""Per type (type, hits, found, wanted); the same of all types, strictly; tokens tagged rightly; tokens."""


def spans(tags: Sequence[str], scheme: Scheme = "IOB2", *, strict: bool = False) -> list[Span]:
    """Return the entities of a sentence, in order.

    Malformed tags are read as conlleval does (Tjong Kim Sang and Buchholz, CoNLL-2000): an entity goes on from B or I
    to I or E of the same type, and anything else that is not O begins another. With `strict` only those count that
    begin and end as the scheme wants: in B or S, and, where the scheme has them, in E or S.

    Arguments:
        tags: `B-PER` or `B_PER`, `I-PER`, `O`, ...; without a type (`B`, `M`, `E`, `S`) the type is `_`.
        scheme: IOB2 (B, I, O), BIOES (also E for the last of several tokens and S for a single one), or BMES (the same
            with M for I, as is usual for Chinese words).

    Raises:
        DataError: a tag that the scheme does not have. InputError: another scheme.

    Example:
        >>> tags = ["B-PER", "I-PER", "O", "I-LOC"]
        >>> spans(tags), spans(tags, strict=True)
        ([('PER', 0, 2), ('LOC', 3, 4)], [('PER', 0, 2)])
        >>> spans(["B", "E", "S"], "BMES")
        [('_', 0, 2), ('_', 2, 3)]
    """
    return [span for span, well_formed in _read(tags, scheme) if well_formed or not strict]


def _read(tags: Sequence[str], scheme: Scheme) -> Iterator[tuple[Span, bool]]:
    """Yield each entity, and whether it begins and ends as the scheme wants."""
    if scheme not in PARTS:
        raise InputError(f"tags are read as {', '.join(PARTS)}", received=scheme)
    closed, letters = scheme != "IOB2", {*PARTS[scheme], "O"}
    begin, first, before, of = 0, "O", "O", "_"
    for at, tag in enumerate([*tags, "O"]):
        letter, kind = split_tag(tag)
        kind = kind or "_"
        if letter not in letters:
            raise DataError(
                f"not a tag of {scheme}", received=tag, where=f"token {at}",
                fix=f"tags are O, or one of {', '.join(PARTS[scheme])} with a type: B-PER",
            )  # fmt: skip
        letter = "I" if letter == "M" else letter
        if before in "BI" and letter in "IE" and kind == of:
            before = letter
            continue
        if before != "O":
            yield (of, begin, at), first in "BS" and (before in "ES" or not closed)
        begin, first, before, of = at, letter, letter, kind


class Entities(RowMetric):
    """Figures of tagged sentences; an entity is right when type and both ends are.

    entity_precision, entity_recall and entity_f1 of all entities together, malformed tags read as conlleval does (as
    seqeval by default); entity_macro_f1, the mean over the types that occur; entity_strict_f1, in which malformed
    entities do not count (seqeval's strict mode); token_accuracy, the share of tokens tagged rightly.
    What would divide by zero is 0; token_accuracy is left out where there are no tokens.

    Arguments:
        scheme: how tags are read, see `spans`.

    Example:
        >>> found = Entities()
        >>> found.add([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "O", "O"]])
        >>> figures = found.figures()
        >>> figures["entity_precision"], figures["entity_recall"], figures["token_accuracy"]
        (0.5, 1.0, 0.75)
    """

    def __init__(self, scheme: Scheme = "IOB2") -> None:
        if scheme not in PARTS:
            raise InputError(f"tags are read as {', '.join(PARTS)}", received=scheme)
        self.scheme: Scheme = scheme
        self._rows: list[_Row] = []
        self._order: Integers | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, predicted: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> None:
        """Count a batch of sentences, as lists of tags.

        Raises:
            InputError: the numbers of sentences, or of tags in one, differ. DataError: a tag that the scheme lacks.
        """
        if len(predicted) != len(targets):
            raise InputError("each sentence needs its tags", received=(len(predicted), len(targets)))
        # All are read before any is counted, so that an unknown tag leaves the figures as they were.
        self._rows.extend([self._row(*pair) for pair in zip(predicted, targets, strict=True)])
        self._order = None

    def _row(self, predicted: Sequence[str], targets: Sequence[str]) -> _Row:
        if len(predicted) != len(targets):
            raise InputError("each token needs one tag", received=(len(predicted), len(targets)))
        found, wanted = (dict(_read(tags, self.scheme)) for tags in (predicted, targets))
        hits = found.keys() & wanted.keys()
        of_hits, of_found, of_wanted = (
            Counter(kind for kind, _, _ in part) for part in (hits, found, wanted)
        )
        types = sorted(of_found.keys() | of_wanted.keys())
        strictly = (
            sum(found[span] and wanted[span] for span in hits),
            sum(found.values()),
            sum(wanted.values()),
        )
        right = sum(said == tag for said, tag in zip(predicted, targets, strict=True))
        by_type = tuple((kind, of_hits[kind], of_found[kind], of_wanted[kind]) for kind in types)
        return by_type, strictly, right, len(targets)

    def merge(self, other: Entities) -> None:
        """Take in what another shard counted.

        Raises:
            InputError: the other reads tags otherwise.
        """
        if self.scheme != other.scheme:
            raise InputError(
                "only figures of the same scheme can be merged", received=(self.scheme, other.scheme)
            )
        self._rows.extend(other._rows)
        self._order = None

    def types(self) -> list[str]:
        """Return the types of entities that occur, in alphabetical order."""
        return sorted({counts[0] for by_type, *_ in self._rows for counts in by_type})

    def by_sentence(self) -> dict[str, Floats]:
        """Return what each sentence adds to entity_f1 and token_accuracy, in the order they came, (sentences,) each.

        A figure is the sum under its name over the sum under its name with `/of`.
        """
        hits = [sum(hit for _, hit, _, _ in by_type) for by_type, *_ in self._rows]
        both = [sum(found + wanted for _, _, found, wanted in by_type) for by_type, *_ in self._rows]
        right, tokens = ([row[at] for row in self._rows] for at in (2, 3))
        columns = {
            "entity_f1": [2 * hit for hit in hits],
            f"entity_f1{OF}": both,
            "token_accuracy": right,
            f"token_accuracy{OF}": tokens,
        }
        return {name: np.array(values, np.float64) for name, values in columns.items()}

    def _came(self) -> Integers:
        if self._order is None:
            self._order = np.array(sorted(range(len(self)), key=self._rows.__getitem__), np.int64)
        return self._order

    def _ordered(self) -> list[_Row]:
        """Return the sentences so that resamples do not depend on the order in which they came."""
        return [self._rows[number] for number in self._came()]

    def weighted(self, drawn: Drawn) -> dict[str, Floats]:
        """Return the figures; see `RowMetric.weighted`."""
        rows = self._ordered()
        counts = self._by_type(drawn)  # (3, types, resamples)
        rest = np.array([(*strictly, right, tokens) for _, strictly, right, tokens in rows], np.float64)
        *strict, right, tokens = rest.T @ drawn
        precision, recall, f1 = scores_of(*counts.sum(1))
        there = ((counts[1] + counts[2]) > 0).sum(0)
        return {
            "entity_precision": precision,
            "entity_recall": recall,
            "entity_f1": f1,
            "entity_macro_f1": scores_of(*counts)[2].sum(0) / np.maximum(there, 1),
            "entity_strict_f1": scores_of(*strict)[2],
            "token_accuracy": np.divide(right, tokens, out=np.full(right.shape, np.nan), where=tokens > 0),
        }

    def _by_type(self, drawn: Drawn) -> Floats:
        """Return hits, found and wanted entities of each type, (3, types, resamples)."""
        numbers = {kind: number for number, kind in enumerate(self.types())}
        counts = np.zeros((3, len(numbers), len(self)))
        for row, (by_type, *_) in enumerate(self._ordered()):
            for kind, *of in by_type:
                counts[:, numbers[kind], row] = of
        found: Floats = counts @ drawn
        return found

    def section(self) -> dict[str, Any]:
        """Return what a report shows, ready for JSON: `per_type`, of each the same as `Classification.per_class`."""
        if not len(self):
            return {}
        counts = self._by_type(np.ones((len(self), 1)))[:, :, 0]
        rows = zip(self.types(), *scores_of(*counts), counts[2], strict=True)
        return {
            "per_type": [
                {
                    "label": kind,
                    "precision": float(precision),
                    "recall": float(recall),
                    "f1": float(f1),
                    "support": int(support),
                }
                for kind, precision, recall, f1, support in rows
            ]
        }
