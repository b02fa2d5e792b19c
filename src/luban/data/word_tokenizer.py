"""Words as tokens: for classifiers of little text, where a word of its own says more than its pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers

from luban.data.tokenizer import END, UNKNOWN, Tokenizer
from luban.data.tokenizer_file import rust_errors
from luban.errors import InputError

_BATCH = 1024


def train_word_tokenizer(texts: Iterator[str], *, vocab_size: int, min_count: int = 1) -> Tokenizer:
    """Make a vocabulary of the most frequent words; punctuation stands alone, and so does every Chinese character.

    Text is lower-cased and composed (NFC) first; what the vocabulary lacks is the one unknown token.

    Arguments:
        texts: the training texts.
        vocab_size: bound of the vocabulary, the two special tokens included.
        min_count: a word that comes less often is left out.

    Raises:
        InputError: there is no text, or no room for a word.

    Example:
        >>> tokenizer = train_word_tokenizer(iter(["Not good, not bad.", "不好"]), vocab_size=20)
        >>> [tokenizer.token(number) for number in tokenizer.encode("NOT so 好!")]
        ['not', '<|unknown|>', '好', '<|unknown|>']
    """
    if vocab_size < 3:
        raise InputError(
            "the vocabulary is too small: two special tokens and one word at least",
            received=vocab_size,
            where="data.vocab_size",
            fix="write 3 or more",
        )
    rust = RustTokenizer(models.WordLevel(vocab={END: 0, UNKNOWN: 1}, unk_token=UNKNOWN))
    rust.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.BertNormalizer(
                clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True
            ),
        ]
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first = next(texts, None)
    if first is None:
        raise InputError("there is no text to make a vocabulary of", where="data.train")
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=min_count, special_tokens=[END, UNKNOWN], show_progress=False
    )
    with rust_errors("no vocabulary can be made of these texts", "data.train"):
        rust.train_from_iterator(_batches(itertools.chain([first], texts)), trainer)
        return Tokenizer(rust.to_str(pretty=True), end=END)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(texts, _BATCH)):
        yield batch
