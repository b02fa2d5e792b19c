"""From a row task's data section to a folder of encoded rows: read, checked, split, learned from, encoded.

Three passes, none of which holds the rows in memory: rows are read and checked into a spill file; what the task
learns from rows (vocabulary, labels, means) it learns from the training side alone; then each row is encoded.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import numpy as np

from luban.data.bad_rows import BadKind, BadRows, Place
from luban.data.fingerprint import FINGERPRINT, Fingerprint, Role, file_prints
from luban.data.row_files import Layout, RawRow, read_raw_rows, source_files_of
from luban.data.row_repeats import Repeats, note_of
from luban.data.row_store import RowSet, RowWriter
from luban.data.split import draw
from luban.data.tokenizer import Tokenizer
from luban.durable import DISK, FileSystem, new_folder, read_json, storage_errors, verify_folder, write_json
from luban.errors import CheckpointError, DataError, InputError, RecipeError
from luban.row_recipe import RowData

REPORT, STATE, QUARANTINE = "report.json", "state.json", "quarantine.jsonl"
SPLITS: tuple[Role, ...] = ("train", "validation", "test")
SIDES = range(len(SPLITS))
_SPILL, _BLOBS = "rows.spill", "blobs.spill"
_EXAMPLES = 10
_LOOKED_AT = 16
_NO_MATTER = {"train", "validation", "test", "workers"}

Row = dict[str, Any]
Stop = Callable[[], None]
Progress = Callable[[str, float], None]


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
        """Return what is kept of a row to show it later: JSON."""


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


def row_fingerprint(
    data: RowData, layout: Layout, settings: Mapping[str, Any], stop: Stop = lambda: None
) -> Fingerprint:
    """Read the files that a data section names and return the fingerprint their rows would have.

    Arguments:
        settings: what else the encoded rows depend on.
    """
    prints = []
    for split in SPLITS:
        if (source := getattr(data, split)) is not None:
            try:
                files = source_files_of(source, layout)
            except InputError as error:
                if error.where == "data.source":  # as the reader of text calls it
                    error.where = f"data.{split}"
                raise
            prints += file_prints(split, files, stop)
    return Fingerprint(tuple(prints), {**data.model_dump(mode="json", exclude=_NO_MATTER), **settings})


def prepare_rows(
    reading: Reading,
    data: RowData,
    settings: Mapping[str, Any],
    folder: Path,
    *,
    stop: Stop = lambda: None,
    progress: Progress = lambda stage, fraction: None,  # noqa: ARG005
    fs: FileSystem = DISK,
) -> PreparedRows:
    """Read, check, split and encode the rows that a data section names, into `folder`, whole or not at all.

    Arguments:
        reading: the task.
        settings: what else the encoded rows depend on; part of the fingerprint.

    Raises:
        InputError: a source is absent. DataError: a bad row under the policy `error`, or too few rows.
    """
    progress("hashing", 0.0)
    fingerprint = row_fingerprint(data, reading.layout, settings, stop)
    with new_folder(folder, fs, extra={"kind": "prepared rows", "fingerprint": fingerprint.sha256}) as new:
        _Preparation(reading, data, new, fingerprint, stop, progress, fs).run()
    return PreparedRows(folder)


def with_columns(rows: Iterator[RawRow]) -> tuple[list[str], Iterator[RawRow]]:
    """Return the columns that the first rows have, and all rows: a row of JSON may lack some that others have."""
    first = list(islice(rows, _LOOKED_AT))
    return list(dict.fromkeys(name for raw in first for name in raw.values)), chain(first, rows)


class _Spill:
    """Rows between the passes: a line of JSON each, bytes and pictures in a file beside."""

    def __init__(self, folder: Path, fs: FileSystem) -> None:
        self._paths = (folder / _SPILL, folder / _BLOBS)
        self._fs = fs
        with storage_errors(folder):
            self._lines, self._blobs = (fs.open_write(path) for path in self._paths)
        self._blob_bytes = 0

    def add(self, row: Row, place: Place) -> bytes:
        """Append a row; return a digest of its bytes and pictures."""
        hashed, kept = hashlib.blake2b(digest_size=16), {}
        for name, value in row.items():
            if isinstance(value, bytes | np.ndarray):
                blob = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
                shape = None if isinstance(value, bytes) else list(value.shape)
                kept[name] = {"at": self._blob_bytes, "size": len(blob), "shape": shape}
                with storage_errors(self._paths[1], needed=len(blob)):
                    self._fs.write(self._blobs, blob)
                self._blob_bytes += len(blob)
                hashed.update(name.encode() + blob)
            else:
                kept[name] = value
        line = json.dumps({"row": kept, "place": list(place)}, ensure_ascii=False).encode("utf-8") + b"\n"
        with storage_errors(self._paths[0], needed=len(line)):
            self._fs.write(self._lines, line)
        return hashed.digest()

    def close(self) -> None:
        with storage_errors(self._paths[0]):
            self._lines.close()
            self._blobs.close()

    def rows(self) -> Iterator[tuple[Row, Place]]:
        with self._paths[0].open("rb") as lines, self._paths[1].open("rb") as blobs:
            for line in lines:
                written = json.loads(line)
                row = {name: self._value(value, blobs) for name, value in written["row"].items()}
                yield row, Place(*written["place"])

    @staticmethod
    def _value(value: Any, blobs: BinaryIO) -> Any:
        if not isinstance(value, dict):  # no value of a checked row is an object
            return value
        blobs.seek(value["at"])
        blob = blobs.read(value["size"])
        return blob if value["shape"] is None else np.frombuffer(blob, np.uint8).reshape(value["shape"])

    def remove(self) -> None:
        with storage_errors(self._paths[0]):
            for path in self._paths:
                self._fs.remove(path)


class _Preparation:
    """The passes of one preparation, in a folder that is not yet in its place."""

    def __init__(
        self,
        reading: Reading,
        data: RowData,
        folder: Path,
        fingerprint: Fingerprint,
        stop: Stop,
        progress: Progress,
        fs: FileSystem,
    ) -> None:
        self._reading, self._data, self._folder, self._fingerprint = reading, data, folder, fingerprint
        self._stop, self._progress, self._fs = stop, progress, fs
        self._roles: Mapping[str, Any] | None = None
        self._digests: list[bytes] = []
        self._repeats = Repeats()
        self._given: list[int] = []
        self._rows_of_file: Counter[str] = Counter()

    def run(self) -> None:
        """Read, split, fit, encode, report."""
        spill = _Spill(self._folder, self._fs)
        with storage_errors(self._folder), self._fs.open_write(self._folder / QUARANTINE) as quarantine:
            bad = BadRows(self._data.on_bad_row, self._keep(quarantine))
            for number, split in enumerate(SPLITS):
                if (source := getattr(self._data, split)) is not None:
                    self._read(source, number, spill, bad)
            spill.close()
            sides = self._sides()
            roles = self._roles or {}

            def training_rows() -> Iterator[Row]:
                for side, (row, _) in zip(sides, spill.rows(), strict=True):
                    self._stop()
                    if side == 0:
                        yield row

            self._progress("learning from the training rows", 0.0)
            fitted = self._reading.fit(training_rows, roles)
            totals = self._encode(spill, sides, fitted, bad)
        overlap = self._overlap(sides, spill)
        repeats = self._repeats.report(sides, lambda numbers: _rows_shown(numbers, spill))
        spill.remove()
        names = write_tokenizers(self._folder, fitted.tokenizers, self._fs)
        write_json(self._folder / STATE, {"state": dict(fitted.state), "tokenizers": names}, self._fs)
        self._report(bad, totals, overlap, repeats, fitted)
        write_json(self._folder / FINGERPRINT, self._fingerprint.as_dict(), self._fs)

    def _keep(self, quarantine: BinaryIO) -> Callable[[dict[str, Any]], None]:
        def keep(row: dict[str, Any]) -> None:
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
            with storage_errors(self._folder / QUARANTINE, needed=len(line)):
                self._fs.write(quarantine, line)

        return keep

    def _read(self, source: str | list[str], split: int, spill: _Spill, bad: BadRows) -> None:
        self._progress(f"reading {SPLITS[split]}", 0.0)
        reading = self._reading
        columns, rows = with_columns(
            read_raw_rows(
                source,
                reading.layout,
                columns=reading.asked_columns(),
                max_row_bytes=self._data.max_row_bytes,
                bad=bad,
            )
        )
        if self._roles is None and columns:
            self._roles = reading.roles(columns)
        for raw in rows:
            self._stop()
            assert self._roles is not None, "a row has columns"
            place = Place(raw.file, raw.file, raw.line)
            try:
                row = reading.clean(raw.values, self._roles)
                if missing := sorted(reading.targets - row.keys()):
                    raise BadValue("missing_value", f"the row has no {' and no '.join(missing)}")
            except BadValue as error:
                bad.add(error.kind, place, error.detail, _shown(raw.values))
                continue
            blob = spill.add(row, place)
            self._digests.append(_digest(row, reading.targets, blob))
            self._repeats.add(*_parted(row, reading.targets), blob)
            self._given.append(split)
            self._rows_of_file[raw.file] += 1
        if split not in self._given:
            raise DataError(
                f"data.{SPLITS[split]} has no row that can be used",
                received=source,
                fix="look at the first rows of the file and at the columns the recipe names",
            )

    def _sides(self) -> list[int]:
        """Say of each row whether it is for training (0), validation (1) or testing (2)."""
        sides, taken = list(self._given), self._taken()
        fold = self._folds()
        for number, given in enumerate(self._given):
            if given != 0:
                continue
            if fold and fold[self._digests[number]] == (self._data.fold or 0):
                sides[number] = 2
                continue
            for side, fraction in taken.items():
                if draw(self._digests[number] + bytes([side]), self._data.seed) < fraction:
                    sides[number] = side
                    break
        for side in (*taken, 0):
            if side not in sides:
                self._force(sides, side)
        return sides

    def _taken(self) -> dict[int, float]:
        """Return by side the share of the rows left by the sides before it that goes to it."""
        data, taken = self._data, dict[int, float]()
        if data.folds is None and data.test is None and data.test_fraction:
            taken[2] = data.test_fraction
        if data.validation is None:
            left = 1.0 - taken.get(2, 0.0)
            if data.validation_fraction >= left:
                raise RecipeError(
                    "validation and test together take all rows",
                    received=f"validation_fraction {data.validation_fraction:g}, test_fraction {data.test_fraction:g}",
                    where="data",
                    fix="let them add up to less than 1",
                )
            taken[1] = data.validation_fraction / left
        return taken

    def _folds(self) -> dict[bytes, int]:
        """Return by digest the fold that tests a row; nothing where there are no folds."""
        count = self._data.folds
        if count is None:
            return {}
        different = {digest for digest, given in zip(self._digests, self._given, strict=True) if given == 0}
        folds = {digest: int(draw(digest + b"fold", self._data.seed) * count) for digest in different}
        if empty := count - len(set(folds.values())):
            raise DataError(
                f"{empty} of {count} folds have no row to test on",
                received=f"different rows: {len(different):,}",
                where="data.folds",
                fix="take fewer folds, or give more rows",
            )
        return folds

    def _force(self, sides: list[int], side: int) -> None:
        """Give an empty side, from the one that has most, the row of the smallest draw, with its equals."""
        # Rows of files of their own stay, and so do those that a fold tests on: no other fold does.
        free = [
            n
            for n, given in enumerate(self._given)
            if given == 0 and (self._data.folds is None or sides[n] != 2)
        ]
        source = max(SIDES, key=[sides[n] for n in free].count)
        pool = [n for n in free if sides[n] == source]
        different = {self._digests[n] for n in pool}
        if len(different) < 2:
            raise DataError(
                "there are too few different rows to train on and to hold some out",
                received=f"rows: {len(self._given)}, different ones to choose from: {len(different)}",
                fix="give more rows, or files of their own in data.validation and data.test",
            )
        chosen = min(different, key=lambda digest: draw(digest + b"forced", self._data.seed))
        for number in pool:
            if self._digests[number] == chosen:
                sides[number] = side

    def _encode(
        self, spill: _Spill, sides: list[int], fitted: Fitted, bad: BadRows
    ) -> dict[str, dict[str, int]]:
        reading = self._reading
        wanted = set(sides)
        writers = [RowWriter(self._folder / split, reading.ragged, self._fs) for split in SPLITS]
        coming = [iter(spill.rows()), iter(spill.rows())]
        encoded = reading.encode_all((row for row, _ in coming[0]), fitted)
        for number, ((row, place), arrays) in enumerate(zip(coming[1], encoded, strict=True)):
            self._stop()
            if isinstance(arrays, BadValue):
                bad.add(arrays.kind, place, arrays.detail, _shown(row))
                sides[number] = -1
                self._rows_of_file[place.file] -= 1
                continue
            kept = {"values": reading.kept(row), "file": place.file, "line": place.line}
            writers[sides[number]].add(arrays, kept)
            if number % 256 == 0:
                self._progress("encoding", number / len(sides))
        totals: dict[str, dict[str, int]] = {
            split: writer.close() for split, writer in zip(SPLITS, writers, strict=True)
        }
        for side in SIDES:
            if side in wanted and not totals[SPLITS[side]]["rows"]:
                kinds = bad.as_dict()["kinds"].items()
                raise DataError(
                    f"no row is left of {SPLITS[side]}",
                    received={kind: entry["count"] for kind, entry in kinds if entry["left_out"]},
                    fix="the rows left out are listed with data.on_bad_row=error, one at a time",
                )
        return totals

    def _overlap(self, sides: list[int], spill: _Spill) -> dict[str, Any]:
        """Count the rows held out whose input stands in training too, with the first of them."""
        trained = {
            digest: number
            for number, (digest, side) in enumerate(zip(self._digests, sides, strict=True))
            if side == 0
        }
        pairs = [
            (number, trained[digest])
            for number, (digest, side) in enumerate(zip(self._digests, sides, strict=True))
            if side > 0 and digest in trained
        ]
        shown = _rows_shown({number for pair in pairs[:_EXAMPLES] for number in pair}, spill)
        examples = [{"validation": shown[a], "train": shown[b]} for a, b in pairs[:_EXAMPLES]]
        return {"exact": len(pairs), "near": 0, "examples": examples}

    def _report(
        self,
        bad: BadRows,
        totals: dict[str, dict[str, int]],
        overlap: dict[str, Any],
        repeats: dict[str, Any],
        fitted: Fitted,
    ) -> None:
        data = self._data
        rule = (
            "folds"
            if data.folds
            else "files"
            if data.test is not None and data.validation is not None
            else "rows"
        )
        files = [
            {
                "name": f.name,
                "bytes": f.bytes,
                "sha256": f.sha256,
                "role": f.role,
                "rows": self._rows_of_file[f.name],
            }
            for f in self._fingerprint.files
        ]
        notes = [dict(note) for note in fitted.notes]
        if overlap["exact"]:
            held_out = totals["validation"]["rows"] + totals["test"]["rows"]
            detail = (
                f"{overlap['exact']:,} of {held_out:,} held-out rows stand in training too: figures flatter"
            )
            notes.append({"kind": "overlap", "detail": detail})
        if (note := note_of(repeats, totals["train"]["rows"])) is not None:
            notes.append(note)
        report = {
            "files": files,
            "rows": sum(self._rows_of_file.values()),
            "bytes": sum(f.bytes for f in self._fingerprint.files),
            "bad_rows": bad.as_dict(),
            "split": {"rule": rule, "seed": data.seed, **totals, "overlap": overlap},
            "duplicates": repeats,
            "columns": dict(self._roles or {}),
            "notes": notes,
        }
        write_json(self._folder / REPORT, report, self._fs)


def _rows_shown(numbers: set[int], spill: _Spill) -> dict[int, dict[str, Any]]:
    """Return rows by number, each with its place and as a person reads it."""
    last = max(numbers, default=-1)
    shown: dict[int, dict[str, Any]] = {}
    for number, (row, place) in enumerate(spill.rows()):
        if number > last:
            break
        if number in numbers:
            shown[number] = {"file": place.file, "line": place.line, "text": _shown(row)}
    return shown


def _parted(row: Row, targets: frozenset[str]) -> tuple[Row, Row]:
    """Return what is given of a row, and what is asked for; of one with a picture the picture alone is given."""
    plain = all(map(_is_json, row.values()))
    given = {name: value for name, value in row.items() if name not in targets} if plain else {}
    return given, {name: value for name, value in row.items() if name in targets}


def _digest(row: Row, targets: frozenset[str], blob: bytes) -> bytes:
    """Return a digest of what is given of a row; of one with a picture that is the picture, wherever it lies."""
    text = json.dumps(_parted(row, targets)[0], ensure_ascii=False, sort_keys=True).encode(
        "utf-8", "surrogatepass"
    )
    return hashlib.blake2b(text + blob, digest_size=16).digest()


def _is_json(value: object) -> bool:
    return not isinstance(value, bytes | np.ndarray)


def _shown(values: Mapping[str, Any]) -> str:
    """Write a row for a person, pictures by their size."""
    shown = {
        name: value
        if _is_json(value)
        else f"<{len(value):,} bytes>"
        if isinstance(value, bytes)
        else f"<{value.shape}>"
        for name, value in values.items()
    }
    return json.dumps(shown, ensure_ascii=False, default=str)[:500]
