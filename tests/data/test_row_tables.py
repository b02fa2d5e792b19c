"""Tables: every format gives the same rows, headers are told from rows, and a bad row costs only itself."""

import csv
import datetime
import decimal
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from luban.data.bad_rows import BadRows
from luban.data.row_files import RawRow, read_raw_rows, source_files_of
from luban.errors import DataError, InputError, LubanError

CELL = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"), max_size=12)
NAMES = st.lists(CELL, min_size=1, max_size=4, unique=True)


def read(source, layout="table", policy="skip", columns=None, limit=10_000_000):
    bad = BadRows(policy)
    source = [str(one) for one in source] if isinstance(source, list) else str(source)
    rows = list(read_raw_rows(source, layout, columns=columns, max_row_bytes=limit, bad=bad))
    return rows, bad.as_dict()


def counts(bad) -> dict[str, int]:
    return {kind: entry["count"] for kind, entry in bad["kinds"].items()}


def written(format_: str, names: list[str], rows: list[list[str]]) -> bytes:
    if format_ == "jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
        return "".join(line + "\n" for line in lines).encode()
    if format_ in ("csv", "tsv"):
        out = io.StringIO()
        writer = csv.writer(
            out, delimiter="," if format_ == "csv" else "\t", lineterminator="\n", quoting=csv.QUOTE_ALL
        )
        writer.writerows([names, *rows])
        return out.getvalue().encode()
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table(
        [pa.array([row[at] for row in rows], pa.string()) for at in range(len(names))], names=names
    )
    sink = io.BytesIO()
    if format_ == "parquet":
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    return sink.getvalue()


@st.composite
def tables(draw):
    names = draw(NAMES)
    row = st.lists(CELL, min_size=len(names), max_size=len(names)).filter(
        lambda row: any(cell.strip() for cell in row)
    )
    return names, draw(st.lists(row, min_size=1, max_size=5))


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "parquet", "arrow"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables())
@example(table=(["a"], [['"'], ["\n"], ["x\n"]][:1]))
@example(table=(["a", "b"], [["1,5", 'he said "no"\n\nand left'], [" ", "\ufeffx"]]))
def test_a_table_reads_back_as_it_was_written(tmp_path, format_, table):
    names, rows = table
    path = tmp_path / f"rows.{format_}"
    path.write_bytes(written(format_, names, rows))
    found, bad = read(path, policy="error")
    assert [row.values for row in found] == [dict(zip(names, row, strict=True)) for row in rows]
    assert counts(bad) == {}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables())
def test_lines_are_those_that_the_rows_start_on(tmp_path, table):
    names, rows = table
    path = tmp_path / "rows.csv"
    path.write_bytes(written("csv", names, rows))
    lines = path.read_bytes().split(b"\n")
    for row in read(path)[0]:
        cell = row.values[names[0]].replace('"', '""').split("\n")[0]
        assert lines[row.line - 1].startswith(f'"{cell}'.encode())


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "csv.gz"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_altered_is_read_or_counted(tmp_path, format_, data):
    names, rows = ["id", "text"], [["1", "one\ntwo"], ["2", 'a "b"'], ["3", "é,\t中"]]
    raw = bytearray(written(format_.removesuffix(".gz"), names, rows))
    raw = bytearray(gzip.compress(bytes(raw), mtime=0)) if format_.endswith(".gz") else raw
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path / f"rows.{format_}"
    path.write_bytes(raw)
    try:
        found, bad = read(path)
    except LubanError:
        return
    assert len(found) >= 2 or bad["total"]
    for row in found:
        json.dumps(row.values).encode()


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_altered_of_a_binary_table_is_read_or_counted(tmp_path, format_, data):
    raw = bytearray(written(format_, ["id", "text"], [["1", "one"], ["2", "two"], ["3", "é"]]))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"rows.{format_}"
    path.write_bytes(raw)
    try:
        found, bad = read(path)
    except LubanError:
        return
    assert len(found) == 3 or bad["total"]


