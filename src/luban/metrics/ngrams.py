"""How well counting predicts a text: the n-gram model that every network has to beat.

Interpolated absolute discounting (H. Ney, U. Essen and R. Kneser, "On structuring probabilistic dependences
in stochastic language modelling", 1994): each order takes a constant off every count and gives what it took to
the order below; at the bottom stands the uniform distribution.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

DISCOUNT = 0.75
MOST_TOKENS = 8
Ids = npt.NDArray[np.int64]


def ngram_loss(train: Ids, held_out: Ids, vocab_size: int) -> float:
    """Return the held-out loss in nats per token of the best n-gram model of up to eight tokens.

    Characters want longer n-grams than words. Orders are tried upwards until the loss no longer falls.

    Arguments:
        train: (n,) token ids that are counted. held_out: (m,) token ids that are predicted; n and m at least 8.
        vocab_size: how many tokens there are.

    Example:
        >>> text = np.arange(60) % 3
        >>> ngram_loss(text, text, 3) < 0.1 < ngram_loss(np.random.default_rng(0).permutation(text), text, 3)
        True
    """
    least, targets = math.inf, len(held_out) - MOST_TOKENS + 1
    probability = np.full(targets, 1.0 / vocab_size)
    for n in range(1, MOST_TOKENS + 1):
        probability = _discounted(_grams(train, n), _grams(held_out, n)[-targets:], probability)
        loss = float(-np.log(probability).mean())
        if loss >= least:
            break
        least = loss
    return least


def _grams(ids: Ids, n: int) -> Ids:
    """(m, n) every run of n tokens; the last column is what is predicted."""
    return np.lib.stride_tricks.sliding_window_view(ids, n)


def _discounted(seen: Ids, asked: Ids, below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the probability of the last token of each asked n-gram, given the order below's."""
    numbers, count = _numbered(seen, asked)
    contexts, _ = _numbered(seen[:, :-1], asked[:, :-1])
    _, context = np.unique(numbers[: len(seen)], return_index=True)
    of_gram = np.bincount(numbers[: len(seen)], minlength=count)
    size = int(contexts.max(initial=0)) + 1
    of_context = np.bincount(contexts[: len(seen)], minlength=size)
    kinds = np.bincount(contexts[context], minlength=size)
    here, where = numbers[len(seen) :], contexts[len(seen) :]
    total = of_context[where]
    known: npt.NDArray[np.float64] = np.maximum(of_gram[here] - DISCOUNT, 0.0) / np.maximum(total, 1)
    left: npt.NDArray[np.float64] = np.where(total > 0, DISCOUNT * kinds[where] / np.maximum(total, 1), 1.0)
    return known + left * below


def _numbered(seen: Ids, asked: Ids) -> tuple[Ids, int]:
    """Number the different rows of both, (len(seen) + len(asked),), and return how many there are."""
    both = np.concatenate([seen, asked])
    numbers = np.zeros(len(both), dtype=np.int64)
    for column in both.T:
        # Numbers stay below the rows' count, so that their product with a column fits in 64 bits.
        _, numbers = np.unique(numbers * (int(column.max()) + 1) + column, return_inverse=True)
    return numbers, int(numbers.max(initial=0)) + 1
