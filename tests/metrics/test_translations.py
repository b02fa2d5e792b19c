"""BLEU and chrF side by side are those of sacrebleu, each under its own signature."""

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.metrics.translations import Translations

sentences = st.lists(
    st.sampled_from(["a", "cat", "sat", "there", "now,", "is 3.5"]), min_size=1, max_size=9
).map(" ".join)
pairs = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=6)


@settings(max_examples=40)
@given(pairs)
def test_figures_are_those_of_sacrebleu(rows: list[tuple[str, str]]) -> None:
    said, right = [a for a, _ in rows], [b for _, b in rows]
    found = Translations("13a")
    found.add(said, right)
    figures = found.figures()
    assert figures["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [right]).score, abs=1e-9)
    assert figures["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [right]).score, abs=1e-9)
    assert set(found.intervals(20)) == set(figures)


@settings(max_examples=40)
@given(pairs, pairs)
def test_shards_merge_to_the_whole(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> None:
    whole, parts = Translations("none"), [Translations("none"), Translations("none")]
    for shard, rows in ((whole, one + other), (parts[0], one), (parts[1], other)):
        shard.add([a for a, _ in rows], [b for _, b in rows])
    parts[0].merge(parts[1])
    assert len(parts[0]) == len(whole)
    assert parts[0].figures() == pytest.approx(whole.figures())


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char", "none"])
def test_the_signature_says_how_words_were_told_apart(tokenize: str) -> None:
    signatures = Translations(tokenize).signatures()  # type: ignore[arg-type]
    assert f"tok:{tokenize}" in signatures["bleu"]
    assert signatures["chrf"].startswith("nrefs:1|case:mixed")
