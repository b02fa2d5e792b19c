"""BLEU, against sacreBLEU."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_char import TokenizerChar
from sacrebleu.tokenizers.tokenizer_none import NoneTokenizer
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from luban.errors import InputError
from luban.metrics.bleu import DEFINITION, Bleu, Tokenize, tokens

TOKENIZERS = {"13a": Tokenizer13a(), "zh": TokenizerZh(), "char": TokenizerChar(), "none": NoneTokenizer()}
PIECES = [
    "the", "cat", "Mat", "3", "14", ".", ",", "-", "...", "--", "'", "it's", "&quot;", "&amp;lt;", "<skipped>",
    "\n", "-\n", "春眠", "不觉晓", "，", "。", "“", "é", "ß", "/", "[x]", "{", "`", "\u3000", "\u00a0", "\t",
    "かな", "😀", "—", "10%", "$5",
]  # fmt: skip
TEXTS = st.lists(
    st.sampled_from(PIECES) | st.sampled_from([" ", " "]) | st.characters(codec="utf-8"), max_size=25
).map("".join)
PAIRS = [
    ("It is a guide to action which ensures that the military always obeys the commands of the party.",
     "It is a guide to action that ensures that the military will forever heed Party commands."),
    ("He said: \"3,000 men, women & children; 50%-60% (well-known)...\"",
     "He said: &quot;3,000 men, women &amp; children; 50%-60% (well-known).&quot;"),
    ("猫坐在垫子上，2024年3月。", "一只猫坐在垫子上面，2024年3月5日。"),
    ("", "nothing was said"),
    ("something", ""),
    ("a b c d e f g", "a b c d e f g"),
]  # fmt: skip


def score(hypotheses: Sequence[str], references: Sequence[str], tokenize: str) -> float:
    return float(BLEU(tokenize=tokenize, force=True).corpus_score(list(hypotheses), [list(references)]).score)


def measured(hypotheses: Sequence[str], references: Sequence[str], tokenize: Tokenize) -> float:
    found = Bleu(tokenize)
    found.add(hypotheses, references)
    return found.figures()["bleu"]


@pytest.mark.parametrize("tokenize", get_args(Tokenize))
@settings(max_examples=150)
@given(text=TEXTS)
def test_tokens_are_those_of_sacrebleu(tokenize: Tokenize, text: str) -> None:
    assert tokens(text, tokenize) == TOKENIZERS[tokenize](text.rstrip()).split()


def test_every_character_is_chinese_where_sacrebleu_says_so() -> None:
    for code in [*range(0xD800), *range(0xE000, 0x10000), 0x20000, 0x2A6D6, 0x2F800, 0x1F600, 0x10FFFF]:
        text = f"x{chr(code)}x"
        assert tokens(text, "zh") == TOKENIZERS["zh"](text).split(), hex(code)


@pytest.mark.parametrize("tokenize", get_args(Tokenize))
def test_bleu_of_real_sentences_is_that_of_sacrebleu(tokenize: Tokenize) -> None:
    hypotheses, references = zip(*PAIRS, strict=True)
    assert measured(hypotheses, references, tokenize) == pytest.approx(
        score(hypotheses, references, tokenize), abs=1e-9
    )
    for one, other in PAIRS:
        assert measured([one], [other], tokenize) == pytest.approx(score([one], [other], tokenize), abs=1e-9)


WORDS = st.lists(st.sampled_from("abcde"), max_size=9).map(" ".join)


@settings(max_examples=150)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_bleu_of_short_texts_is_that_of_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    """Short, so that orders without a hit, and without an n-gram, come up: smoothing is all in them."""
    hypotheses, references = zip(*pairs, strict=True)
    assert measured(hypotheses, references, "none") == pytest.approx(
        score(hypotheses, references, "none"), abs=1e-9
    )


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), st.sampled_from(get_args(Tokenize)))
def test_bleu_of_any_texts_is_that_of_sacrebleu(pairs: list[tuple[str, str]], tokenize: Tokenize) -> None:
    hypotheses, references = zip(*pairs, strict=True)
    assert measured(hypotheses, references, tokenize) == pytest.approx(
        score(hypotheses, references, tokenize), abs=1e-9
    )


def test_the_interval_is_that_of_drawing_sentences() -> None:
    random = np.random.default_rng(0)
    references = [" ".join(random.choice(list("abcdefgh"), 12)) for _ in range(60)]
    hypotheses = [
        " ".join(word if random.random() < 0.7 else "x" for word in text.split()) for text in references
    ]
    found = Bleu("none")
    found.add(hypotheses, references)
    plain = []
    for _ in range(300):
        drawn = random.integers(0, 60, 60)
        plain.append(measured([hypotheses[n] for n in drawn], [references[n] for n in drawn], "none"))
    expected = np.quantile(plain, [0.025, 0.975])
    assert found.intervals(2000)["bleu"] == pytest.approx(expected, abs=0.15 * np.ptp(expected))


@pytest.mark.parametrize("tokenize", get_args(Tokenize))
def test_the_signature_is_sacrebleus_own(tokenize: Tokenize) -> None:
    metric = BLEU(tokenize=tokenize)
    metric.corpus_score(["a"], [["a"]])
    expected = metric.get_signature()
    expected.info["version"] = DEFINITION
    assert Bleu(tokenize).signature() == str(expected)


def test_what_does_not_pair_is_refused() -> None:
    with pytest.raises(InputError, match="its reference"):
        Bleu().add(["a"], [])
    with pytest.raises(InputError, match="lists of texts"):
        Bleu().add("a", "a")
    with pytest.raises(InputError, match="13a, zh"):
        Bleu("intl")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="same tokens"):
        Bleu("13a").merge(Bleu("zh"))
