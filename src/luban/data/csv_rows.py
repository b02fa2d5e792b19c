"""Rows of CSV and TSV files as lists of cells: the line each starts on, and what a stray quote may cost."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from luban.data.rows import FileRows

_READ_AGAIN = 4
"""What may be read a second time of a file, as a multiple of the longest row allowed."""
_SHOWN_BYTES = 2000
_QUOTED = re.compile(rb'"[^"]*"')


def delimiter_of(reader: FileRows, stream: io.BufferedReader) -> str:
    """Return what stands between cells: as the suffix says, unless the first line says otherwise."""
    if reader.file.format == "tsv":
        return "\t"
    line, end, _ = stream.peek().partition(b"\n")
    line = _QUOTED.sub(b"", line)
    for other, name in ((b";", "a semicolon"), (b"\t", "a tab"), (b"|", "a bar")):
        if end and b"," not in line and other in line:
            reader.line = 1
            reader.mended("separator", f"between the columns of the file stands {name}, not a comma")
            reader.line = 0
            return other.decode()
    return ","


class CsvRows:
    """The rows of a CSV file as lists of cells, blank lines left out; bytes that are no UTF-8 are surrogates.

    A quoted text may go on over lines, so a quote too many swallows the lines after it. Once `width` is set to the
    number of cells of a row, rows of another number are bad, and where the quotes are wrong, the first line alone is
    bad and the others are read again. In a .tsv file a quote may also be a plain character: it is where a line, cut at
    its tabs, has the right number of cells and the quotes make none of it.

    `reader.line` is the line that the row at hand starts on.

    Attributes:
        width: how many cells a row has; None keeps to the quotes, whatever they make.
        crlf: whether the row at hand ends with CRLF.
    """

    def __init__(self, reader: FileRows, stream: io.BufferedReader, delimiter: str) -> None:
        # The limit is one of the module; a row of ours may be longer than its 128 KiB.
        csv.field_size_limit(max(csv.field_size_limit(), reader.limit))
        self._reader, self._delimiter = reader, delimiter
        self._lines = _Lines(reader, stream)
        self._table = csv.reader(self._lines, delimiter=delimiter, strict=True)
        self.width: int | None = None
        self.crlf = False

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        while (row := self._next_row()) is None:
            pass
        return row

    def _next_row(self) -> list[str] | None:
        """Read a row; None where it is blank or bad."""
        cells, error = self._quoted()
        lines = self._lines.row
        self._reader.line, self.crlf = lines[0].number, lines[-1].raw.endswith(b"\r\n")
        if error is None and not cells:
            self._reader.mended("blank_line", "a line without text between rows")
            return None
        if error is None and self._fits(cells):
            return cells
        alone = len(lines) == 1 or (error is not None and self.width is not None and self._lines.give_back())
        if alone and (plain := self._plain(lines[0].raw)) is not None:
            return plain
        if error is None:
            detail = f"{len(cells)} columns, there should be {self.width}"
        else:
            swallowed = "" if alone else f" from here to line {lines[-1].number:,}"
            detail = f"the row cannot be read{swallowed}: {error}"
        self._reader.bad("wrong_columns", detail, lines[0].raw[:_SHOWN_BYTES])
        return None

    def _quoted(self) -> tuple[list[str], str | None]:
        """Read a row as its quotes say; cells, or what is wrong."""
        self._lines.begin()
        try:
            return next(self._table), None
        except csv.Error as error:
            return [], str(error)

    def _fits(self, cells: list[str]) -> bool:
        if self.width is None:
            return True
        first = self._lines.row[0]
        # What was swallowed by a quote may begin within a quoted text: half a text is no row.
        torn = first.again and len(self._lines.row) == 1 and first.raw.count(b'"') % 2 == 1
        return len(cells) == self.width and not (torn and self._delimiter != "\t")

    def _plain(self, raw: bytes) -> list[str] | None:
        """Cut a line of a .tsv file at its tabs, quotes and all; None where that makes no row."""
        if self._delimiter != "\t" or self.width is None:
            return None
        cells = raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape").split("\t")
        if len(cells) != self.width:
            return None
        self._reader.mended("plain_quote", "a quote that quotes nothing was taken as it stands")
        return cells


class _Line(NamedTuple):
    number: int
    raw: bytes
    again: bool
    """Whether it is read a second time."""


class _Lines:
    """The lines of the row at hand, for `csv.reader`; a row stops at the limit."""

    def __init__(self, reader: FileRows, stream: io.BufferedReader) -> None:
        self._reader, self._lines = reader, reader.lines(stream)
        self._waiting: deque[_Line] = deque()
        self._budget = _READ_AGAIN * reader.limit
        self._read = reader.line
        self.row: list[_Line] = []
        self._bytes = 0

    def begin(self) -> None:
        """Begin a new row."""
        self.row, self._bytes = [], 0

    def give_back(self) -> bool:
        """Let all lines but the first be read again; False where too much was already."""
        self._budget -= self._bytes
        if self._budget < 0:
            return False
        self._waiting.extendleft(line._replace(again=True) for line in reversed(self.row[1:]))
        return True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._waiting.popleft() if self._waiting else self._next_line()
        if self.row and line.number != self.row[-1].number + 1:
            self._waiting.appendleft(line)
            raise csv.Error("a line of it is too long")
        self.row.append(line)
        self._bytes += len(line.raw)
        if self._bytes > self._reader.limit + 2:
            raise csv.Error(f"it is longer than {self._reader.limit:,} bytes")
        return line.raw.decode("utf-8", "surrogateescape")

    def _next_line(self) -> _Line:
        self._reader.line = self._read
        try:
            raw = next(self._lines)
        finally:
            self._read = self._reader.line
        return _Line(self._read, raw, again=False)
