"""The whole way: what goes in comes out, the same bytes every time, or nothing at all."""

import errno
import gzip
import json
import tracemalloc

import numpy as np
import pytest

from luban.data.prepare import Prepared, fingerprint_of, is_prepared, prepare
from luban.durable import FileSystem
from luban.errors import CheckpointError, DataError, Stopped, StorageError
from luban.text_recipe import CleanRecipe, TextData


def stories(count, start=0):
    """Documents that differ, half of them Chinese."""
    rng = np.random.default_rng(start)
    for i in range(start, start + count):
        names = rng.integers(0, 10**6, 20)
        yield (
            f"Story {i}. " + " ".join(f"w{n}" for n in names)
            if i % 2
            else f"第{i}个故事，" + "".join(chr(0x4E00 + n % 8000) for n in names)
        )


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in stories(200)))
    return path


def data(source, **options):
    return TextData(**{"source": str(source), "vocab_size": 300, "validation_fraction": 0.2, **options})


def texts_of(shards, tokenizer):
    for first, tokens, size, characters in shards.documents.tolist():
        ids = shards.read(first, first + tokens)
        assert ids[-1] == tokenizer.end_id
        text = tokenizer.decode(ids[:-1].tolist())
        assert (len(text.encode()), len(text)) == (size, characters)
        yield text


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_every_document_comes_out_whole_and_in_order_on_one_side(source, tmp_path):
    prepared = prepare(data(source), tmp_path / "data")
    train = list(texts_of(prepared.train, prepared.tokenizer))
    validation = list(texts_of(prepared.validation, prepared.tokenizer))
    given = list(stories(200))
    assert sorted(train + validation) == sorted(given)
    assert train == [t for t in given if t in set(train)]
    assert 20 < len(validation) < 60
    report = prepared.report
    assert report["rows"] == 200
    assert report["characters"] == sum(map(len, given))
    assert report["bytes"] == sum(len(t.encode()) for t in given)
    assert report["split"]["train"]["documents"] == len(train)
    assert report["split"]["train"]["tokens"] == len(prepared.train)
    assert report["languages"]["zh"] == pytest.approx(
        sum("\u4e00" <= c <= "\u9fff" for t in given for c in t)
        / sum((c.isascii() and c.isalpha()) or "\u4e00" <= c <= "\u9fff" for t in given for c in t),
        abs=1e-6,
    )
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert is_prepared(prepared.folder)


def test_added_data_moves_no_document(source, tmp_path):
    before = prepare(data(source), tmp_path / "before")
    more = "".join(json.dumps({"text": t}) + "\n" for t in stories(150, start=500))
    source.write_text(more + source.read_text())
    after = prepare(data(source), tmp_path / "after")
    for split in ("train", "validation"):
        old = set(texts_of(getattr(before, split), before.tokenizer))
        assert old <= set(texts_of(getattr(after, split), after.tokenizer))


def test_the_same_bytes_whatever_the_number_of_workers(source, tmp_path):
    clean = CleanRecipe(mask_personal=True, max_repetition=0.9)
    one = prepare(data(source, workers=1, clean=clean), tmp_path / "one")
    three = prepare(data(source, workers=2, clean=clean), tmp_path / "three")
    assert content(one.folder) == content(three.folder)


def test_duplicates_go_and_are_shown_with_where_they_stood(tmp_path):
    texts = list(stories(40))
    long = " ".join(f"w{i}" for i in range(300))
    rows = [*texts, texts[3] + "  ", long, long.replace("w7 ", "x ")]
    (tmp_path / "a.txt").write_text("\n".join(rows))
    report = prepare(data(tmp_path / "a.txt", document="line"), tmp_path / "data").report
    steps = {step["step"]: step for step in report["cleaning"]}
    assert steps["exact_duplicates"]["count"] == 1
    assert steps["exact_duplicates"]["examples"][0]["line"] == 41
    assert "a.txt:4" in steps["exact_duplicates"]["examples"][0]["after"]
    assert steps["near_duplicates"]["count"] == 1
    assert "a.txt:42" in steps["near_duplicates"]["examples"][0]["after"]
    assert report["split"]["overlap"] == {"exact": 0, "near": 0, "examples": []}


def test_overlap_with_named_validation_files_is_reported_and_not_removed(tmp_path):
    texts = list(stories(30))
    long = " ".join(f"w{i}" for i in range(300))
    (tmp_path / "train.txt").write_text("\n".join([*texts, long]))
    (tmp_path / "held.txt").write_text("\n".join([texts[5], "something new", long.replace("w9 ", "x ")]))
    recipe = data(tmp_path, validation=str(tmp_path / "held.txt"), document="line")
    prepared = prepare(recipe, tmp_path / "out" / "data")
    assert prepared.report["split"]["validation"]["documents"] == 3
    overlap = prepared.report["split"]["overlap"]
    assert (overlap["exact"], overlap["near"]) == (1, 1)
    first = overlap["examples"][0]
    assert (first["validation"]["file"], first["validation"]["line"]) == ("held.txt", 1)
    assert (first["train"]["file"], first["train"]["line"]) == ("train.txt", 6)
    assert first["train"]["text"][:-1] == texts[5][:120]


