"""Reading: every format gives the same rows, memory is bounded, and every kind of bad row is met and
placed."""

import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pytest

from luban.data.bad_rows import BadRows
from luban.data.reading import read_rows
from luban.data.sources import CorruptStream, SourceFile, find_files, open_bytes
from luban.errors import DataError, InputError

TEXTS = [
    "plain words",
    "中文，标点。",
    "emoji 👩‍👩‍👧 🎉",
    'quotes " and, commas\tand tabs',
    "two\nlines",
    "code: if x:\n\treturn {}",
]


def read(path, policy="skip", **options):
    bad = BadRows(policy)
    rows = list(read_rows(find_files(str(path)), bad=bad, **options))
    return rows, bad.as_dict()


def compressed(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])
    if suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        one = zstandard.ZstdCompressor().compress
        return one(data[: len(data) // 2]) + one(data[len(data) // 2 :])
    return data


def written(format_: str) -> bytes:
    if format_ == "jsonl":
        return "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(TEXTS)).encode()
    if format_ in ("csv", "tsv"):
        out = io.StringIO()
        writer = csv.writer(out, delimiter="," if format_ == "csv" else "\t", lineterminator="\n")
        writer.writerows([["id", "text"], *([i, t] for i, t in enumerate(TEXTS))])
        return out.getvalue().encode()
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), sink)
    return sink.getvalue()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("format_", ["jsonl", "csv", "tsv", "parquet"])
def test_every_table_gives_its_rows_back(tmp_path, format_, suffix):
    path = tmp_path / f"rows.{format_}{suffix}"
    path.write_bytes(compressed(written(format_), suffix))
    rows, bad = read(path)
    assert [row.text for row in rows] == TEXTS
    assert bad["total"] == 0


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_plain_text_is_the_same_read_as_lines_file_or_passages(tmp_path, suffix):
    text = "".join(f"line {i} 中文 of a running text\n" + "\n" * (i % 3 == 0) for i in range(2000))
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compressed(text.encode(), suffix))
    assert [row.text for row in read(path, document="file")[0]] == [text]
    assert "".join(row.text for row in read(path, document="passage")[0]) == text
    assert [row.text for row in read(path, document="line")[0]] == [x for x in text.split("\n") if x]
    numbered = text.split("\n")
    for row in read(path, document="auto")[0]:
        assert numbered[row.line - 1].startswith(row.text.split("\n")[0])


def test_auto_takes_many_small_files_whole(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"file {i}\n\n" + "a paragraph of words\n\n" * 400)
    rows, _ = read(tmp_path)
    assert [row.file for row in rows] == [f"{i:02}.txt" for i in range(20)]
    assert len(read(tmp_path / "00.txt")[0]) > 1


def test_a_saved_datasets_folder_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(str(tmp_path / "d"))
    assert [row.text for row in read(tmp_path / "d")[0]] == TEXTS
    assert [row.text for row in read(tmp_path / "d" / "test")[0]] == TEXTS[:1]


BAD_LINES = {
    "invalid_utf8": b'{"text": "caf\xe9"}',
    "nul": b'{"text": "a\\u0000b"}',
    "broken_json": b'{"text": "no end',
    "not_an_object": b'["text"]',
    "missing_column": b'{"txt": "x"}',
    "not_text": b'{"text": 5}',
    "too_long": b'{"text": "' + b"x" * 300 + b'"}',
    "empty_row": b'{"text": "  "}',
}


def test_every_bad_json_line_is_counted_with_its_place(tmp_path):
    path = tmp_path / "bad.jsonl"
    lines = [b'{"text": "first"}', *BAD_LINES.values(), b'{"text": "last"}']
    path.write_bytes(b"\n".join(lines))
    rows, bad = read(path, max_row_bytes=200)
    assert [row.text for row in rows] == ["first", "last"]
    assert [row.line for row in rows] == [1, len(lines)]
    for line, kind in enumerate(BAD_LINES, 2):
        assert bad["kinds"][kind]["count"] == 1
        assert bad["kinds"][kind]["examples"][0] | {"detail": ""} == {
            "file": "bad.jsonl",
            "line": line,
            "detail": "",
        }
    assert bad["total"] == len(BAD_LINES)


@pytest.mark.parametrize("kind", BAD_LINES)
def test_the_policy_error_stops_at_the_row_and_says_how_to_mend_it(tmp_path, kind):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "first"}\n' + BAD_LINES[kind] + b'\n{"text": "last"}\n')
    with pytest.raises(DataError) as caught:
        read(path, "error", max_row_bytes=200)
    assert caught.value.where == f"{path}:2"
    assert kind in caught.value.message
    assert "data.on_bad_row" in str(caught.value.fix)


