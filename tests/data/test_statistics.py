"""The bins of a column of numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from luban.data.statistics import quantile_bins


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 3).map(float), max_size=60),
    st.integers(1, 20),
)
def test_edges_rise_span_the_values_and_are_no_more_than_asked(values: list[float], count: int) -> None:
    edges = quantile_bins(values, count)
    assert edges.dtype == np.float32
    assert len(edges) <= count + 1
    assert (np.diff(edges.astype(np.float64)) >= np.finfo(np.float32).tiny).all()
    with np.errstate(over="ignore"):
        finite = np.array(values, np.float64).astype(np.float32)
    finite = finite[np.isfinite(finite)]
    assert len(edges) > 0 or not len(finite)
    if len(finite):
        assert edges[0] == finite.min()
        assert edges[-1] >= finite.max() - np.finfo(np.float32).tiny


def test_bins_hold_equally_many_values() -> None:
    values = np.random.default_rng(0).lognormal(size=1000)
    counts, _ = np.histogram(values.astype(np.float32), quantile_bins(values, 25))
    assert len(counts) == 25
    assert (np.abs(counts - 40) <= 1).all()


def test_few_distinct_values_are_the_edges_however_rare() -> None:
    values = [0.0] * 990 + [1.0, 2.0, 3.0, 5.0, 8.0]
    assert quantile_bins(values, 5).tolist() == [0.0, 1.0, 2.0, 3.0, 5.0, 8.0]


def test_a_value_of_many_rows_is_an_edge_and_leaves_the_bins_to_the_others() -> None:
    others = np.arange(1, 101)
    values = np.concatenate([np.zeros(900), others])
    plain = np.unique(np.quantile(values, np.linspace(0, 1, 11)))
    edges = quantile_bins(values, 10)
    assert len(plain) == 3 and len(edges) == 11
    assert edges.tolist() == [0.0, *np.quantile(others, np.linspace(0, 1, 10)).astype(np.float32).tolist()]


def test_values_of_many_rows_come_to_light_one_after_the_other() -> None:
    """Only without the first is the second too large for a bin."""
    values = [0.0] * 800 + [50.0] * 60 + list(range(1, 41))
    edges = quantile_bins(values, 10)
    assert {0.0, 50.0} <= set(edges.tolist())
    counts, _ = np.histogram(values, edges)
    assert len(edges) == 11
    assert np.sort(counts)[:-2].max() <= 8
