"""Token streams on disk: flat little-endian files, written once, then read memory-mapped.

A split (`train`, `validation`) is one stream of tokens, document after document, each with its end token:

    train-00000.bin, train-00001.bin, ...   uint16 token ids (uint32 above 65,535 tokens), cut anywhere
    train-documents.bin                     int64 rows: first token, tokens (with the end), bytes, characters
    train.json                              dtype, counts, the shards in order; written last
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from luban.durable import DISK, FileSystem, member, read_json, storage_errors, write_json
from luban.errors import CheckpointError, InputError

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]
SHARD_TOKENS = 1 << 26
DOCUMENT_COLUMNS = 4
_BUFFER_TOKENS = 1 << 18
_ROWS_AT_ONCE = 1 << 16
_DTYPES = {"uint16": "<u2", "uint32": "<u4"}
_COUNTS = ("tokens", "documents", "bytes", "characters", "vocab_size", "end_id")


class ShardWriter:
    """Writes the shards of one split, document by document, with bounded memory.

    Arguments:
        folder: where the files go; `durable.new_folder` around it makes them appear whole or not at all.
        split: the name the files begin with.
        vocab_size: ids are below it; decides between 16 and 32 bits.
        end_id: the token appended to every document.
        fs: the durable file operations.
        shard_tokens: tokens in one file; a document may cross from one file to the next.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> writer = ShardWriter(folder, "train", vocab_size=300, end_id=0)
        >>> writer.add([7, 8, 9], bytes=3, characters=3)
        >>> writer.close()
        {'documents': 1, 'tokens': 4, 'bytes': 3, 'characters': 3}
        >>> TokenShards(folder, "train").read(1, 4)
        array([8, 9, 0])
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        vocab_size: int,
        end_id: int,
        fs: FileSystem = DISK,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self._folder, self._split, self._fs = folder, split, fs
        self._vocab_size, self._end_id, self._shard_tokens = vocab_size, end_id, shard_tokens
        self._dtype = np.dtype("<u2") if vocab_size <= 0xFFFF else np.dtype("<u4")
        self._buffer: list[npt.NDArray[Any]] = []
        self._buffered = 0
        self._rows: list[tuple[int, ...]] = []
        self._open: tuple[int, ...] | None = None
        self._shards: list[dict[str, Any]] = []
        self._totals = {"documents": 0, "tokens": 0, "bytes": 0, "characters": 0}
        self._file: BinaryIO | None = None
        with storage_errors(folder):
            self._documents = fs.open_write(folder / f"{split}-documents.bin")

    def add(self, ids: Ids, *, bytes: int, characters: int, end: bool = True) -> None:  # noqa: A002 - the file format's own word
        """Append one document, or with `end=False` the first parts of one; its end token is put behind the last.

        Raises:
            InputError: an id lies outside the vocabulary.
            StorageError: the disk is full or fails.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        if len(tokens) and (int(tokens.min()) < 0 or int(tokens.max()) >= self._vocab_size):
            wrong = int(tokens.min() if tokens.min() < 0 else tokens.max())
            raise InputError(
                f"token ids lie from 0 to {self._vocab_size - 1}", received=wrong, where=self._split
            )
        if end:
            tokens = np.append(tokens, self._end_id)
        first, *sizes = self._open or (self._totals["tokens"], 0, 0, 0)
        more = (len(tokens), bytes, characters)
        self._open = (first, *(size + extra for size, extra in zip(sizes, more, strict=True)))
        for name, extra in zip(("tokens", "bytes", "characters"), more, strict=True):
            self._totals[name] += extra
        if end:
            self._rows.append(self._open)
            self._open = None
            self._totals["documents"] += 1
        self._buffer.append(tokens.astype(self._dtype))
        self._buffered += len(tokens)
        # Many empty documents must not pile up either: a row weighs as much as 16 tokens.
        if self._buffered + 16 * len(self._rows) >= _BUFFER_TOKENS:
            self._flush()

    def close(self) -> dict[str, int]:
        """End an open document, write what is left, and last the description; return the totals."""
        if self._open is not None:
            self.add((), bytes=0, characters=0)
        self._flush()
        with storage_errors(self._folder):
            self._fs.sync(self._documents)
            self._documents.close()
            self._end_shard()
        description = {
            "dtype": self._dtype.name,
            "vocab_size": self._vocab_size,
            "end_id": self._end_id,
            **self._totals,
            "shards": self._shards,
        }
        write_json(self._folder / f"{self._split}.json", description, self._fs)
        return dict(self._totals)

    def _flush(self) -> None:
        rest = np.concatenate(self._buffer) if self._buffer else np.empty(0, self._dtype)
        rows = np.array(self._rows, dtype="<i8")
        with storage_errors(self._folder, needed=rest.nbytes + rows.nbytes):
            while len(rest):
                file, room = self._shard()
                self._fs.write(file, rest[:room].tobytes())
                self._shards[-1]["tokens"] += min(room, len(rest))
                rest = rest[room:]
            self._fs.write(self._documents, rows.tobytes())
        self._buffer, self._buffered, self._rows = [], 0, []

    def _shard(self) -> tuple[BinaryIO, int]:
        """Return the file to write to and how many tokens it still takes."""
        if self._file is not None and self._shards[-1]["tokens"] == self._shard_tokens:
            self._end_shard()
        if self._file is None:
            name = f"{self._split}-{len(self._shards):05d}.bin"
            self._file = self._fs.open_write(self._folder / name)
            self._shards.append({"file": name, "tokens": 0})
        return self._file, self._shard_tokens - int(self._shards[-1]["tokens"])

    def _end_shard(self) -> None:
        if self._file is not None:
            self._fs.sync(self._file)
            self._file.close()
            self._file = None


class TokenShards:
    """The tokens of one split, memory-mapped: opening costs nothing, and reading only what is read.

    Arguments:
        folder: the data folder.
        split: "train" or "validation".

    Attributes:
        tokens: tokens in the stream, end tokens included.
        documents: (documents, 4) int64: first token, tokens (the end token included), bytes, characters.
        vocab_size, end_id: as the tokenizer has them.
        files: the names of the files that the split is made of.

    Raises:
        CheckpointError: a file is absent, cut, or contradicts the description.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        path = folder / f"{split}.json"
        described = read_json(path)
        try:
            name = described["dtype"]
            if name not in _DTYPES:
                fix = "use the version of luban that prepared it, or prepare the data again"
                raise CheckpointError(f"{path}: this version of luban has no dtype {name!r}", fix=fix)
            dtype = np.dtype(_DTYPES[name])
            counts = {k: _count(described[k]) for k in _COUNTS}
            shards = [(str(shard["file"]), _count(shard["tokens"])) for shard in described["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} does not describe token shards: {error}") from error
        self.tokens, self.bytes, self.characters = counts["tokens"], counts["bytes"], counts["characters"]
        self.vocab_size, self.end_id = counts["vocab_size"], counts["end_id"]
        self.files = [path.name, f"{split}-documents.bin", *(name for name, _ in shards)]
        self._maps = [_mapped(member(folder, name), dtype, (tokens,)) for name, tokens in shards]
        self._starts = np.cumsum([0, *(tokens for _, tokens in shards)])
        self.documents = _mapped(
            folder / f"{split}-documents.bin", np.dtype("<i8"), (counts["documents"], DOCUMENT_COLUMNS)
        )
        self._first: npt.NDArray[np.int64] | None = None
        if int(self._starts[-1]) != self.tokens:
            raise CheckpointError(
                f"{path}: shards hold {self._starts[-1]} tokens, the total is {self.tokens}"
            )
        if not self.end_id < self.vocab_size:
            raise CheckpointError(
                f"{path}: the end token {self.end_id} lies outside {self.vocab_size} tokens"
            )
        self._check_documents()

    def _check_documents(self) -> None:
        """Raise unless documents follow each other from the first token to the last."""
        path, at = self.folder / f"{self.split}-documents.bin", 0
        for start in range(0, len(self.documents), _ROWS_AT_ONCE):
            rows = np.asarray(self.documents[start : start + _ROWS_AT_ONCE])
            ends = rows[:, 0] + rows[:, 1]
            follow = rows[0, 0] == at and bool((rows[1:, 0] == ends[:-1]).all())
            if not follow or bool((rows < 0).any()):
                raise CheckpointError(f"{path}: its documents do not follow each other")
            at = int(ends[-1])
        if at != self.tokens:
            raise CheckpointError(f"{path}: its documents end at token {at}, the stream at {self.tokens}")

    def __len__(self) -> int:
        return self.tokens

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens `start` to `stop` of the stream, (stop - start,), across shard borders.

        Raises:
            IndexError: the range does not lie within the stream.
            CheckpointError: a token lies outside the vocabulary, so that no embedding has a row for it.
        """
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of a stream of {self.tokens}")
        out = np.empty(stop - start, dtype=np.int64)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            begin = int(self._starts[shard])
            end = min(stop, int(self._starts[shard + 1]))
            out[at - start : end - start] = self._maps[shard][at - begin : end - begin]
            at, shard = end, shard + 1
        return self._known(out)

    def gather(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The tokens at `places` of the stream, in the shape of `places`: rows of windows in one call.

        Raises:
            IndexError: a place does not lie within the stream.
            CheckpointError: as `read` does.
        """
        if places.size and not 0 <= int(places.min()) <= int(places.max()) < self.tokens:
            raise IndexError(f"tokens {places.min()} to {places.max()} of a stream of {self.tokens}")
        if len(self._maps) == 1:
            return self._known(self._maps[0][places].astype(np.int64))
        out = np.empty(places.shape, dtype=np.int64)
        holders = np.searchsorted(self._starts, places, side="right") - 1
        for shard in np.unique(holders).tolist():
            here = holders == shard
            out[here] = self._maps[shard][places[here] - self._starts[shard]]
        return self._known(out)

    def _known(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the tokens, none of which may lie outside the vocabulary: no embedding has a row for it."""
        if ids.size and int(ids.max()) >= self.vocab_size:
            raise CheckpointError(
                f"{self.folder}: {self.split} holds token {ids.max()}, the vocabulary {self.vocab_size} tokens",
                fix="prepare the data again",
            )
        return ids

    def document_of(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The document each stream position lies in."""
        if self._first is None:
            self._first = np.ascontiguousarray(self.documents[:, 0])
        return np.asarray(np.searchsorted(self._first, positions, side="right") - 1, dtype=np.int64)


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 60:
        raise ValueError(f"{value!r} is not a count")
    return value


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Map a whole file read-only after checking its size."""
    needed = math.prod(shape) * dtype.itemsize
    found = path.stat().st_size if path.is_file() else None
    if found != needed:
        state = "is missing" if found is None else f"has {found} bytes, its description says {needed}"
        raise CheckpointError(f"{path} {state}", fix="prepare the data again")
    # A file of no bytes cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r", shape=shape) if needed else np.empty(shape, dtype=dtype)
