"""Token shards: what was written is what is read, wherever the files are cut, and damage is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.shards import ShardWriter, TokenShards
from luban.durable import FileSystem
from luban.errors import CheckpointError, InputError, StorageError

END = 0


def write(folder: Path, documents: list[list[int]], vocab_size: int = 300, **options: int) -> dict[str, int]:
    writer = ShardWriter(folder, "train", vocab_size=vocab_size, end_id=END, **options)
    for ids in documents:
        writer.add(ids, bytes=3 * len(ids), characters=len(ids))
    return writer.close()


documents_of_ids = st.lists(st.lists(st.integers(1, 299), max_size=30), max_size=12)


@settings(max_examples=60, deadline=None)
@given(documents=documents_of_ids, shard_tokens=st.integers(1, 40), data=st.data())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    shard_tokens: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    totals = write(folder, documents, shard_tokens=shard_tokens)
    stream = [token for ids in documents for token in (*ids, END)]
    shards = TokenShards(folder, "train")
    assert len(shards) == shards.tokens == totals["tokens"] == len(stream)
    assert shards.read(0, len(stream)).tolist() == stream
    start = data.draw(st.integers(0, len(stream)))
    stop = data.draw(st.integers(start, len(stream)))
    assert shards.read(start, stop).tolist() == stream[start:stop]
    places = data.draw(st.lists(st.integers(0, max(0, len(stream) - 1)), max_size=6 if stream else 0))
    gathered = shards.gather(np.array([places, places[::-1]], dtype=np.int64))
    assert gathered.tolist() == [[stream[place] for place in row] for row in (places, places[::-1])]
    assert shards.documents.shape == (len(documents), 4)
    assert [row[1:].tolist() for row in shards.documents] == [
        [len(d) + 1, 3 * len(d), len(d)] for d in documents
    ]
    owner = [number for number, ids in enumerate(documents) for _ in range(len(ids) + 1)]
    assert shards.document_of(np.arange(len(stream))).tolist() == owner
    assert all(path.stat().st_size <= 2 * shard_tokens for path in folder.glob("train-0*.bin"))


@pytest.mark.parametrize(("vocab_size", "width"), [(65_535, 2), (65_536, 4), (200_000, 4)])
def test_width_follows_the_vocabulary(tmp_path: Path, vocab_size: int, width: int) -> None:
    write(tmp_path, [[vocab_size - 1]], vocab_size=vocab_size)
    assert (tmp_path / "train-00000.bin").stat().st_size == 2 * width
    assert (tmp_path / "train-00000.bin").read_bytes()[:width] == (vocab_size - 1).to_bytes(width, "little")
    assert TokenShards(tmp_path, "train").read(0, 2).tolist() == [vocab_size - 1, END]


def test_reading_is_mapped_and_read_only(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 3]])
    shards = TokenShards(tmp_path, "train")
    assert isinstance(shards.documents, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        shards.documents[0, 0] = 1
    for start, stop in ((-1, 2), (0, 5), (3, 2)):
        with pytest.raises(IndexError):
            shards.read(start, stop)
    for places in ([-1, 1], [0, 4]):
        with pytest.raises(IndexError):
            shards.gather(np.array(places))


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """Neither tokens nor rows of documents pile up in the writer."""
    writer = ShardWriter(tmp_path, "train", vocab_size=300, end_id=END)
    ids = np.ones(1000, dtype=np.int64)
    for _ in range(600):
        writer.add(ids, bytes=1, characters=1)
        assert writer._buffered <= 1 << 18
    for _ in range(40_000):
        writer.add([], bytes=0, characters=0)
        assert len(writer._rows) <= 1 << 14
    assert writer.close()["tokens"] == 600 * 1001 + 40_000


@pytest.mark.parametrize("wrong", [-1, 300, 70_000])
def test_id_outside_the_vocabulary_is_refused(tmp_path: Path, wrong: int) -> None:
    writer = ShardWriter(tmp_path, "train", vocab_size=300, end_id=END)
    with pytest.raises(InputError, match="299"):
        writer.add([1, wrong], bytes=1, characters=1)
    writer.add([1], bytes=1, characters=1)
    assert writer.close()["tokens"] == 2


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGE = {
    "no description": lambda f: (f / "train.json").unlink(),
    "description is a list": lambda f: (f / "train.json").write_text("[]"),
    "description is cut": lambda f: (f / "train.json").write_text('{"dtype"'),
    "unknown dtype": lambda f: _edit(f, dtype="float32"),
    "negative count": lambda f: _edit(f, documents=-1),
    "wrong total": lambda f: _edit(f, tokens=99),
    "shard is gone": lambda f: (f / "train-00000.bin").unlink(),
    "shard is cut": lambda f: (f / "train-00000.bin").write_bytes(b"\0"),
    "documents are cut": lambda f: (f / "train-documents.bin").write_bytes(b"\0" * 8),
    "a name leads out": lambda f: _edit(f, shards=[{"file": "../secret", "tokens": 4}]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_an_error(tmp_path: Path, name: str) -> None:
    write(tmp_path, [[1, 2, 3]])
    DAMAGE[name](tmp_path)
    with pytest.raises(CheckpointError):
        TokenShards(tmp_path, "train")


def test_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    class Full(FileSystem):
        def write(self, file: object, data: bytes | memoryview) -> None:
            raise OSError(28, "No space left on device")

    writer = ShardWriter(tmp_path, "train", vocab_size=300, end_id=END, fs=Full())
    writer.add([1, 2], bytes=2, characters=2)
    with pytest.raises(StorageError, match="No space left"):
        writer.close()
    assert not (tmp_path / "train.json").exists()


def test_a_document_may_come_in_parts(tmp_path: Path) -> None:
    """What is added with end=False and what is added whole give the same files."""
    for name, parts in (("whole", [[1, 2, 3, 4, 5]]), ("parts", [[1, 2], [], [3, 4, 5]])):
        (tmp_path / name).mkdir()
        writer = ShardWriter(tmp_path / name, "train", vocab_size=9, end_id=0)
        for part in parts[:-1]:
            writer.add(part, bytes=len(part), characters=len(part), end=False)
        writer.add(parts[-1], bytes=len(parts[-1]), characters=len(parts[-1]), end=False)
        assert writer.close() == {"documents": 1, "tokens": 6, "bytes": 5, "characters": 5}
    for file in ("train-00000.bin", "train-documents.bin", "train.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