def test_every_bad_row_of_a_csv_file_is_counted_with_its_line(tmp_path):
    path = tmp_path / "bad.csv"
    lines = [
        b"\xef\xbb\xbfid,text",
        b"1,fine\r",
        b"2",
        b"3,a,b",
        b"4,caf\xe9",
        b"5,a\0b",
        b"6," + b"x" * 300,
        b" ,",
        b"",
        b"7,last",
    ]
    path.write_bytes(b"\n".join(lines))
    rows, bad = read(path, limit=200)
    assert rows == [
        RawRow({"id": "1", "text": "fine"}, "bad.csv", 2),
        RawRow({"id": "7", "text": "last"}, "bad.csv", 10),
    ]
    places = {kind: [e["line"] for e in entry["examples"]] for kind, entry in bad["kinds"].items()}
    assert places == {
        "bom": [1],
        "crlf": [2],
        "wrong_columns": [3, 4],
        "invalid_utf8": [5],
        "nul": [6],
        "too_long": [7],
        "empty_row": [8],
        "blank_line": [9],
    }
    assert bad["total"] == 6
    with pytest.raises(DataError) as caught:
        read(path, policy="error", limit=200)
    assert caught.value.where == f"{path}:3"


def test_a_stray_quote_costs_its_own_row(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [f"{number},row {number}" for number in range(50)]
    path.write_text("\n".join(["id,text", *rows[:10], 'x,"no end', *rows[10:]]))
    found, bad = read(path)
    assert [row.values["text"] for row in found] == [f"row {number}" for number in range(50)]
    assert [e["line"] for e in bad["kinds"]["wrong_columns"]["examples"]] == [12]


def test_half_a_quoted_text_is_no_row(tmp_path):
    (tmp_path / "rows.csv").write_text('id,text\n1,"two\nlines"x,three\n2,fine\n')
    found, bad = read(tmp_path / "rows.csv")
    assert [row.values for row in found] == [{"id": "2", "text": "fine"}]
    assert [e["line"] for e in bad["kinds"]["wrong_columns"]["examples"]] == [2, 3]


def test_quotes_of_a_tsv_file_may_be_plain_characters(tmp_path):
    (tmp_path / "rows.tsv").write_text('en\tde\n"Hi," he said.\t"Hallo"\n"No\tNein\n"a\nb"\tc\n')
    found, bad = read(tmp_path / "rows.tsv")
    assert [list(row.values.values()) for row in found] == [
        ['"Hi," he said.', '"Hallo"'],
        ['"No', "Nein"],
        ["a\nb", "c"],
    ]
    assert counts(bad) == {"plain_quote": 2}


def test_reading_again_after_stray_quotes_is_bounded(tmp_path):
    path = tmp_path / "rows.csv"
    # Each of these lines opens a quote where none is open, and leaves one open where one is.
    path.write_text("id,text\n" + 'x","y\n' * 20_000)
    found, bad = read(path, limit=10_000)
    assert found == []
    assert bad["total"] < 30
    assert "from here to line" in bad["kinds"]["wrong_columns"]["examples"][-1]["detail"]


def test_a_row_of_lines_without_end_is_not_held(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,text\n1,"' + b"abcdefgh\n" * 50_000)
    tracemalloc.start()
    try:
        rows = 0
        bad = BadRows("skip")
        for _ in read_raw_rows(str(path), "table", max_row_bytes=2_000, bad=bad):
            rows += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 0
    assert peak < 400_000


def test_names_given_are_for_a_file_without_header(tmp_path):
    (tmp_path / "rows.csv").write_text("39, Private\n50, State-gov\n")
    rows, bad = read(tmp_path / "rows.csv", columns=["age", "work"])
    assert [row.values for row in rows] == [
        {"age": "39", "work": " Private"},
        {"age": "50", "work": " State-gov"},
    ]
    assert [row.line for row in rows] == [1, 2]
    assert counts(bad) == {"no_header": 1}
    (tmp_path / "rows.csv").write_text("age,work\n39,Private\n")
    assert [row.values for row in read(tmp_path / "rows.csv", columns=["age", "work"])[0]] == [
        {"age": "39", "work": "Private"}
    ]
    with pytest.raises(DataError, match="no such column") as caught:
        read(tmp_path / "rows.csv", columns=["age", "wrok"])
    assert "did you mean work" in str(caught.value.fix)
    with pytest.raises(DataError):
        read(tmp_path / "rows.csv", columns=["one", "two", "three"])


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_seen_and_noted(tmp_path, separator):
    (tmp_path / "wine.csv").write_text(f'"acid, fixed"{separator}quality\n7.4{separator}5\n')
    rows, bad = read(tmp_path / "wine.csv")
    assert [row.values for row in rows] == [{"acid, fixed": "7.4", "quality": "5"}]
    assert counts(bad) == {"separator": 1}


def test_a_header_that_names_a_column_twice_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match="twice") as caught:
        read(tmp_path / "rows.csv")
    assert caught.value.where == f"{tmp_path / 'rows.csv'}:1"


def test_json_keeps_types_and_parquet_too(tmp_path):
    values = {"s": "x", "i": 3, "f": 0.5, "b": True, "n": None, "l": ["a", 1]}
    (tmp_path / "a.jsonl").write_text(json.dumps(values) + "\n")
    assert read(tmp_path / "a.jsonl")[0] == [RawRow(values, "a.jsonl", 1)]
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    moment = datetime.datetime(2024, 1, 2, 3, 4, 5, 678901)
    columns = {
        "words": pa.array(["u"]).dictionary_encode(),
        "list": [["a", None]],
        "object": [{"bytes": b"\xff", "path": "p"}],
        "when": pa.array([moment], pa.timestamp("ns")),
        "when in Berlin": pa.array([moment], pa.timestamp("ms", "Europe/Berlin")),
        "day": [moment.date()],
        "time": [moment.time()],
        "lasted": pa.array([1_500_000_000], pa.duration("ns")),
        "price": [decimal.Decimal("1.25")],
        "count": pa.array([decimal.Decimal(7)], pa.decimal128(9, 0)),
        "big": pa.array([2**64 - 1], pa.uint64()),
        "none": pa.nulls(1),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0][0].values == {
        "words": "u",
        "list": ["a", None],
        "object": {"bytes": b"\xff", "path": "p"},
        "when": moment.isoformat(),
        "when in Berlin": moment.replace(microsecond=678000, tzinfo=datetime.UTC).isoformat(),
        "day": "2024-01-02",
        "time": "03:04:05.678901",
        "lasted": 1.5,
        "price": 1.25,
        "count": 7,
        "big": 2**64 - 1,
        "none": None,
    }


def test_a_bad_value_of_a_parquet_file_costs_one_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = pa.array([b"one", b"\xff", b"three", b"four", b"a\0b", b"x" * 50]).view(pa.string())
    lists = pa.array([[b"a"], [b"b"], [b"\xff"], [b"d"], [b"e"], [b"f"]]).view(pa.list_(pa.string()))
    days = pa.array([0, 0, 0, 2**30, 0, 0], pa.int32()).view(pa.date32())
    pq.write_table(pa.table({"text": texts, "list": lists, "day": days}), tmp_path / "a.parquet")
    rows, bad = read(tmp_path / "a.parquet", limit=40)
    assert [(row.values["text"], row.line) for row in rows] == [("one", 1)]
    places = {kind: [e["line"] for e in entry["examples"]] for kind, entry in bad["kinds"].items()}
    assert places == {"invalid_utf8": [2, 3], "bad_value": [4], "nul": [5], "too_long": [6]}


def test_a_large_parquet_file_is_read_in_pieces(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import random

    import pyarrow.parquet as pq

    draws = random.Random(0)
    blobs = [draws.randbytes(100_000) for _ in range(300)]
    table = pa.table({"image": blobs})  # one row group, in pages of ten
    pq.write_table(
        table, tmp_path / "a.parquet", use_dictionary=False, compression="none", write_batch_size=10
    )
    del table
    before, most = pa.total_allocated_bytes(), 0
    source = str(tmp_path / "a.parquet")
    for number, row in enumerate(read_raw_rows(source, "table", max_row_bytes=10**6, bad=BadRows("error"))):
        assert row.values["image"] == blobs[number]
        most = max(most, pa.total_allocated_bytes() - before)
    assert number == 299
    assert most < 16 << 20


def test_a_lone_surrogate_or_a_nul_anywhere_in_a_row_is_bad(tmp_path):
    lines = [
        '{"a": ["\\ud800"]}',
        '{"\\ud800": 1}',
        '{"a": {"b": "\\u0000"}}',
        '{"a": "\\ud83d\\ude00"}',
        "[1]",
        '{"a": ',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows, bad = read(tmp_path / "a.jsonl")
    assert rows == [RawRow({"a": "😀"}, "a.jsonl", 4)]
    assert counts(bad) == {"invalid_utf8": 2, "nul": 1, "not_an_object": 1, "broken_json": 1}


def test_files_are_named_so_that_they_can_be_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.csv").write_text(f"x\n{folder}\n")
    one, two = tmp_path / "a" / "train.csv", tmp_path / "b" / "train.csv"
    assert [f.name for f in source_files_of([str(one), str(two), str(one)], "table")] == [
        "a/train.csv",
        "b/train.csv",
    ]
    assert [row.file for row in read([one.parent, two.parent])[0]] == ["a/train.csv", "b/train.csv"]
    assert [row.file for row in read(tmp_path)[0]] == ["a/train.csv", "b/train.csv"]
    assert [row.file for row in read(tmp_path / "*" / "train.csv")[0]] == ["a/train.csv", "b/train.csv"]
    assert [row.file for row in read(one)[0]] == ["train.csv"]


def test_what_is_no_table_is_refused_with_what_is_one(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    for source in (tmp_path / "a.txt", tmp_path / "a.bin", tmp_path, tmp_path / "none.csv"):
        with pytest.raises(InputError):
            read(source)
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert [row.values["a"] for row in read(tmp_path / "a.json")[0]] == [1, 2]


def test_links_that_lead_out_of_a_folder_are_counted_and_not_followed(tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("password\nx\n")
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "a.csv").write_text("x\n1\n")
    (folder / "again.csv").symlink_to("more/b.csv")
    (folder / "more" / "b.csv").write_text("x\n2\n")
    (folder / "out.csv").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path)
    (folder / "gone.csv").symlink_to(folder / "nowhere.csv")
    rows, bad = read(folder)
    assert [(row.file, row.values["x"]) for row in rows] == [
        ("a.csv", "1"),
        ("again.csv", "2"),
        ("more/b.csv", "2"),
    ]
    assert counts(bad) == {"outside": 2, "no_file": 1}
    assert secret not in {file.path.resolve() for file in source_files_of(str(folder), "table")}
    (tmp_path / "link.csv").symlink_to(secret)
    assert read(tmp_path / "link.csv")[0] == [RawRow({"password": "x"}, "link.csv", 2)]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_an_empty_file_is_listed(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    rows, bad = read(tmp_path / name)
    assert rows == []
    assert counts(bad) == {"empty_file": 1}


def test_real_tables_give_the_rows_that_they_are_known_to_have(shared_data: Path):
    adult = shared_data / "adult" / "adult-train.csv.gz"
    names = [f"column {number}" for number in range(15)]
    assert len(read(adult, columns=names)[0]) == 32_561
    assert len(read(shared_data / "credit-default" / "train.csv.gz")[0]) == 24_000
