"""Text to token ids and back: byte-level BPE or single characters, trained here, or any tokenizer.json.

Everything is a `tokenizer.json`, so that every tool that reads Hugging Face folders reads ours.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from luban.data.characters import CharacterTable
from luban.data.tokenizer_file import TOKENIZER_CONFIG, TOKENIZER_JSON, checked, read_tokenizer, rust_errors
from luban.durable import DISK, FileSystem, write_json, write_text
from luban.errors import DataError, InputError

END = "<|end|>"
UNKNOWN = "<|unknown|>"

# Where byte-level BPE may not merge: words take the character before them along, each digit stands alone (so
# that numbers are read place by place), lines end tokens. This is Qwen2's pattern and on purpose no other:
# `transformers` 5 puts it in place of whatever pattern a folder of model_type qwen2 has (with NFC before it),
# and llama.cpp knows it.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_BYTE_SET = frozenset(_BYTES)
# Training cuts longer texts: a merge takes time in proportion to a word's length, and a word can have 10 MB.
_PIECE = 8192
_BATCH = 256


class Tokenizer:
    """Turns text into token ids and back.

    Arguments:
        text: the JSON of a tokenizer.json.
        end: the token that ends a document.
        begin: the token that begins a text for the model; the end token where a family has no other.
        config: what tokenizer_config.json says besides; written along by `save`.
        where: where the JSON came from, for error messages.

    No special token is ever added, and a special token's name inside a text is read as plain characters, so
    that data cannot forge the end of a document. Padding, truncation and BPE dropout are switched off.

    Example:
        >>> tokenizer = train_tokenizer("char", iter(["to be"]), vocab_size=300, byte_fallback=True)
        >>> ids = tokenizer.encode("to be, 魯班 <|end|>")
        >>> tokenizer.decode(ids), tokenizer.end_id in ids
        ('to be, 魯班 <|end|>', False)
    """

    def __init__(
        self,
        text: str,
        *,
        end: str,
        begin: str | None = None,
        config: dict[str, Any] | None = None,
        where: str = TOKENIZER_JSON,
    ) -> None:
        self._rust = checked(text, where)
        self._text, self._where = text, where
        self._config = {k: v for k, v in (config or {}).items() if k != "auto_map"}
        self._end, self._begin = end, begin or end
        self._end_id, self._begin_id = self._id(self._end), self._id(self._begin)
        with rust_errors("the tokenizer cannot be set up", where):
            self._rust.no_padding()
            self._rust.no_truncation()
            if getattr(self._rust.model, "dropout", None) is not None:
                self._rust.model.dropout = None
            self._rust.add_special_tokens(
                [AddedToken(token, special=True) for token in {self._end, self._begin}]
            )
            self._rust.encode_special_tokens = True
        data = json.loads(text)
        self._unknown = _unknown_token(data["model"])
        self._characters = CharacterTable.of(data)
        self._model_type = str(data["model"].get("type") or "bpe").lower()
        self._special_ids = frozenset(
            number for number, token in self._rust.get_added_tokens_decoder().items() if token.special
        )
        self._vocab_size = max(self._rust.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a tokenizer.json, given as a file or as the folder that holds it.

        tokenizer_config.json, special_tokens_map.json or config.json beside it names the end token; without
        them a common name is looked for.

        Raises:
            InputError: the file is absent, too large, no tokenizer, at odds with itself, or has no end token.
        """
        file = read_tokenizer(Path(path))
        return cls(file.text, end=file.end, begin=file.begin, config=file.config, where=file.where)

    def _id(self, token: str) -> int:
        number = self._rust.token_to_id(token)
        if number is None:
            raise InputError("the tokenizer has no such token", received=token, where=self._where)
        return number

    @property
    def text(self) -> str:
        """The JSON it was made of: equal texts, equal tokenizers."""
        return self._text

    @property
    def kind(self) -> str:
        """Either "char" or the type of the model: "bpe", "unigram", "wordpiece", "wordlevel"."""
        return "char" if self._characters else self._model_type

    @property
    def vocab_size(self) -> int:
        """The largest id plus one: the rows an embedding needs."""
        return self._vocab_size

    @property
    def end_id(self) -> int:
        """The token that ends a document."""
        return self._end_id

    @property
    def begin_id(self) -> int:
        """The token a text begins with; the end token where the tokenizer has no other."""
        return self._begin_id

    @property
    def frame(self) -> tuple[int, int] | None:
        """The tokens between which BERT reads a text, [CLS] and [SEP]; None for tokenizers of other families."""
        framed = self._model_type == "wordpiece" and self._begin_id != self._end_id
        return (self._begin_id, self._end_id) if framed else None

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for what the vocabulary lacks; None where every text has its own ids."""
        return None if self._unknown is None else self._rust.token_to_id(self._unknown)

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are no text, such as the end token."""
        return self._special_ids

    def token(self, number: int) -> str | None:
        """The token with this id as the vocabulary writes it, or None."""
        with rust_errors("not a token id", self._where):
            return self._rust.id_to_token(number)

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts; Rust threads share them out over all cores.

        Raises:
            DataError: a text has half of a surrogate pair, which no file in UTF-8 can hold.
        """
        try:
            if self._characters:
                return [self._characters.encode(text).tolist() for text in texts]
            with rust_errors("the tokenizer cannot encode this text", self._where):
                encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
                return [encoding.ids for encoding in encodings]
        except (UnicodeEncodeError, InputError) as error:
            broken = next((text for text in texts if not _is_unicode(text)), None)
            if broken is None:
                raise
            raise DataError("the text has half of a surrogate pair", received=broken) from error

    def pieces(self, text: str) -> list[str]:
        """Return what a text is cut into before the vocabulary is looked at: its words, also the unknown ones."""
        with rust_errors("the tokenizer cannot cut this text", self._where):
            normalised = text if self._rust.normalizer is None else self._rust.normalizer.normalize_str(text)
            if self._rust.pre_tokenizer is None:
                return [normalised] if normalised else []
            return [piece for piece, _ in self._rust.pre_tokenizer.pre_tokenize_str(normalised)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids; ids beyond the vocabulary give nothing, bytes that are no UTF-8 give U+FFFD."""
        with rust_errors("these are not token ids", self._where):
            return str(self._rust.decode([int(number) for number in ids], skip_special_tokens=skip_special))

    def stream_decoder(self, skip_special: bool = True) -> StreamDecoder:
        """A decoder that takes one id at a time; see `StreamDecoder`."""
        return StreamDecoder(self, skip_special=skip_special)

    def save(self, folder: Path, fs: FileSystem = DISK) -> None:
        """Write tokenizer.json and tokenizer_config.json, as `transformers.AutoTokenizer` reads them.

        One exception: beside a config.json of model_type qwen2 AutoTokenizer makes byte-level BPE of every
        tokenizer, so that a character tokenizer must not stand there.
        """
        defaults = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self._begin,
            "eos_token": self._end,
            # Left open, these two become Qwen2's own names, as tokens beyond the vocabulary.
            "pad_token": self._end,
            "unk_token": self._unknown,
            "clean_up_tokenization_spaces": False,
        }
        write_text(folder / TOKENIZER_JSON, self._text, fs)
        config = (
            {**self._config, "eos_token": self._config.get("eos_token") or self._end}
            if self._config
            else defaults
        )
        write_json(folder / TOKENIZER_CONFIG, config, fs)


