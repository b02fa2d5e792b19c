"""Schemes of tags: what may follow what, checked against reading the tags back."""

from __future__ import annotations

import itertools

import pytest

from luban.data.tag_schemes import forbidden, scheme_of
from luban.metrics.entities import spans

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


def test_classes_of_words_forbid_nothing() -> None:
    assert not any(matrix.any() for matrix in forbidden(["NN", "VB", "DT"], "none"))
