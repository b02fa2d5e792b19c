"""MinHash against exact Jaccard, the index against a search through all pairs, shingles against plain
Python."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data import words
from luban.data.duplicates import DuplicateIndex, digest, pack_digests, rows_per_band, signatures
from luban.data.words import analyse


def plain_words(text):
    """Words as the documentation says them, by regular expression."""
    alone = "\u3400-\u4dbf\u4e00-\u9fff\u3041-\u30ff"
    return [w.lower() for w in re.findall(rf"[{alone}]|(?:(?![{alone}])[^\W_])+", text)]


def plain_shingles(text):
    found = plain_words(text)
    return {tuple(found[i : i + 4]) for i in range(max(1, len(found) - 3))}


def jaccard(a, b):
    a, b = plain_shingles(a), plain_shingles(b)
    return len(a & b) / len(a | b)


texts = st.text("aAbc1 ,.。汉字かな\n", max_size=60)


@given(st.lists(texts, min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_shingles_are_those_of_plain_python(batch):
    by_text = {}
    for block in analyse(batch)[1]:
        for i, owner in enumerate(block.owners):
            by_text.setdefault(int(owner), []).extend(
                block.hashes[block.starts[i] : block.starts[i + 1]].tolist()
            )
    known = {}
    for position, text in enumerate(batch):
        expected = [tuple(plain_words(text)[i : i + 4]) for i in range(max(1, len(plain_words(text)) - 3))]
        if expected == [()]:
            assert len(by_text[position]) == 1
            continue
        assert len(by_text[position]) == len(expected)
        for shingle, value in zip(expected, by_text[position], strict=True):
            assert known.setdefault(shingle, value) == value
    assert len(set(known.values())) == len(known)


def test_texts_longer_than_a_block_and_scripts_are_counted(monkeypatch):
    monkeypatch.setattr(words, "BLOCK_CHARACTERS", 50)
    text = "Ab1 汉字 é я か! # \n" * 20
    counts, blocks = analyse(["x y", text, "", "z"])
    assert len(blocks) > 4
    assert counts.languages().tolist() == [[2, 0, 0], [40, 40, 60], [0, 0, 0], [1, 0, 0]]
    shown = sum(not c.isspace() for c in text)
    assert counts.symbol_share()[1] == pytest.approx(20 / shown)
    assert signatures(4, blocks).shape == (4, 128)


def test_minhash_estimates_jaccard_within_its_standard_error():
    rng = np.random.default_rng(0)
    pairs = []
    for trial in range(60):
        base = [f"w{rng.integers(10**6)}" for _ in range(rng.integers(20, 500))]
        other = list(base)
        for _ in range(trial):
            other[rng.integers(len(other))] = f"x{rng.integers(10**6)}"
        pairs.append((" ".join(base), " ".join(other)))
    flat = [text for pair in pairs for text in pair]
    found = signatures(len(flat), analyse(flat)[1])
    true = np.array([jaccard(*pair) for pair in pairs])
    estimated = (found[0::2] == found[1::2]).mean(axis=1)
    scaled = (estimated - true) / np.sqrt(np.maximum(true * (1 - true), 0.25 / 128) / 128)
    assert abs(scaled.mean()) < 0.5
    assert 0.6 < scaled.std() < 1.4


def test_a_signature_does_not_depend_on_the_batch():
    batch = [
        "short",
        "a few more words than four here",
        "长一点的中文句子。" * 40,
        "w " + " ".join(map(str, range(3000))),
        "!!!",
    ]
    together = signatures(len(batch), analyse(batch)[1])
    for i, text in enumerate(batch):
        assert (signatures(1, analyse([text])[1])[0] == together[i]).all()


def find(batch, threshold, size):
    index = DuplicateIndex(threshold)
    found, kept = {}, []

    def keep(position, matches):
        number = start + position
        if matches:
            found[number] = [(kept[m.number], m.exact) for m in matches]
        else:
            kept.append(number)
        return not matches

    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        index.add(pack_digests([digest(t) for t in part]), signatures(len(part), analyse(part)[1]), keep)
    return found


def documents(count=240):
    """Texts, each third one a copy of an earlier one with some words changed, each fifth one an exact
    copy."""
    rng = np.random.default_rng(1)
    batch = []
    for i in range(count):
        if batch and i % 3 == 0:
            changed = batch[rng.integers(len(batch))].split(" ")
            for _ in range(rng.integers(0, 8)):
                changed[rng.integers(len(changed))] = f"c{rng.integers(10**6)}"
            batch.append(" ".join(changed))
        elif batch and i % 5 == 0:
            batch.append("  " + batch[rng.integers(len(batch))] + "\n")
        else:
            batch.append(" ".join(f"w{rng.integers(10**6)}" for _ in range(120)))
    return batch


@pytest.mark.parametrize("size", [1, 300])
def test_the_index_finds_what_a_search_through_all_pairs_finds(size):
    batch, threshold = documents(), 0.8
    marks = signatures(len(batch), analyse(batch)[1])
    kept, expected = [], {}
    for i, text in enumerate(batch):
        same = [digest(text) == digest(batch[j]) for j in kept]
        near = (marks[kept] == marks[i]).mean(axis=1) >= threshold
        like = [(j, s) for j, s, n in zip(kept, same, near, strict=True) if s or n]
        if like:
            expected[i] = like
        else:
            kept.append(i)
    found = find(batch, threshold, size)
    assert len(expected) >= 70
    missed = [i for i in expected if i not in found]
    assert len(missed) <= 0.05 * len(expected)
    assert missed or found.keys() == expected.keys()
    for i in expected.keys() & found.keys():
        assert {j for j, exact in found[i] if exact} == {j for j, exact in expected[i] if exact}


def test_the_index_gives_the_same_whatever_the_batches():
    batch = documents()
    assert find(batch, 0.85, 3) == find(batch, 0.85, 64) == find(batch, 0.85, 1000)


def test_chinese_near_duplicates_are_found_and_different_poems_are_not():
    poem = (
        "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 2
        + "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
    )
    other = (
        "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。" * 2
        + "红豆生南国，春来发几枝。愿君多采撷，此物最相思。"
    )
    batch = [poem, poem.replace("，", ", ").replace("思故乡", "想故乡", 1), other]
    assert list(find(batch, 0.7, 3)) == [1]


@given(st.floats(0.3, 0.99))
def test_bands_find_nearly_all_pairs_at_the_threshold(threshold):
    rows = rows_per_band(threshold)
    assert 128 % rows == 0
    assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.95
