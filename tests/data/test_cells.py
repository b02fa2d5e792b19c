"""What a cell is read as: the same text the same way each time, whatever it stands beside."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luban.data.cells import read_cell


@given(st.one_of(st.text(max_size=100), st.floats(), st.integers(), st.booleans(), st.none()))
def test_a_cell_that_is_missing_is_neither_number_nor_date(value: object) -> None:
    cell = read_cell(value)
    assert read_cell(value)[1:] == cell[1:]
    assert not cell.missing or (cell.number is None and cell.date is None)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_number_is_the_same_as_text_and_as_number(number: float) -> None:
    assert read_cell(repr(number)).number == read_cell(number).number == number


def test_one_and_true_are_not_one_text() -> None:
    assert [read_cell(value).name for value in (1, 1.0, True, "1", "true")] == ["1", "1", "true", "1", "true"]


def test_what_python_reads_as_a_number_and_a_table_does_not() -> None:
    assert [read_cell(value).number for value in ("12_345", "1e400", "inf", "nan", "3,5", "1,23")] == [
        None
    ] * 6
    assert read_cell("3,5").decimal_comma and not read_cell("1,234.5").decimal_comma
