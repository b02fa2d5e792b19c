"""BLEU of whole texts: how many n-grams of a translation are in its reference.

Papineni et al., BLEU: a method for automatic evaluation of machine translation, ACL 2002. Defined in its details as
sacreBLEU does (Post, A call for clarity in reporting BLEU scores, WMT 2018), so that numbers compare with published
ones; tests hold it to sacreBLEU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from luban.errors import InputError
from luban.metrics.resampling import Drawn, Floats, Integers, RowMetric, RowTable

Tokenize = Literal["13a", "zh", "char", "none"]
DEFINITION = "2.6.0"
"""The version of sacreBLEU whose definition of BLEU and chrF this is."""
ORDER = 4


class Bleu(RowMetric):
    """Corpus BLEU, 0 to 100: n-grams of 1 to 4 tokens, one reference, exponential smoothing, case kept.

    Precision and brevity are of all rows together, so BLEU is not a mean over rows; it is kept as counts per row,
    of which a bootstrap draws.

    Arguments:
        tokenize: `13a` (mteval-v13a, for languages with spaces), `zh` (each Chinese character a token, the rest as
            13a), `char`, or `none` (split at spaces).

    Raises:
        InputError: another tokenizer.

    Example:
        >>> found = Bleu()
        >>> found.add(["The cat sat on a mat."], ["The cat sat on the mat."])
        >>> round(found.figures()["bleu"], 2), found.signature()
        (48.89, 'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0')
    """

    def __init__(self, tokenize: Tokenize = "13a") -> None:
        if tokenize not in _TOKENIZERS:
            raise InputError(f"BLEU tokenizes as one of {', '.join(_TOKENIZERS)}", received=tokenize)
        self.tokenize: Tokenize = tokenize
        self._rows = RowTable()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Count a batch of translations, each with its reference.

        Raises:
            InputError: not as many of one as of the other.
        """
        check_pairs(hypotheses, references)
        counts = [
            _counts(tokens(hypothesis, self.tokenize), tokens(reference, self.tokenize))
            for hypothesis, reference in zip(hypotheses, references, strict=True)
        ]
        self._rows.add(np.array(counts, np.int64).reshape(-1, 2 + 2 * ORDER))

    def merge(self, other: Bleu) -> None:
        """Take in what another shard counted.

        Raises:
            InputError: the other tokenizes otherwise.
        """
        if self.tokenize != other.tokenize:
            raise InputError(
                "only BLEU of the same tokens can be merged", received=(self.tokenize, other.tokenize)
            )
        self._rows.merge(other._rows)

    def _came(self) -> Integers:
        return self._rows.came()

    def weighted(self, drawn: Drawn) -> dict[str, Floats]:
        """Return BLEU; see `RowMetric.weighted`."""
        return {"bleu": _bleu(self._rows.columns()[0].T.astype(np.float64) @ drawn)}

    def signature(self) -> str:
        """Say how the figure was computed, in the form of sacreBLEU, whose version is that of the definition."""
        return f"nrefs:1|case:mixed|eff:no|tok:{self.tokenize}|smooth:exp|version:{DEFINITION}"


def check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Raise where translations and references do not pair.

    Raises:
        InputError: one of them is a single text, or their numbers differ.
    """
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise InputError("translations and references are lists of texts", received=(hypotheses, references))
    if len(hypotheses) != len(references):
        raise InputError("each translation needs its reference", received=(len(hypotheses), len(references)))


def _counts(hypothesis: list[str], reference: list[str]) -> list[int]:
    """Return both lengths, and of n-grams of each order how many are in the reference, and how many there are."""
    hits, sizes = [], []
    for n in range(1, ORDER + 1):
        own, wanted = (
            Counter(zip(*(text[at:] for at in range(n)), strict=False)) for text in (hypothesis, reference)
        )
        hits.append(sum((own & wanted).values()))
        sizes.append(own.total())
    return [len(hypothesis), len(reference), *hits, *sizes]


def _bleu(counts: Floats) -> Floats:
    """Return BLEU from summed counts, (2 + 2 orders, resamples)."""
    length, wanted = counts[0], counts[1]
    hits, sizes = counts[2 : 2 + ORDER], counts[2 + ORDER :]  # (orders, resamples)
    defined = (sizes > 0).all(0) & (hits > 0).any(0)
    # An order without a hit counts as half a hit, the next such as a quarter, and so on: method 3 of Chen and Cherry,
    # A systematic comparison of smoothing techniques for sentence-level BLEU, WMT 2014.
    missed = hits == 0
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=0), hits)
    precision = np.log(smoothed / np.where(defined, sizes, 1.0)).mean(0)
    brevity = np.minimum(0.0, 1 - wanted / np.where(defined, length, 1.0))
    return np.where(defined, 100 * np.exp(precision + brevity), 0.0)


# Tokens.

_MARKUP = (("<skipped>", ""), ("-\n", ""), ("\n", " "))
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
# In the order of mteval-v13a: each works on what the one before left, and does not look twice at a character.
_SEPARATED = (
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),  # ASCII symbols but ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # point and comma but between digits
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a dash behind a digit
)
# sacreBLEU's ranges of Chinese characters, symbols and full-width forms. The first is wider than its author meant (its
# bounds are code points of five digits read as four): without it numbers would not agree.
_CHINESE = re.compile(
    "(["
    "\u2001-\u2a6d\u2e80-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31ef\u3200-\u4db5\u4e00-\u9fbb"
    "\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef"
    "])"
)


def tokens(text: str, tokenize: Tokenize) -> list[str]:
    """Cut a text into the tokens that BLEU counts.

    Example:
        >>> tokens("It's 3,000 m, isn't it?", "13a")
        ["It's", '3,000', 'm', ',', "isn't", 'it', '?']
        >>> tokens("我有2只cats。", "zh")
        ['我', '有', '2', '只', 'cats', '。']
    """
    return _TOKENIZERS[tokenize](text.rstrip())


def _mteval(text: str) -> list[str]:
    for old, new in _MARKUP + _ENTITIES:
        text = text.replace(old, new)
    return _separated(f" {text} ")


def _chinese(text: str) -> list[str]:
    return _separated(_CHINESE.sub(r" \1 ", text.strip()))


def _characters(text: str) -> list[str]:
    return [character for character in text if not character.isspace()]


def _separated(text: str) -> list[str]:
    for pattern, parts in _SEPARATED:
        text = pattern.sub(parts, text)
    return text.split()


_TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "13a": _mteval,
    "zh": _chinese,
    "char": _characters,
    "none": str.split,
}
