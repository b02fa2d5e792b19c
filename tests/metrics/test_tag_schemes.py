"""Schemes of tags: what may follow what, checked against reading the tags back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.metrics.entities import spans
from luban.metrics.tag_schemes import forbidden, scheme_of

TAGS = {
    "IOB2": ["O", "B-A", "I-A", "B-B", "I-B"],
    "BIOES": ["O", "B-A", "I-A", "E-A", "S-A", "B-B", "E-B"],
    "BMES": ["O", "B-A", "M-A", "E-A", "S-A", "B-B", "E-B"],
}


@pytest.mark.parametrize("scheme", list(TAGS))
def test_a_sentence_is_allowed_just_where_all_its_entities_are_well_formed(scheme: str) -> None:
    tags = TAGS[scheme]
    assert scheme_of(tags) == scheme
    between, first, last = forbidden(tags, scheme)
    for length in (1, 2, 3):
        for numbers in itertools.product(range(len(tags)), repeat=length):
            said = [tags[n] for n in numbers]
            allowed = not (
                first[numbers[0]]
                or last[numbers[-1]]
                or any(between[a, b] for a, b in itertools.pairwise(numbers))
            )
            assert allowed == (spans(said, scheme) == spans(said, scheme, strict=True)), said


@pytest.mark.parametrize("scheme", list(TAGS))
def test_what_stands_between_part_and_type_is_read_alike_by_all(scheme: str) -> None:
    tags = [tag.replace("-", "_") for tag in TAGS[scheme]]
    assert scheme_of(tags) == scheme
    for found, expected in zip(forbidden(tags, scheme), forbidden(TAGS[scheme], scheme), strict=True):
        assert (found == expected).all()
    assert spans(tags, scheme) == spans(TAGS[scheme], scheme)


@given(st.lists(st.from_regex(r"[OBIMESLUX]?[-_]?A?", fullmatch=True), min_size=1, max_size=5))
def test_a_scheme_is_found_just_where_all_its_tags_can_be_read(tags: list[str]) -> None:
    scheme = scheme_of(tags)
    if scheme == "none":
        assert not any(matrix.any() for matrix in forbidden(tags, scheme))
    else:
        spans(tags, scheme)


@pytest.mark.parametrize("stray", ["X", "NN", "O-A", "L-A", "S", "", "-A"])
def test_tags_beside_one_of_no_scheme_are_classes_of_tokens(stray: str) -> None:
    assert scheme_of(["O", "B-A", "I-A"]) == "IOB2"
    assert scheme_of(["O", "B-A", "I-A", stray]) == "none"


def test_classes_of_words_forbid_nothing() -> None:
    assert not any(matrix.any() for matrix in forbidden(["NN", "VB", "DT"], "none"))
