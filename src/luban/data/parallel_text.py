"""Pairs of texts: two columns of a table, or two files line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from luban.data.row_sources import TABLES, Kind, Named, Part
from luban.data.row_tables import no_column, table_parts, table_values
from luban.data.rows import FileRows
from luban.data.sources import SourceFile, open_bytes
from luban.errors import DataError, InputError

_BLOCK_BYTES = 1 << 20
_SIDES = ("source", "target")
_AS_PAIRS: dict[Kind, Kind] = {"table": "pair table"}


def pair_parts(things: Sequence[Named]) -> list[Part]:
    """Return what a source of pairs consists of: tables, or the two texts of a list of two.

    Raises:
        InputError: it holds anything else.
    """
    files = [file for one in things for file in _texts(one)]
    if not files:
        return [
            replace(part, kind=_AS_PAIRS.get(part.kind, part.kind))
            for one in things
            for part in table_parts(one)
        ]
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


def pair_values(reader: FileRows, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Yield `{"source", "target"}` for each row of a table.

    Arguments:
        columns: the two columns, by name, or where a .csv or .tsv file has no header by number from 0; None means
            `source` and `target`.

    Raises:
        DataError: the first row has no such columns.
    """
    if columns is not None and len(columns) != 2:
        raise InputError(
            "two columns are wanted, of source and target", received=columns, where=reader.file.path
        )
    names = _SIDES if columns is None else tuple(columns)
    is_first = True
    for values in table_values(reader, columns):
        missing = [name for name in names if name not in values]
        if missing and is_first:
            raise no_column(reader, missing[0], list(values))
        is_first = False
        if missing:
            reader.bad(
                "missing_column", f"no column {missing[0]!r}; there are: {', '.join(list(values)[:20])}"
            )
            continue
        pair = {side: values[name] for side, name in zip(_SIDES, names, strict=True)}
        if _is_pair(reader, pair):
            yield pair


def _is_pair(reader: FileRows, pair: dict[str, Any]) -> bool:
    for side, value in pair.items():
        if value is not None and not isinstance(value, str):
            reader.bad("not_text", f"the {side} is {type(value).__name__}, not text", repr(value)[:200])
            return False
        if value is None or not value.strip():
            reader.bad("empty_row", f"the {side} is empty")
            return False
    return True


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
            pair = {
                side: text.rstrip("\n") for side, text in zip(_SIDES, texts, strict=True) if text is not None
            }
            if _is_pair(reader, pair):
                yield pair


def _count_lines(file: SourceFile) -> int:
    count, end = 0, b"\n"
    with open_bytes(file) as stream:
        while block := stream.read(_BLOCK_BYTES):
            count += block.count(b"\n")
            end = block[-1:]
    return count + (end != b"\n")
