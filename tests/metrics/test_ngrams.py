"""The n-gram loss, against a dictionary that counts in the plainest way."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.metrics.ngrams import DISCOUNT, MOST_TOKENS, ngram_loss

TEXTS = st.lists(st.integers(0, 4), min_size=MOST_TOKENS, max_size=120)


def plain(train: list[int], held_out: list[int], vocab_size: int) -> float:
    """Count n-grams of each order in dictionaries; stop where a longer one no longer helps."""
    least = math.inf
    for most in range(1, MOST_TOKENS + 1):
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for n in range(1, most + 1):
            for at in range(len(train) - n + 1):
                counts[tuple(train[at : at + n - 1]), n][train[at + n - 1]] += 1  # type: ignore[index]
        loss = 0.0
        for at in range(MOST_TOKENS - 1, len(held_out)):
            p = 1.0 / vocab_size
            for n in range(1, most + 1):
                seen = counts.get((tuple(held_out[at - n + 1 : at]), n), Counter())  # type: ignore[call-overload]
                if total := sum(seen.values()):
                    p = (max(seen[held_out[at]] - DISCOUNT, 0.0) + DISCOUNT * len(seen) * p) / total
            loss -= math.log(p)
        loss /= len(held_out) - MOST_TOKENS + 1
        if loss >= least:
            break
        least = loss
    return least


@given(TEXTS, TEXTS, st.sampled_from([5, 1_000_000]))
def test_it_is_what_plain_counting_gives(train: list[int], held_out: list[int], vocab_size: int) -> None:
    found = ngram_loss(np.array(train), np.array(held_out), vocab_size)  # numbered by a table, or by sorting
    assert found == pytest.approx(plain(train, held_out, vocab_size), rel=1e-9)


def test_a_text_that_repeats_is_foreseen_and_noise_is_not() -> None:
    draw = np.random.default_rng(1)
    noise = draw.integers(0, 50, 5000)
    assert ngram_loss(np.arange(5000) % 7, np.arange(300) % 7, 7) < 0.01
    assert ngram_loss(noise, draw.integers(0, 50, 1000), 50) == pytest.approx(math.log(50), rel=0.02)
