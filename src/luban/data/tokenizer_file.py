"""Read a Hugging Face tokenizer file without trusting it: its claims are checked before Rust code sees it."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from luban.errors import InputError

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARY = "vocab.txt"
SPECIAL_TOKENS = "special_tokens_map.json"
BESIDE_TOKENIZER = (TOKENIZER_CONFIG, SPECIAL_TOKENS, "config.json")
"""Files beside a tokenizer.json that may name its end token."""
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MAX_BYTES = 256 << 20
MAX_ID = 1 << 24
# Names of end tokens in use, the plain end of a text before the end of a chat turn.
END_NAMES = (
    "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>", "<eos>", "[EOS]", "<|eot_id|>",
)  # fmt: skip


@dataclass(frozen=True)
class TokenizerFile:
    """What a tokenizer's folder says.

    Arguments:
        text: the checked JSON of tokenizer.json.
        end, begin: the tokens that end and begin a document.
        config: tokenizer_config.json, empty where there is none.
        where: the path read, for error messages.
    """

    text: str
    end: str
    begin: str
    config: dict[str, Any]
    where: str


@contextlib.contextmanager
def rust_errors(message: str, where: object = None) -> Iterator[None]:
    """Turn what the tokenizers library raises into an `InputError`, its panics (no `Exception`) included."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, InputError):
        raise
    except BaseException as error:
        raise InputError(f"{message}: {error}", where=where) from error


def read_tokenizer(path: Path) -> TokenizerFile:
    """Read tokenizer.json (a file, or the one in a folder) and the small files beside it.

    Raises:
        InputError: the file is absent, too large, not a tokenizer, contradicts itself, or names no end token.
    """
    file = path / TOKENIZER_JSON if path.is_dir() else path
    vocabulary = file.parent / VOCABULARY
    if not file.is_file() and path.is_dir() and vocabulary.is_file():
        text, file = (
            wordpiece(_read(vocabulary), _optional_object(path / TOKENIZER_CONFIG), vocabulary),
            vocabulary,
        )
    else:
        text = _read(file)
    tokenizer = checked(text, where=str(file))
    config = _optional_object(file.parent / TOKENIZER_CONFIG)
    special = _optional_object(file.parent / SPECIAL_TOKENS)
    model = _optional_object(file.parent / "config.json")
    tokens = _Tokens(tokenizer)
    separator = next(filter(None, (*tokens.named("sep", config, special, {}), tokens.known("[SEP]"))), None)
    ends = (*tokens.named("eos", config, special, model), *map(tokens.known, END_NAMES), separator)
    end = next(filter(None, ends), None)
    if end is None:
        raise InputError(
            "the tokenizer names no token that ends a document",
            where=str(file),
            fix=f'write {{"eos_token": "TOKEN"}} into {file.parent / TOKENIZER_CONFIG}',
        )
    # BERT has no begin and no end: a text stands between two tokens of its own.
    framed = (*tokens.named("cls", config, special, {}), tokens.known("[CLS]")) if end == separator else ()
    begin = next(filter(None, (*tokens.named("bos", config, special, model), *framed)), end)
    return TokenizerFile(text, end, begin, config, str(file))


def wordpiece(lines: str, config: dict[str, Any], where: object) -> str:
    """Return the JSON of the tokenizer that a BERT's vocab.txt, one token a line, and its small file stand for."""
    tokens = lines.removesuffix("\n").split("\n")
    vocabulary = {token.rstrip("\r"): number for number, token in enumerate(tokens)}
    if lacking := [token for token in BERT_TOKENS if token not in vocabulary]:
        fix = "is it the vocabulary of a BERT? give a folder with its tokenizer.json"
        raise InputError(
            "the vocabulary lacks tokens of BERT's own", received=lacking, where=str(where), fix=fix
        )
    if len(vocabulary) != len(tokens):
        raise InputError("a token stands twice in the vocabulary", where=str(where))
    lower = config.get("do_lower_case", True) is not False
    with rust_errors("no tokenizer can be made of this vocabulary", str(where)):
        rust = RustTokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))  # noqa: S106
        rust.normalizer = normalizers.BertNormalizer(
            lowercase=lower,
            strip_accents=config.get("strip_accents"),
            handle_chinese_chars=config.get("tokenize_chinese_chars", True) is not False,
        )
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        rust.decoder = decoders.WordPiece()
        rust.post_processor = processors.BertProcessing(
            ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
        )
        rust.add_special_tokens([token for token in (*BERT_TOKENS, "[MASK]") if token in vocabulary])
        return str(rust.to_str(pretty=True))


