"""Whether a difference of figures between two runs is more than chance: a paired bootstrap over the same text or rows.

Koehn, "Statistical significance tests for machine translation evaluation", EMNLP 2004: both runs are judged on the same
draws, so what makes a draw hard for both does not widen the interval of their difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luban.metrics.document_losses import DocumentLosses, Floats, Integers
from luban.metrics.intervals import paired_interval
from luban.metrics.paired import paired_difference
from luban.metrics.resampling import bounds
from luban.metrics.row_scores import OF, RowScores
from luban.metrics.text_loss import LN2, MIN_DOCUMENTS


@dataclass(frozen=True)
class Measured:
    """What a run left of its evaluation: its name, how it stands, what each document cost or each row counted."""

    label: str
    state: str
    documents: DocumentLosses | None
    rows: RowScores | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairing:
    """Whether a run's figures can be paired with the first run's: `unit` and `count`, or else `why` not."""

    why: str = ""
    unit: str = ""
    count: int = 0
    differences: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Figure -> difference (this run less the first), lower and upper bound."""
    chances: Mapping[str, float] = field(default_factory=dict)
    """Figure -> p of a difference at least this large by a permutation test; of figures that are means over rows."""

    def as_json(self) -> dict[str, Any]:
        """Return the form of `luban compare --json`."""
        if self.why:
            return {"paired": False, "why": self.why}
        told = {
            name: {"difference": middle, "low": low, "high": high}
            | ({"p": self.chances[name]} if name in self.chances else {})
            for name, (middle, low, high) in self.differences.items()
        }
        return {"paired": True, "unit": self.unit, "count": self.count, "differences": told}


def pair(first: Measured, second: Measured, *, resamples: int) -> Pairing:
    """Pair the figures of two runs over the rows, or the units of text, that both were measured on."""
    if first.rows is not None and second.rows is not None:
        return _pair_rows(first, second, first.rows, second.rows, resamples)
    for side in (first, second):
        if side.documents is None:
            state = side.state
            reason = (
                "an earlier luban made it, it is over folds, or it is of rows and the other of text"
                if state == "finished"
                else f"it did not finish ({state})"
            )
            return Pairing(f"{side.label} has no record of what each held-out document cost: {reason}")
    a, b = first.documents, second.documents
    assert a is not None and b is not None
    shared = sum((Counter(a.digest.tolist()) & Counter(b.digest.tolist())).values())
    if not (len(a) == len(b) == shared):
        return Pairing(
            f"the held-out texts differ: {shared:,} documents are in both, of {len(a):,} in {first.label} "
            f"and {len(b):,} in {second.label}"
        )
    same_tokens = a.token_digest == b.token_digest
    if len(a) >= MIN_DOCUMENTS:
        units = _by_document(a, b, same_tokens)
        return Pairing(unit="documents", count=len(a), differences=_differences(units, resamples))
    if not same_tokens:
        few = f"{len(a)} held-out document{'s' if len(a) != 1 else ''}"
        return Pairing(
            f"there are only {few}, fewer than {MIN_DOCUMENTS}, and the tokenizers cut them differently, "
            "so their parts cannot be matched"
        )
    pieces = _by_window(a, b)
    count = len(next(iter(pieces.values()))[0][0]) if pieces else 0
    if count < 2:
        return Pairing("the held-out text is one piece: there is nothing to draw from")
    return Pairing(unit="windows", count=count, differences=_differences(pieces, resamples))


