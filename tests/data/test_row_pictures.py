"""Pictures come as the bytes that lie on the disk, with the class of their folder or the columns of their table."""

import gzip
import json
import os
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luban.data.bad_rows import BadRows
from luban.data.row_files import read_raw_rows, source_files_of
from luban.errors import DataError, InputError, LubanError


def read(source, policy="skip", columns=None, limit=10_000_000):
    bad = BadRows(policy)
    rows = list(read_raw_rows(str(source), "pictures", columns=columns, max_row_bytes=limit, bad=bad))
    return rows, bad.as_dict()


def counts(bad) -> dict[str, int]:
    return {kind: entry["count"] for kind, entry in bad["kinds"].items()}


def names_of(source) -> list[str]:
    return [file.name for file in source_files_of(str(source), "pictures")]


def idx_images(pictures: np.ndarray) -> bytes:
    return struct.pack(">4I", 0x803, *pictures.shape) + pictures.tobytes()


def idx_labels(labels: np.ndarray) -> bytes:
    return struct.pack(">2I", 0x801, len(labels)) + labels.tobytes()


@pytest.fixture
def digits(tmp_path):
    """The folder of MNIST in small: training pictures as they are, test pictures compressed."""
    draws = np.random.default_rng(0)
    sets = {}
    for name, count in (("train", 5), ("t10k", 3)):
        pictures = draws.integers(0, 256, (count, 4, 3), np.uint8)
        labels = draws.integers(0, 10, count, np.uint8)
        sets[name] = pictures, labels
        end, pack = ("", bytes) if name == "train" else (".gz", gzip.compress)
        (tmp_path / f"{name}-images-idx3-ubyte{end}").write_bytes(pack(idx_images(pictures)))
        (tmp_path / f"{name}-labels-idx1-ubyte{end}").write_bytes(pack(idx_labels(labels)))
    return tmp_path, sets


def test_a_folder_of_each_class(tmp_path):
    folder = tmp_path / "animals"
    for name in ("dog/b.JPG", "dog/a.png", "cat/c.webp", "cat/notes.txt", "cat/.hidden.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"bytes of " + name.encode())
    rows, bad = read(folder, policy="error")
    assert [row.values for row in rows] == [
        {"image": b"bytes of " + name.encode(), "path": name, "label": name[:3]}
        for name in ("cat/c.webp", "dog/a.png", "dog/b.JPG")
    ]
    assert [(row.file, row.line) for row in rows] == [("cat/c.webp", 1), ("dog/a.png", 1), ("dog/b.JPG", 1)]
    assert names_of(folder) == ["cat/c.webp", "dog/a.png", "dog/b.JPG"]
    assert counts(bad) == {"passed_over": 1}  # listed, and no policy stops at it
    assert bad["kinds"]["passed_over"]["examples"] == [
        {"file": "cat/notes.txt", "line": 0, "detail": ".txt is none of a picture's"}
    ]
    flat, _ = read(folder / "dog")
    assert [row.values for row in flat] == [
        {"image": b"bytes of dog/a.png", "path": "a.png"},
        {"image": b"bytes of dog/b.JPG", "path": "b.JPG"},
    ]
    assert read(folder / "dog" / "a.png")[0] == flat[:1]
    with pytest.raises(InputError, match="folders within") as caught:
        read(tmp_path)
    assert str(tmp_path / "animals") in str(caught.value.fix)


def test_bad_pictures_of_a_folder_are_counted(tmp_path):
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "good.png").write_bytes(b"x" * 10)
    (folder / "a" / "empty.png").write_bytes(b"")
    (folder / "a" / "large.png").write_bytes(b"x" * 11)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "a" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "b").symlink_to(tmp_path)
    os.mkfifo(folder / "a" / "pipe.png")
    rows, bad = read(folder, limit=10)
    assert [row.file for row in rows] == ["a/good.png"]
    assert counts(bad) == {"bad_picture": 1, "too_long": 1, "outside": 2, "no_file": 1}
    assert names_of(folder) == ["a/empty.png", "a/good.png", "a/large.png"]
    with pytest.raises(DataError):
        read(folder, policy="error", limit=10)