def test_overlap_across_a_document_split_is_found_where_duplicates_stay(tmp_path):
    base = [" ".join(f"w{i * 1000 + j}" for j in range(100)) for i in range(60)]
    near = [text.replace(" ", " x ", 1) for text in base]
    (tmp_path / "a.txt").write_text("\n".join(base + near + base))
    clean = CleanRecipe(near_duplicates=None, exact_duplicates=False)
    report = prepare(data(tmp_path / "a.txt", document="line", clean=clean), tmp_path / "data").report
    assert report["split"]["overlap"]["exact"] == 0
    assert report["split"]["overlap"]["near"] > 5
    assert report["split"]["train"]["documents"] + report["split"]["validation"]["documents"] == 180


@pytest.mark.parametrize("clean", [None, CleanRecipe()])
def test_the_tail_is_nanogpts(shared_data, tmp_path, clean):
    path = shared_data / "tinyshakespeare" / "input.txt.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    recipe = data(
        path, split="tail", validation_fraction=0.1, tokenizer="char", byte_fallback=False, clean=clean
    )
    prepared = prepare(recipe, tmp_path / "data")
    (train,) = texts_of(prepared.train, prepared.tokenizer)
    (validation,) = texts_of(prepared.validation, prepared.tokenizer)
    assert train == text[: int(len(text) * 0.9)]
    assert validation == text[int(len(text) * 0.9) :]
    assert (len(train), len(validation)) == (1_003_854, 111_540)
    assert prepared.report["tokenizer"]["unknown"] == 0


def test_a_tail_over_files_and_rows_joins_them_with_line_feeds(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "b.txt").write_text("three\n")
    (tmp_path / "c.jsonl").write_text('{"text": "four"}\n{"text": "five"}\n')
    recipe = data(tmp_path, split="tail", validation_fraction=0.3, tokenizer="char", clean=None)
    prepared = prepare(recipe, tmp_path / "out" / "data")
    parts = [
        *texts_of(prepared.train, prepared.tokenizer),
        *texts_of(prepared.validation, prepared.tokenizer),
    ]
    assert "".join(parts) == "one\n\ntwo\nthree\nfour\nfive"
    assert len(parts) == 2


def test_each_document_is_held_out_in_one_fold_with_its_copies(tmp_path):
    given = [*stories(60), *stories(20)]
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in given)
    (tmp_path / "rows.jsonl").write_text(rows)
    held_out = []
    for fold in range(3):
        recipe = data(tmp_path / "rows.jsonl", folds=3, fold=fold, clean=None)
        prepared = prepare(recipe, tmp_path / f"fold-{fold}")
        train = list(texts_of(prepared.train, prepared.tokenizer))
        validation = list(texts_of(prepared.validation, prepared.tokenizer))
        assert sorted(train + validation) == sorted(given)
        assert not set(train) & set(validation)
        held_out += validation
        split = prepared.report["split"]
        assert (split["rule"], split["folds"], split["fold"], split["overlap"]["exact"]) == (
            "document",
            3,
            fold,
            0,
        )
    assert sorted(held_out) == sorted(given)


