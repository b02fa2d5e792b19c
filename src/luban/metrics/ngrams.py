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
_TABLE = 8
"""A table of at most so many places for each value takes no more memory than sorting does."""
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
    # The number of the context that begins at each place: of no tokens, all places have the same.
    seen, asked = np.zeros(len(train), dtype=np.int64), np.zeros(len(held_out), dtype=np.int64)
    for n in range(1, MOST_TOKENS + 1):
        contexts = seen[: len(train) - n + 1], asked[: len(held_out) - n + 1]
        # A context and the token behind it are the context of the next order.
        seen, asked = _numbered(contexts, (train[n - 1 :], held_out[n - 1 :]), vocab_size)
        probability = _discounted(
            (contexts[0], seen), (contexts[1][-targets:], asked[-targets:]), probability
        )
        loss = float(-np.log(probability).mean())
        if loss >= least:
            break
        least = loss
    return least


def _numbered(contexts: tuple[Ids, Ids], tokens: tuple[Ids, Ids], vocab_size: int) -> tuple[Ids, Ids]:
    """Give each different pair of context and token a number, the same in both texts."""
    pairs = [context * vocab_size + token for context, token in zip(contexts, tokens, strict=True)]
    numbers = _ranks(np.concatenate(pairs))
    return numbers[: len(pairs[0])], numbers[len(pairs[0]) :]


def _ranks(values: Ids) -> Ids:
    """Return the rank of each value, from 0, among those that occur: by a table where it is small, else by sorting.

    Example:
        >>> _ranks(np.array([30, 10, 30, 20])).tolist()
        [2, 0, 2, 1]
    """
    span = int(values.max()) + 1
    if span > _TABLE * len(values):
        ranks: Ids = np.unique(values, return_inverse=True)[1]
        return ranks
    occurs = np.zeros(span, dtype=bool)
    occurs[values] = True
    up_to = np.cumsum(occurs, dtype=np.int32)  # a rank, and one
    found: Ids = up_to[values].astype(np.int64) - 1
    return found


def _discounted(
    seen: tuple[Ids, Ids], asked: tuple[Ids, Ids], below: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the probability of the token of each asked n-gram, given that of the order below.

    Arguments:
        seen, asked: the number of the context and of the n-gram at each place.
    """
    contexts, grams = seen
    size = 1 + int(max(contexts.max(), asked[0].max()))
    count = 1 + int(max(grams.max(), asked[1].max()))
    of_gram, of_context = np.bincount(grams, minlength=count), np.bincount(contexts, minlength=size)
    context_of = np.zeros(count, dtype=np.int64)
    context_of[grams] = contexts
    kinds = np.bincount(context_of[of_gram > 0], minlength=size)
    total = of_context[asked[0]]
    known: npt.NDArray[np.float64] = np.maximum(of_gram[asked[1]] - DISCOUNT, 0.0) / np.maximum(total, 1)
    left: npt.NDArray[np.float64] = np.where(
        total > 0, DISCOUNT * kinds[asked[0]] / np.maximum(total, 1), 1.0
    )
    return known + left * below
