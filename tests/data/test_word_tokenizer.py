"""Words as tokens: cut as BERT cuts them, numbered by how often they come, nothing learned but from the texts given."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.bert.tokenization_bert_legacy import BasicTokenizer

from luban.data.word_tokenizer import train_word_tokenizer
from luban.errors import InputError

TEXTS = ["Not good, not bad.", "the film is good!", "这家店不好, really", "ﬁne Café; don't"]


def words(texts: list[str]) -> list[list[str]]:
    cut = BasicTokenizer(do_lower_case=True, strip_accents=False)
    return [cut.tokenize(text) for text in texts]


@settings(max_examples=60)
@given(st.lists(st.text("aB é,.!x好坏1\n\t-", min_size=1, max_size=20), min_size=1, max_size=5))
def test_words_are_cut_as_bert_cuts_them(texts: list[str]) -> None:
    tokenizer = train_word_tokenizer(iter(texts), vocab_size=10_000)
    for text, expected in zip(texts, words(texts), strict=True):
        assert [tokenizer.token(number) for number in tokenizer.encode(text)] == expected
        assert tokenizer.pieces(text) == expected


def test_the_most_frequent_words_are_kept_and_the_rest_is_one_unknown_token() -> None:
    counts = Counter(word for text in words(TEXTS) for word in text)
    kept = {word for word, count in counts.items() if count > 1}
    tokenizer = train_word_tokenizer(iter(TEXTS), vocab_size=2 + len(kept))
    assert tokenizer.vocab_size == 2 + len(kept)
    assert {tokenizer.token(number) for number in range(2, tokenizer.vocab_size)} == kept
    assert tokenizer.encode("bad film") == [tokenizer.encode("never-seen")[0]] * 2


def test_rare_words_are_left_out() -> None:
    tokenizer = train_word_tokenizer(iter(["a a b b b c"]), vocab_size=100, min_count=2)
    assert tokenizer.vocab_size == 4
    assert [tokenizer.token(n) for n in tokenizer.encode("b a c")] == ["b", "a", "<|unknown|>"]


def test_the_vocabulary_does_not_depend_on_the_order_of_texts_of_which_no_two_words_come_alike() -> None:
    texts = [("word " * 3).strip(), ("other " * 2).strip(), "third"]
    forward, backward = (train_word_tokenizer(iter(some), vocab_size=9) for some in (texts, texts[::-1]))
    assert forward.encode("third other word") == backward.encode("third other word") == [4, 3, 2]


def test_nothing_to_learn_from_is_an_error_that_says_where() -> None:
    with pytest.raises(InputError, match="no text") as none:
        train_word_tokenizer(iter([]), vocab_size=10)
    assert none.value.where == "data.train"
    with pytest.raises(InputError, match="too small") as small:
        train_word_tokenizer(iter(["a"]), vocab_size=2)
    assert small.value.fix == "write 3 or more"
