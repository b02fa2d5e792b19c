"""Loss of text: parts that were measured apart come together to the whole."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.metrics.intervals import ratio_interval
from luban.metrics.text_loss import LN2, MIN_DOCUMENTS, TextLoss

WINDOWS = st.lists(
    st.tuples(
        st.integers(0, 40), st.floats(0, 50), st.integers(1, 30), st.integers(1, 90), st.integers(0, 2)
    ),
    min_size=1,
    max_size=80,
)
"""(document, nats, tokens, bytes, the rank that measured it); a character is three bytes, rounded up."""


def measured(windows: list[tuple[int, float, int, int, int]]) -> TextLoss:
    """What one process finds, that sees these windows and what each holds of its document."""
    loss = TextLoss()
    sizes: dict[int, tuple[int, int]] = {}
    for document, nats, tokens, size, _ in windows:
        loss.add(document=document, nats=nats, tokens=tokens)
        before = sizes.get(document, (0, 0))
        sizes[document] = before[0] + size, before[1] + (size + 2) // 3
    for document, (size, characters) in sizes.items():
        loss.size(document=document, bytes=size, characters=characters)
    return loss


@given(windows=WINDOWS)
@settings(max_examples=60, deadline=None)
def test_the_parts_of_all_ranks_are_the_whole(windows: list[tuple[int, float, int, int, int]]) -> None:
    whole = measured(windows)
    parts = TextLoss()
    for rank in (2, 0, 1):
        parts.merge(measured([window for window in windows if window[-1] == rank]))
    assert parts.counts() == whole.counts()
    assert parts.figures() == pytest.approx(whole.figures(), rel=1e-12)
    found, expected = parts.intervals(resamples=20), whole.intervals(resamples=20)
    for name, bounds in expected.items():
        assert found[name] == pytest.approx(bounds, rel=1e-9)


@given(windows=WINDOWS)
@settings(max_examples=60, deadline=None)
def test_the_figures_are_what_their_names_say(windows: list[tuple[int, float, int, int, int]]) -> None:
    nats = math.fsum(window[1] for window in windows)
    tokens, size = sum(window[2] for window in windows), sum(window[3] for window in windows)
    loss = measured(windows)
    figures = loss.figures()
    assert figures["loss"] == pytest.approx(nats / tokens)
    assert figures["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert figures["nats_per_character"] == pytest.approx(nats / sum((w[3] + 2) // 3 for w in windows))
    assert loss.counts()["documents"] == len({window[0] for window in windows})
    bounds = loss.intervals(resamples=50)
    assert bounds["perplexity"] == tuple(math.exp(bound) for bound in bounds["loss"])
    assert bounds.keys() == figures.keys()


def test_a_uniform_guess_over_bytes_costs_eight_bits_per_byte() -> None:
    loss = TextLoss()
    for document in range(3):
        loss.add(document=document, nats=100 * math.log(256), tokens=100)
        loss.size(document=document, bytes=100, characters=100)
    assert loss.figures()["bits_per_byte"] == pytest.approx(8.0)
    assert loss.figures()["perplexity"] == pytest.approx(256.0)
    assert loss.intervals(resamples=100)["bits_per_byte"] == pytest.approx((8.0, 8.0))


@pytest.mark.parametrize("count", [MIN_DOCUMENTS - 1, MIN_DOCUMENTS])
def test_the_unit_of_the_bootstrap_is_the_document_where_there_are_enough(count: int) -> None:
    random = np.random.default_rng(0)
    windows = [
        (d, float(random.gamma(4.0)), int(random.integers(1, 9)), 10, 0)
        for d in range(count)
        for _ in range(3)
    ]
    loss = measured(windows)
    by_document = np.array([[loss.nats[d], loss.tokens[d]] for d in range(count)])
    by_window = np.array(sorted(loss.windows), np.float64)
    units = by_document if count >= MIN_DOCUMENTS else by_window
    assert loss.intervals(resamples=300, seed=5)["loss"] == ratio_interval(
        units[:, 0], units[:, 1], resamples=300, seed=5
    )


def test_nothing_measured_has_no_figures_and_no_crash() -> None:
    loss = TextLoss()
    assert all(math.isnan(value) for value in loss.figures().values())
    assert all(math.isnan(bound) for bounds in loss.intervals(resamples=10).values() for bound in bounds)
    loss.add(document=0, nats=5000.0, tokens=1)
    assert loss.figures()["perplexity"] == math.inf
    assert math.isnan(loss.figures()["bits_per_byte"])
    assert math.log(2) == LN2
