"""Lines to be answered, of a file or of what is open already: one that cannot be read is named in its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from luban.data.bad_rows import BadKind, BadRows, Place
from luban.data.rows import FileRows, Lines
from luban.data.sources import CorruptStream, SourceFile, find_files
from luban.tasks.base import Broken

MAX_ROW_BYTES = 100_000_000


class InOrder(BadRows):
    """Keeps each bad row until the reader of good ones comes by, so that answers stay in order."""

    def __init__(self) -> None:
        super().__init__("skip")
        self._waiting: list[Broken] = []

    def add(self, kind: BadKind, place: Place, detail: str, raw: str | bytes | None = None) -> None:
        """Keep a row that cannot be used."""
        super().add(kind, place, detail, raw)
        self._waiting.append(Broken(f"{place.file}:{place.line}: {detail}"))

    def passed(self) -> Iterator[Broken]:
        """Yield the bad rows that came since the last call."""
        yield from self._waiting
        self._waiting.clear()


def lines_of_file(path: Path) -> Iterator[Any]:
    """Yield what the lines of a file hold, JSON in .jsonl and else texts; a `Broken` in the place of one that is none.

    Blank lines are passed over.
    """
    bad = InOrder()
    reader = FileRows(find_files(str(path))[0], MAX_ROW_BYTES, bad, lambda _: None)
    row_of = json.loads if reader.file.format == "jsonl" else str
    try:
        with reader.open() as stream:
            yield from _rows(reader, stream, bad, row_of)
    except CorruptStream as error:
        reader.bad("corrupt_file", str(error), line=reader.line + 1)
    yield from bad.passed()


def lines_of_open(file: IO[str] | IO[bytes], row_of: Callable[[str], Any]) -> Iterator[Any]:
    """Yield the rows of an open file, such as standard input, as `lines_of_file` does of a file.

    Arguments:
        row_of: makes a row of a line.
    """
    bad = InOrder()
    reader = FileRows(SourceFile(Path("-"), "-", "text"), MAX_ROW_BYTES, bad, lambda _: None)
    yield from _rows(reader, _Bytes(file), bad, row_of)


class _Bytes:
    """An open file, as bytes where it gives text: what is no UTF-8 in these was none in the text."""

    def __init__(self, file: IO[str] | IO[bytes]) -> None:
        self._file = file

    def readline(self, size: int, /) -> bytes:
        line = self._file.readline(size)
        return line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line


def _rows(reader: FileRows, stream: Lines, bad: InOrder, row_of: Callable[[str], Any]) -> Iterator[Any]:
    for line in reader.lines(stream):
        text = reader.decoded(line)
        rows = []
        if text is not None and text.strip():
            try:
                rows.append(row_of(text.rstrip("\n")))
            except (ValueError, RecursionError):
                reader.bad("broken_json", "not JSON", line)
        yield from bad.passed()
        yield from rows
    yield from bad.passed()
