"""Figures of translations: BLEU and chrF of the same rows, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from luban.metrics.bleu import Bleu, Tokenize
from luban.metrics.chrf import ChrF
from luban.metrics.resampling import Floats, Integers


class Translations:
    """BLEU, chrF and how often a translation is the reference itself; see `Bleu` and `ChrF`.

    Example:
        >>> found = Translations("13a")
        >>> found.add(["a cat sits there now"], ["a cat sits there now"])
        >>> {name: round(value, 6) for name, value in found.figures().items()}
        {'bleu': 100.0, 'chrf': 100.0}
    """

    def __init__(self, tokenize: Tokenize) -> None:
        self.bleu, self.chrf = Bleu(tokenize), ChrF()

    def __len__(self) -> int:
        return len(self.bleu)

    def add(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Count a batch of translations, each with its reference."""
        self.bleu.add(hypotheses, references)
        self.chrf.add(hypotheses, references)

    def merge(self, other: Translations) -> None:
        """Take in what another shard counted."""
        self.bleu.merge(other.bleu)
        self.chrf.merge(other.chrf)

    def figures(self) -> dict[str, float]:
        """Return the figures by name."""
        return {**self.bleu.figures(), **self.chrf.figures()}

    def names(self) -> list[str]:
        """Return the names of all figures; see `RowMetric.names`."""
        return [*self.bleu.names(), *self.chrf.names()]

    def intervals(self, resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return 95 % intervals by name."""
        return {**self.bleu.intervals(resamples, seed), **self.chrf.intervals(resamples, seed)}

    def resampled(
        self, resamples: int = 1000, seed: int = 0, ranks: Integers | None = None
    ) -> dict[str, Floats]:
        """Return the figures of each resample; see `RowMetric.resampled`."""
        return {
            **self.bleu.resampled(resamples, seed, ranks),
            **self.chrf.resampled(resamples, seed, ranks),
        }

    def signatures(self) -> dict[str, str]:
        """Return how each figure was computed."""
        return {"bleu": self.bleu.signature(), "chrf": self.chrf.signature()}