def test_a_lone_surrogate_is_a_bad_row(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a\\ud800"}\n{"text": "\\ud83d\\ude00"}\n')
    rows, bad = read(path)
    assert [row.text for row in rows] == ["😀"]
    assert bad["kinds"]["invalid_utf8"]["count"] == 1


def test_quarantine_hands_over_the_clipped_row(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\xff\xfe' + b"y" * 5000 + b"\n")
    kept = []
    list(read_rows(find_files(str(path)), bad=BadRows("quarantine", kept.append)))
    assert kept[0] | {"raw": "", "detail": ""} == {
        "file": "bad.jsonl",
        "line": 2,
        "kind": "invalid_utf8",
        "detail": "",
        "raw": "",
    }
    assert kept[0]["raw"].startswith("\\xff\\xfeyy")
    assert len(kept[0]["raw"]) < 600
    json.dumps(kept[0]).encode()


def test_bom_and_line_ends_are_mended_whatever_the_policy(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    rows, bad = read(tmp_path / "a.txt", "error")
    assert "".join(row.text for row in rows) == (tmp_path / "a.txt").open(encoding="utf-8-sig").read()
    assert bad["total"] == 0
    assert bad["kinds"]["bom"]["count"] == 1
    assert bad["kinds"]["crlf"]["count"] == 2


def test_bad_csv_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,one\n2,two,three\n3,"in\nside"\n4,\xff\n5,"a\x00"\n\n6,six\n7,"no end')
    rows, bad = read(path)
    assert [(row.text, row.line) for row in rows] == [("one", 2), ("in\nside", 4), ("six", 9)]
    assert bad["kinds"]["wrong_columns"]["examples"][0]["line"] == 3
    assert bad["kinds"]["invalid_utf8"]["examples"][0]["line"] == 6
    assert bad["kinds"]["nul"]["examples"][0]["line"] == 7
    assert bad["kinds"]["blank_line"]["count"] == 1


def test_a_stray_quote_costs_its_line_and_no_other(tmp_path):
    after = "".join(f"{number},line {number}\n" for number in range(2, 50))
    (tmp_path / "a.csv").write_text(f'id,text\n1,"no end\n{after}')
    rows, bad = read(tmp_path / "a.csv")
    assert [(row.text, row.line) for row in rows] == [(f"line {n}", n + 1) for n in range(2, 50)]
    assert bad["total"] == 1
    assert bad["kinds"]["wrong_columns"]["examples"][0]["line"] == 2
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"no end\n2\tline 2\n')
    rows, bad = read(tmp_path / "a.tsv")
    assert [(row.text, row.line) for row in rows] == [('"no end', 2), ("line 2", 3)]
    assert bad["total"] == 0


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_than_a_comma_is_seen(tmp_path, separator):
    (tmp_path / "a.csv").write_text(f'id{separator}text\n1{separator}"one, or so"\n')
    rows, bad = read(tmp_path / "a.csv")
    assert [(row.text, row.line) for row in rows] == [("one, or so", 2)]
    assert bad["kinds"]["separator"]["count"] == 1 and bad["total"] == 0


@pytest.mark.parametrize("is_file", [True, False])
def test_an_arrow_file_is_read_as_its_stream(tmp_path, is_file):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS})
    write = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, write(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    rows, bad = read(tmp_path / "a.arrow")
    assert [(row.text, row.line) for row in rows] == list(zip(TEXTS, range(1, 7), strict=True))
    assert bad["total"] == 0


@pytest.mark.parametrize("policy", ["line", "passage"])
def test_a_bad_line_of_plain_text_costs_only_itself(tmp_path, policy):
    (tmp_path / "a.txt").write_bytes(b"one\n\xd6\xd0\xce\xc4\ntwo\nnul\0\nthree")
    rows, bad = read(tmp_path / "a.txt", document=policy)
    assert "\n".join(row.text for row in rows).replace("\n\n", "\n") == "one\ntwo\nthree"
    assert bad["kinds"]["invalid_utf8"]["examples"][0]["line"] == 2
    assert bad["kinds"]["nul"]["examples"][0]["line"] == 4


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz", "a.txt.zst"])
def test_an_empty_file_is_listed(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    rows, bad = read(tmp_path / name)
    assert rows == []
    assert bad["kinds"]["empty_file"]["examples"][0]["file"] == name


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("harm", ["cut", "altered"])
def test_a_corrupt_file_is_one_bad_row_and_what_came_before_stays(tmp_path, suffix, harm):
    import random

    words = random.Random(0)
    data = "".join(json.dumps({"text": str(words.random())}) + "\n" for _ in range(20000)).encode()
    packed = bytearray(compressed(data, suffix))
    if harm == "cut":
        packed = packed[:-100]
    else:
        packed[-5000:-4900] = bytes(100)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed)
    rows, bad = read(tmp_path / f"a.jsonl{suffix}")
    assert bad["kinds"]["corrupt_file"]["count"] == 1
    assert len(rows) > 5000


def test_a_corrupt_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(written("parquet")[:-20])
    (tmp_path / "b.parquet").write_bytes(written("parquet"))
    rows, bad = read(tmp_path)
    assert [row.file for row in rows] == ["b.parquet"] * len(TEXTS)
    assert bad["kinds"]["corrupt_file"]["examples"][0]["file"] == "a.parquet"


def test_invalid_utf8_in_parquet_costs_one_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    values = pa.array([b"one", b"\xff", b"three", None]).view(pa.string())
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    rows, bad = read(tmp_path)
    assert [(row.text, row.line) for row in rows] == [("one", 1), ("three", 3)]
    assert bad["kinds"]["invalid_utf8"]["examples"][0]["line"] == 2
    assert bad["kinds"]["not_text"]["examples"][0]["line"] == 4


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
def test_a_missing_column_lists_those_there_are(tmp_path, format_):
    path = tmp_path / f"rows.{format_}"
    path.write_bytes(written(format_))
    with pytest.raises(DataError) as caught:
        read(path, column="txet")
    assert "data.text=text" in str(caught.value.fix)
    assert "id" in str(caught.value.fix)


class Zeros(io.RawIOBase):
    """A very long line that is nowhere held."""

    def __init__(self, size, pattern=b"abc def "):
        self.left, self.pattern = size, pattern

    def readable(self):
        return True

    def readinto(self, buffer):
        size = min(len(buffer), self.left)
        buffer[:size] = (self.pattern * (size // len(self.pattern) + 1))[:size]
        self.left -= size
        return size


@pytest.mark.parametrize(
    "case",
    [("a.txt", "passage"), ("a.txt", "line"), ("a.txt", "file"), ("a.jsonl", "auto"), ("a.csv", "auto")],
)
def test_memory_is_bounded_for_a_line_of_any_length(monkeypatch, tmp_path, case):
    name, policy = case
    format_ = {"txt": "text"}.get(name[2:], name[2:])
    monkeypatch.setattr(
        "luban.data.rows.open_bytes", lambda file, seen: io.BufferedReader(Zeros(40_000_000), 1 << 17)
    )
    bad = BadRows("skip")
    file = SourceFile(tmp_path / name, name, format_)
    tracemalloc.start()
    try:
        for _ in read_rows([file], document=policy, max_row_bytes=1_000_000, bad=bad):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000
    kinds = bad.as_dict()["kinds"]
    assert kinds["long_line" if policy == "passage" else "too_long"]["count"] == 1


def test_memory_is_bounded_for_a_file_that_unpacks_to_very_much(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    data = b"\n" * 100_000_000
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(data, 1))
    (tmp_path / "a.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(data))
    del data
    for file in find_files(str(tmp_path)):
        tracemalloc.start()
        size = 0
        with open_bytes(file) as stream:
            while block := stream.read(1 << 16):
                size += len(block)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size == 100_000_000
        assert peak < 20_000_000


def test_a_long_line_keeps_every_character(tmp_path):
    text = "汉字和 English words。" * 20000
    path = tmp_path / "a.txt"
    path.write_text(text + "\r\n" + "tail\n", newline="")
    rows, bad = read(path, max_row_bytes=100_000)
    assert "".join(row.text for row in rows) == text + "\ntail\n"
    assert bad["kinds"]["long_line"]["count"] == 1


def test_sources_are_found_in_order_and_named_relative(tmp_path):
    for name in ["b/two.txt", "a.txt.gz", "b/.hidden.txt", ".git/x.txt", "README.md", "c.bin", "z.jsonl"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [f.name for f in find_files(str(tmp_path))] == ["a.txt.gz", "z.jsonl", "b/two.txt"]
    assert [f.name for f in find_files(str(tmp_path / "**" / "*.txt"))] == ["b/two.txt"]
    assert [f.name for f in find_files([str(tmp_path / "b"), str(tmp_path / "z.jsonl")])] == [
        "b/two.txt",
        "z.jsonl",
    ]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert [f.name for f in find_files(str(moved))] == ["a.txt.gz", "z.jsonl", "b/two.txt"]


def test_sources_that_are_not_there(tmp_path):
    (tmp_path / "corpus.txt").write_text("x")
    with pytest.raises(InputError, match=r"corpus\.txt") as caught:
        find_files(str(tmp_path / "corpsu.txt"))
    assert "did you mean" in str(caught.value)
    with pytest.raises(InputError):
        find_files(str(tmp_path / "*.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        find_files(str(tmp_path / "empty"))
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(InputError):
        find_files(str(tmp_path / "image.png"))
    with pytest.raises(InputError, match="builtin:"):
        find_files("builtin:nothing-of-that-name")


def test_corrupt_streams_never_loop(tmp_path):
    for suffix in ("gz", "zst"):
        path = tmp_path / f"a.txt.{suffix}"
        whole = compressed(b"some text " * 1000, "." + suffix)
        for size in range(1, len(whole), 7):
            path.write_bytes(whole[:size])
            with open_bytes(SourceFile(Path(path), "a", "text", suffix)) as stream:  # type: ignore[arg-type]
                try:
                    data = stream.read()
                except CorruptStream:
                    continue
            assert (b"some text " * 1000).startswith(data)
