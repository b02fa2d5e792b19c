"""How well counting predicts a text: the n-gram model that every network has to beat.

Interpolated absolute discounting (H. Ney, U. Essen and R. Kneser, "On structuring probabilistic dependences
in stochastic language modelling", 1994): each order takes a constant off every count and gives what it took to
the order below; at the bottom stands the uniform distribution.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DISCOUNT = 0.75
Ids = npt.NDArray[np.int64]


def ngram_loss(train: Ids, held_out: Ids, vocab_size: int, order: int = 3) -> list[float]:
    """Return the held-out loss in nats per token of the n-gram models of orders 1 to `order`.

    Arguments:
        train: (n,) token ids that are counted. held_out: (m,) token ids that are predicted, m > order.
        vocab_size: how many tokens there are.

    Example:
        >>> text = np.arange(60) % 3
        >>> [round(loss, 2) for loss in ngram_loss(text, text, 3, order=2)]
        [1.1, 0.03]
    """
    targets = held_out[order - 1 :]
    probability = np.full(len(targets), 1.0 / vocab_size)
    losses = []
    for n in range(1, order + 1):
        probability = _discounted(_grams(train, n), _grams(held_out, n)[order - n :], probability)
        losses.append(float(-np.log(probability).mean()))
    return losses


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
