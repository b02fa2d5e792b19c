"""Encoded rows on disk: one binary file per column, memory-mapped, and beside it each row as it came.

A column is fixed (every row has an array of the same shape) or ragged (arrays of one dimension and any length, with
a file of offsets). `RowSet.gather` takes rows by number without a loop over them; ragged columns are padded to the
longest row asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from luban.data.json_text import to_json
from luban.durable import DISK, FileSystem, read_json, storage_errors, write_json
from luban.errors import CheckpointError

Array = NDArray[Any]
Integers = NDArray[np.int64]

COLUMNS = "columns.json"
ROWS, ROW_OFFSETS = "rows.jsonl", "rows.offsets"
_DTYPES = {np.dtype(kind).name for kind in ("uint8", "int32", "int64", "float32")}
_BUFFER = 1 << 20
_MULTIPLE = 8
"""Ragged columns are padded to a multiple of this, so that batches come in few shapes."""


class _Appending:
    """A file that grows; small writes are put together."""

    def __init__(self, path: Path, fs: FileSystem) -> None:
        self._path, self._fs = path, fs
        with storage_errors(path):
            self._file: BinaryIO = fs.open_write(path)
        self._pending = bytearray()
        self.size = 0

    def add(self, data: bytes) -> None:
        self._pending += data
        self.size += len(data)
        if len(self._pending) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        with storage_errors(self._path, needed=len(self._pending)):
            self._fs.write(self._file, bytes(self._pending))
        self._pending.clear()

    def close(self) -> None:
        self._flush()
        with storage_errors(self._path):
            self._file.close()


class RowWriter:
    """Writes the rows of one split into a new folder.

    Arguments:
        folder: must not exist yet; its parent does.
        ragged: names of the columns whose arrays differ in length.
    """

    def __init__(self, folder: Path, ragged: frozenset[str], fs: FileSystem = DISK) -> None:
        with storage_errors(folder):
            fs.make_folder(folder)
        self._folder, self._ragged, self._fs = folder, ragged, fs
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...] | None]] = {}
        self._files: dict[str, _Appending] = {}
        self._rows, self._offsets = _Appending(folder / ROWS, fs), _Appending(folder / ROW_OFFSETS, fs)
        self._offsets.add(np.int64(0).tobytes())
        self.count = 0
        self.elements = 0

    def add(self, arrays: Mapping[str, Array], row: Mapping[str, Any]) -> None:
        """Append a row: its encoded columns, and what is kept of it as it came (JSON)."""
        kinds = {
            name: (array.dtype, None if name in self._ragged else array.shape)
            for name, array in arrays.items()
        }
        if not self._kinds:
            self._begin(kinds)
        assert kinds == self._kinds, f"rows of different columns: {kinds} after {self._kinds}"
        for name, array in arrays.items():
            self._files[name].add(np.ascontiguousarray(array).tobytes())
            if name in self._ragged:
                self._files[f"{name}.offsets"].add(
                    np.int64(self._files[name].size // array.itemsize).tobytes()
                )
        self.elements += max((len(arrays[name]) for name in self._ragged if name in arrays), default=1)
        self._rows.add(f"{to_json(row)}\n".encode())
        self._offsets.add(np.int64(self._rows.size).tobytes())
        self.count += 1

    def _begin(self, kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...] | None]]) -> None:
        self._kinds = kinds
        for name, (dtype, shape) in kinds.items():
            assert dtype.name in _DTYPES, f"column {name} is of {dtype}"
            self._files[name] = _Appending(self._folder / f"{name}.bin", self._fs)
            if shape is None:
                offsets = _Appending(self._folder / f"{name}.offsets", self._fs)
                offsets.add(np.int64(0).tobytes())
                self._files[f"{name}.offsets"] = offsets

    def close(self) -> dict[str, int]:
        """End writing; return how many rows there are, and how many elements of their longest ragged columns."""
        for file in (*self._files.values(), self._rows, self._offsets):
            file.close()
        columns = {
            name: {"dtype": dtype.name, "shape": None if shape is None else list(shape)}
            for name, (dtype, shape) in self._kinds.items()
        }
        write_json(self._folder / COLUMNS, {"rows": self.count, "columns": columns}, self._fs)
        return {"rows": self.count, "elements": self.elements}


@dataclass(frozen=True)
class _Column:
    values: Array
    offsets: Integers | None


class RowSet:
    """The rows of one split, memory-mapped.

    Raises:
        CheckpointError: the files do not fit each other.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        described = read_json(folder / COLUMNS)
        try:
            self._count = int(described["rows"])
            self._columns = {
                str(name): self._open(str(name), str(kind["dtype"]), kind["shape"])
                for name, kind in described["columns"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{folder} holds no rows: {error}") from error
        self._offsets = _mapped(folder / ROW_OFFSETS, "int64", self._count + 1)

    def _open(self, name: str, dtype: str, shape: list[int] | None) -> _Column:
        if dtype not in _DTYPES or Path(name).name != name:
            raise CheckpointError(f"{self._folder} has a column of an unknown kind", received=[name, dtype])
        if shape is None:
            offsets = _mapped(self._folder / f"{name}.offsets", "int64", self._count + 1)
            if offsets[0] != 0 or (np.diff(offsets) < 0).any():
                raise CheckpointError(f"the offsets of {self._folder / name} are not in order")
            return _Column(_mapped(self._folder / f"{name}.bin", dtype, int(offsets[-1])), offsets)
        size = int(np.prod(shape, dtype=np.int64))
        flat = _mapped(self._folder / f"{name}.bin", dtype, self._count * size)
        return _Column(flat.reshape(self._count, *shape), None)

    def __len__(self) -> int:
        return self._count

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self._columns)

    def column(self, name: str) -> Array:
        """Return a fixed column of all rows, (rows, ...)."""
        column = self._columns[name]
        assert column.offsets is None, f"{name} is ragged"
        return column.values

    def lengths(self, name: str) -> Integers:
        """Return how long each row is in a ragged column, (rows,)."""
        offsets = self._columns[name].offsets
        assert offsets is not None, f"{name} is fixed"
        return np.diff(offsets)

    def gather(self, rows: Integers) -> tuple[dict[str, Array], dict[str, Integers]]:
        """Return columns of rows by number, ragged ones padded with zeros to one width, and the lengths of these."""
        columns, lengths = {}, {}
        for name, column in self._columns.items():
            if column.offsets is None:
                columns[name] = column.values.take(rows, axis=0)
                continue
            starts = column.offsets[rows]
            size = column.offsets[rows + 1] - starts
            width = -(-int(size.max(initial=1)) // _MULTIPLE) * _MULTIPLE
            columns[name], lengths[name] = padded(column.values, starts, size, width), size
        return columns, lengths

    def row(self, number: int) -> dict[str, Any]:
        """Return a row as it came: `values`, `file`, `line`."""
        with (self._folder / ROWS).open("rb") as file:
            file.seek(int(self._offsets[number]))
            found: dict[str, Any] = json.loads(
                file.read(int(self._offsets[number + 1] - self._offsets[number]))
            )
        return found

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows as they came."""
        with (self._folder / ROWS).open("rb") as file:
            yield from map(json.loads, file)


def padded(values: Array, starts: Integers, size: Integers, width: int) -> Array:
    """Return pieces of a flat array as rows of one width, zeros behind them.

    Example:
        >>> padded(np.arange(10), np.array([0, 4]), np.array([2, 3]), 4).tolist()
        [[0, 1, 0, 0], [4, 5, 6, 0]]
    """
    at = np.arange(width)
    inside = at < size[:, None]  # (rows, width)
    found = np.zeros((len(starts), width), values.dtype)
    found[inside] = values[(starts[:, None] + at)[inside]]
    return found


def _mapped(path: Path, dtype: str, count: int) -> Array:
    wanted = count * np.dtype(dtype).itemsize
    found = path.stat().st_size if path.is_file() else -1
    if found != wanted:
        raise CheckpointError(f"{path} has {found} bytes, its columns say {wanted}")
    if not count:
        return np.zeros(0, np.dtype(dtype))
    # A plain array: of the class of mapped ones, each look into it costs more.
    return np.asarray(np.memmap(path, np.dtype(dtype), "r", shape=(count,)))