class StreamDecoder:
    """Decodes ids as they come, never half a character; all it gives together is `decode` of all ids.

    Example:
        >>> tokenizer = train_tokenizer("char", iter(["a"]), vocab_size=300, byte_fallback=True)
        >>> stream = tokenizer.stream_decoder()
        >>> [stream.push(number) for number in tokenizer.encode("a班a")] + [stream.finish()]
        ['a', '', '', '', '班a', '']
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, number: int) -> str:
        """Take the next id; return the text that is now certain, often empty."""
        token = self._tokenizer.token(number)
        if token is None or (self._skip and number in self._tokenizer.special_ids):
            return ""
        self._pending.append(number)
        # Byte tokens in a row are decoded together: a later one can still change what the earlier ones mean.
        if token in _BYTE_SET:
            return ""
        text = self._rest()
        if text.endswith("\ufffd"):
            return ""
        if text:
            self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        """Return what is left; an unfinished character becomes U+FFFD, as `decode` has it."""
        text = self._rest()
        self._context, self._pending = [], []
        return text

    def _rest(self) -> str:
        """Text of the pending ids, decoded behind their context: for some decoders the first differs."""
        before = self._tokenizer.decode(self._context, self._skip)
        return self._tokenizer.decode(self._context + self._pending, self._skip)[len(before) :]


def train_tokenizer(
    kind: Literal["bpe", "char"] | str, texts: Iterator[str], *, vocab_size: int, byte_fallback: bool
) -> Tokenizer:
    """Train a tokenizer; the same texts in the same order give the same tokenizer.

    Arguments:
        kind: "bpe" merges bytes to longer tokens, "char" has one token for each character.
        texts: the training texts; held in memory only as counts of words or characters.
        vocab_size: bound of the vocabulary, special tokens included. Little text may give a smaller one;
            of more characters than fit, the most frequent are kept.
        byte_fallback: for "char": write an unseen character as its UTF-8 bytes (256 more tokens, exact);
            without it every unseen character is the one unknown token. BPE has all bytes always.

    Raises:
        InputError: the kind is unknown, the vocabulary too small, or there is no text.
    """
    if kind == "bpe":
        return _train_bpe(texts, vocab_size)
    if kind == "char":
        return _train_characters(texts, vocab_size, byte_fallback)
    raise InputError('a tokenizer trained here is "bpe" or "char"', received=kind, where="data.tokenizer")


def _require(vocab_size: int, least: int, what: str) -> None:
    if vocab_size < least:
        raise InputError(
            f"the vocabulary is too small: {what}",
            received=vocab_size,
            where="data.vocab_size",
            fix=f"write {least} or more",
        )


def _no_text() -> InputError:
    return InputError("there is no text to train a tokenizer on", where="data.source")


def _train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _require(vocab_size, len(alphabet) + 1, "byte-level BPE has 256 bytes and the end token")
    pieces = (text[at : at + _PIECE] for text in texts for at in range(0, len(text), _PIECE))
    first = next(pieces, None)
    if first is None:
        raise _no_text()
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    with rust_errors("the tokenizer cannot be trained on these texts", "data.source"):
        rust.train_from_iterator(_batches(itertools.chain([first], pieces)), trainer)
        return Tokenizer(rust.to_str(pretty=True), end=END)


def _batches(pieces: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(pieces, _BATCH)):
        yield batch


def _train_characters(texts: Iterator[str], vocab_size: int, byte_fallback: bool) -> Tokenizer:
    base = [END, *_BYTES] if byte_fallback else [END, UNKNOWN]
    _require(vocab_size, len(base) + 1, f"{len(base)} tokens and one character at least")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    if not counts:
        raise _no_text()
    if not all(map(_is_unicode, counts)):
        raise DataError("a training text has half of a surrogate pair", where="data.source")
    kept = sorted(counts, key=lambda character: (-counts[character], character))[: vocab_size - len(base)]
    vocabulary = {token: number for number, token in enumerate([*base, *sorted(kept)])}
    unknown = None if byte_fallback else UNKNOWN
    rust = RustTokenizer(
        models.BPE(
            vocab=vocabulary, merges=[], unk_token=unknown, fuse_unk=False, byte_fallback=byte_fallback
        )
    )
    rust.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    rust.add_special_tokens([END] if byte_fallback else [END, UNKNOWN])
    return Tokenizer(rust.to_str(pretty=True), end=END)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _unknown_token(model: dict[str, Any]) -> str | None:
    number = model.get("unk_id")
    if isinstance(number, int) and isinstance(model.get("vocab"), list):
        return str(model["vocab"][number][0])
    token = model.get("unk_token")
    vocabulary = model.get("vocab")
    return token if isinstance(token, str) and isinstance(vocabulary, dict) and token in vocabulary else None
