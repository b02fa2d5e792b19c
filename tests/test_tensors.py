"""Our writer and the safetensors library read and write the same files."""

import errno
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from luban.durable import FileSystem
from luban.errors import CheckpointError, InputError, StorageError
from luban.tensors import read_metadata, read_safetensors, write_safetensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
SHAPES = st.lists(st.integers(0, 4), max_size=3)


def make(dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    return (torch.randn(shape) * 10).abs().to(dtype)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), st.sampled_from(DTYPES), SHAPES), max_size=6))
def test_the_library_reads_what_we_write(tmp_path_factory, parts: list) -> None:
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    tensors = {name: make(dtype, shape) for name, dtype, shape in parts if name != "__metadata__"}
    write_safetensors(path, tensors, {"format": "pt"})
    for read in (load_file(path), read_safetensors(path)):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)
    assert read_metadata(path) == {"format": "pt"}


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {str(dtype): make(dtype, [3, 2]) for dtype in DTYPES}
    save_file(tensors, tmp_path / "x.safetensors")
    read = read_safetensors(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert read_metadata(tmp_path / "x.safetensors") == {}


def test_bytes_equal_the_librarys(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7), "c": torch.arange(4, dtype=torch.int32)}
    write_safetensors(tmp_path / "ours", tensors, {"format": "pt"})
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    views = {"turned": base.t(), "part": base[1:3, ::2], "spread": base[0].expand(3, 6)}
    views["leaf"] = torch.nn.Parameter(base)
    write_safetensors(tmp_path / "x", views)
    read = read_safetensors(tmp_path / "x")
    assert all(torch.equal(read[name], view) for name, view in views.items())


def test_what_was_read_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_safetensors(path, {"a": torch.ones(100_000)})
    read = read_safetensors(path)
    path.write_bytes(b"")  # a mapped tensor would end the process here
    assert read["a"].sum() == 100_000


def test_unknown_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tensor a"):
        write_safetensors(tmp_path / "x", {"a": torch.ones(2, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 4, 8, 60, 399])
def test_a_torn_file_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "torn.safetensors"
    write_safetensors(path, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"torn\.safetensors"):
        read_safetensors(path)
    with pytest.raises(CheckpointError, match="absent"):
        read_safetensors(tmp_path / "absent")


class Full(FileSystem):
    """A disk that is full after so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(file, data)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_safetensors(path, {"a": torch.zeros(10), "b": torch.zeros(10)})
    before = path.read_bytes()
    with pytest.raises(StorageError, match="No space left"):
        write_safetensors(path, {"a": torch.ones(10), "b": torch.ones(10)}, fs=Full(len(before) - 1))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["x"]
