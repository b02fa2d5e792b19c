"""Hostile data: bombs in archives, rows that lie, tables whose headers lie, prepared folders that lead out."""

import gzip
import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hostile_case import READ, Case, Payload, copy, edit, nested, put, reseal

from luban.data.bad_rows import BadRows
from luban.data.prepare import Prepared, prepare
from luban.data.reading import read_rows
from luban.data.sources import find_files
from luban.text_recipe import TextData

BOMB = 320 << 20
"""More than a case may take of memory; see `hostile.MEMORY`."""
GOOD = [
    json.dumps({"text": f"row {number} of a small house and a king {number * 7919}"}) for number in range(24)
]


def prepared(name: str, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    """What prepares the file `name`; returns the data report."""

    def use(folder: Path) -> dict[str, Any]:
        asked = {
            "source": str(folder / name),
            "vocab_size": 300,
            "validation_fraction": 0.2,
            "workers": 1,
            **settings,
        }
        return prepare(TextData(**asked), folder / "out").report

    return use


def counts(name: str, kind: str, rows: int = len(GOOD), **settings: Any) -> Callable[[Path], object]:
    """What prepares `name` and finds its good rows, and the bad one counted by its kind."""

    def use(folder: Path) -> None:
        report = prepared(name, **settings)(folder)
        assert kind in report["bad_rows"]["kinds"], report["bad_rows"]
        assert report["rows"] >= rows

    return use


def lines(*extra: bytes) -> bytes:
    return b"".join(row.encode() + b"\n" for row in GOOD) + b"\n".join(extra) + b"\n"


def bomb(byte: bytes = b"\0", *, first: bytes = b"", last: bytes = b"") -> bytes:
    """`BOMB` bytes as gzip members of a megabyte, a thousand times smaller, between `first` and `last`."""
    return gzip.compress(first) + gzip.compress(byte * (1 << 20)) * (BOMB >> 20) + gzip.compress(last)


def table(**options: Any) -> bytes:
    out = io.BytesIO()
    rows = pa.table({"text": [json.loads(row)["text"] for row in GOOD]}, **options)
    pq.write_table(rows, out)
    return out.getvalue()


def damaged_table(at: int, new: bytes) -> bytes:
    data = bytearray(table())
    data[at : at + len(new) if at >= 0 else len(data) + at + len(new)] = new
    return bytes(data)


def one_value_many_times() -> bytes:
    """A Parquet file of a hundred thousand equal rows, 400 MB of text, in a few kilobytes."""
    out = io.BytesIO()
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(out, schema, use_dictionary=True) as writer:
        for _ in range(8):
            column = pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(12_500, np.int8)), pa.array(["a" * 4000])
            )
            writer.write_table(pa.table([column.cast(pa.string())], schema=schema), row_group_size=12_500)
    return out.getvalue()


def zip_of(data: bytes) -> bytes:
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside/secret", data)
    return out.getvalue()


def frames() -> bytes:
    """`BOMB` zeros as zstandard, ten thousand times smaller."""
    return zstandard.compress(bytes(16 << 20)) * (BOMB >> 24)


