"""Tokenizers: exact, deterministic, equal to what transformers loads, safe against hostile files."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from luban.data.tokenizer import END, UNKNOWN, Tokenizer, train_tokenizer
from luban.errors import DataError, InputError

TEXTS = [
    "First Citizen:\nBefore we proceed any further, hear me speak. It's 1603, isn't it?",
    "秦川雄帝宅，函谷壯皇居。綺殿千尋起，離宮百雉餘。你好，世界！",
    "def add(a, b):\n\treturn a  +  b  # 42\n\n\nprint(add(1_000, 0x2F))",
]
EXOTIC = [
    "",
    " ",
    "  leading and trailing  ",
    "a\r\nb\rc\n\n\nd\t\te",
    "🙂👨‍👩‍👧‍👦🇨🇳👍🏽",
    "naïve ÄÖÜ ß ﬁ ½ Ⅷ",
    "\u3000全角\u00a0空白\u200b\u2028\ufeff",
    "\x00\x01\x7f\x85",
    "𠀀𪛖 生僻字 々〇",
    "हिन्दी العربية ไทย 한국어 ひらがなカタカナ",
    f"text {END}{END} with {UNKNOWN} <|endoftext|> names",
    "<0xE4>",
    "\ufffd\uffff\U0010ffff",
    "x" * 5000,
    " " * 500,
    "1234567890",
]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer("bpe", iter(TEXTS * 3), vocab_size=400, byte_fallback=True)


@pytest.fixture(scope="module")
def char() -> Tokenizer:
    return train_tokenizer("char", iter(TEXTS), vocab_size=1000, byte_fallback=True)


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return train_tokenizer("char", iter(TEXTS), vocab_size=1000, byte_fallback=False)


@pytest.fixture(params=["bpe", "char"])
def exact(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=150, deadline=None)
@given(text=unicode_text)
@example(text=f"{END}")
@example(text="e\u0301 \r\n")
def test_any_text_survives_exactly(bpe: Tokenizer, char: Tokenizer, text: str) -> None:
    for tokenizer in (bpe, char):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.end_id not in ids
        assert all(0 <= number < tokenizer.vocab_size for number in ids)


@pytest.mark.parametrize("text", EXOTIC + TEXTS, ids=lambda text: ascii(text[:12]))
def test_exotic_text_survives_exactly(exact: Tokenizer, text: str) -> None:
    assert exact.decode(exact.encode(text)) == text
    stream = exact.stream_decoder()
    assert "".join(map(stream.push, exact.encode(text))) + stream.finish() == text


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_stream_decoder_equals_decode(
    bpe: Tokenizer, char: Tokenizer, plain: Tokenizer, data: st.DataObject
) -> None:
    for tokenizer in (bpe, char, plain):
        # Ids beyond the vocabulary and bytes that form no character are part of what a model may say.
        ids = data.draw(st.lists(st.integers(0, min(tokenizer.vocab_size + 3, 330)), max_size=25))
        stream = tokenizer.stream_decoder()
        parts = [stream.push(number) for number in ids]
        assert "".join(parts) + stream.finish() == tokenizer.decode(ids)


def test_stream_decoder_never_gives_half_a_character(bpe: Tokenizer) -> None:
    text = "🙂鲁班👨‍👩‍👧"  # none of it in the training text: every token is a single byte
    stream = bpe.stream_decoder()
    assert all("\ufffd" not in stream.push(number) for number in bpe.encode(text))
    assert stream.finish() == ""


def test_stream_decoder_gives_an_unfinished_character_at_the_end(exact: Tokenizer) -> None:
    ids = exact.encode("ok 🙂")[:-1]
    stream = exact.stream_decoder()
    given_early = "".join(map(stream.push, ids))
    assert given_early == "ok "
    assert given_early + stream.finish() == exact.decode(ids)


@settings(max_examples=150, deadline=None)
@given(text=unicode_text)
def test_character_table_equals_the_tokenizer_file(char: Tokenizer, plain: Tokenizer, text: str) -> None:
    for tokenizer in (char, plain):
        rust = RustTokenizer.from_str(tokenizer._text)
        rust.encode_special_tokens = True
        assert tokenizer.encode(text) == rust.encode(text, add_special_tokens=False).ids


def test_unseen_characters_are_counted_or_become_bytes(char: Tokenizer, plain: Tokenizer) -> None:
    assert char.unknown_id is None
    assert len(char.encode("鲁班")) == 6
    assert plain.encode("鲁a班").count(plain.unknown_id) == 2
    assert plain.vocab_size == 2 + len(set("".join(TEXTS)))
    assert plain.decode(plain.encode(TEXTS[1])) == TEXTS[1]
    assert plain.kind == char.kind == "char"


def test_characters_beyond_the_vocabulary_are_the_rare_ones() -> None:
    tokenizer = train_tokenizer("char", iter(["aaabbc"]), vocab_size=259, byte_fallback=True)
    assert [len(tokenizer.encode(c)) for c in "abc"] == [1, 1, 1]
    assert tokenizer.token(tokenizer.encode("c")[0]) == "<0x63>"
    assert tokenizer.vocab_size == 259


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_training_is_deterministic(kind: str, tmp_path: Path) -> None:
    files = []
    for name in "ab":
        (tmp_path / name).mkdir()
        train_tokenizer(kind, iter(TEXTS * 2), vocab_size=380, byte_fallback=True).save(tmp_path / name)
        files.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert files[0] == files[1]


@pytest.mark.parametrize("vocab_size", [257, 258, 300, 350])
def test_vocab_size_bounds_everything(vocab_size: int) -> None:
    assert (
        train_tokenizer("bpe", iter(TEXTS * 9), vocab_size=vocab_size, byte_fallback=True).vocab_size
        == vocab_size
    )


def test_training_refuses_what_cannot_be() -> None:
    for kind, size, texts, message in [
        ("bpe", 256, TEXTS, "too small"),
        ("char", 257, TEXTS, "too small"),
        ("bpe", 300, [], "no text"),
        ("char", 300, [""], "no text"),
        ("word", 300, TEXTS, "bpe"),
    ]:
        with pytest.raises(InputError, match=message):
            train_tokenizer(kind, iter(texts), vocab_size=size, byte_fallback=True)
    with pytest.raises(DataError, match="surrogate"):
        train_tokenizer("char", iter(["\ud800"]), vocab_size=300, byte_fallback=True)


def test_half_a_surrogate_pair_is_named(exact: Tokenizer) -> None:
    with pytest.raises(DataError, match="surrogate"):
        exact.encode("a\ud800")


def test_batches_equal_single_texts(exact: Tokenizer) -> None:
    assert exact.encode_batch(EXOTIC) == [exact.encode(text) for text in EXOTIC]


@pytest.mark.parametrize("kind", ["bpe", "char", "plain"])
def test_saved_and_loaded_is_the_same(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.encode_batch(EXOTIC) == tokenizer.encode_batch(EXOTIC)
        for name in ("kind", "vocab_size", "end_id", "begin_id", "unknown_id", "special_ids"):
            assert getattr(loaded, name) == getattr(tokenizer, name)
    (tmp_path / "again").mkdir()
    loaded.save(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("kind", ["bpe", "char", "plain"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral", "qwen2", "gpt2"])
def test_transformers_reads_the_folder(
    kind: str, family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if family == "qwen2" and kind != "bpe":
        pytest.skip("transformers rebuilds every tokenizer of model_type qwen2 as byte-level BPE")
    transformers = pytest.importorskip("transformers")
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": family, "eos_token_id": tokenizer.end_id})
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for text in EXOTIC + TEXTS if END not in text]
    for text in texts:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text), skip_special_tokens=True) == tokenizer.decode(
            tokenizer.encode(text)
        )
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.end_id


def test_transformers_files_are_read_alike(tmp_path: Path) -> None:
    """A folder written by transformers, with a begin token of its own, gives the same ids here."""
    transformers = pytest.importorskip("transformers")
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "▁": 5, "<unk>": 6, "▁ab": 7}
    theirs = transformers.LlamaTokenizer(vocab=vocabulary, merges=[("a", "b"), ("▁", "ab")])
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    for text in ("ab ab b", "b a  ab"):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        stream = ours.stream_decoder()
        assert "".join(map(stream.push, ours.encode(text))) + stream.finish() == ours.decode(
            ours.encode(text)
        )
    assert (ours.begin_id, ours.end_id, ours.kind) == (0, 1, "bpe")


def _file(bpe: Tokenizer, folder: Path, change: object) -> Path:
    data = json.loads(bpe._text)
    change(data)  # type: ignore[operator]
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data))
    return path


POISON = {
    "no model": lambda d: d.pop("model"),
    "empty vocabulary": lambda d: d["model"].update(vocab={}),
    "vocabulary is a number": lambda d: d["model"].update(vocab=7),
    "vocabulary of pairs of one": lambda d: d["model"].update(type="Unigram", vocab=[["a"]]),
    "negative id": lambda d: d["model"]["vocab"].update(x=-1),
    "id that is text": lambda d: d["model"]["vocab"].update(x="1"),
    "id that is true": lambda d: d["model"]["vocab"].update(x=True),
    "huge id": lambda d: d["model"]["vocab"].update(x=4_000_000_000),
    "two tokens with one id": lambda d: d["model"]["vocab"].update(xxx=5),
    "added token on a taken id": lambda d: d["added_tokens"][0].update(content="new"),
    "added token beyond the vocabulary": lambda d: d["added_tokens"].append(
        {**d["added_tokens"][0], "id": 9999, "content": "new"}
    ),
    "added token without id": lambda d: d["added_tokens"][0].pop("id"),
    "added tokens are text": lambda d: d.update(added_tokens="x"),
    "merge of unknown tokens": lambda d: d["model"]["merges"].append(["qqqq", "zzzz"]),
    "merges are a number": lambda d: d["model"].update(merges=3),
    "unknown pre-tokenizer": lambda d: d.update(pre_tokenizer={"type": "Nonsense"}),
    "broken expression": lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(("}),
    "deep nesting": lambda d: d.update(
        decoder=json.loads('{"type":"Sequence","decoders":[' * 150 + "]}" * 150)
    ),
}


@pytest.mark.parametrize("name", POISON)
def test_poisoned_file_is_an_error_that_names_it(bpe: Tokenizer, tmp_path: Path, name: str) -> None:
    path = _file(bpe, tmp_path, POISON[name])
    with pytest.raises(InputError) as caught:
        Tokenizer.load(path)
    assert "tokenizer.json" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cut_or_flipped_file_never_panics(
    bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(bpe._text.encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        del raw[at:]
    else:
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("file") / "tokenizer.json"
    path.write_bytes(bytes(raw))
    try:
        tokenizer = Tokenizer.load(path)
        tokenizer.decode(tokenizer.encode("Some text, 文字, 123"))
    except InputError as error:
        assert "tokenizer" in str(error)


def test_not_json_absent_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for content in (b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b""):
        path.write_bytes(content)
        with pytest.raises(InputError):
            Tokenizer.load(path)
    with pytest.raises(InputError, match="no tokenizer"):
        Tokenizer.load(tmp_path / "absent")
    with path.open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(InputError, match="bytes"):
        Tokenizer.load(tmp_path)


def _renamed(bpe: Tokenizer, folder: Path, name: str) -> None:
    (folder / "tokenizer.json").write_text(bpe._text.replace(END, name))


def test_end_token_is_found(bpe: Tokenizer, tmp_path: Path) -> None:
    _renamed(bpe, tmp_path, "<stop>")
    with pytest.raises(InputError, match="no token that ends a document"):
        Tokenizer.load(tmp_path)
    end = bpe.end_id
    for file, content in [
        ("config.json", {"eos_token_id": [end, 3]}),
        ("special_tokens_map.json", {"eos_token": {"content": "<stop>"}}),
        ("tokenizer_config.json", {"eos_token": "<stop>", "bos_token": None}),
    ]:
        (tmp_path / file).write_text(json.dumps(content))
        assert Tokenizer.load(tmp_path).end_id == end
        (tmp_path / file).unlink()
    for name in ("</s>", "<|endoftext|>", "<|im_end|>"):
        _renamed(bpe, tmp_path, name)
        assert Tokenizer.load(tmp_path).end_id == end


def test_texts_are_neither_cut_padded_nor_dropped_out(bpe: Tokenizer, tmp_path: Path) -> None:
    rust = RustTokenizer.from_str(bpe._text)
    rust.enable_truncation(4)
    rust.enable_padding(length=64)
    rust.model.dropout = 0.5
    rust.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode(TEXTS[0]) == bpe.encode(TEXTS[0])


def test_an_end_token_not_marked_special_is_not_read_from_text(bpe: Tokenizer, tmp_path: Path) -> None:
    path = _file(bpe, tmp_path, lambda d: d["added_tokens"][0].update(special=False))
    tokenizer = Tokenizer.load(path)
    assert tokenizer.end_id not in tokenizer.encode(f"a{END}b")
    assert tokenizer.decode([tokenizer.end_id]) == ""


def test_saved_config_of_others_is_kept_without_code(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    config = {"eos_token": END, "chat_template": "{{ x }}", "auto_map": {"AutoTokenizer": ["code.T", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "new").mkdir()
    Tokenizer.load(tmp_path).save(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert saved == {"eos_token": END, "chat_template": "{{ x }}"}


@pytest.mark.parametrize(
    "name", ["wikitext2-raw-valid-test/wiki.valid.raw.gz", "classics-zh/hongloumeng.txt.gz"]
)
def test_real_text_survives_exactly(exact: Tokenizer, shared_data: Path, name: str) -> None:
    with gzip.open(shared_data / name, "rt", encoding="utf-8", newline="") as file:
        text = file.read(100_000)
    assert exact.decode(exact.encode(text)) == text


def test_a_long_document_takes_time_in_proportion(char: Tokenizer, bpe: Tokenizer) -> None:
    """A text 16 times as long may take at most 64 times as long; a square would take 256 times."""
    import time

    for tokenizer, unit in ((char, "人生若只如初見，" * 2_000), (bpe, "a" * 20_000)):
        took = []
        for text in (unit, unit * 16):
            best = min(_timed(tokenizer, text, time.perf_counter) for _ in range(3))
            took.append(best)
        assert took[1] < 64 * max(took[0], 1e-3)


def _timed(tokenizer: Tokenizer, text: str, clock: object) -> float:
    start = clock()  # type: ignore[operator]
    tokenizer.encode(text)
    return clock() - start  # type: ignore[operator]
