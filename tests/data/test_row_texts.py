"""Texts with labels, tagged sentences and pairs: what is read, what is refused, and where it stood."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luban.data.bad_rows import BadRows
from luban.data.row_files import RawRow, read_raw_rows, source_files_of
from luban.errors import DataError, InputError, LubanError


def read(source, layout, policy="skip", columns=None, limit=10_000_000):
    bad = BadRows(policy)
    source = [str(one) for one in source] if isinstance(source, list) else str(source)
    rows = list(read_raw_rows(source, layout, columns=columns, max_row_bytes=limit, bad=bad))
    return rows, bad.as_dict()


def counts(bad) -> dict[str, int]:
    return {kind: entry["count"] for kind, entry in bad["kinds"].items()}


def lines(bad) -> dict[str, list[int]]:
    return {kind: [e["line"] for e in entry["examples"]] for kind, entry in bad["kinds"].items()}


# Texts with labels.


def test_a_folder_of_each_class_of_texts(tmp_path):
    texts = {
        "neg/1.txt": "dull\r\nand cold\n",
        "neg/2.txt": " \n",
        "pos/1.txt": "\ufeffwarm",
        "urls.txt": "http://",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "pos" / "2.txt").write_bytes(b"\xff")
    (tmp_path / "pos" / "notes.md").write_bytes(b"of no class")
    (tmp_path / "pos" / "3.txt").write_bytes(b"x" * 200)
    (tmp_path / "pos" / "4.txt.gz").write_bytes(gzip.compress(b"packed"))
    rows, bad = read(tmp_path, "texts", limit=100)
    assert rows == [
        RawRow({"text": "dull\nand cold\n", "label": "neg"}, "neg/1.txt", 1),
        RawRow({"text": "warm", "label": "pos"}, "pos/1.txt", 1),
        RawRow({"text": "packed", "label": "pos"}, "pos/4.txt.gz", 1),
    ]
    assert counts(bad) == {
        "crlf": 1,
        "bom": 1,
        "empty_row": 1,
        "invalid_utf8": 1,
        "too_long": 1,
        "passed_over": 2,
    }
    (tmp_path / "a.csv").write_text("text,label\nx,y\n")
    with pytest.raises(InputError, match="tables, and folders with texts"):
        read(tmp_path, "texts")


def test_lines_of_fasttext(tmp_path):
    path = tmp_path / "cooking.train"
    path.write_text(
        "__label__sauce How much?\n\n__label__a  __label__b Both\nnone\n__label__x\n", encoding="utf-8"
    )
    rows, bad = read(path, "texts")
    assert rows == [
        RawRow({"text": "How much?", "label": "sauce"}, "cooking.train", 1),
        RawRow({"text": "Both", "label": ["a", "b"]}, "cooking.train", 3),
    ]
    assert lines(bad) == {"blank_line": [2], "missing_value": [4], "empty_row": [5]}
    path.write_text("a text\t3\n")
    with pytest.raises(DataError, match="does not say its label") as caught:
        read(path, "texts")
    assert "__label__NAME" in str(caught.value.fix)


def test_a_table_of_texts_has_all_its_columns(tmp_path):
    (tmp_path / "a.tsv").write_text("label\ttext\tlength\n1\tone\t3\n")
    assert read(tmp_path / "a.tsv", "texts")[0][0].values == {"label": "1", "text": "one", "length": "3"}
    (tmp_path / "b.csv").write_text('"3","Fears","Unions say"\n')
    assert read(tmp_path / "b.csv", "texts", columns=["label", "title", "text"])[0][0].values == {
        "label": "3",
        "title": "Fears",
        "text": "Unions say",
    }


# Tagged sentences.

WORD = st.text(st.characters(blacklist_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=6)
SENTENCES = st.lists(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sentences=SENTENCES,
    separator=st.sampled_from(["\t", " "]),
    middle=st.booleans(),
    end=st.sampled_from(["", "\n"]),
)
def test_sentences_read_back_as_they_were_written(tmp_path, sentences, separator, middle, end):
    path = tmp_path / "a.conll"
    between = [["x", "y"]] if middle else [[]]
    blocks = [
        "\n".join(separator.join([token, *between[0], tag]) for token, tag in sentence)
        for sentence in sentences
    ]
    path.write_bytes(("\n\n".join(blocks) + end).encode())
    rows, bad = read(path, "tagged", policy="error")
    assert [list(zip(row.values["tokens"], row.values["tags"], strict=True)) for row in rows] == sentences
    starts = [1 + sum(len(sentence) + 1 for sentence in sentences[:at]) for at in range(len(sentences))]
    assert [row.line for row in rows] == starts
    assert counts(bad) == {}


def test_conll_2003_with_documents_comments_and_bad_lines(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(
        b"-DOCSTART- -X- -X- O\n\n"  # 1
        b"EU NNP B-NP B-ORG\r\nrejects VBZ B-VP O\n\n"  # 3
        b"# id 7 a comment here\n# O O O\n. . O O\n\n"  # 6
        b"Peter NNP B-NP B-PER\nBlackburn\n\n"  # 10
        b"Br\xe9 NNP B-NP O\nx x x O\n\n"  # 13
        b"a a a O\nb b O\n\n"  # 16
        b"y" + b"y" * 100 + b" x x O\nz z z O\n\n"  # 19
        b"\xe3\x80\x80 x x O\n"  # 22: an ideographic space
    )
    rows, bad = read(path, "tagged", limit=90)
    assert rows == [
        RawRow({"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, "train.txt", 3),
        RawRow({"tokens": ["#", "."], "tags": ["O", "O"]}, "train.txt", 7),
    ]
    assert lines(bad) == {
        "crlf": [3],
        "comment": [6],
        "wrong_columns": [11, 17],
        "invalid_utf8": [13],
        "too_long": [19],
        "missing_value": [22],
    }
    assert read(path, "tagged", columns=["0", "1"], limit=90)[0][0].values["tags"] == ["NNP", "VBZ"]
    with pytest.raises(InputError, match="two columns without names"):
        read(path, "tagged", columns=["token", "tag"])


def test_a_sentence_of_another_width_is_noted_unless_its_columns_are_named(tmp_path):
    (tmp_path / "a.conll").write_text("x O\ny O\n\nBonn is a B-LOC\n\nz O\n")
    rows, bad = read(tmp_path / "a.conll", "tagged")
    assert [row.line for row in rows] == [1, 4, 6] and lines(bad) == {"width": [4]}
    assert counts(read(tmp_path / "a.conll", "tagged", columns=["0", "-1"])[1]) == {}


def test_a_sentence_without_end_is_not_held(tmp_path):
    (tmp_path / "a.bmes").write_text("字 O\n" * 1000 + "\n字 O\n")
    rows, bad = read(tmp_path / "a.bmes", "tagged", limit=1000)
    assert [row.line for row in rows] == [1002]
    assert counts(bad) == {"too_long": 1}


def test_sentences_in_tables(tmp_path):
    sentences = [
        {"id": 1, "tokens": ["a", "b"], "ner_tags": [0, 3]},
        {"tokens": ["a"], "ner_tags": ["O", "O"]},
        {"tokens": [], "ner_tags": []},
        {"tokens": "a", "ner_tags": "O"},
        {"tokens": [""], "ner_tags": ["O"]},
        {"tokens": ["a"], "ner_tags": [0.5]},
        {"tokens": ["a"]},
        {"tokens": ["c"], "ner_tags": ["O"]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, sentences)))
    rows, bad = read(tmp_path / "a.jsonl", "tagged")
    assert rows == [
        RawRow({"id": 1, "tokens": ["a", "b"], "tags": ["0", "3"]}, "a.jsonl", 1),
        RawRow({"tokens": ["c"], "tags": ["O"]}, "a.jsonl", 8),
    ]
    assert lines(bad) == {
        "unequal_lengths": [2],
        "empty_row": [3],
        "bad_value": [4],
        "missing_value": [5],
        "not_text": [6],
        "missing_column": [7],
    }
    (tmp_path / "b.jsonl").write_text('{"mots": ["a"], "etiquettes": ["O"]}\n')
    assert len(read(tmp_path / "b.jsonl", "tagged", columns=["mots", "etiquettes"])[0]) == 1
    with pytest.raises(DataError, match="no such column"):
        read(tmp_path / "b.jsonl", "tagged")


# Pairs.


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_two_texts_go_together_line_by_line(tmp_path, suffix):
    one = b"eins\nzwei\r\n\ndrei\n\nf\xfcnf\n" + b"x" * 200 + b"\nacht"
    two = b"one\ntwo\nno\nthree\n\nfive\nseven\neight\n"
    pack = gzip.compress if suffix else bytes
    source = [tmp_path / f"a.de{suffix}", tmp_path / f"a.en{suffix}"]
    for path, text in zip(source, (one, two), strict=True):
        path.write_bytes(pack(text))
    rows, bad = read(source, "pairs", limit=100)
    assert [(row.values["source"], row.values["target"], row.line) for row in rows] == [
        ("eins", "one", 1),
        ("zwei", "two", 2),
        ("drei", "three", 4),
        ("acht", "eight", 8),
    ]
    assert {row.file for row in rows} == {f"a.de{suffix}"}
    assert lines(bad) == {
        "crlf": [2],
        "empty_row": [3],
        "blank_line": [5],
        "invalid_utf8": [6],
        "too_long": [7],
    }
    assert [f.name for f in source_files_of([str(path) for path in source], "pairs")] == [
        p.name for p in source
    ]


def test_texts_of_unequal_length_are_refused_with_both_lengths(tmp_path):
    (tmp_path / "a.de").write_text("eins\nzwei\ndrei")
    (tmp_path / "a.en").write_text("one\ntwo\n")
    source = [tmp_path / "a.de", tmp_path / "a.en"]
    with pytest.raises(DataError, match="unequal numbers of lines") as caught:
        read(source, "pairs")
    assert "3 in" in str(caught.value.received)
    assert "2 in" in str(caught.value.received)
    for wrong in (source[:1], [*source, source[0].with_suffix(".fr")]):
        wrong[-1].touch()
        with pytest.raises(InputError, match="two files"):
            read(wrong, "pairs")


def test_pairs_in_tables(tmp_path):
    (tmp_path / "a.tsv").write_text("target\tsource\tnote\nHi\t嗨\tx\n\t走\tx\n")
    rows, bad = read(tmp_path / "a.tsv", "pairs")
    assert [row.values for row in rows] == [
        {"target": "Hi", "source": "嗨", "note": "x"},
        {"target": "", "source": "走", "note": "x"},  # what a pair is, the task says
    ]
    assert lines(bad) == {}
    (tmp_path / "b.tsv").write_text("Hi\t嗨\n")
    assert read(tmp_path / "b.tsv", "pairs", columns=["en", "zh"])[0][0].values == {"en": "Hi", "zh": "嗨"}
    assert read(tmp_path / "b.tsv", "pairs", columns=["1", "0"])[0][0].values == {"0": "Hi", "1": "嗨"}


# Hostile bytes.

CASES = {
    "a.conll": ("tagged", b"A\tO\nB\tB-X\n\nC\tO\n"),
    "b.txt": ("texts", b"__label__a one\n__label__b two\n"),
    "c.tsv": ("pairs", b"source\ttarget\none\t\xe4\xb8\x80\ntwo\t\xe4\xba\x8c\n"),
    "d.jsonl": ("tagged", b'{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["b", "c"], "tags": ["O", "O"]}\n'),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_altered_is_read_or_counted(tmp_path, name, data):
    layout, content = CASES[name]
    raw = bytearray(content)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (tmp_path / name).write_bytes(raw)
    try:
        rows, bad = read(tmp_path / name, layout)
    except LubanError:
        return
    assert rows or bad["total"]
    for row in rows:
        json.dumps(row.values).encode()


# Real files, with the counts that their papers give.


def test_real_sentences_and_pairs(shared_data: Path):
    for split, count in (("train", 3394), ("dev", 1009), ("test", 1287)):
        rows, bad = read(shared_data / "wnut17-ner" / f"{split}.conll.gz", "tagged")
        assert len(rows) == count
        assert bad["total"] == 0
    rows, _ = read(shared_data / "resume-ner-zh" / "dev.char.bmes.gz", "tagged")
    assert len(rows) == 463
    rows, bad = read(shared_data / "tatoeba-en-zh" / "test.tsv.gz", "pairs", columns=["0", "1"])
    assert len(rows) == 1394
    assert bad["total"] == 0
    val = [shared_data / "multi30k" / f"val.{language}.gz" for language in ("en", "de")]
    assert len(read(val, "pairs")[0]) == 1014
