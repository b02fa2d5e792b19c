"""From a row task's data section to a folder of encoded rows: read, checked, split, learned from, encoded.

Three passes, none of which holds the rows in memory: rows are read and checked into a spill file; what the task
learns from rows (vocabulary, labels, means) it learns from the training side alone; then each row is encoded.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import tee
from pathlib import Path
from typing import Any, BinaryIO

from luban.data.bad_rows import BadRows, Place
from luban.data.fingerprint import FINGERPRINT, Fingerprint, file_prints
from luban.data.json_text import to_json, to_sorted_json
from luban.data.row_files import Layout, read_raw_rows, source_files_of, with_columns
from luban.data.row_repeats import Repeats, note_of
from luban.data.row_sets import (
    BESIDE,
    REPORT,
    STATE,
    BadValue,
    Fitted,
    PreparedRows,
    Reading,
    Row,
    is_blob,
    kept_row,
    write_tokenizers,
)
from luban.data.row_spill import RowSpill
from luban.data.row_split import SIDES, SPLITS, RowSplit
from luban.data.row_store import RowWriter
from luban.durable import DISK, FileSystem, new_folder, storage_errors, write_json
from luban.errors import DataError, InputError, nearest
from luban.row_recipe import RowData

_QUARANTINE = "quarantine.jsonl"
_EXAMPLES = 10
_NO_MATTER = {"train", "validation", "test", "workers"}

_Stop = Callable[[], None]
_Progress = Callable[[str, float], None]


def row_fingerprint(
    data: RowData, layout: Layout, settings: Mapping[str, Any], stop: _Stop = lambda: None
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
    said = data.model_dump(mode="json", exclude=_NO_MATTER)
    if said["id"] is None:  # as of rows that were prepared before there was such a key
        del said["id"]
    return Fingerprint(tuple(prints), {**said, **settings})


def prepare_rows(
    reading: Reading,
    data: RowData,
    settings: Mapping[str, Any],
    folder: Path,
    *,
    stop: _Stop = lambda: None,
    progress: _Progress = lambda stage, fraction: None,  # noqa: ARG005
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


class _Preparation:
    """The passes of one preparation, in a folder that is not yet in its place."""

    def __init__(
        self,
        reading: Reading,
        data: RowData,
        folder: Path,
        fingerprint: Fingerprint,
        stop: _Stop,
        progress: _Progress,
        fs: FileSystem,
    ) -> None:
        self._reading, self._data, self._folder, self._fingerprint = reading, data, folder, fingerprint
        self._stop, self._progress, self._fs = stop, progress, fs
        self._roles: Mapping[str, Any] | None = None
        self._digests: list[bytes] = []
        self._repeats = Repeats()
        self._given: list[int] = []
        self._rows_of_file: Counter[str] = Counter()
        self._ids: set[int] = set()

    def run(self) -> None:
        """Read, split, fit, encode, report."""
        spill = RowSpill(self._folder, self._fs)
        with storage_errors(self._folder), self._fs.open_write(self._folder / _QUARANTINE) as quarantine:
            bad = BadRows(self._data.on_bad_row, self._keep(quarantine))
            for number, split in enumerate(SPLITS):
                if (source := getattr(self._data, split)) is not None:
                    self._read(source, number, spill, bad)
            spill.close()
            sides = RowSplit(self._data, self._digests, self._given).sides()
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
            line = (to_json(row) + "\n").encode("utf-8")
            with storage_errors(self._folder / _QUARANTINE, needed=len(line)):
                self._fs.write(quarantine, line)

        return keep

    def _read(self, source: str | list[str], split: int, spill: RowSpill, bad: BadRows) -> None:
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
        if self._data.id is not None and columns and self._data.id not in columns:
            close = nearest(self._data.id, columns)
            there = f"there are: {', '.join(list(columns)[:50])}"
            raise DataError(
                "the rows have no such column",
                received=self._data.id,
                where="data.id",
                fix=f"did you mean data.id={close}? {there}" if close else there,
            )
        for raw in rows:
            self._stop()
            assert self._roles is not None, "a row has columns"
            place = Place(raw.file, raw.file, raw.line)
            try:
                row = reading.clean(raw.values, self._roles)
                if missing := sorted(reading.targets - row.keys()):
                    raise BadValue("missing_value", f"the row has no {' and no '.join(missing)}")
                self._check_id(raw.values)
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
                received=bad.told() or source,
                where=source if isinstance(source, str) else None,
                fix=bad.fix() or "look at the first rows of the file and at the columns the recipe names",
            )

    def _check_id(self, values: Mapping[str, Any]) -> None:
        """Note the name of a row that is used; raises BadValue for one that another has, or for none."""
        column = self._data.id
        if column is None:
            return
        name = str(values.get(column) if values.get(column) is not None else "").strip()
        if not name:
            raise BadValue("missing_value", f"the row has no {column}")
        # Eight bytes of a digest for each row: of a billion rows a few would be taken for repeated.
        digest = int.from_bytes(
            hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        )
        if digest in self._ids:
            raise BadValue("repeated_id", f"a row with the {column} {name[:80]!r} came before")
        self._ids.add(digest)

    def _encode(
        self, spill: RowSpill, sides: list[int], fitted: Fitted, bad: BadRows
    ) -> dict[str, dict[str, int]]:
        reading = self._reading
        wanted = set(sides)
        writers = [RowWriter(self._folder / split, reading.ragged, self._fs) for split in SPLITS]
        given, coming = tee(spill.rows())  # one is ahead of the other by what a task encodes at once
        encoded = reading.encode_all((row for row, _ in given), fitted)
        for number, ((row, place), arrays) in enumerate(zip(coming, encoded, strict=True)):
            self._stop()
            if isinstance(arrays, BadValue):
                bad.add(arrays.kind, place, arrays.detail, _shown(row))
                sides[number] = -1
                self._rows_of_file[place.file] -= 1
                continue
            kept = kept_row(reading, row, place.file, place.line)
            writers[sides[number]].add(arrays, kept)
            if number % 256 == 0:
                self._progress("encoding", number / len(sides))
        totals: dict[str, dict[str, int]] = {
            split: writer.close() for split, writer in zip(SPLITS, writers, strict=True)
        }
        for side in SIDES:
            if side in wanted and not totals[SPLITS[side]]["rows"]:
                raise DataError(
                    f"no row is left of {SPLITS[side]}",
                    received=bad.told(),
                    fix="data.on_bad_row=error stops at the first of the rows left out, and says how to mend it",
                )
        return totals

    def _overlap(self, sides: list[int], spill: RowSpill) -> dict[str, Any]:
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
        held_out = totals["validation"]["rows"] + totals["test"]["rows"]
        if unknown := bad.count("unknown_label"):
            detail = (
                f"{unknown:,} of {held_out + unknown:,} held-out rows have a label that no training row has: they are "
                "left out, and figures flatter"
            )
            notes.append({"kind": "unknown_label", "detail": detail})
        if overlap["exact"]:
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


def _rows_shown(numbers: set[int], spill: RowSpill) -> dict[int, dict[str, Any]]:
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
    plain = not any(map(is_blob, row.values()))
    aside = targets | {BESIDE}
    given = {name: value for name, value in row.items() if name not in aside} if plain else {}
    return given, {name: value for name, value in row.items() if name in targets}


def _digest(row: Row, targets: frozenset[str], blob: bytes) -> bytes:
    """Return a digest of what is given of a row; of one with a picture that is the picture, wherever it lies."""
    text = to_sorted_json(_parted(row, targets)[0]).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text + blob, digest_size=16).digest()


def _shown(values: Mapping[str, Any]) -> str:
    """Write a row for a person, pictures by their size."""
    shown = {
        name: value
        if not is_blob(value)
        else f"<{len(value):,} bytes>"
        if isinstance(value, bytes)
        else f"<{value.shape}>"
        for name, value in values.items()
    }
    return json.dumps(shown, ensure_ascii=False, default=str)[:500]
