"""Pairs of texts: two columns of a table, or two files line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from luban.data.row_sources import TABLES, Named, Part
from luban.data.row_tables import table_parts
from luban.data.rows import FileRows
from luban.data.sources import SourceFile, open_bytes
from luban.errors import DataError, InputError

_BLOCK_BYTES = 1 << 20


def pair_parts(things: Sequence[Named]) -> list[Part]:
    """Return what a source of pairs consists of: tables, or the two texts of a list of two.

    Raises:
        InputError: it holds anything else.
    """
    files = [file for one in things for file in _texts(one)]
    if not files:
        try:
            return [part for one in things for part in table_parts(one)]
        except InputError as error:
            error.fix = f"{error.fix}; or give two texts that go together line by line, [SOURCE, TARGET]"
            raise
    if len(things) != 2 or len(files) != 2:
        raise InputError(
            "texts that go together line by line are two files, no more and no table with them",
            received=[one.given for one in things],
            fix=f"write [SOURCE, TARGET], two text files; or give tables ({', '.join(TABLES)}) with two columns",
        )
    return [Part("pair of texts", (files[0], files[1]))]


def _texts(one: Named) -> list[SourceFile]:
    """Return the files of a source that are plain texts; in a folder none is asked for."""
    if one.folder:
        return []
    found = [file.source_file() for file in one.files() if file.suffix not in TABLES]
    return [file for file in found if file.format == "text"]


def aligned_lines(reader: FileRows, target: SourceFile) -> Iterator[dict[str, Any]]:
    """Yield `{"source", "target"}` for each line of two files.

    Raises:
        DataError: one file has more lines than the other.
    """
    other = reader.beside(target)
    counts = [_count_lines(file) for file in (reader.file, target)]
    if counts[0] != counts[1]:
        raise DataError(
            "two texts that should go together line by line have unequal numbers of lines",
            received=f"{counts[0]:,} in {reader.file.path}, {counts[1]:,} in {target.path}",
            fix="write line n of one as the translation of line n of the other",
        )
    with reader.open() as left, other.open() as right:
        lefts, rights = reader.lines(left), other.lines(right)
        while (raw := next(lefts, None)) is not None and (answer := next(rights, None)) is not None:
            while (
                reader.line != other.line
            ):  # a line that is too long is counted, and passed over on its side
                if reader.line < other.line:
                    raw = next(lefts, None)
                else:
                    answer = next(rights, None)
                if raw is None or answer is None:
                    return
            if not raw.strip() and not answer.strip():
                reader.mended("blank_line", "a line without text on both sides")
                continue
            texts = reader.decoded(raw), other.decoded(answer)
            if texts[0] is None or texts[1] is None:
                continue
            pair = {"source": texts[0].rstrip("\n"), "target": texts[1].rstrip("\n")}
            empty = [side for side, text in pair.items() if not text.strip()]
            if empty:
                reader.bad("empty_row", f"the {empty[0]} is empty")
                continue
            yield pair


def _count_lines(file: SourceFile) -> int:
    count, end = 0, b"\n"
    with open_bytes(file) as stream:
        while block := stream.read(_BLOCK_BYTES):
            count += block.count(b"\n")
            end = block[-1:]
    return count + (end != b"\n")
