"""The split is stable under added data and never one-sided; fingerprints tell what changed."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.data.fingerprint import Fingerprint, describe_difference, fingerprint_of
from luban.data.split import DocumentFolds, DocumentSplit, draw, piece_of, tail_cut
from luban.errors import CheckpointError, DataError, InputError
from luban.text_recipe import TextData

digests = st.lists(st.binary(min_size=16, max_size=16), min_size=2, max_size=60, unique=True)


def sides(given_digests, fraction=0.3, seed=0):
    split = DocumentSplit(fraction, seed)
    for digest in given_digests:
        split.add(digest)
    return dict(zip(given_digests, split.sides().tolist(), strict=True)), split.forced


@given(digests, digests, st.randoms())
def test_added_documents_move_no_other_and_order_does_not_matter(first, more, random):
    before, forced = sides(first)
    together = list(dict.fromkeys(first + more))
    random.shuffle(together)
    after, forced_after = sides(together)
    if not forced and not forced_after:
        assert all(after[d] == side for d, side in before.items())
    assert {True, False} == set(after.values())


@given(digests, st.floats(0.001, 0.999), st.integers(0, 5))
def test_two_different_documents_are_enough_for_two_sides(given_digests, fraction, seed):
    found, forced = sides(given_digests, fraction, seed)
    assert {True, False} == set(found.values())
    natural = {d: draw(d, seed) < fraction for d in given_digests}
    assert sum(natural[d] != found[d] for d in given_digests) == forced


def test_the_share_is_near_the_fraction_and_seeds_differ():
    many = [i.to_bytes(16, "little") for i in range(20_000)]
    found, _ = sides(many, 0.1)
    assert sum(found.values()) / len(many) == pytest.approx(0.1, abs=0.008)
    assert found != sides(many, 0.1, seed=1)[0]


@pytest.mark.parametrize("given_digests", [[b"x" * 16], [b"x" * 16] * 3])
def test_one_document_is_an_error_that_names_the_tail(given_digests):
    split = DocumentSplit(0.5, 0)
    for digest in given_digests:
        split.add(digest)
    with pytest.raises(DataError, match=r"data\.split=tail"):
        split.sides()


def held_out(given_digests, folds, fold, seed=0):
    split = DocumentFolds(folds, fold, seed)
    for digest in given_digests:
        split.add(digest)
    return {digest for digest, out in zip(given_digests, split.sides().tolist(), strict=True) if out}


@given(st.integers(2, 8), st.integers(0, 5))
def test_a_document_is_in_one_fold_whatever_is_added_and_the_first_is_what_a_share_holds_out(folds, seed):
    many = [i.to_bytes(16, "little") for i in range(400)]
    parts = [held_out(many[:200] * 2, folds, fold, seed) for fold in range(folds)]
    assert sum(map(len, parts)) == 200 and set.union(*parts) == set(many[:200])
    for fold, part in enumerate(parts):
        assert held_out(many[::-1], folds, fold, seed) & set(many[:200]) == part
    assert parts[0] == {digest for digest, out in sides(many[:200], 1 / folds, seed)[0].items() if out}


@pytest.mark.parametrize("given_digests", [[], [b"x" * 16] * 3, [bytes([i]) * 16 for i in range(9)]])
def test_a_fold_without_a_document_is_told_in_every_fold(given_digests):
    for fold in (0, 7):
        with pytest.raises(DataError, match="of 20 folds have no document") as empty:
            held_out(given_digests, 20, fold)
        assert empty.value.received == f"different documents: {len(set(given_digests))}"


@given(st.integers(2, 100), st.integers(0, 10**9))
def test_pieces_follow_each_other_and_are_equal_to_the_character(folds, characters):
    if characters < folds:
        with pytest.raises(DataError, match="too short"):
            piece_of(characters, folds, 0)
        return
    pieces = [piece_of(characters, folds, fold) for fold in range(folds)]
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == characters
    assert {len(piece) for piece in pieces} <= {characters // folds, characters // folds + 1}


@given(st.integers(100, 10**9))
def test_the_tail_is_cut_where_nanogpt_cuts(characters):
    assert tail_cut(characters, 0.1) == int(characters * 0.9)
    assert tail_cut(characters, 0.3) == int(characters * 0.7)
    assert tail_cut(characters, 0.05) == int(characters * 0.95)


def test_a_tail_of_nothing_is_an_error():
    with pytest.raises(DataError):
        tail_cut(1, 0.5)
    with pytest.raises(DataError):
        tail_cut(5, 0.99)


@pytest.fixture
def recipe(tmp_path: Path) -> TextData:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("one")
    (tmp_path / "source" / "b.txt").write_text("two")
    return TextData(source=str(tmp_path / "source"))


def test_a_fingerprint_comes_back_from_json_and_does_not_move_with_its_folder(recipe, tmp_path):
    found = fingerprint_of(recipe)
    again = Fingerprint.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again == found
    moved = (tmp_path / "source").rename(tmp_path / "elsewhere")
    there = fingerprint_of(recipe.model_copy(update={"source": str(moved), "workers": 3, "length": 64}))
    assert there.sha256 == found.sha256
    assert describe_difference(found, there) == ""


def test_every_change_is_named_with_what_was_and_what_is(recipe, tmp_path):
    old = fingerprint_of(recipe)
    (tmp_path / "source" / "a.txt").write_text("other")
    (tmp_path / "source" / "b.txt").unlink()
    (tmp_path / "source" / "c.txt").write_text("three")
    clean = recipe.clean.model_copy(update={"unicode": "NFKC"})
    new = fingerprint_of(recipe.model_copy(update={"clean": clean, "seed": 7}))
    text = describe_difference(old, new)
    assert old.sha256 != new.sha256
    assert "a.txt (source) changed: was 3 bytes" in text
    assert "is 5 bytes" in text
    assert "b.txt (source) removed" in text
    assert "c.txt (source) added" in text
    assert 'data.clean.unicode: was "NFC"; is "NFKC"' in text
    assert "data.seed: was 0; is 7" in text
    assert len(text.splitlines()) == 5
    without = fingerprint_of(recipe.model_copy(update={"clean": None}))
    assert "data.clean: was absent; is null" in describe_difference(new, without)


def test_every_setting_that_shapes_the_data_is_in_the_fingerprint(recipe):
    matters = set(fingerprint_of(recipe).settings)
    elsewhere = {"source", "validation", "length", "short_steps", "attention", "workers"}
    assert matters == set(TextData.model_fields) - elsewhere - {"folds", "fold"}
    folds = [recipe.model_copy(update={"folds": 2, "fold": fold}) for fold in (0, 1)]
    assert set(fingerprint_of(folds[0]).settings) == set(TextData.model_fields) - elsewhere
    assert len({fingerprint_of(one).sha256 for one in (recipe, *folds)}) == 3


def test_the_order_of_files_counts(recipe, tmp_path):
    names = [str(tmp_path / "source" / name) for name in ("a.txt", "b.txt")]
    old = fingerprint_of(recipe.model_copy(update={"source": names}))
    new = fingerprint_of(recipe.model_copy(update={"source": names[::-1]}))
    assert old.sha256 != new.sha256
    assert "order" in describe_difference(old, new)


def test_an_altered_fingerprint_and_an_absent_tokenizer_are_errors(recipe):
    value = fingerprint_of(recipe).as_dict()
    with pytest.raises(CheckpointError):
        Fingerprint.from_dict({**value, "steps": 99})
    with pytest.raises(CheckpointError):
        Fingerprint.from_dict({"files": 3})
    with pytest.raises(InputError):
        fingerprint_of(recipe.model_copy(update={"tokenizer": "nowhere"}))
