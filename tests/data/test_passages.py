"""Passages: nothing is lost, sizes are bounded, and text added in one place moves no passage elsewhere."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.passages import LEAST_CHARACTERS, MOST_CHARACTERS, Passages


def cut(text, least=LEAST_CHARACTERS, most=MOST_CHARACTERS):
    passages = Passages(least, most)
    found = []
    for number, line in enumerate(text.splitlines(keepends=True) if "\r" not in text else [text], 1):
        found += passages.feed(number, line)
    return [text for _, text in found + list(passages.finish())]


lines = st.lists(st.text("ab 。\n", max_size=60), max_size=60).map("\n".join)


@given(lines, st.integers(1, 30), st.integers(2, 80))
@settings(max_examples=150, deadline=None)
def test_passages_put_together_are_the_text_and_none_is_too_long(text, least, more):
    found = cut(text, least, least + more)
    assert "".join(found) == text
    assert all(0 < len(passage) <= least + more for passage in found)


def shared_after(whole, changed):
    before, after = set(cut(whole)), cut(changed)
    return sum(len(p) for p in after if p in before) / len(changed)


@pytest.mark.parametrize(
    "name", ["tinyshakespeare/input", "classics-zh/hongloumeng", "wikitext2-raw-valid-test/wiki.valid.raw"]
)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7])
def test_added_text_moves_no_passage_far_away(shared_data, name, place):
    path = next(p for p in (shared_data / f"{name}.txt.gz", shared_data / f"{name}.gz") if p.exists())
    text = gzip.decompress(path.read_bytes()).decode()[:400_000]
    at = text.index("\n", int(place * len(text))) + 1
    changed = text[:at] + "A paragraph that was not there.\n\n" * 40 + text[at:]
    assert shared_after(text, changed) > 0.93
    sizes = [len(p) for p in cut(text)]
    assert 1000 < sum(sizes) / len(sizes) < 6000


def test_a_text_without_blank_lines_is_cut_at_lines_and_without_lines_at_sentences():
    by_line = cut("".join(f"line number {i} of many\n" for i in range(3000)))
    assert all(p.endswith("\n") for p in by_line)
    by_sentence = cut("句子有长有短。" * 5000)
    assert all(p.endswith("。") for p in by_sentence)
    assert len(by_sentence) > 3