def _pair_rows(first: Measured, second: Measured, a: RowScores, b: RowScores, resamples: int) -> Pairing:
    shared = sum((Counter(a.digest.tolist()) & Counter(b.digest.tolist())).values())
    if not (len(a.digest) == len(b.digest) == shared):
        return Pairing(
            f"the held-out rows differ: {shared:,} are in both, of {len(a.digest):,} in {first.label} "
            f"and {len(b.digest):,} in {second.label}"
        )
    order_a, order_b = np.argsort(a.digest, kind="stable"), np.argsort(b.digest, kind="stable")
    ones = np.ones(shared)
    units: Units = {
        name: (
            (scores[order_a], a.scores[name + OF][order_a] if name + OF in a.scores else ones),
            (b.scores[name][order_b], b.scores[name + OF][order_b] if name + OF in b.scores else ones),
        )
        for name, scores in a.scores.items()
        if name in b.scores and not name.endswith(OF)
    }
    # Of means and ratios as many draws as are asked for; of other figures those that the runs kept.
    plain, drawn = _differences(units, resamples), _drawn_alike(first, second, a, b)
    differences = {name: plain.get(name, told) for name, told in drawn.items()} | plain
    chances = {
        name: paired_difference(units[name][0][0], units[name][1][0], resamples).p
        for name in units
        if name in differences and name + OF not in a.scores
    }
    return Pairing(unit="rows", count=shared, differences=differences, chances=chances)


def _drawn_alike(
    first: Measured, second: Measured, a: RowScores, b: RowScores
) -> dict[str, tuple[float, float, float]]:
    """Return the differences of figures that both runs had resampled, whether they are means over rows or not."""
    found = {}
    there = a.resampled.keys() & b.resampled.keys() & second.figures.keys()
    for name in [name for name in first.figures if name in there]:
        count = min(len(a.resampled[name]), len(b.resampled[name]))
        changes = b.resampled[name][:count] - a.resampled[name][:count]
        difference = second.figures[name] - first.figures[name]
        if bound := bounds({name: difference}, {name: changes}).get(name):
            found[name] = (difference, *bound)
    return found


Units = dict[str, tuple[tuple[Floats, Floats], tuple[Floats, Floats]]]
"""Figure -> (numerators, denominators) of the first run and of the second."""


def _by_document(a: DocumentLosses, b: DocumentLosses, same_tokens: bool) -> Units:
    order_a, order_b = np.argsort(a.digest, kind="stable"), np.argsort(b.digest, kind="stable")
    nats_a, nats_b = a.nats[order_a], b.nats[order_b]
    units: Units = {
        "bits_per_byte": ((nats_a, _real(a.bytes[order_a], LN2)), (nats_b, _real(b.bytes[order_b], LN2))),
        "nats_per_character": (
            (nats_a, _real(a.characters[order_a])),
            (nats_b, _real(b.characters[order_b])),
        ),
    }
    if same_tokens:  # a loss per token compares only where the tokens are the same
        units["loss"] = (
            (nats_a, _real(a.tokens[order_a])),
            (nats_b, _real(b.tokens[order_b])),
        )
    return units


def _by_window(a: DocumentLosses, b: DocumentLosses) -> Units:
    """Cut both runs' windows where both end one, so that each piece is the same text for both."""
    ends_a, ends_b = np.cumsum(a.window_tokens), np.cumsum(b.window_tokens)
    if not ends_a.size or not ends_b.size or ends_a[-1] != ends_b[-1]:
        return {}
    ends = np.intersect1d(ends_a, ends_b)
    nats = []
    for own, losses in ((ends_a, a.window_nats), (ends_b, b.window_nats)):
        upto = np.cumsum(losses)[np.searchsorted(own, ends)]
        nats.append(np.diff(upto, prepend=0.0))
    tokens = np.diff(ends, prepend=0).astype(np.float64)
    whole = max(float(tokens.sum()), 1.0)
    sizes = {
        "bits_per_byte": tokens * float(a.bytes.sum() / whole * LN2),
        "nats_per_character": tokens * float(a.characters.sum() / whole),
        "loss": tokens,
    }
    return {name: ((nats[0], size), (nats[1], size)) for name, size in sizes.items()}


def _differences(units: Units, resamples: int) -> dict[str, tuple[float, float, float]]:
    found = {
        name: paired_interval(first, second, resamples=resamples) for name, (first, second) in units.items()
    }
    return {name: told for name, told in found.items() if np.isfinite(told).all()}


def small_p(p: float) -> str:
    """Return a p-value as it is written.

    Example:
        >>> small_p(0.0312), small_p(0.00004), small_p(1.0)
        ('= 0.031', '< 0.001', '= 1.000')
    """
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def _real(values: Integers, unit: float = 1.0) -> Floats:
    return values.astype(np.float64) * unit
