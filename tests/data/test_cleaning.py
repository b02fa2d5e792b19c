"""Cleaning: each step does what it says, is counted with an example, and the number of processes changes
nothing."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.cleaning import clean_batch, repetition, steps_of
from luban.data.workers import clean_in_order
from luban.errors import LubanError
from luban.text_recipe import CleanRecipe

NOTHING = {
    "unicode": "none",
    "control_characters": False,
    "min_characters": 0,
    "exact_duplicates": False,
    "near_duplicates": None,
}


def only(**steps):
    return CleanRecipe(**{**NOTHING, **steps})


CASES = {
    "unicode": (only(unicode="NFC"), "cafe\u0301 plain", "caf\u00e9 plain"),
    "control_characters": (
        only(control_characters=True),
        "a\x00b\x1b[0m\ufeff\u202ec\u2028d\te\n👩\u200d👧\x85f\x0bg",
        "ab[0mc\nd\te\n👩\u200d👧\nf\ng",
    ),
    "mask_personal.email": (only(mask_personal=True), "to a.b@example.org now", "to <EMAIL> now"),
    "min_characters": (only(min_characters=5), "  abc  ", None),
    "max_characters": (only(max_characters=5), "abcdef", None),
    "max_repetition": (only(max_repetition=0.5), "买一送一，快来抢购。" * 30, None),
    "max_symbols": (only(max_symbols=0.3), "$$$ ### === || text ~~~", None),
    "language": (only(language="zh"), "Mostly English，中文", None),
}


@pytest.mark.parametrize("step", CASES)
def test_a_step_does_its_work_and_is_counted_with_an_example(step):
    recipe, before, after = CASES[step]
    innocent = "An ordinary 句子句子句子句子，写得很正常，没有什么问题。" if step == "language" else "Fine."
    batch = clean_batch(recipe, [innocent, before])
    assert batch.texts == [innocent, after]
    assert list(batch.steps) == [step]
    assert batch.steps[step].count == 1
    assert batch.steps[step].effect == ("removed" if after is None else "changed")
    assert step in steps_of(recipe)
    ((position, shown, _),) = batch.steps[step].examples
    assert position == 1
    if step.startswith("mask"):
        assert "a.b@example" not in shown


@pytest.mark.parametrize("step", CASES)
def test_a_step_switched_off_does_nothing(step):
    batch = clean_batch(only(), [CASES[step][1]])
    assert batch.texts == [CASES[step][1]]
    assert batch.steps == {}


def test_examples_show_where_the_texts_differ():
    before = "x" * 5000 + "e\u0301" + "y" * 5000
    ((_, shown, after),) = clean_batch(only(unicode="NFC"), [before]).steps["unicode"].examples
    assert "e\u0301" in shown
    assert "\u00e9" in after
    assert len(shown) < 300


def test_ordinary_text_is_neither_repetitive_nor_symbolic(shared_data):
    import gzip

    for name in ("tinyshakespeare/input", "classics-zh/hongloumeng"):
        text = gzip.decompress((shared_data / f"{name}.txt.gz").read_bytes()).decode()[:100_000]
        pieces = [text[i : i + 2000] for i in range(0, len(text), 2000)]
        assert max(map(repetition, pieces)) < 0.4
        batch = clean_batch(only(max_repetition=0.5, max_symbols=0.1), pieces)
        assert None not in batch.texts


def test_repetition_of_lines_and_of_words():
    assert repetition("the same line\n" * 20) > 0.9
    assert repetition("buy now and save money " * 20) > 0.9
    assert repetition("好好学习天天向上" * 20) > 0.9
    assert repetition("") == 0.0


@given(st.lists(st.text(max_size=80), max_size=6))
@settings(max_examples=100, deadline=None)
def test_cleaning_twice_is_cleaning_once(texts):
    texts = [t.encode("utf-8", "ignore").decode() for t in texts]
    recipe = CleanRecipe(mask_personal=True)
    once = [t for t in clean_batch(recipe, texts).texts if t is not None]
    again = clean_batch(recipe, once)
    assert again.texts == once
    assert not again.steps
    for text in once:
        assert unicodedata.is_normalized("NFC", text)
        assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in text)


def batches(count=7):
    rng = np.random.default_rng(0)
    words = ["alpha", "汉字", "e\u0301", "a@b.org", "\x07", "42"]
    for number in range(count):
        yield number, [" ".join(rng.choice(words, 30)) for _ in range(rng.integers(0, 40))]


def test_the_number_of_processes_changes_nothing():
    recipe = CleanRecipe(mask_personal=True, language="en", min_language_share=0.8)
    alone = list(clean_in_order(recipe, batches(), 1))
    together = list(clean_in_order(recipe, batches(), 2))
    assert [tag for tag, _ in together] == list(range(7))
    for (_, a), (_, b) in zip(alone, together, strict=True):
        assert a.texts == b.texts
        assert a.steps == b.steps
        for name in ("letters", "digests", "signatures"):
            assert np.array_equal(getattr(a, name), getattr(b, name))


def test_a_worker_that_dies_is_an_error(monkeypatch, tmp_path):
    import sys

    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(LubanError, match="ended before its work"):
        list(clean_in_order(None, batches(), 2))


def test_workers_end_with_the_work(monkeypatch):
    import subprocess

    started = []
    real = subprocess.Popen

    def popen(*args, **options):
        started.append(real(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    stream = clean_in_order(None, batches(), 2)
    next(stream)
    stream.close()
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)