def source(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: put(folder / name, content)


BAD_ROWS: dict[str, tuple[str, bytes]] = {
    "a line of 11 MB": ("too_long", json.dumps({"text": "a" * 11_000_000}).encode()),
    "a line of 40 MB without an end": ("too_long", b'{"text": "' + b"a" * 40_000_000),
    "nested lists": ("broken_json", b'{"text": ' + nested(200_000).encode() + b"}"),
    "nested objects": ("broken_json", b'{"a": ' * 200_000),
    "half a surrogate pair": ("invalid_utf8", b'{"text": "\\ud800 and more"}'),
    "a NUL byte": ("nul", b'{"text": "a\0b"}'),
    "a NUL character": ("nul", b'{"text": "a\\u0000b"}'),
    "bytes that are no UTF-8": ("invalid_utf8", b'{"text": "\xff\xfe"}'),
    "a list": ("not_an_object", b"[1]"),
    "NaN": ("not_an_object", b"NaN"),
    "a number of 5000 digits": ("broken_json", b'{"text": ' + b"9" * 5000 + b"}"),
    "a text that is an object": ("not_text", b'{"text": {"$ref": "luban_canary"}}'),
    "no such column": ("missing_column", b'{"__class__": "luban_canary"}'),
    "a pickle": ("nul", pickle.dumps(Payload())),
    "a text twice": ("empty_row", b'{"text": "a", "text": ""}'),
}
CORRUPT: dict[str, tuple[str, bytes]] = {
    "gzip that is none": ("a.jsonl.gz", b"PK\x03\x04" + bytes(100)),
    "gzip cut short": ("a.jsonl.gz", gzip.compress(lines())[:-20]),
    "gzip of no bytes": ("a.txt.gz", b""),
    "a gzip bomb of 320 MB of zeros": ("a.txt.gz", bomb()),
    "a gzip bomb in a gzip bomb": ("a.txt.gz", gzip.compress(bomb())),
    "a gzip bomb as a row": ("a.jsonl.gz", bomb(b"a", first=b'{"text": "', last=b'"}')),
    "a gzip bomb as a CSV": ("a.csv.gz", bomb(b"a", first=b'text\n"')),
    "zstandard that is none": ("a.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 100),
    "zstandard cut short": ("a.jsonl.zst", zstandard.compress(lines())[:-5]),
    "a zstandard bomb of 320 MB of zeros": ("a.txt.zst", frames()),
    "zstandard with a window of 2 GB": ("a.txt.zst", b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(64)),
    "Parquet of no bytes": ("a.parquet", b""),
    "Parquet that is a pickle": ("a.parquet", pickle.dumps(Payload())),
    "Parquet of magic words only": ("a.parquet", b"PAR1PAR1"),
    "Parquet with a footer of 2 GB": ("a.parquet", damaged_table(-8, struct.pack("<I", 0x7FFFFFFF))),
    "Parquet with a footer of 4 GB": ("a.parquet", damaged_table(-8, struct.pack("<I", 0xFFFFFFFF))),
    "Parquet with an altered footer": ("a.parquet", damaged_table(-200, b"\xff" * 60)),
    "Parquet with huge counts": (
        "a.parquet",
        damaged_table(-300, b"\x16\xfe\xff\xff\xff\xff\xff\xff\xff\x7f" * 4),
    ),
    "Parquet with altered pages": ("a.parquet", damaged_table(4, b"\xff" * 200)),
    "Parquet cut short": ("a.parquet", table()[:-12]),
    "Parquet within gzip cut short": ("a.parquet.gz", gzip.compress(table())[:-30]),
    "Parquet with a schema that is none": ("a.parquet", table(metadata={b"ARROW:schema": b"AAAA"})),
    "a CSV of NUL": ("a.csv", b"text\n" + bytes(1000)),
    "a CSV whose quote never ends": ("a.csv", b'text\n"' + b"a,\n" * 100_000),
    "a CSV of a million columns": ("a.csv", b",".join(b"c%d" % n for n in range(1_000_000)) + b"\na\n"),
    "JSON lines that are a pickle": ("a.jsonl", pickle.dumps(Payload()) * 10),
    "text that is a pickle": ("a.dat", pickle.dumps([Payload(), b"\0" * 10])),
    "a zip archive that leads out": ("a.zip", zip_of(b"owned")),
    "a zip archive named .gz": ("a.jsonl.gz", zip_of(bytes(1 << 20))),
    "an archive of no known kind": ("a.tar.xz", b"\xfd7zXZ\0" + bytes(100)),
}


def rows(folder: Path) -> None:
    """Read the rows one after another; they are never in memory together."""
    files = find_files(str(folder / "a.parquet"))
    assert sum(1 for _ in read_rows(files, bad=BadRows("error"))) == 100_000


def folder_link(folder: Path) -> None:
    """A folder of data with a link to itself: walking it must end."""
    (folder / "data").mkdir()
    put(folder / "data" / "a.jsonl", lines())
    (folder / "data" / "loop").symlink_to(folder / "data")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "a.jsonl")


def saved_dataset(**state: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        put(folder / "set" / "dataset_info.json", {})
        put(folder / "set" / "state.json", state)

    return make


DATASETS: dict[str, dict[str, Any]] = {
    "leads out": {"_data_files": [{"filename": "../../outside/secret"}]},
    "an absolute path": {"_data_files": [{"filename": "/etc/passwd"}]},
    "an absent file": {"_data_files": [{"filename": "a.arrow"}]},
    "a name that is a number": {"_data_files": [{"filename": 1}]},
    "files that are text": {"_data_files": "luban_canary"},
    "files that are numbers": {"_data_files": [1]},
    "files that are a number": {"_data_files": 7},
    "files without a name": {"_data_files": [{}]},
    "no files": {},
}


def open_prepared(folder: Path) -> None:
    """Open prepared data and read all of it, as training does."""
    data = Prepared(folder / "data")
    for shards in (data.train, data.validation):
        tokens = shards.read(0, len(shards))
        assert tokens.max() < shards.vocab_size
        for first, count, *_ in shards.documents[:]:
            shards.read(int(first), int(first + count))


def member(name: str, content: Any) -> Callable[[Path], object]:
    return lambda folder: put(copy("finished/data", folder) / name, content)


def description(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit(copy("finished/data", folder) / "train.json", **changes)


def documents(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = copy("finished/data", folder) / "train-documents.bin"
        rows = np.frombuffer(path.read_bytes(), "<i8").reshape(-1, 4).copy()
        put(path, change(rows).tobytes())

    return make


def set_row(row: int, column: int, value: int) -> Callable[[Any], Any]:
    def change(rows: Any) -> Any:
        rows[row, column] = value
        return rows

    return change


def manifest(**files: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = copy("finished/data", folder) / "manifest.json"
        value = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**value, "files": {**value["files"], **files}}))

    return make


def manifest_is(value: Any) -> Callable[[Path], object]:
    text = value if isinstance(value, str) else json.dumps(value)
    return lambda folder: (copy("finished/data", folder) / "manifest.json").write_text(text)


def link_of(name: str) -> Callable[[Path], object]:
    """A member that is a link to an equal file elsewhere."""

    def make(folder: Path) -> None:
        path = copy("finished/data", folder) / name
        path.rename(folder / "elsewhere")
        path.symlink_to(folder / "elsewhere")

    return make


def unlisted(folder: Path) -> None:
    """A manifest that lists nothing, so that it vouches for nothing."""
    path = copy("finished/data", folder) / "manifest.json"
    value = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**value, "files": {}}))


