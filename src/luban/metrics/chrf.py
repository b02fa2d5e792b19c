"""chrF: how many short runs of characters a translation shares with its reference, for every script alike."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from luban.errors import InputError
from luban.metrics.bleu import DEFINITION, check_pairs
from luban.metrics.resampling import Drawn, Floats, Integers, RowMetric, RowTable, ratio

CHARACTERS, MOST_WORDS = 6, 4
BETA = 2


class ChrF(RowMetric):
    """Corpus chrF2, 0 to 100, or with word_order=2 chrF++; the figure is called `chrf`, or `chrf++`.

    F-score in which recall counts twice as much as precision, of n-grams of 1 to 6 characters (spaces left out), and of
    1 to `word_order` words; precision and recall are means over the orders that both texts have. Popović, chrF:
    character n-gram F-score for automatic MT evaluation, WMT 2015, and chrF++: words helping character n-grams, WMT
    2017; in its details as sacreBLEU.

    Arguments:
        word_order: longest n-gram of words, 0 to 4.

    Raises:
        InputError: another word_order.

    Example:
        >>> found = ChrF()
        >>> found.add(["The cat sat on a mat."], ["The cat sat on the mat."])
        >>> round(found.figures()["chrf"], 2), found.signature()
        (65.8, 'nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0')
    """

    def __init__(self, word_order: int = 0) -> None:
        if not 0 <= word_order <= MOST_WORDS:
            raise InputError(f"word_order is 0 to {MOST_WORDS}", received=word_order)
        self.word_order = word_order
        self._rows = RowTable()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Count a batch of translations, each with its reference.

        Raises:
            InputError: not as many of one as of the other.
        """
        self._rows.add(_batch(hypotheses, references, self.word_order))

    def merge(self, other: ChrF) -> None:
        """Take in what another shard counted.

        Raises:
            InputError: the other counts other n-grams.
        """
        if self.word_order != other.word_order:
            raise InputError(
                "only chrF of the same order can be merged", received=(self.word_order, other.word_order)
            )
        self._rows.merge(other._rows)

    def _came(self) -> Integers:
        return self._rows.came()

    def weighted(self, drawn: Drawn) -> dict[str, Floats]:
        """Return chrF; see `RowMetric.weighted`."""
        counts = np.stack(
            [self._rows.columns()[0][:, kind].T.astype(np.float64) @ drawn for kind in range(3)]
        )
        return {"chrf" + "+" * self.word_order: _f_score(counts)}

    def signature(self) -> str:
        """Say how the figure was computed, in the form of sacreBLEU, whose version is that of the definition."""
        return (
            f"nrefs:1|case:mixed|eff:yes|nc:{CHARACTERS}|nw:{self.word_order}|space:no|version:{DEFINITION}"
        )


def sentence_chrf(hypotheses: Sequence[str], references: Sequence[str], word_order: int = 0) -> Floats:
    """Return chrF of each translation alone, (rows,): which are good and which are not.

    Raises:
        InputError: not as many translations as references.

    Example:
        >>> sentence_chrf(["a cat", "dog"], ["a cat", "cat"]).round(6).tolist()
        [100.0, 0.0]
    """
    return _f_score(_batch(hypotheses, references, word_order).transpose(1, 2, 0).astype(np.float64))


def _batch(hypotheses: Sequence[str], references: Sequence[str], word_order: int) -> Integers:
    check_pairs(hypotheses, references)
    counts = [_counts(*pair, word_order) for pair in zip(hypotheses, references, strict=True)]
    return np.array(counts, np.int64).reshape(len(counts), 3, CHARACTERS + word_order)


def _counts(hypothesis: str, reference: str, word_order: int) -> list[list[int]]:
    """Return for each order the n-grams of the translation, of the reference, and of both."""
    own, wanted = (_ngrams(text, word_order) for text in (hypothesis, reference))
    return [
        # Where the reference is too short to have any, those of the translation are not held against it.
        [mine.total() if theirs else 0 for mine, theirs in zip(own, wanted, strict=True)],
        [theirs.total() for theirs in wanted],
        [sum((mine & theirs).values()) for mine, theirs in zip(own, wanted, strict=True)],
    ]


def _ngrams(text: str, word_order: int) -> list[Counter[str]]:
    letters, words = "".join(text.split()), _words(text)
    found = [
        Counter(letters[at : at + n] for at in range(len(letters) - n + 1)) for n in range(1, CHARACTERS + 1)
    ]
    for n in range(1, word_order + 1):
        found.append(Counter(" ".join(words[at : at + n]) for at in range(len(words) - n + 1)))
    return found


def _words(text: str) -> list[str]:
    """Cut at spaces; one mark at the end of a word, or else at its beginning, is a word of its own."""
    found = []
    for word in text.split():
        if len(word) > 1 and word[-1] in string.punctuation:
            found += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in string.punctuation:
            found += [word[0], word[1:]]
        else:
            found.append(word)
    return found


def _f_score(counts: Floats) -> Floats:
    """Return chrF from summed counts, (3, orders, resamples)."""
    own, wanted, shared = counts
    both = (own > 0) & (wanted > 0)
    orders = both.sum(0)
    precision, recall = (
        ratio(np.where(both, ratio(shared, whole, 0.0), 0.0).sum(0), orders, 0.0) for whole in (own, wanted)
    )
    return 100 * ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall, 0.0)
