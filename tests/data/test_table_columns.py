"""What columns are found to be, which are left out, and which give the target away."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from luban.data.table_columns import TableColumns, leaks, learn_columns, origin_of


def _rows(count: int = 300) -> list[dict[str, Any]]:
    draws = random.Random(0)
    return [
        {
            "age": str(draws.randint(18, 80)) if draws.random() < 0.9 else "?",
            "city": draws.choice(["Paris", "Rome", "北京", ""]),
            "since": f"20{draws.randint(10, 24)}-0{draws.randint(1, 9)}-1{draws.randint(0, 9)}",
            "country": "FR",
            "id": f"user{number}",
            "code": draws.choice([1, 2, 3]),
            "empty": None,
        }
        for number in range(count)
    ]


def test_columns_are_told_apart_and_what_says_nothing_is_left_out_with_a_note() -> None:
    rows = _rows()
    columns = learn_columns(rows, list(rows[0]), ["code"])
    assert list(columns.numbers) == ["age"] and list(columns.dates) == ["since"]
    assert set(columns.categories["city"]) == {"Paris", "Rome", "北京"}
    assert set(columns.categories["code"]) == {"1", "2", "3"}
    told = {note["kind"]: note["detail"] for note in columns.notes if not note["detail"].startswith("empty")}
    assert told["constant"].startswith("country is 'FR'") and told["identifier"].startswith("id differs")
    assert TableColumns.from_json(columns.as_json()).number_names[:2] == ["age", "since.days"]


def test_numbers_of_a_row_are_nan_where_missing_and_dates_become_parts() -> None:
    columns = TableColumns(["age"], ["since"], {})
    assert columns.number_row({"age": "41", "since": "1970-01-02 12:30"}) == [
        41.0,
        1.5208333333333333,
        1970,
        1,
        4,
        12.5,
    ]
    assert all(map(math.isnan, columns.number_row({"age": "n/a", "since": "soon"})))


def test_what_is_taken_off_keeps_seconds_apart_that_float32_would_not() -> None:
    seconds = 1.7e9 + np.arange(0, 3600, 7.0)
    assert len(np.unique(seconds.astype(np.float32))) < 40
    shifted = (seconds - origin_of(seconds)).astype(np.float32)
    assert np.array_equal(np.diff(shifted), np.full(len(seconds) - 1, 7.0, np.float32))
    assert origin_of(np.array([math.nan])) == 0.0 and origin_of(np.arange(1000.0)) == 0.0


@pytest.mark.parametrize("classes", [True, False])
def test_a_column_that_gives_the_target_away_is_named(classes: bool) -> None:
    rows, draws = _rows(), random.Random(1)
    target = np.array([draws.randint(0, 1) if classes else draws.gauss(0, 1) for _ in rows], np.float64)
    for row, value in zip(rows, target, strict=True):
        row["outcome_code"] = 3.5 * float(value) + 1 if not classes else 10 + value
        row["paid"] = ("yes" if value else "no") if classes else draws.choice(["yes", "no"])
    columns = learn_columns(rows, [*rows[0]], ["code"])
    named = {note["detail"].split()[0] for note in leaks(columns, rows, target, classes=classes)}
    assert named == ({"outcome_code", "paid"} if classes else {"outcome_code"})


@pytest.mark.parametrize("positives", [0, 1, 5, 100])
def test_a_category_is_no_leak_where_the_commonest_class_is_nearly_as_good_a_guess(positives: int) -> None:
    """Of 10,000 rows: all of one class, or few of another, and a column that has nothing to do with it."""
    draws = random.Random(0)
    rows = [
        {"colour": draws.choice(["red", "blue"]), "paid": "yes" if n < positives else "no"}
        for n in range(10_000)
    ]
    target = np.array([n < positives for n in range(10_000)], np.float64)
    columns = TableColumns([], [], {"colour": ["blue", "red"], "paid": ["no", "yes"]})
    named = {note["detail"].split()[0] for note in leaks(columns, rows, target, classes=True)}
    assert named == ({"paid"} if positives else set())


def test_a_value_that_does_not_fit_its_column_is_noted() -> None:
    """Two in a hundred are taken for missing, and no one should have to find out."""
    rows = [{"size": str(n), "since": f"2024-01-{n % 28 + 1:02d}"} for n in range(100)]
    rows[7]["size"], rows[9]["since"], rows[11]["size"] = "twelve", "spring", "?"
    found = learn_columns(rows, ["size", "since"])
    assert (found.numbers, found.dates) == (["size"], ["since"])
    assert [note["detail"] for note in found.notes] == [
        "size is a column of numbers, and 1 of its values are none, such as 'twelve': taken for missing",
        "since is a column of dates, and 1 of its values are none, such as 'spring': taken for missing",
    ]
