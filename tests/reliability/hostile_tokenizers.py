"""Poisoned tokenizer files: vocabularies that lie, and parts that make the library which reads them panic or hang."""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_case import EITHER, READ, Case, copy, edit, nested, newest_release, put
from hostile_models import load as load_model

from luban.data.tokenizer import Tokenizer

TEXT = "the king of 春眠 had\u0301 no wood 12345 " + "a" * 200 + "!"
NAME = "tokenizer.json"


def released() -> dict[str, Any]:
    """The tokenizer of the newest release, a byte-level BPE."""
    value: dict[str, Any] = json.loads((newest_release() / "finished" / "model" / NAME).read_text("utf-8"))
    return value


def use(folder: Path) -> None:
    """Load the tokenizer, and turn a text into ids and back."""
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode(TEXT)
    assert all(0 <= number < tokenizer.vocab_size for number in ids)
    assert isinstance(tokenizer.decode([*ids, 10**6]), str)
    list(map(tokenizer.stream_decoder().push, ids))


def unchanged(folder: Path) -> None:
    """Load the tokenizer; it must still give the text back."""
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def whole(value: Any) -> Callable[[Path], object]:
    return lambda folder: put(folder / NAME, value)


def part(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: put(folder / NAME, {**released(), **changes})


def model(**changes: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        value = released()
        put(folder / NAME, {**value, "model": {**value["model"], **changes}})

    return make


def vocabulary(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], object]:
    return lambda folder: model(vocab=change(released()["model"]["vocab"]))(folder)


def added(**changes: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        value = released()
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        token = {"id": 300, "content": "<|more|>", **plain, **changes}
        put(folder / NAME, {**value, "added_tokens": [*value["added_tokens"], token]})

    return make


def charsmap(data: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def template(tokens: Any, single: Any = None) -> dict[str, Any]:
    pieces = single or [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": tokens}


def pattern(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def unigram(**changes: Any) -> dict[str, Any]:
    entries = [["<unk>", 0.0], ["<|end|>", 0.0], ["a", -1.0], ["th", -2.0]]
    return {"type": "Unigram", "unk_id": 0, "vocab": entries, "byte_fallback": False, **changes}


def of_model(value: dict[str, Any]) -> Callable[[Path], object]:
    """A file with this model and no other part but the end token."""
    end = {"id": 1, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False}
    end |= {"normalized": False, "special": True}
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    return whole({"version": "1.0", **empty, "added_tokens": [end], "model": value})


def padding(**changes: Any) -> dict[str, Any]:
    base = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None}
    return {**base, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>", **changes}


def truncation(**changes: Any) -> dict[str, Any]:
    return {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0, **changes}


WHOLE: dict[str, Any] = {
    "no bytes": b"",
    "not JSON": b"{",
    "a pickle": b"\x80\x04K\x01.",
    "not UTF-8": b'{"a": "\xff"}',
    "a list": [],
    "an empty object": {},
    "nested lists": nested(200_000),
    "nested lists in a part": json.dumps(released()).replace(
        '"normalizer": null', '"normalizer": ' + nested(50_000)
    ),
    "nested sequences of parts": json.dumps(released()).replace(
        '"normalizer": null', '"normalizer": ' + '{"type":"Sequence","normalizers":[' * 50_000 + "]}" * 50_000
    ),
    "a number of 5000 digits": '{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}",
    "a version of the future": {**released(), "version": "9.0"},
}
VOCABULARIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "empty": lambda v: {},
    "a list of numbers": lambda v: [1, 2],
    "text": lambda v: "luban_canary",
    "an id below zero": lambda v: {**v, "zz": -1},
    "an id of 2**32": lambda v: {**v, "zz": 1 << 32},
    "an id of 10**400": lambda v: {**v, "zz": 10**400},
    "an id that is a fraction": lambda v: {**v, "zz": 1.5},
    "an id that is text": lambda v: {**v, "zz": "1"},
    "an id that is true": lambda v: {**v, "zz": True},
    "an id that is null": lambda v: {**v, "zz": None},
    "an id twice": lambda v: {**v, "zz": 5},
    "an id far beyond the rest": lambda v: {**v, "zz": (1 << 24)},
    "without the end token": lambda v: {k: n for k, n in v.items() if k != "<|end|>"},
}
MERGES: dict[str, Any] = {
    "longer than any token": ["a" * 3000 + " " + "b" * 3000],
    "of an unknown token": ["luban canary"],
    "of three": ["a b c"],
    "of one": ["a"],
    "of none": [""],
    "numbers": [1, 2],
    "pairs of numbers": [[1, 2]],
    "nested": [[["a"]]],
    "text": "a b",
    "an object": {"a": "b"},
    "whose result is unknown": ["t q"],
}
PARTS: dict[str, dict[str, Any]] = {
    "normalizer of an unknown type": {"normalizer": {"type": "luban_canary"}},
    "normalizer without a type": {"normalizer": {}},
    "normalizer as text": {"normalizer": "os.system"},
    "charsmap of no bytes": {"normalizer": charsmap(b"")},
    "charsmap of three bytes": {"normalizer": charsmap(b"abc")},
    "charsmap of a lying length": {"normalizer": charsmap(b"\xff\xff\xff\xff" + bytes(64))},
    "charsmap of a trie that loops": {
        "normalizer": charsmap((64).to_bytes(4, "little") + b"\xff" * 64 + b"a\0b\0")
    },
    "charsmap of a trie that leads out": {
        "normalizer": charsmap((256).to_bytes(4, "little") + b"\x01\x02\x03\x70" * 64 + b"\0")
    },
    "charsmap that is no base64": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!!"}},
    "a replacement of a wrong pattern": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    },
    "pre-tokenizer of an unknown type": {"pre_tokenizer": {"type": "luban_canary"}},
    "pre-tokenizer with a wrong pattern": {"pre_tokenizer": pattern("(")},
    "pre-tokenizer of a library in Python": {"pre_tokenizer": {"type": "Custom", "module": "luban_canary"}},
    "post-processor of an unknown type": {"post_processor": {"type": "luban_canary"}},
    "template of a negative id": {
        "post_processor": template({"[CLS]": {"id": "[CLS]", "ids": [-1], "tokens": ["[CLS]"]}})
    },
    "template of wrong pieces": {"post_processor": template({}, [{"Nothing": {}}])},
    "decoder of an unknown type": {"decoder": {"type": "luban_canary"}},
    "truncation to a negative length": {"truncation": truncation(max_length=-1)},
    "truncation of an unknown kind": {"truncation": truncation(strategy="luban_canary")},
    "padding to a negative length": {"padding": padding(strategy={"Fixed": -1})},
    "padding of an unknown kind": {"padding": padding(strategy="luban_canary")},
    "added tokens that are text": {"added_tokens": ["<|end|>"]},
    "added tokens that are no list": {"added_tokens": {"<|end|>": 0}},
}
HARMLESS: dict[str, dict[str, Any]] = {
    "a stride of the length and more": {"truncation": truncation(stride=8)},
    "a stride of 2**60": {"truncation": truncation(stride=1 << 60)},
    "truncation to nothing": {"truncation": truncation(max_length=0)},
    "padding to nothing": {"padding": padding(strategy={"Fixed": 0})},
    "padding to 2**62": {"padding": padding(strategy={"Fixed": 1 << 62})},
    "padding to a multiple of 0": {"padding": padding(pad_to_multiple_of=0)},
    "padding with an id beyond the vocabulary": {"padding": padding(pad_id=10**6)},
    "a template of ids beyond the vocabulary": {
        "post_processor": template({"[CLS]": {"id": "[CLS]", "ids": [10**6], "tokens": ["[CLS]"]}})
    },
}
STRANGE: dict[str, dict[str, Any]] = {
    "pre-tokenizer with nested repetition": {"pre_tokenizer": pattern("(((a{1000}){1000}){1000})")},
    "decoder that is a list": {"decoder": ["ByteLevel"]},
    "template of an unknown token": {"post_processor": template({})},
    "template of ids without tokens": {
        "post_processor": template({"[CLS]": {"id": "[CLS]", "ids": [1, 2], "tokens": []}})
    },
}
CATASTROPHES = [r"(a+)+b", r"(a|aa)+$b", r"(?:a*)*\d{3}b", r"(.*)(.*)(.*)(.*)(.*)[^ -~]x"]
MODELS: dict[str, dict[str, Any]] = {
    "of an unknown type": {"type": "luban_canary", "vocab": {"a": 0, "<|end|>": 1}},
    "of the type of another": {"type": "WordPiece", "vocab": {"a": 0, "<|end|>": 1}, "merges": []},
    "unigram: an unknown token beyond the end": unigram(unk_id=10**6),
    "unigram: a negative unknown token": unigram(unk_id=-1),
    "unigram: no unknown token": unigram(unk_id=None),
    "unigram: empty": unigram(vocab=[]),
    "unigram: a score that is text": unigram(vocab=[["<unk>", "x"], ["<|end|>", 0.0]]),
    "unigram: a token twice": unigram(vocab=[["<unk>", 0.0], ["<|end|>", 0.0], ["a", 1.0], ["a", 2.0]]),
    "wordlevel: a missing unknown token": {"type": "WordLevel", "vocab": {"a": 0, "<|end|>": 1}, "unk_token": "[X]"},
    "wordpiece: a missing unknown token": {
        "type": "WordPiece", "vocab": {"a": 0, "<|end|>": 1}, "unk_token": "[X]",
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    },
    "BPE: a missing unknown token": {"type": "BPE", "vocab": {"a": 0, "<|end|>": 1}, "merges": [], "unk_token": "[X]"},
}  # fmt: skip


def beyond(folder: Path) -> None:
    """A model folder whose tokenizer has an id without a row in the embedding."""
    path = copy("finished/model", folder) / NAME
    value = json.loads(path.read_text("utf-8"))
    value["model"]["vocab"]["zz"] = 300
    put(path, value)


def fifo(folder: Path) -> None:
    os.mkfifo(folder / NAME)


def large(folder: Path) -> None:
    with (folder / NAME).open("wb") as file:
        file.truncate(1 << 40)


CASES: list[Case] = [
    *(Case(f"tokenizer.json: {name}", whole(value), use) for name, value in WHOLE.items()),
    *(Case(f"vocabulary: {name}", vocabulary(change), use) for name, change in VOCABULARIES.items()),
    *(Case(f"merges: {name}", model(merges=value), use) for name, value in MERGES.items()),
    *(Case(f"tokenizer.json: {name}", part(**changes), use) for name, changes in PARTS.items()),
    *(Case(f"tokenizer.json: {name}", part(**changes), use, EITHER) for name, changes in STRANGE.items()),
    *(
        Case(f"tokenizer.json: {name}", part(**changes), unchanged, READ)
        for name, changes in HARMLESS.items()
    ),
    *(Case(f"pattern: {regex}", part(pre_tokenizer=pattern(regex)), use, EITHER) for regex in CATASTROPHES),
    *(Case(f"model: {name}", of_model(value), use) for name, value in MODELS.items()),
    Case(
        "unigram: an empty token",
        of_model(unigram(vocab=[["<unk>", 0.0], ["<|end|>", 0.0], ["", -1.0]])),
        use,
        EITHER,
    ),
    Case("vocabulary: an id twice by an added token", added(id=5), use),
    Case("vocabulary: an added token below zero", added(id=-1), use),
    Case("vocabulary: an added token beyond its place", added(id=5000), use),
    Case("vocabulary: an added token of no text", added(content=""), use),
    Case("vocabulary: an id beyond the embedding", beyond, load_model),
    Case("tokenizer.json: a pipe", fifo, use),
    Case("tokenizer.json: a terabyte of zeros", large, use),
    Case(
        "tokenizer_config.json: an end token that is not there",
        lambda folder: edit(copy("finished/model", folder) / "tokenizer_config.json", eos_token="[NONE]"),
        load_model,
        READ,
    ),
    Case(
        "tokenizer_config.json: an end token that is a list",
        lambda folder: edit(copy("finished/model", folder) / "tokenizer_config.json", eos_token=[["a"]]),
        load_model,
        READ,
    ),
    Case(
        "tokenizer_config.json: code of its own",
        lambda folder: edit(
            copy("finished/model", folder) / "tokenizer_config.json",
            auto_map={"AutoTokenizer": "luban_canary.T"},
        ),
        load_model,
        READ,
    ),
]