def checked(text: str, where: str) -> RustTokenizer:
    """Build the Rust tokenizer from JSON after checking it: it may not panic, nor give two tokens one id.

    Raises:
        InputError: saying what is wrong with the file.
    """
    data = _object(text, where)
    _check_charsmaps(data.get("normalizer"), where)
    vocabulary, added = _vocabulary(data, where)
    owners: dict[int, str] = {}
    for token, number in [*vocabulary.items(), *added.items()]:
        if type(number) is not int or not 0 <= number < MAX_ID:
            raise InputError(
                f"token ids are whole numbers from 0 to {MAX_ID - 1:,}", received=number, where=where
            )
        if owners.setdefault(number, token) != token:
            raise InputError(
                f"id {number} belongs to two tokens", received=(owners[number], token), where=where
            )
    with rust_errors("the file is not a tokenizer this version of `tokenizers` can read", where):
        tokenizer = RustTokenizer.from_str(text)
        for token, number in added.items():
            if tokenizer.token_to_id(token) != number:
                raise InputError(
                    "an added token's id does not follow the vocabulary",
                    received={token: number},
                    where=where,
                )
    return tokenizer


def _read(file: Path) -> str:
    if not file.is_file():
        fix = "give the path of a tokenizer.json, or of a folder that holds one"
        raise InputError("there is no tokenizer here", received=str(file), fix=fix)
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise InputError(
                f"a tokenizer file may have {MAX_BYTES:,} bytes", received=f"{size:,}", where=str(file)
            )
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the tokenizer: {error}", where=str(file)) from error


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}", where=where) from error
    if not isinstance(value, dict):
        raise InputError("a JSON object was expected", received=type(value).__name__, where=where)
    return value


def _optional_object(file: Path) -> dict[str, Any]:
    return _object(_read(file), str(file)) if file.is_file() else {}


def _vocabulary(data: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ids of the model's tokens and of the added tokens; values are yet unchecked."""
    model = data.get("model")
    entries = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(entries, list):
        if not all(isinstance(e, list) and len(e) == 2 and isinstance(e[0], str) for e in entries):
            raise InputError("the vocabulary is not a list of tokens and scores", where=where)
        vocabulary: dict[str, Any] = {entry[0]: number for number, entry in enumerate(entries)}
        if len(vocabulary) != len(entries):
            raise InputError("a token stands twice in the vocabulary", where=where)
    elif isinstance(entries, dict) and entries:
        vocabulary = entries
    else:
        raise InputError("the file has no model with a vocabulary", received=sorted(data)[:20], where=where)
    added = data.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("content"), str) and entry["content"]
        for entry in added
    ):
        raise InputError("added_tokens is not a list of tokens", where=where)
    return vocabulary, {entry["content"]: entry.get("id") for entry in added}


def _check_charsmaps(normalizer: object, where: str) -> None:
    """Raise where a precompiled charsmap claims more bytes than it has: the library would ask for as much memory.

    It begins with the size of its trie in bytes, 32 bits little-endian; the trie's units of 32 bits follow, then the
    texts it leads to: https://github.com/google/sentencepiece/blob/master/src/normalizer.h.
    """
    parts = [normalizer]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        elif isinstance(part, dict):
            parts += [inner for inner in part.values() if isinstance(inner, list | dict)]
            charsmap = part.get("precompiled_charsmap")
            if isinstance(charsmap, str) and not _is_charsmap(charsmap):
                raise InputError("a precompiled charsmap is damaged", received=charsmap[:80], where=where)


def _is_charsmap(text: str) -> bool:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return False
    size = int.from_bytes(data[:4], "little")
    return len(data) >= 4 and size % 4 == 0 and 4 + size <= len(data)


class _Tokens:
    """Finds the tokens that the small files name, as far as the tokenizer has them."""

    def __init__(self, tokenizer: RustTokenizer) -> None:
        self._tokenizer = tokenizer

    def known(self, token: object) -> str | None:
        if isinstance(token, dict):
            token = token.get("content")
        return token if isinstance(token, str) and self._tokenizer.token_to_id(token) is not None else None

    def named(
        self, role: str, config: dict[str, Any], special: dict[str, Any], model: dict[str, Any]
    ) -> Iterator[str | None]:
        yield self.known(config.get(f"{role}_token"))
        yield self.known(special.get(f"{role}_token"))
        number = model.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and 0 <= number < MAX_ID:
            yield self._tokenizer.id_to_token(number)
