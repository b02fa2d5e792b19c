"""Rows of plain text: lines, whole files, or passages."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import Literal

from luban.data.passages import Passages
from luban.data.rows import FileRows, Row

_PIECE_BYTES = 1 << 16
_READ_BYTES = 1 << 20
_MOST_BLANK = 1 << 16
_SHOWN_BYTES = 2000


def plain_rows(
    reader: FileRows, document: Literal["file", "passage", "line"], whole_up_to: int
) -> Iterator[Row]:
    """Yield the documents of a plain text; with `passage`, a file of at most `whole_up_to` bytes is one."""
    with reader.open() as stream:
        if document == "line":
            yield from _lines(reader, stream)
        elif document == "file":
            yield from _whole(reader, _read_most(stream, reader.limit + 1))
        else:
            start = stream.read(whole_up_to + 1) if whole_up_to else b""
            if whole_up_to and len(start) <= whole_up_to:
                yield from _whole(reader, start)
            else:
                yield from _passages(reader, io.BufferedReader(_Joined(start, stream), _PIECE_BYTES * 2))


def _lines(reader: FileRows, stream: io.BufferedReader) -> Iterator[Row]:
    """One row per line; lines without text only separate."""
    for raw in reader.lines(stream):
        text = reader.decoded(raw)
        if text is not None and text.strip():
            reader.met_any = True
            yield Row(text.rstrip("\n"), reader.file.name, reader.line)


def _read_most(stream: io.BufferedReader, most: int) -> bytes:
    """Read to the end, or `most` bytes. In pieces: `read(most)` would first take memory for all of `most`."""
    parts, left = [], most
    while left and (part := stream.read(min(left, _READ_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _whole(reader: FileRows, raw: bytes) -> Iterator[Row]:
    reader.line = 1
    if len(raw) > reader.limit:
        reader.bad("too_long", f"the file is longer than {reader.limit:,} bytes", raw[:2000])
        return
    text = reader.decoded(raw)
    if text is not None and text.strip():
        reader.met_any = True
        yield Row(text, reader.file.name, 1)


def _passages(reader: FileRows, stream: io.BufferedReader) -> Iterator[Row]:
    """Cut the text into passages; the bad row of a running text is a line of it, and the rest stays."""
    passages = Passages()
    start, text, continues = 0, "", False
    for number, more in _cut(reader, stream, passages):
        if (text.strip() and more.strip()) or len(text) > _MOST_BLANK:
            yield Row(text, reader.file.name, start, continues)
            start, text, continues = number, more, True
        else:
            # What is only white space joins its neighbour: a passage must have something to say.
            start, text = start or number, text + more
    if text.strip():
        reader.met_any = True
        yield Row(text, reader.file.name, start, continues)


def _cut(reader: FileRows, stream: io.BufferedReader, passages: Passages) -> Iterator[tuple[int, str]]:
    for number, text in _pieces(reader, stream):
        yield from passages.feed(number, text)
    yield from passages.finish()


def _pieces(reader: FileRows, stream: io.BufferedReader) -> Iterator[tuple[int, str]]:
    """Yield lines with their number, a long one in several pieces, so that no line is ever held whole."""
    while raw := stream.readline(_PIECE_BYTES):
        reader.line += 1
        if raw.endswith(b"\n") or len(raw) < _PIECE_BYTES:
            text = reader.decoded(raw)
            if text is not None:
                yield reader.line, text
        else:
            for piece in _long_line(reader, stream, raw):
                yield reader.line, piece


def _long_line(reader: FileRows, stream: io.BufferedReader, raw: bytes) -> Iterator[str]:
    """Decode a long line piece by piece; a piece that is no UTF-8 is a bad row of its own."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    size, broken, ended = 0, False, False
    while raw and not ended:
        if size <= reader.limit < size + len(raw):
            reader.mended(
                "long_line", f"the line is longer than {reader.limit:,} bytes; it was cut into passages"
            )
        size += len(raw)
        if raw.endswith(b"\r") and stream.peek(1)[:1] == b"\n":
            raw += stream.read(1)
        ended = raw.endswith(b"\n") or len(raw) < _PIECE_BYTES
        if broken:
            raw = _from_character(raw)
        broken = False
        try:
            if b"\0" in raw:
                reader.bad("nul", "a NUL byte", raw[:_SHOWN_BYTES])
                decoder.reset()
                broken = True
            else:
                yield reader.with_line_feeds(decoder.decode(raw, final=ended))
        except UnicodeDecodeError as error:
            detail = f"byte {size - len(raw) + error.start + 1} or near of the line is not UTF-8"
            reader.bad("invalid_utf8", detail, raw[max(0, error.start - 40) :][:_SHOWN_BYTES])
            decoder.reset()
            broken = True
        raw = b"" if ended else stream.readline(_PIECE_BYTES)


def _from_character(raw: bytes) -> bytes:
    """Drop what is left of a character whose start was in a piece left out."""
    start = 0
    while start < min(3, len(raw)) and 0x80 <= raw[start] < 0xC0:
        start += 1
    return raw[start:]


class _Joined(io.RawIOBase):
    """Bytes that were read ahead, then the stream they came from."""

    def __init__(self, start: bytes, rest: io.BufferedReader) -> None:
        self._start, self._rest = memoryview(start), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data: bytes | memoryview
        if self._start:
            data, self._start = self._start[: len(buffer)], self._start[len(buffer) :]
        else:
            data = self._rest.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)
