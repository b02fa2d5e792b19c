"""A row of text, and what every format checks before it passes one on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from luban.data.bad_rows import BadKind, BadRows, MendedKind, Place
from luban.data.sources import SourceFile, open_bytes

_UTF8_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 1 << 20
_SHOWN_BYTES = 2000


class Lines(Protocol):
    """What gives bytes line by line."""

    def readline(self, size: int, /) -> bytes:
        """Return the next line, or the first `size` bytes of it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One document as it stands in a source.

    Arguments:
        text: the document; line ends are LF.
        file: the file's name, as `SourceFile.name`.
        line: the line it starts on, or the row's number, from 1.
        continues: the text goes on where the row before it ended, as passages of one file do.
    """

    text: str
    file: str
    line: int
    continues: bool = False


class FileRows:
    """One file being read: where in it we are, and where its bad rows go."""

    def __init__(self, file: SourceFile, limit: int, bad: BadRows, seen: Callable[[int], None]) -> None:
        self.file, self.limit = file, limit
        self._bad, self.seen = bad, seen
        self.line = 0
        self.met_any = False

    def beside(self, file: SourceFile) -> FileRows:
        """Return the reader of another file that is read along with this one."""
        return FileRows(file, self.limit, self._bad, self.seen)

    def place(self, line: int | None = None) -> Place:
        """Return the place of `line`, or of the line being read."""
        return Place(self.file.name, str(self.file.path), self.line if line is None else line)

    def bad(
        self, kind: BadKind, detail: str, raw: str | bytes | None = None, line: int | None = None
    ) -> None:
        """Count a row that cannot be used."""
        self.met_any = True
        self._bad.add(kind, self.place(line), detail, raw)

    def mended(self, kind: MendedKind, detail: str) -> None:
        """Count something harmless that was put right."""
        self._bad.mended(kind, self.place(), detail)

    def open(self) -> io.BufferedReader:
        """Open the file's bytes, past a byte-order mark, which is noted."""
        stream = open_bytes(self.file, self.seen)
        self.line = 1
        if stream.peek(3)[:3] == _UTF8_BOM:
            stream.read(3)
            self.mended("bom", "the file starts with a byte-order mark; it was dropped")
        self.line = 0
        return stream

    def lines(self, stream: Lines) -> Iterator[bytes]:
        """Yield the lines, line ends and all; one longer than the limit is bad and never held whole."""
        while raw := stream.readline(self.limit + 2):
            self.line += 1
            if len(raw) > self.limit and len(raw.rstrip(b"\r\n")) > self.limit:
                shown = raw[:_SHOWN_BYTES]
                while raw and not raw.endswith(b"\n"):
                    raw = stream.readline(_SKIP_BYTES)
                self.bad("too_long", f"the line is longer than {self.limit:,} bytes", shown)
                continue
            yield raw

    def decoded(self, raw: bytes) -> str | None:
        """Decode UTF-8 text and mend its line ends; None where it is a bad row."""
        if b"\0" in raw:
            self.bad("nul", "a NUL byte", raw[:_SHOWN_BYTES])
            return None
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            start = max(0, error.start - 40)
            self.bad(
                "invalid_utf8",
                f"byte {error.start + 1} of the row is not UTF-8 (0x{raw[error.start]:02x})",
                raw[start : start + _SHOWN_BYTES],
            )
            return None
        return self.with_line_feeds(text)

    def with_line_feeds(self, text: str) -> str:
        """Return `text` with CRLF and lone CR as LF, as Python's text mode reads them."""
        if "\r" not in text:
            return text
        self.mended("crlf", "line ends were CRLF or CR; they were made LF")
        return text.replace("\r\n", "\n").replace("\r", "\n")


class ColumnRows(FileRows):
    """A table being read for one column of it, whose texts are the documents."""

    def __init__(
        self, file: SourceFile, column: str, limit: int, bad: BadRows, seen: Callable[[int], None]
    ) -> None:
        super().__init__(file, limit, bad, seen)
        self.column = column

    def row(self, value: object) -> Row | None:
        """Check the text of a table's row; None where it is a bad row."""
        if isinstance(value, bytes):
            value = self.decoded(value)
            if value is None:
                return None
        if not isinstance(value, str):
            self.bad(
                "not_text",
                f"column {self.column!r} holds {type(value).__name__}, not text",
                repr(value)[:200],
            )
            return None
        if len(value) > self.limit:
            self.bad("too_long", f"the text is longer than {self.limit:,} bytes", value[:_SHOWN_BYTES])
            return None
        if not value.isascii() and (surrogate := first_surrogate(value)) is not None:
            self.bad("invalid_utf8", f"character {surrogate + 1} of the text is no Unicode character", value)
            return None
        if "\0" in value:
            self.bad("nul", "a NUL character", value)
            return None
        if not value.strip():
            self.bad("empty_row", "the text is empty")
            return None
        self.met_any = True
        return Row(self.with_line_feeds(value), self.file.name, self.line)


def first_surrogate(text: str) -> int | None:
    """Return the index of the first lone surrogate, which no UTF-8 can hold, or None."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None