def ids_beyond(folder: Path) -> None:
    path = copy("finished/data", folder) / "train-00000.bin"
    put(path, b"\xff\xff" * (path.stat().st_size // 2))


def fewer_tokens_than_ids(folder: Path) -> None:
    path = copy("finished/data", folder)
    edit(path / "train.json", vocab_size=70_000, dtype="uint16")
    ids = path / "train-00000.bin"
    put(ids, b"\xff\xff" * (ids.stat().st_size // 2))
    reseal(path)


DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "tokens of 2**62": {"tokens": 1 << 62},
    "tokens below zero": {"tokens": -1},
    "documents of 2**62": {"documents": 1 << 62},
    "documents below zero": {"documents": -1},
    "counts that are text": {"tokens": "many"},
    "counts of infinity": {"tokens": float("inf")},
    "a shard of 2**62 tokens": {"shards": [{"file": "train-00000.bin", "tokens": 1 << 62}]},
    "a shard of tokens below zero": {"shards": [{"file": "train-00000.bin", "tokens": -1}]},
    "a shard that leads out": {"shards": [{"file": "../../outside/secret", "tokens": 4}]},
    "a shard by an absolute path": {"shards": [{"file": "/etc/passwd", "tokens": 4}]},
    "a shard twice": {"shards": [{"file": "train-00000.bin", "tokens": 4207}] * 2},
    "no shards": {"shards": []},
    "shards that are text": {"shards": "train-00000.bin"},
    "a dtype of objects": {"dtype": "O"},
    "a dtype of records": {"dtype": [["a", "<u2"]]},
    "a wider dtype": {"dtype": "uint32"},
    "an end token beyond the vocabulary": {"end_id": 10**6},
    "a vocabulary below zero": {"vocab_size": -1},
    "another vocabulary than the tokenizer's": {"vocab_size": 299},
}
WHOLE: dict[str, bytes] = {
    "a.jsonl.gz": gzip.compress(lines()),
    "a.jsonl.zst": zstandard.compress(lines()),
    "a.csv": b"text\n" + b"\n".join(json.loads(row)["text"].encode() for row in GOOD),
    "a.parquet": table(),
}
"""Whole files of every kind, to import what reads them."""
NO_OBJECTS: dict[str, Any] = {
    "nested lists": nested(200_000),
    "a list": [],
    "a pickle": pickle.dumps(Payload()),
}
MEMBERS = ("report.json", "fingerprint.json", "train.json", "tokenizer.json")

CASES: list[Case] = [
    *(
        Case(f"a row: {name}", source("a.jsonl", lines(row)), counts("a.jsonl", kind), READ)
        for name, (kind, row) in BAD_ROWS.items()
    ),
    *(
        Case(f"data: {name}", source(file, content), prepared(file, on_bad_row="error"))
        for name, (file, content) in CORRUPT.items()
    ),
    Case(
        "data: a gzip bomb beside good rows costs itself only",
        source("a.jsonl.gz", bomb(b"a", first=lines() + b'{"text": "', last=b'"}\n')),
        counts("a.jsonl.gz", "too_long"),
        READ,
    ),
    Case("data: Parquet of 400 MB of equal rows", source("a.parquet", one_value_many_times()), rows, READ),
    Case(
        "data: Parquet with pickled metadata is passed over",
        source("a.parquet", table(metadata={b"pandas": pickle.dumps(Payload()), b"luban": pickle.dumps(Payload())})),
        prepared("a.parquet"),
        READ,
    ),
    Case("data: a folder that holds itself", folder_link, prepared("data"), READ),
    Case("data: a pipe", pipe, prepared("a.jsonl")),
    Case("data: a device", lambda folder: (folder / "a.txt").symlink_to("/dev/zero"), prepared("a.txt")),
    Case("data: a link to itself", lambda folder: (folder / "a.txt").symlink_to("a.txt"), prepared("a.txt")),
    *(Case(f"saved dataset: {name}", saved_dataset(**state), prepared("set")) for name, state in DATASETS.items()),
    *(Case(f"prepared data: {name}", description(**changes), open_prepared) for name, changes in DESCRIPTIONS.items()),
    *(
        Case(f"prepared {name}: {what}", member(name, content), open_prepared)
        for name in MEMBERS
        for what, content in NO_OBJECTS.items()
    ),
    *(Case(f"prepared {name}: a link", link_of(name), open_prepared) for name in (*MEMBERS, "train-00000.bin")),
    *(
        Case(f"prepared manifest: {name}", manifest(**{file: value}), open_prepared)
        for name, (file, value) in {
            "a name that leads out": ("../../outside/secret", {"bytes": 42, "sha256": "00"}),
            "an absolute path": ("/etc/passwd", {"bytes": 42, "sha256": "00"}),
            "a name with NUL": ("a\0b", {"bytes": 42, "sha256": "00"}),
            "a name of 100,000 characters": ("a" * 100_000, {"bytes": 42, "sha256": "00"}),
            "a file that is not there": ("absent", {"bytes": 42, "sha256": "00"}),
            "a device": ("/dev/zero", {"bytes": 0, "sha256": "00"}),
            "a size of 2**70": ("report.json", {"bytes": 1 << 70, "sha256": "00"}),
            "a digest that is a list": ("report.json", {"bytes": 1502, "sha256": [1]}),
            "an entry that is text": ("report.json", "luban_canary"),
        }.items()
    ),
    Case("prepared manifest: lists nothing", unlisted, open_prepared),
    Case("prepared manifest: nested lists", manifest_is(nested(200_000)), open_prepared),
    Case("prepared manifest: a list", manifest_is([]), open_prepared),
    Case("prepared manifest: files as a list", manifest_is({"files": ["report.json"]}), open_prepared),
    Case("prepared shards: ids beyond the vocabulary", ids_beyond, open_prepared),
    Case("prepared shards: ids beyond the embedding", fewer_tokens_than_ids, open_prepared),
    Case("prepared documents: a first token beyond the end", documents(set_row(3, 0, 1 << 60)), open_prepared),
    Case("prepared documents: a first token below zero", documents(set_row(0, 0, -5)), open_prepared),
    Case("prepared documents: more tokens than there are", documents(set_row(3, 1, 1 << 60)), open_prepared),
    Case("prepared documents: tokens below zero", documents(set_row(3, 1, -1)), open_prepared),
    Case("prepared documents: bytes below zero", documents(set_row(3, 2, -1)), open_prepared),
    Case("prepared documents: out of order", documents(lambda rows: rows[::-1].copy()), open_prepared),
    Case("prepared documents: one row less", documents(lambda rows: rows[:-1]), open_prepared),
]  # fmt: skip
