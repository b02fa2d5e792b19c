"""Every kind of bad row on every task's way to data: what the report says of it, word by word, and where."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luban import tasks
from luban.data.pictures import encode_png
from luban.data.row_sets import PreparedRows
from luban.errors import DataError

Found = dict[tuple[int, str], str]
GOOD = 60
LINES = [f"{n},{20 + n},{['Rome', 'Oslo'][n % 2]},7,{['yes', 'no'][n % 3 == 0]}\n" for n in range(GOOD)]
TABLE = "id,age,town,same,target\n" + "".join(LINES)
TEXTS = [
    {"text": f"{['good', 'bad'][n % 2]} number {n}", "label": ["pos", "neg"][n % 2]} for n in range(GOOD)
]
PAIRS = "source\ttarget\n" + "".join(f"one {n}\tuna {n}\n" for n in range(GOOD))
TAGGED = "".join(f"Ann B-PER\nsaw O\n{n} O\n\n" for n in range(GOOD))


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def prepared(task: str, folder: Path, data: dict[str, Any], **contents: bytes) -> PreparedRows:
    """Prepare the rows of `contents`, a file `SPLIT_SUFFIX` each."""
    for name, content in contents.items():
        split, _, suffix = name.partition("_")
        path = folder / f"{split}.{suffix}"
        path.write_bytes(content)
        data = {**data, split: str(path)}
    kind = tasks.find(task)
    recipe = kind.recipe.model_validate({"task": task, "data": data, "train": {"steps": 1}})
    found = kind.prepare(recipe, folder / "data", stop=lambda: None, progress=lambda stage, share: None)
    assert isinstance(found, PreparedRows)
    return found


def left_out(data: PreparedRows) -> Found:
    """Return what the report says of each bad row: (line, kind) -> detail."""
    kinds = data.report["bad_rows"]["kinds"].items()
    return {
        (e["line"], kind): e["detail"]
        for kind, entry in kinds
        if entry["left_out"]
        for e in entry["examples"]
    }


def one_unknown_and_one_twice(data: PreparedRows) -> list[dict[str, str]]:
    """Return the notes of rows of which one that is held out has an unknown label, and one stands in training too."""
    held_out = sum(size["rows"] for split, size in data.sizes().items() if split != "train")
    unknown = (
        f"1 of {held_out + 1} held-out rows have a label that no training row has: they are left out, "
        "and figures flatter"
    )
    overlap = f"1 of {held_out} held-out rows stand in training too: figures flatter"
    return [{"kind": "unknown_label", "detail": unknown}, {"kind": "overlap", "detail": overlap}]


def test_of_a_table(tmp_path: Path) -> None:
    bad = (
        b"60,1,2\n"
        b"61,33,Rome,7,\n"
        b"62,44,Ro\0me,7,yes\n"
        b"63,5,Z\xfcrich,7,no\n"  # the rest of the file is UTF-8
        b"59,33,Rome,7,yes\n"
        b",33,Rome,7,yes\n"
        b"64,33," + b"x" * 10_000_000 + b",7,yes\n"
    )
    content = b"\xef\xbb\xbf" + (TABLE.encode() + bad).replace(b"\n", b"\r\n")
    data = prepared("tabular", tmp_path, {"id": "id"}, train_csv=content)
    assert left_out(data) == {
        (62, "wrong_columns"): "3 columns, there should be 5",
        (63, "missing_value"): "the row has no target",
        (64, "nul"): "a NUL character",
        (65, "invalid_utf8"): "character 2 of a value is not UTF-8",
        (66, "repeated_id"): "a row with the id '59' came before",
        (67, "missing_value"): "the row has no id",
        (68, "too_long"): "the line is longer than 10,000,000 bytes",
    }
    mended = data.report["bad_rows"]["kinds"]
    assert mended["bom"]["examples"][0]["detail"] == "the file starts with a byte-order mark; it was dropped"
    assert mended["crlf"]["examples"][0]["detail"] == "the row ends with CRLF"
    assert mended["crlf"]["count"] >= GOOD
    assert data.report["rows"] == GOOD
    (note,) = data.report["notes"]
    assert note == {"kind": "constant", "detail": "same is '7' in every training row: left out"}


def test_of_a_table_in_json(tmp_path: Path) -> None:
    rows = [
        {"age": 20 + n % 9, "town": ["Rome", "Oslo"][n % 2], "target": ["yes", "no"][n % 3 == 0]}
        for n in range(GOOD)
    ]
    del rows[5]["town"]  # missing, as an empty cell is
    rows[6]["remark"] = "read, as any other column"
    bad: list[dict[str, Any]] = [{"target": "yes"}, {"age": [1], "town": "Oslo", "target": "no"}, {"age": 9}]
    data = prepared("tabular", tmp_path, {}, train_jsonl=json_lines([*rows, *bad]))
    assert left_out(data) == {
        (61, "missing_column"): "the row has no age, town, remark",
        (62, "not_text"): "age is a list, not a cell of a table",
        (63, "missing_value"): "the row has no target",
    }
    assert data.report["rows"] == GOOD
    assert data.fitted.state["roles"]["target"] == "target"
    # Once trained, a row may lack what training rows lacked at times, and nothing else.
    assert {"remark", "town"} >= set(data.fitted.state["optional"]) >= {"remark"}


def test_of_a_table_whose_rows_end_in_different_columns_the_target_is_asked_for(tmp_path: Path) -> None:
    rows = [{"age": n, "town": "Oslo", **({} if n % 3 else {"left": "yes"})} for n in range(GOOD)]
    with pytest.raises(DataError) as stopped:
        prepared("tabular", tmp_path, {}, train_jsonl=json_lines(rows))
    assert stopped.value.message == "the target is not named, and the rows end in different columns"
    assert stopped.value.received == {"left": "20 rows", "town": "40 rows"}
    assert (stopped.value.where, stopped.value.fix) == ("data.target", "name it: data.target=COLUMN")


def test_of_texts(tmp_path: Path) -> None:
    bad = (
        b'{"text": "cut\n'
        b"[1, 2]\n"
        b'{"label": "pos"}\n'
        b'{"text": "", "label": "pos"}\n'
        b'{"text": 7, "label": "pos"}\n'
        b'{"text": "no label"}\n'
        b"\xff\xfe\n"
        b'{"text": "nul \\u0000", "label": "pos"}\n'
        b'{"text": "half \\ud800", "label": "pos"}\n'
        b'{"text": "' + b"x" * 10_000_000 + b'", "label": "pos"}\n'
    )
    held = [{"text": "good number 1", "label": "neutral"}, {"text": "bad number 1", "label": "neg"}]
    data = prepared(
        "text-classification",
        tmp_path,
        {},
        train_jsonl=json_lines(TEXTS) + bad,
        validation_jsonl=json_lines(held),
    )
    assert left_out(data) == {
        (61, "broken_json"): "Invalid control character at: line 1 column 14 (char 13)",
        (62, "not_an_object"): "the row is a list",
        (63, "missing_value"): "the row has no text",
        (64, "empty_row"): "the text is empty",
        (65, "not_text"): "a text is wanted; received '7'",
        (66, "missing_value"): "the row has no label",
        (67, "invalid_utf8"): "byte 1 of the line is not UTF-8",
        (68, "nul"): "a NUL character",
        (69, "invalid_utf8"): "character 6 of a value is not UTF-8",
        (70, "too_long"): "the line is longer than 10,000,000 bytes",
        (1, "unknown_label"): "no training row has the label 'neutral'",
    }
    assert data.report["notes"] == one_unknown_and_one_twice(data)


def test_of_pairs(tmp_path: Path) -> None:
    bad = b"\tempty source\nempty target\t\na\tb\tc\nalone\n  \tx\nca\xe9\tx\nn\0l\tx\n"
    data = prepared("translation", tmp_path, {"tokenizer": "char"}, train_tsv=PAIRS.encode() + bad)
    assert left_out(data) == {
        (62, "empty_row"): "the source is empty",
        (63, "empty_row"): "the target is empty",
        (64, "wrong_columns"): "3 columns, there should be 2",
        (65, "wrong_columns"): "1 columns, there should be 2",
        (66, "empty_row"): "the source is empty",
        (67, "invalid_utf8"): "character 3 of a value is not UTF-8",
        (68, "nul"): "a NUL character",
    }
    rows = [{"source": f"one {n}", "target": f"una {n}"} for n in range(GOOD)]
    tail = b'{"target": "x"}\n{"source": "x"}\n{"source": 7, "target": "x"}\n'
    (tmp_path / "json").mkdir()
    data = prepared(
        "translation", tmp_path / "json", {"tokenizer": "char"}, train_jsonl=json_lines(rows) + tail
    )
    assert left_out(data) == {
        (61, "missing_value"): "the row has no source",
        (62, "missing_value"): "the row has no target",
        (63, "not_text"): "the source is no text; received '7'",
    }


def test_of_tagged_sentences(tmp_path: Path) -> None:
    bad = b"Bob\nran O\n\nBob B-PER extra\nran O\n\ncaf\xe9 O\n\nZe\0d O\n\n"
    held = b"Ann B-PER\n\nZed B-LOC\n\n"
    data = prepared(
        "sequence-labelling", tmp_path, {}, train_conll=TAGGED.encode() + bad, validation_conll=held
    )
    assert left_out(data) == {
        (241, "wrong_columns"): "1 columns; there should be 2",
        (245, "wrong_columns"): "2 columns; there should be 3",
        (247, "invalid_utf8"): "byte 4 of the row is not UTF-8 (0xe9)",
        (249, "nul"): "a NUL byte",
        (3, "unknown_label"): "no training sentence has the tag 'B-LOC'",
    }
    rows = [{"tokens": ["Ann", str(n)], "tags": ["B-PER", "O"]} for n in range(GOOD)]
    tail: list[dict[str, Any]] = [
        {"tokens": ["a", "b"], "tags": ["O"]},
        {"tokens": [], "tags": []},
        {"tokens": "a b", "tags": "O O"},
        {"tokens": ["a"], "tags": [None]},
        {"tokens": ["a"]},
    ]
    (tmp_path / "json").mkdir()
    data = prepared("sequence-labelling", tmp_path / "json", {}, train_jsonl=json_lines([*rows, *tail]))
    assert left_out(data) == {
        (61, "unequal_lengths"): "2 tokens, but 1 tags",
        (62, "empty_row"): "the sentence has no tokens",
        (63, "bad_value"): "column 'tokens' holds str, not a list",
        (64, "not_text"): "column 'tags' has a tag that is neither text nor a whole number",
        (65, "missing_column"): "no column 'tags'; there are: tokens",
    }


def pictures(folder: Path, labels: str = "ab") -> str:
    """Write a picture for each good row, and the table that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(GOOD):
        shade = np.full((4, 4, 1), 4 * number, np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(shade))
        lines.append(f"n{number},{number}.png,{labels[number % len(labels)]}\n")
    return "name,path,label\n" + "".join(lines)


