"""chrF and chrF++, against sacreBLEU."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from luban.errors import InputError
from luban.metrics.bleu import DEFINITION
from luban.metrics.chrf import ChrF, sentence_chrf

TEXTS = st.lists(
    st.sampled_from(
        [
            "the ",
            "cat",
            " sat",
            "!",
            "?!",
            '"',
            " ",
            "'tis",
            "-",
            "春眠",
            "不觉晓",
            "。",
            "\u3000",
            "a",
            "b",
            "é",
        ]
    )
    | st.characters(codec="utf-8"),
    max_size=14,
).map("".join)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)


def score(hypotheses: Sequence[str], references: Sequence[str], word_order: int) -> float:
    return float(CHRF(word_order=word_order).corpus_score(list(hypotheses), [list(references)]).score)


@settings(max_examples=200)
@given(PAIRS, st.integers(0, 3))
def test_chrf_is_that_of_sacrebleu(pairs: list[tuple[str, str]], word_order: int) -> None:
    hypotheses, references = zip(*pairs, strict=True)
    found = ChrF(word_order)
    found.add(hypotheses, references)
    name = "chrf" + "+" * word_order
    assert found.figures() == {name: pytest.approx(score(hypotheses, references, word_order), abs=1e-9)}
    alone = [CHRF(word_order=word_order).sentence_score(one, [other]).score for one, other in pairs]
    assert sentence_chrf(hypotheses, references, word_order) == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("word_order", [0, 2])
def test_real_sentences(word_order: int) -> None:
    hypotheses = ["The cat sat on a mat, didn't it?", "猫坐在垫子上。", "(see page 7)", "", "x"]
    references = ["A cat sat on the mat; did it not?", "一只猫坐在垫子上面。", "[see page 8]", "gone", ""]
    found = ChrF(word_order)
    found.add(hypotheses, references)
    (value,) = found.figures().values()
    assert value == pytest.approx(score(hypotheses, references, word_order), abs=1e-9)
    assert 30 < value < 70


@pytest.mark.parametrize("word_order", [0, 2])
def test_the_signature_is_sacrebleus_own(word_order: int) -> None:
    metric = CHRF(word_order=word_order)
    metric.corpus_score(["a"], [["a"]])
    expected = metric.get_signature()
    expected.info["version"] = DEFINITION
    assert ChrF(word_order).signature() == str(expected)


def test_what_does_not_pair_is_refused() -> None:
    with pytest.raises(InputError, match="its reference"):
        ChrF().add(["a"], [])
    with pytest.raises(InputError, match="word_order"):
        ChrF(5)
    with pytest.raises(InputError, match="same order"):
        ChrF(0).merge(ChrF(2))
    assert sentence_chrf([], []).shape == (0,)
    empty = ChrF()
    empty.add([], [])
    assert empty.figures() == {}
