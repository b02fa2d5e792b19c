"""Entities, against seqeval: by default as conlleval, and strict."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES
from seqeval.scheme import Entities as StrictEntities

from luban.errors import DataError, InputError
from luban.metrics.entities import Entities, spans
from luban.metrics.tag_schemes import Scheme

LETTERS = {"IOB2": "BI", "BIOES": "BIES", "BMES": "BMES"}
STRICT = {"IOB2": IOB2, "BIOES": IOBES, "BMES": IOBES}
SCHEMES = pytest.mark.parametrize("scheme", list(LETTERS))


def tags_of(scheme: str) -> st.SearchStrategy[str]:
    typed = st.tuples(st.sampled_from(LETTERS[scheme]), st.sampled_from(["", "-PER", "-LOC", "-A-B"])).map(
        "".join
    )
    return st.just("O") | typed


def sentences(scheme: str) -> st.SearchStrategy[list[tuple[list[str], list[str]]]]:
    tag = tags_of(scheme)
    pairs = st.lists(st.tuples(tag, tag), max_size=9).map(
        lambda two: ([a for a, _ in two], [b for _, b in two])
    )
    return st.lists(pairs, min_size=1, max_size=5)


def known(tags: Sequence[str]) -> list[str]:
    """As seqeval writes it: M is I."""
    return ["I" + tag[1:] if tag[0] == "M" else tag for tag in tags]


@SCHEMES
@settings(max_examples=150)
@given(data=st.data())
def test_spans_are_those_of_seqeval(scheme: Scheme, data: st.DataObject) -> None:
    tags = data.draw(st.lists(tags_of(scheme), max_size=12))
    expected = [(kind, start, end + 1) for kind, start, end in get_entities(known(tags))]
    assert spans(tags, scheme) == expected
    (strict,) = StrictEntities([known(tags)], STRICT[scheme]).entities
    assert spans(tags, scheme, strict=True) == [(one.tag, one.start, one.end) for one in strict]


@SCHEMES
@settings(max_examples=100)
@given(data=st.data())
def test_figures_are_those_of_seqeval(scheme: Scheme, data: st.DataObject) -> None:
    pairs = data.draw(sentences(scheme))
    predicted, targets = ([known(pair[side]) for pair in pairs] for side in (0, 1))
    found = Entities(scheme)
    found.add([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    figures = found.figures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types without entities
        assert figures["entity_precision"] == pytest.approx(
            seqeval.precision_score(targets, predicted), abs=1e-12
        )
        assert figures["entity_recall"] == pytest.approx(seqeval.recall_score(targets, predicted), abs=1e-12)
        assert figures["entity_f1"] == pytest.approx(seqeval.f1_score(targets, predicted), abs=1e-12)
        strict = seqeval.f1_score(targets, predicted, mode="strict", scheme=STRICT[scheme])
        assert figures["entity_strict_f1"] == pytest.approx(strict, abs=1e-12)
        if not found.types():
            assert figures["entity_macro_f1"] == 0
            return
        macro = seqeval.f1_score(targets, predicted, average="macro")
        assert figures["entity_macro_f1"] == pytest.approx(macro, abs=1e-12)
        assert figures["token_accuracy"] == pytest.approx(
            seqeval.accuracy_score(targets, predicted), abs=1e-12
        )
        report = seqeval.classification_report(targets, predicted, output_dict=True)
    for one in found.section()["per_type"]:
        expected = report.pop(one.pop("label"))
        assert list(one.values()) == pytest.approx(list(expected.values()), abs=1e-12)
    assert set(report) == {"micro avg", "macro avg", "weighted avg"}


@SCHEMES
@given(data=st.data())
def test_well_formed_tags_are_read_alike_in_both_ways(scheme: Scheme, data: st.DataObject) -> None:
    """Written from spans, they give the same spans."""
    gaps = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(["PER", "_"]))))
    tags: list[str] = []
    expected = []
    for gap, length, kind in gaps:
        tags += ["O"] * gap
        expected.append((kind, len(tags), len(tags) + length))
        middle = "M" if scheme == "BMES" else "I"
        letters = ["B"] + [middle] * (length - 1)
        if scheme != "IOB2":
            letters[-1] = "E" if length > 1 else "S"
        tags += [letter if kind == "_" else f"{letter}-{kind}" for letter in letters]
    assert spans(tags, scheme) == spans(tags, scheme, strict=True) == expected


def test_types_that_only_a_resample_lacks_do_not_pull_its_mean_down() -> None:
    """A rare type, always found: each resample's mean over the types it has is one."""
    found = Entities()
    for row in range(30):
        tags = [f"B-{'RARE' if row == 0 else 'PER'}", "O"]
        found.add([tags], [tags])
    assert found.intervals(200)["entity_macro_f1"] == (1.0, 1.0)


def test_sentences_without_entities_or_tokens() -> None:
    found = Entities()
    found.add([["O", "O"]], [["O", "O"]])
    assert found.figures() == dict.fromkeys(
        ("entity_precision", "entity_recall", "entity_f1", "entity_macro_f1", "entity_strict_f1"), 0.0
    ) | {"token_accuracy": 1.0}
    empty = Entities()
    assert empty.section() == {}
    empty.add([[]], [[]])
    assert "token_accuracy" not in empty.figures()
    assert empty.section() == {"per_type": []}


@pytest.mark.parametrize("tag", ["", "PER", "ORG", "E-PER", "b-PER", "BPER", "O-PER"])
def test_what_is_no_tag_is_refused_and_nothing_counted(tag: str) -> None:
    found = Entities()
    with pytest.raises(DataError, match="IOB2") as caught:
        found.add([["O"], ["O", tag]], [["O"], ["O", "O"]])
    assert "token 1" in str(caught.value)
    assert len(found) == 0


def test_what_does_not_fit_is_refused() -> None:
    found = Entities()
    with pytest.raises(InputError, match="one tag"):
        found.add([["O"]], [["O", "O"]])
    with pytest.raises(InputError, match="its tags"):
        found.add([["O"]], [])
    with pytest.raises(InputError, match="IOB2, BIOES"):
        Entities("IOB1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="IOB2, BIOES"):
        spans(["O"], "IOB1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="same scheme"):
        found.merge(Entities("BMES"))


def test_the_interval_is_that_of_drawing_sentences() -> None:
    random = np.random.default_rng(0)
    rows = []
    for _ in range(50):
        targets = [str(tag) for tag in random.choice(["O", "B-PER", "B-LOC"], 8)]
        rows.append(([tag if random.random() < 0.8 else "O" for tag in targets], targets))
    found = Entities()
    found.add(*zip(*rows, strict=True))
    plain = []
    for _ in range(400):
        drawn = [rows[n] for n in random.integers(0, 50, 50)]
        again = Entities()
        again.add(*zip(*drawn, strict=True))
        plain.append(again.figures()["entity_f1"])
    expected = np.quantile(plain, [0.025, 0.975])
    assert found.intervals(2000)["entity_f1"] == pytest.approx(expected, abs=0.15 * np.ptp(expected))


def test_what_sentences_add_makes_the_figures_of_all() -> None:
    found = Entities()
    found.add(
        [["B-PER", "I-PER", "O"], ["O", "B-LOC"], ["O"]],
        [["B-PER", "I-PER", "O"], ["B-PER", "B-LOC"], ["B-LOC"]],
    )
    parts, figures = found.by_sentence(), found.figures()
    for name in ("entity_f1", "token_accuracy"):
        assert parts[name].sum() / parts[f"{name}/of"].sum() == pytest.approx(figures[name])