def test_of_pictures(tmp_path: Path) -> None:
    table = pictures(tmp_path)
    (tmp_path / "torn.png").write_bytes(encode_png(np.zeros((40, 40, 1), np.uint8))[:50])
    (tmp_path / "empty.png").write_bytes(b"")
    bad = (
        "n60,absent.png,a\n"
        "n61,../../etc/passwd,a\n"
        "n62,empty.png,a\n"
        "n63,torn.png,a\n"
        "n64,1.png,\n"
        "n59,1.png,b\n"
        ",1.png,b\n"
        "n65,1.png\n"
    )
    held = "name,path,label\nv1,1.png,b\nv2,2.png,c\n"
    data = prepared(
        "image-classification",
        tmp_path,
        {"id": "name", "workers": 1},
        train_csv=(table + bad).encode(),
        validation_csv=held.encode(),
    )
    found = left_out(data)
    # How the sentence ends is Pillow's.
    assert found.pop((65, "bad_picture")).startswith("torn.png: a PNG file, cut or damaged: ")
    assert found == {
        (3, "unknown_label"): "no training row has the label 'c'",
        (62, "no_file"): "there is no such file (No such file or directory)",
        (63, "outside"): "the path leads out of the table's folder",
        (64, "bad_picture"): "the file is empty",
        (66, "missing_value"): "the row has no label",
        (67, "repeated_id"): "a row with the name 'n59' came before",
        (68, "missing_value"): "the row has no name",
        (69, "wrong_columns"): "2 columns, there should be 3",
    }
    assert data.report["notes"] == one_unknown_and_one_twice(data)


