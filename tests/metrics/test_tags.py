"""Figures of tags are scikit-learn's, in any number of shards."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from luban.errors import DataError, InputError
from luban.metrics.tags import Tags

pairs_of_tags = st.lists(st.tuples(st.sampled_from("NVD"), st.sampled_from("NVD")), min_size=1, max_size=6)
texts = st.lists(pairs_of_tags, min_size=1, max_size=8)


def split(sentences: list[list[tuple[str, str]]]) -> tuple[list[list[str]], list[list[str]]]:
    return [[a for a, _ in one] for one in sentences], [[b for _, b in one] for one in sentences]


@given(texts)
def test_accuracy_is_that_of_scikit_learn(sentences: list[list[tuple[str, str]]]) -> None:
    said, right = split(sentences)
    found = Tags("DNV")
    found.add(said, right)
    figures = found.figures()
    assert len(found) == len(sentences)
    assert figures["token_accuracy"] == pytest.approx(accuracy_score(list(chain(*right)), list(chain(*said))))
    labels = list("DNV")
    occurring = sorted({*chain(*right), *chain(*said)})
    each = precision_recall_fscore_support(
        list(chain(*right)), list(chain(*said)), labels=labels, zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1"), each[:3], strict=True):
        told = [entry[name] for entry in found.section()["per_class"]]
        assert told == pytest.approx(list(values))
        assert figures[f"macro_{name}"] == pytest.approx(sum(values) / len(occurring))
    assert [entry["support"] for entry in found.section()["per_class"]] == list(each[3])
    cells = confusion_matrix(list(chain(*right)), list(chain(*said)), labels=labels)
    assert found.section()["confusion"] == cells.tolist()
    assert figures["sentence_accuracy"] == pytest.approx(
        np.mean([a == b for a, b in zip(said, right, strict=True)])
    )


@given(texts, texts)
def test_shards_merge_to_the_whole(
    one: list[list[tuple[str, str]]], other: list[list[tuple[str, str]]]
) -> None:
    whole, parts = Tags("DNV"), [Tags("DNV"), Tags("DNV")]
    whole.add(*split(one + other))
    for part, sentences in zip(parts, (one, other), strict=True):
        part.add(*split(sentences))
    parts[0].merge(parts[1])
    assert parts[0].figures() == whole.figures()
    assert parts[0].intervals(50) == whole.intervals(50)


def test_the_interval_is_as_wide_as_sentences_and_not_tokens_make_it() -> None:
    """Forty sentences of 25 tokens, each all right or all wrong, tell as much as forty tokens."""
    right, wrong = ["N"] * 25, ["V"] * 25
    found = Tags("DNV")
    found.add([right, wrong] * 20, [right] * 40)
    low, high = found.intervals(2000)["token_accuracy"]
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 40), rel=0.15)


def test_a_sentence_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(InputError, match="as many tags as tokens"):
        Tags("DNV").add([["N"]], [["N", "V"]])


def test_what_is_no_tag_is_refused_and_nothing_is_counted() -> None:
    found = Tags(["N", "V"])
    with pytest.raises(DataError, match="not one of the tags"):
        found.add([["N"], ["X"]], [["N"], ["V"]])
    assert not len(found)
    with pytest.raises(InputError, match="same tags"):
        found.merge(Tags(["N"]))