@pytest.mark.parametrize("format_", ["csv", "jsonl"])
def test_a_table_of_paths_reads_nothing_outside_its_folder(tmp_path, format_):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"a")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    paths = {
        "images/a.png": None,
        "../secret.png": "outside",
        "images/../../secret.png": "outside",
        str(tmp_path / "secret.png"): "outside",
        "/dev/zero": "outside",
        "link.png": "outside",
        "images": "no_file",
        "images/gone.png": "no_file",
        "x" * 5000: "no_file",
        "": "missing_value",
    }
    rows = [{"file": path, "label": number, "note": "n"} for number, path in enumerate(paths)]
    if format_ == "csv":
        lines = ["file,label,note", *(f"{r['file']},{r['label']},n" for r in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    table = folder / f"rows.{format_}"
    table.write_text("\n".join(lines))
    for source in (table, folder):
        found, bad = read(source)
        label = "0" if format_ == "csv" else 0
        assert [r.values for r in found] == [
            {"path": "images/a.png", "label": label, "note": "n", "image": b"a"}
        ]
        first = 2 if format_ == "csv" else 1
        assert [row.line for row in found] == [first]
        wrong = [kind for kind in paths.values() if kind]
        # Of a folder, the link itself is left out too.
        assert bad["total"] == len(wrong) + (source == folder)
        assert counts(bad)["outside"] == wrong.count("outside") + (source == folder)
        assert bad["kinds"]["outside"]["examples"][-1]["line"] == first + 5
        assert names_of(source) == [f"rows.{format_}", "images/a.png"]


def test_the_column_of_paths_can_be_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "rows.tsv").write_text("photo\tpath\na.png\telsewhere\n")
    rows, _ = read(tmp_path / "rows.tsv", columns=["photo"])
    assert rows[0].values == {"path": "elsewhere", "image": b"a"}
    assert names_of(tmp_path / "rows.tsv") == ["rows.tsv", "a.png"]
    (tmp_path / "rows.tsv").write_text("photo\tlabel\na.png\tx\n")
    with pytest.raises(DataError, match="no column"):
        read(tmp_path / "rows.tsv")
    with pytest.raises(DataError, match="no such column"):
        read(tmp_path / "rows.tsv", columns=["foto"])


def test_pictures_in_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "b.png").write_bytes(b"b")
    pictures = [
        {"bytes": b"a", "path": "a.png"},
        {"bytes": None, "path": "b.png"},
        {"bytes": None, "path": None},
        None,
    ]
    pq.write_table(pa.table({"image": pictures, "label": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    rows, bad = read(tmp_path / "a.parquet")
    assert [row.values for row in rows] == [
        {"path": "a.png", "label": 1, "image": b"a"},
        {"path": "b.png", "label": 2, "image": b"b"},
    ]
    assert [e["line"] for e in bad["kinds"]["missing_value"]["examples"]] == [3, 4]
    assert names_of(tmp_path / "a.parquet") == ["a.parquet", "b.png"]
    pq.write_table(pa.table({"image": [b"x", b"y"]}), tmp_path / "a.parquet")
    assert [row.values["image"] for row in read(tmp_path / "a.parquet")[0]] == [b"x", b"y"]


def test_several_tables_are_not_chosen_from(tmp_path):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("image\na.png\n")
    with pytest.raises(InputError, match="several tables"):
        read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no picture"):
        read(tmp_path / "empty")


def test_idx_files_give_back_pictures_and_labels(digits):
    folder, sets = digits
    for source, name in (
        (folder, "train"),
        (folder / "train-images-idx3-ubyte", "train"),
        (folder / "t10k-images-idx3-ubyte.gz", "t10k"),
        (folder / "t10k-images-idx3-ubyte", "t10k"),
    ):
        rows, bad = read(source, policy="error")
        pictures, labels = sets[name]
        assert np.array_equal([row.values["image"] for row in rows], pictures)
        assert [row.values["label"] for row in rows] == labels.tolist()
        assert [row.line for row in rows] == list(range(1, len(labels) + 1))
        assert counts(bad) == {}
        end = "" if name == "train" else ".gz"
        assert names_of(source) == [f"{name}-images-idx3-ubyte{end}", f"{name}-labels-idx1-ubyte{end}"]
    with pytest.raises(InputError, match="no picture") as caught:
        read(folder / "train-labels-idx1-ubyte")
    assert "name the file of pictures" in str(caught.value.fix)


def test_idx_pictures_without_labels_can_be_answered(digits):
    folder, _ = digits
    (folder / "train-labels-idx1-ubyte").unlink()
    rows, _ = read(folder / "train-images-idx3-ubyte")
    assert [set(row.values) for row in rows] == [{"image"}] * 5


def test_a_folder_of_two_idx_sets_without_a_training_set_is_asked_about(digits):
    folder, _ = digits
    for kind in ("images-idx3", "labels-idx1"):
        (folder / f"train-{kind}-ubyte").rename(folder / f"extra-{kind}-ubyte")
    with pytest.raises(InputError, match="several files of pictures"):
        read(folder)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        struct.pack(">4I", 0x803, 2**32 - 1, 2, 2) + bytes(8),
        struct.pack(">4I", 0x803, 2, 2**32 - 1, 2**32 - 1) + bytes(8),
        struct.pack(">4I", 0x803, 2, 3000, 3000) + bytes(8),
        struct.pack(">4I", 0x803, 2, 0, 2) + bytes(8),
        struct.pack(">4I", 0x804, 2, 2, 2) + bytes(8),
        struct.pack(">4I", 0x803, 2, 2, 2) + bytes(7),
        struct.pack(">4I", 0x803, 2, 2, 2) + bytes(9),
        struct.pack(">4I", 0x803, 3, 2, 2) + bytes(12),
    ],
    ids=["empty", "count", "size", "longer", "zero", "magic", "short", "long", "labels"],
)
def test_an_idx_header_that_lies_is_counted(tmp_path, raw):
    (tmp_path / "images-idx3-ubyte").write_bytes(raw)
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx_labels(np.zeros(2, np.uint8)))
    rows, bad = read(tmp_path)
    assert len(rows) <= 2
    assert bad["total"] == 1
    assert set(counts(bad)) <= {"corrupt_file", "too_long"}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_altered_of_an_idx_set_is_read_or_counted(tmp_path, data):
    raws = [
        bytearray(idx_images(np.ones((3, 2, 2), np.uint8))),
        bytearray(idx_labels(np.arange(3, dtype=np.uint8))),
    ]
    raw = raws[data.draw(st.integers(0, 1))]
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    for name, content in zip(("images-idx3-ubyte", "labels-idx1-ubyte"), raws, strict=True):
        (tmp_path / name).write_bytes(content)
    try:
        rows, bad = read(tmp_path)
    except LubanError:
        return
    assert len(rows) == 3 or bad["total"]
