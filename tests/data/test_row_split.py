"""Who is held out, known by digests alone; with rows and files: test_row_preparation.py."""

import hypothesis.strategies as st
from hypothesis import example, given, settings

from luban.data.row_split import RowSplit
from luban.row_recipe import RowData


@settings(max_examples=200)
@given(
    copies=st.lists(st.integers(1, 20), min_size=3, max_size=6),
    seed=st.integers(0, 999),
    share=st.sampled_from([0.01, 0.3, 0.49]),
)
@example(copies=[20, 1, 1], seed=3, share=0.3)  # the largest side has no row but the repeated one
def test_three_different_rows_are_enough_however_often_one_of_them_is_repeated(
    copies: list[int], seed: int, share: float
) -> None:
    digests = [bytes([row]) for row, count in enumerate(copies) for _ in range(count)]
    data = RowData(train="rows.csv", seed=seed, validation_fraction=share, test_fraction=share)
    sides = RowSplit(data, digests, [0] * len(digests)).sides()
    assert set(sides) == {0, 1, 2}
    assert len(set(zip(digests, sides, strict=True))) == len(copies)
