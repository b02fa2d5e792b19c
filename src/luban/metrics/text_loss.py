"""How well a model predicts text: loss, perplexity, bits per byte, each with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from luban.metrics.intervals import ratio_interval

N = TypeVar("N", int, float)
LN2 = math.log(2.0)
MIN_DOCUMENTS = 30
"""With fewer documents than this the bootstrap draws windows: a handful of units has hardly a spread."""


@dataclass
class TextLoss:
    """Sums of the negative log-likelihood of text, in nats, by document and by window.

    The end token that separates documents is not text and is not counted. Bytes are those of the text in
    UTF-8, characters its Unicode code points, so models with different tokenizers compare.

    Example:
        >>> loss = TextLoss()
        >>> loss.add(document=0, nats=2.0 * LN2, tokens=2)
        >>> loss.size(document=0, bytes=4, characters=4)
        >>> figures = loss.figures()
        >>> figures["loss"] == LN2, figures["bits_per_byte"], figures["perplexity"]
        (True, 0.5, 2.0)
    """

    nats: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    bytes: dict[int, int] = field(default_factory=dict)
    characters: dict[int, int] = field(default_factory=dict)
    windows: list[tuple[float, int]] = field(default_factory=list)

    def add(self, *, document: int, nats: float, tokens: int) -> None:
        """Count one window: the sum of its losses over `tokens` target tokens of one document."""
        self.nats[document] = self.nats.get(document, 0.0) + nats
        self.tokens[document] = self.tokens.get(document, 0) + tokens
        self.windows.append((nats, tokens))

    def size(self, *, document: int, bytes: int, characters: int) -> None:  # noqa: A002  (the field's name)
        """Say how large a document is; for a part of one, the size of that part."""
        self.bytes[document], self.characters[document] = bytes, characters

    def merge(self, other: TextLoss) -> None:
        """Take in what another rank measured, on other documents or on other parts of the same."""
        _add(self.nats, other.nats)
        _add(self.tokens, other.tokens)
        _add(self.bytes, other.bytes)
        _add(self.characters, other.characters)
        self.windows.extend(other.windows)

    def counts(self) -> dict[str, int]:
        """Return how much text was measured."""
        return {
            "documents": len(self.tokens),
            "tokens": sum(self.tokens.values()),
            "bytes": sum(self.bytes.values()),
            "characters": sum(self.characters.values()),
        }

    def figures(self) -> dict[str, float]:
        """Return loss (nats per token), perplexity (per token), bits per byte and nats per character."""
        nats, counts = math.fsum(self.nats.values()), self.counts()
        loss = nats / counts["tokens"] if counts["tokens"] else math.nan
        return {
            "loss": loss,
            "perplexity": _exp(loss),
            "bits_per_byte": nats / LN2 / counts["bytes"] if counts["bytes"] else math.nan,
            "nats_per_character": nats / counts["characters"] if counts["characters"] else math.nan,
        }

    def intervals(self, *, resamples: int, seed: int = 0) -> Mapping[str, tuple[float, float]]:
        """Return 95 % bootstrap intervals of `figures`, over documents; over windows where those are few."""
        order = sorted(self.tokens)
        counts = self.counts()
        if len(order) >= MIN_DOCUMENTS:
            nats = np.array([self.nats[d] for d in order], np.float64)
            sizes = {
                "loss": np.array([self.tokens[d] for d in order], np.float64),
                "bits_per_byte": np.array([self.bytes.get(d, 0) for d in order], np.float64) * LN2,
                "nats_per_character": np.array([self.characters.get(d, 0) for d in order], np.float64),
            }
        else:
            # Sorted, so that the interval does not depend on which rank measured what.
            windows = sorted(self.windows)
            nats = np.array([n for n, _ in windows], np.float64)
            tokens = np.array([t for _, t in windows], np.float64)
            per_token = max(counts["tokens"], 1)
            # A window's bytes are not known; its share of the tokens stands for its share of the bytes.
            sizes = {
                "loss": tokens,
                "bits_per_byte": tokens * counts["bytes"] / per_token * LN2,
                "nats_per_character": tokens * counts["characters"] / per_token,
            }
        found = {
            name: ratio_interval(nats, size, resamples=resamples, seed=seed) for name, size in sizes.items()
        }
        low, high = found["loss"]
        return {**found, "perplexity": (_exp(low), _exp(high))}


def _add(mine: dict[int, N], theirs: Mapping[int, N]) -> None:
    for document, value in theirs.items():
        mine[document] = mine[document] + value if document in mine else value


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