def test_the_folds_of_a_tail_are_pieces_and_the_rest_stays_in_two(tmp_path):
    letters = "".join(chr(ord("a") + i % 26) for i in range(100))
    rows = [letters[i : i + 9] for i in range(0, 100, 9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    whole = "\n".join(rows)
    cuts = [len(whole) * fold // 3 for fold in range(4)]
    for fold in range(3):
        recipe = data(tmp_path / "rows.jsonl", split="tail", folds=3, fold=fold, tokenizer="char", clean=None)
        prepared = prepare(recipe, tmp_path / f"fold-{fold}")
        first, last = cuts[fold : fold + 2]
        assert list(texts_of(prepared.validation, prepared.tokenizer)) == [whole[first:last]]
        rest = [text for text in (whole[:first], whole[last:]) if text]
        assert list(texts_of(prepared.train, prepared.tokenizer)) == rest
        assert prepared.report["split"]["rule"] == "tail"


def test_a_text_too_short_for_its_folds_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("few")
    with pytest.raises(DataError, match="too short to be cut into 5 folds"):
        prepare(data(tmp_path / "a.txt", split="tail", folds=5), tmp_path / "data")
    with pytest.raises(DataError, match="folds have no document to hold out"):
        prepare(data(tmp_path / "a.txt", folds=5), tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_one_document_says_to_take_the_tail(tmp_path):
    (tmp_path / "a.txt").write_text("only a few words")
    with pytest.raises(DataError, match=r"data\.split=tail"):
        prepare(data(tmp_path / "a.txt"), tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_when_nothing_is_left_the_error_says_why(source, tmp_path):
    with pytest.raises(DataError, match="200 by min_characters"):
        prepare(data(source, clean=CleanRecipe(min_characters=10_000)), tmp_path / "data")


def test_bad_rows_go_to_the_quarantine(source, tmp_path):
    with source.open("ab") as file:
        file.write(b'{"text": \n\xff\n{"text": "call 13812345678", "x": }\n')
    prepared = prepare(data(source, clean=CleanRecipe(mask_personal=True)), tmp_path / "data")
    rows = [json.loads(line) for line in (prepared.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["line"], row["kind"]) for row in rows] == [
        (201, "broken_json"),
        (202, "invalid_utf8"),
        (203, "broken_json"),
    ]
    assert "<PHONE>" in rows[2]["raw"]
    assert prepared.report["bad_rows"]["total"] == 3
    skipped = prepare(data(source, on_bad_row="skip"), tmp_path / "skipped")
    assert (skipped.folder / "quarantine.jsonl").read_bytes() == b""
    assert skipped.report["bad_rows"]["total"] == 3
    with pytest.raises(DataError, match="201"):
        prepare(data(source, on_bad_row="error"), tmp_path / "error")


def test_a_prepared_folder_as_a_source_is_opened_as_it_is(source, tmp_path):
    made = prepare(data(source), tmp_path / "data")
    again = prepare(data(made.folder), tmp_path / "other")
    assert again.folder == made.folder
    assert not (tmp_path / "other").exists()
    assert fingerprint_of(data(made.folder)).as_dict() == made.fingerprint
    assert fingerprint_of(data(source)).sha256 == made.fingerprint["sha256"]


def test_an_altered_folder_is_not_opened(source, tmp_path):
    made = prepare(data(source), tmp_path / "data")
    path = made.folder / "train-00000.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with pytest.raises(CheckpointError):
        Prepared(made.folder)


def test_a_trained_tokenizer_can_be_used_again(source, tmp_path):
    made = prepare(data(source), tmp_path / "data")
    again = prepare(data(source, tokenizer=str(made.folder)), tmp_path / "again")
    assert (again.folder / "train-00000.bin").read_bytes() == (made.folder / "train-00000.bin").read_bytes()


def test_a_stop_at_any_place_leaves_nothing(source, tmp_path):
    calls = 0

    def count():
        nonlocal calls
        calls += 1

    prepare(data(source), tmp_path / "whole", stop=count)
    assert calls >= 5
    for last in range(1, calls + 1):
        left = last

        def stop():
            nonlocal left
            left -= 1
            if left == 0:
                raise Stopped("stopped")

        with pytest.raises(Stopped):
            prepare(data(source), tmp_path / "data", stop=stop)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl", "whole"]


def test_progress_goes_through_the_stages(source, tmp_path):
    told = []
    prepare(data(source), tmp_path / "data", progress=lambda stage, share: told.append((stage, share)))
    assert list(dict.fromkeys(stage for stage, _ in told)) == ["hashing", "reading", "tokenizer", "tokens"]
    assert all(0.0 <= share <= 1.0 for _, share in told)
    for stage in ("reading", "tokenizer", "tokens"):
        shares = [share for name, share in told if name == stage]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


class Failing(FileSystem):
    """A disk that is full from the n-th write on."""

    def __init__(self, writes):
        self.writes = writes

    def write(self, file, given):
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(file, given)


def test_a_full_disk_at_any_write_leaves_what_was_there(source, tmp_path):
    before = content(prepare(data(source), tmp_path / "data").folder)
    counted = Failing(10**6)
    prepare(data(source, seed=1), tmp_path / "other", fs=counted)
    writes = 10**6 - counted.writes
    assert writes >= 6
    for number in range(writes):
        with pytest.raises(StorageError, match="bytes free"):
            prepare(data(source, seed=1), tmp_path / "data", fs=Failing(number))
        assert content(tmp_path / "data") == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    for name in ("luban.data.sifting.BATCH_CHARACTERS", "luban.data.spill.BATCH_CHARACTERS"):
        monkeypatch.setattr(name, 1 << 13)
    monkeypatch.setattr("luban.data.shards._BUFFER_TOKENS", 1 << 12)
    sizes = {}
    for count in (10, 60):
        with (tmp_path / f"{count}.jsonl").open("w") as file:
            for i in range(count):
                sizes[count] = (
                    file.write(json.dumps({"text": f"{i} " + f"{i:x} letters and words " * 250}) + "\n")
                    * count
                )

    def peak(count):
        tracemalloc.start()
        try:
            prepare(data(tmp_path / f"{count}.jsonl", tokenizer="char"), tmp_path / f"data{count}")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    prepare(data(tmp_path / "10.jsonl", tokenizer="char"), tmp_path / "first")
    assert peak(60) - peak(10) < 0.4 * (sizes[60] - sizes[10])
