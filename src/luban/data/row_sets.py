"""What a task says of its rows while they are prepared, and the rows once that is done, opened.

`Reading` is all that preparation (`row_preparation.py`) asks of a task; `Fitted` is what comes of the training rows;
`PreparedRows` is the folder that comes of all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from luban.data.bad_rows import BadKind
from luban.data.fingerprint import FINGERPRINT, Fingerprint
from luban.data.row_files import Layout
from luban.data.row_store import RowSet
from luban.data.tokenizer import Tokenizer
from luban.durable import FileSystem, read_json, storage_errors, verify_folder
from luban.errors import CheckpointError

REPORT, STATE = "report.json", "state.json"

Row = dict[str, Any]


class BadValue(Exception):  # noqa: N818  (what is wrong with a row, not an error of code)
    """A row cannot be used; counted, and met by policy, where it is caught."""

    def __init__(self, kind: BadKind, detail: str) -> None:
        self.kind, self.detail = kind, detail
        super().__init__(detail)


@dataclass(frozen=True)
class Fitted:
    """What a task learned from training rows.

    Attributes:
        state: JSON; all that encoding, decoding and building the model need.
        tokenizers: by name; each becomes a folder of its own, the one named "" lies at the top.
        notes: what a careful colleague would say of the rows: `{"kind", "detail"}`.
    """

    state: Mapping[str, Any]
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    notes: Sequence[Mapping[str, str]] = ()


BESIDE = "beside"
"""The part of a row that is only looked at, such as columns that figures are given by: it is no part of what the row
is, so that asking for it moves no row to another side."""


CONTENT = "content"
"""The digest of a row's bytes and pictures, beside the values that are kept of it."""


class Reading(Protocol):
    """What preparation asks of a task."""

    layout: ClassVar[Layout]
    targets: ClassVar[frozenset[str]]
    """Names of the values that are asked for, not given."""
    ragged: ClassVar[frozenset[str]]
    """Names of the encoded columns whose length differs from row to row."""

    def asked_columns(self) -> Sequence[str] | None:
        """Return the columns that reading must know, in the layout's order; None for all."""

    def roles(self, columns: Sequence[str]) -> Mapping[str, Any]:
        """Say which column is what, from the names there are."""

    def clean(self, values: Mapping[str, Any], roles: Mapping[str, Any]) -> Row:
        """Return the row by the task's own names, checked; raises BadValue."""

    def fit(self, rows: Callable[[], Iterator[Row]], roles: Mapping[str, Any]) -> Fitted:
        """Learn from training rows; `rows` gives them anew at each call."""

    def encode_all(self, rows: Iterator[Row], fitted: Fitted) -> Iterator[dict[str, Any] | BadValue]:
        """Encode rows, in order; a row that cannot be is a BadValue in its place."""

    def kept(self, row: Row) -> Row:
        """Return what is kept of a row to show it later, without what is BESIDE: JSON."""


def kept_row(reading: Reading, row: Row, file: str, line: int) -> dict[str, Any]:
    """Return what a folder of prepared rows keeps of a row: its values, what is beside them, and where it came from.

    Of bytes and pictures, which are not kept, a digest stands beside: without it two pictures of one label and no path
    would be one row.
    """
    beside = {BESIDE: row[BESIDE]} if row.get(BESIDE) else {}
    content = {CONTENT: content_digest(row).hex()} if any(map(is_blob, row.values())) else {}
    return {"values": reading.kept(row), **beside, **content, "file": file, "line": line}


def identity_of(kept: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what tells a kept row from others, wherever it stands and came from."""
    values: Mapping[str, Any] = kept["values"]
    return {"values": values, CONTENT: kept[CONTENT]} if CONTENT in kept else values


def content_digest(row: Row) -> bytes:
    """Return a digest of a row's bytes and pictures."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, value in row.items():
        if is_blob(value):
            hashed.update(name.encode() + blob_of(value))
    return hashed.digest()


def is_blob(value: object) -> bool:
    """Whether a value is kept as bytes, not as JSON."""
    return isinstance(value, bytes | np.ndarray)


def blob_of(value: bytes | NDArray[Any]) -> bytes:
    """Return the bytes of a blob."""
    return value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()


class PreparedRows:
    """Prepared rows, opened: checked against the manifest once, then memory-mapped.

    Raises:
        CheckpointError: a file is absent, cut or altered.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser()
        verify_folder(self.folder)
        self.report: dict[str, Any] = read_json(self.folder / REPORT)
        self.fingerprint: dict[str, Any] = read_json(self.folder / FINGERPRINT)
        Fingerprint.from_dict(self.fingerprint, self.folder / FINGERPRINT)
        written = read_json(self.folder / STATE)
        if not isinstance(written, dict) or not isinstance(written.get("state"), dict):
            raise CheckpointError(f"{self.folder / STATE} holds no state", received=written)
        self.fitted = Fitted(written["state"], read_tokenizers(self.folder, written.get("tokenizers", [])))
        self.train = RowSet(self.folder / "train")
        self.validation = RowSet(self.folder / "validation")
        test = RowSet(self.folder / "test")
        self.test = test if len(test) else None

    @property
    def train_tokens(self) -> int:
        """Rows of the training side: an epoch."""
        return len(self.train)

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return the rows of each split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test or ()}
        return {split: {"rows": len(rows)} for split, rows in splits.items()}

    @property
    def held_out(self) -> RowSet:
        """The rows that judge: the test split, or validation where there is none."""
        return self.validation if self.test is None else self.test


def write_tokenizers(folder: Path, tokenizers: Mapping[str, Tokenizer], fs: FileSystem) -> list[str]:
    """Write each tokenizer into its folder and return their names."""
    for name, tokenizer in tokenizers.items():
        if name:
            with storage_errors(folder):
                fs.make_folder(folder / name)
        tokenizer.save(folder / name, fs)
    return list(tokenizers)


def read_tokenizers(folder: Path, names: Iterable[str]) -> dict[str, Tokenizer]:
    """Read the tokenizers of a folder.

    Raises:
        CheckpointError: a name is none.
    """
    listed = list(names)
    if not all(isinstance(name, str) and Path(name).name == name for name in listed):
        raise CheckpointError(f"{folder} names tokenizers that it cannot have", received=listed)
    return {name: Tokenizer.load(folder / name) for name in listed}
