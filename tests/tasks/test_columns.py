"""Which column is meant: the one named, else a usual name, else the one there is; else an error that helps."""

from __future__ import annotations

import pytest

from luban.errors import DataError
from luban.tasks.columns import column_of, labelled

KNOWN = ("text", "review", "sentence")


@pytest.mark.parametrize(
    ("columns", "asked", "found"),
    [
        (["a", "b"], "b", "b"),
        (["text", "b"], "b", "b"),  # what is named is meant, whatever else is there
        (["sentence", "text"], None, "text"),  # the likeliest name, not the first column
        (["id", "REVIEW"], None, "REVIEW"),
        (["Text", "text"], None, "Text"),
        (["anything"], None, "anything"),
    ],
)
def test_the_column_that_is_meant(columns: list[str], asked: str | None, found: str) -> None:
    assert column_of(columns, asked, KNOWN, "data.text") == found


def test_a_column_that_need_not_be_there() -> None:
    assert column_of(["a"], None, KNOWN, "data.text", required=False) is None
    assert column_of(["a", "Review"], None, KNOWN, "data.text", required=False) == "Review"


def test_a_column_that_is_not_there_is_named_with_the_nearest_and_all_there_are() -> None:
    with pytest.raises(DataError) as caught:
        column_of(["id", "comment", "stars"], "coment", KNOWN, "data.text", required=False)
    assert str(caught.value).splitlines() == [
        "the rows have no such column",
        "  where:    data.text",
        "  received: 'coment'",
        "  fix:      did you mean data.text=comment? there are: id, comment, stars",
    ]


def test_names_differ_by_case_where_they_are_given() -> None:
    with pytest.raises(DataError, match=r"did you mean data\.text=Text"):
        column_of(["Text", "b"], "text", KNOWN, "data.text")


@pytest.mark.parametrize("columns", [["a", "b"], []])
def test_what_cannot_be_told_is_asked_for(columns: list[str]) -> None:
    with pytest.raises(DataError, match=r"it cannot be told which column data\.text is") as caught:
        column_of(columns, None, KNOWN, "data.text")
    assert "name it: data.text=COLUMN" in str(caught.value)


def test_a_label_is_added_where_there_is_one() -> None:
    row = {"text": "a"}
    assert labelled(row, None) == {"text": "a"}
    assert labelled(row, 0) == {"text": "a", "label": 0}  # the label zero is one
    assert labelled(row, []) == {"text": "a", "label": []}
    assert row == {"text": "a"}
