"""The rows of a step: every row once an epoch, the same for every call, of like cost together."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.row_order import RowOrder


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 300),
    batch=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    costs=st.booleans(),
    limit=st.one_of(st.none(), st.integers(5, 400)),
)
def test_every_epoch_has_every_row_once(
    count: int, batch: int, seed: int, costs: bool, limit: int | None
) -> None:
    lengths = np.random.default_rng(seed).integers(1, 60, count) if costs or limit else None
    order = RowOrder(count, batch, seed=seed, costs=lengths, batch_cost=limit)
    step = 0
    for epoch in range(3):
        seen: list[int] = []
        places: list[int] = []
        while len(seen) < count:
            seen += order.rows(step).tolist()
            places += order.positions(step).tolist()
            step += 1
        assert sorted(seen) == list(range(count))
        assert places == list(range(epoch * count, (epoch + 1) * count))
        assert order.epoch(step) == epoch + 1 and order.steps(epoch + 1) == step


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 200), batch=st.integers(1, 30), seed=st.integers(0, 1000))
def test_a_step_does_not_depend_on_what_was_asked_before(count: int, batch: int, seed: int) -> None:
    lengths = np.arange(count) % 7 + 1
    asked = RowOrder(count, batch, seed=seed, costs=lengths, batch_cost=3 * batch + 7)
    for step in (9, 2, 17, 0):
        fresh = RowOrder(count, batch, seed=seed, costs=lengths, batch_cost=3 * batch + 7)
        assert np.array_equal(asked.rows(step), fresh.rows(step))


def test_batches_of_a_cost_stay_below_it_and_hold_rows_of_like_cost() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    order = RowOrder(2000, None, seed=0, costs=lengths, batch_cost=1000)
    padded = real = 0
    for step in range(order.steps(1)):
        rows = lengths[order.rows(step)]
        assert rows.max() * len(rows) <= 1000 or len(rows) == 1
        padded, real = padded + rows.max() * len(rows), real + rows.sum()
    assert real / padded > 0.9


def test_batches_of_a_cost_have_no_more_rows_than_asked_for() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    order = RowOrder(2000, 16, seed=0, costs=lengths, batch_cost=1000)
    sizes = [len(order.rows(step)) for step in range(order.steps(1))]
    assert max(sizes) == 16 and sum(sizes) == 2000
    assert all(lengths[order.rows(step)].max() * sizes[step] <= 1000 for step in range(len(sizes)))


def test_weights_draw_rare_rows_as_often_as_their_weight_says() -> None:
    weights = np.where(np.arange(1000) < 100, 9.0, 1.0)
    order = RowOrder(1000, 50, seed=3, weights=weights)
    drawn = np.concatenate([order.rows(step) for step in range(order.steps(20))])
    assert abs((drawn < 100).mean() - 0.5) < 0.02