ONE_CLASS = "there is one class only: nothing to tell apart"


@pytest.mark.parametrize(
    ("task", "content", "message", "received"),
    [
        (
            "text-classification",
            {"train_jsonl": json_lines([{**row, "label": "pos"} for row in TEXTS])},
            ONE_CLASS,
            "all 48 training rows have the label 'pos'",
        ),
        (
            "tabular",
            {"train_csv": TABLE.replace(",no\n", ",yes\n").encode()},
            ONE_CLASS,
            "all 48 training rows have the label 'yes'",
        ),
        (
            "sequence-labelling",
            {"train_conll": TAGGED.replace("B-PER", "O").encode()},
            "there are 1 different tags; two at least and 1000 at most can be told apart",
            ["O"],
        ),
    ],
)
def test_of_one_class_only_nothing_is_learned(
    tmp_path: Path, task: str, content: dict[str, bytes], message: str, received: Any
) -> None:
    with pytest.raises(DataError) as stopped:
        prepared(task, tmp_path, {}, **content)
    assert stopped.value.message == message
    assert (
        str(stopped.value.received).split(" training rows")[-1] == str(received).split(" training rows")[-1]
    )
    assert stopped.value.fix


def test_of_pictures_of_one_class_nothing_is_learned(tmp_path: Path) -> None:
    table = pictures(tmp_path, labels="a")
    with pytest.raises(DataError) as stopped:
        prepared("image-classification", tmp_path, {"workers": 1}, train_csv=table.encode())
    assert stopped.value.message == ONE_CLASS
    assert str(stopped.value.received).endswith("training rows have the label 'a'")


def test_by_policy_the_first_bad_picture_ends_the_run_or_is_kept_aside(tmp_path: Path) -> None:
    table = (pictures(tmp_path) + "n60,absent.png,a\n").encode()
    with pytest.raises(DataError) as stopped:
        prepared("image-classification", tmp_path, {"workers": 1, "on_bad_row": "error"}, train_csv=table)
    assert stopped.value.where == f"{tmp_path / 'train.csv'}:62"
    assert stopped.value.message.startswith("a bad row (no_file)")
    data = prepared("image-classification", tmp_path, {"workers": 1}, train_csv=table)
    (kept,) = map(json.loads, (data.folder / "quarantine.jsonl").read_text("utf-8").splitlines())
    assert (kept["file"], kept["line"], kept["kind"]) == ("train.csv", 62, "no_file")


@pytest.mark.parametrize(
    ("task", "content"),
    [
        ("text-classification", {"train_jsonl": json_lines(TEXTS) + b"{}\n"}),
        ("tabular", {"train_csv": TABLE.encode() + b"1\n"}),
        ("translation", {"train_tsv": PAIRS.encode() + b"alone\n"}),
        ("sequence-labelling", {"train_conll": TAGGED.encode() + b"alone\n\n"}),
    ],
)
def test_by_policy_the_first_ends_the_run_or_is_kept_aside(
    tmp_path: Path, task: str, content: dict[str, bytes]
) -> None:
    line = 241 if task == "sequence-labelling" else 61 if task == "text-classification" else 62
    (name,) = content
    file = name.replace("_", ".")
    with pytest.raises(DataError) as stopped:
        prepared(task, tmp_path, {"on_bad_row": "error"}, **content)
    assert stopped.value.where == f"{tmp_path / file}:{line}"
    assert stopped.value.message.startswith("a bad row (")
    assert str(stopped.value.fix).endswith("or leave such rows out with data.on_bad_row=quarantine")
    data = prepared(task, tmp_path, {"on_bad_row": "quarantine"}, **content)
    (kept,) = map(json.loads, (data.folder / "quarantine.jsonl").read_text("utf-8").splitlines())
    assert (kept["file"], kept["line"]) == (file, line)
