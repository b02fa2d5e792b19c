"""Whole rows of tables, whatever their format: a value for each column, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from luban.data.csv_rows import CsvRows, delimiter_of
from luban.data.row_sources import TABLES, Named, Part
from luban.data.rows import FileRows, first_surrogate
from luban.data.sources import CorruptStream, SourceFile, open_bytes
from luban.data.tables import json_object
from luban.errors import DataError, InputError, MissingExtra, nearest

Values = dict[str, Any]

_SHOWN = 200


def table_parts(one: Named) -> list[Part]:
    """Return the tables that a source names.

    Raises:
        InputError: it names none, or a file that is none.
    """
    files = [*one.ready, *(file.source_file() for file in one.files(TABLES))]
    if not one.folder:
        others = [file for file in one.files() if file.suffix not in TABLES]
        files += [objects_on_lines(file.source_file()) for file in others]
    parts = [*one.left_out(), *(Part("table", (file,)) for file in files if file.format != "text")]
    if not parts or (not one.folder and any(file.format == "text" for file in files)):
        kinds = f"{', '.join(TABLES)}, each also with .gz or .zst; or a saved datasets folder"
        what = "the folder holds no table" if one.folder else "the file is no table"
        raise InputError(what, received=one.given, fix=f"a table is one of {kinds}")
    return parts


def objects_on_lines(file: SourceFile) -> SourceFile:
    """Take a text whose first line starts as an object does for JSON lines, whatever its suffix."""
    with open_bytes(file) as stream:
        try:
            start = stream.peek()[:64].lstrip()
        except CorruptStream:
            return file
    return replace(file, format="jsonl") if start.startswith(b"{") else file


def table_values(reader: FileRows, asked: Sequence[str] | None = None) -> Iterator[Values]:
    """Yield the rows of a table, a value for each column; `reader.line` is the line a row starts on, or its number.

    A value is a string in CSV and TSV; in JSON lines what JSON says; in Parquet and Arrow a string, number, boolean,
    None, bytes, or lists and objects of these, dates and times as ISO 8601 and durations in seconds.

    Arguments:
        asked: columns that must be there. A .csv or .tsv file none of whose first cells is one of them has no header:
            they are then its columns, in order, or numbers of columns, from 0.

    Raises:
        DataError: a header names a column twice, or there is no such column.
    """
    match reader.file.format:
        case "jsonl":
            rows = _json_rows(reader)
        case "csv" | "tsv":
            rows = _csv_rows(reader, asked)
        case _:
            rows = _arrow_rows(reader)
    for values in rows:
        if not any(_is_something(value) for value in values.values()):
            reader.bad("empty_row", "no column of the row holds anything")
        elif (checked := _checked(reader, values)) is not None:
            yield checked


def no_column(reader: FileRows, asked: str, columns: Sequence[str]) -> DataError:
    """Return the error for a column that a file does not have."""
    close = nearest(asked, columns)
    fix = (f"did you mean {close}? " if close else "") + f"there are: {', '.join(columns)[:2000]}"
    return DataError("the file has no such column", received=asked, where=reader.file.path, fix=fix)


def _is_something(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and not value.strip())


def _json_rows(reader: FileRows) -> Iterator[Values]:
    with reader.open() as stream:
        for raw in reader.lines(stream):
            if not raw.strip():
                reader.mended("blank_line", "a line without text between rows")
                continue
            if raw.endswith(b"\r\n"):
                reader.mended("crlf", "the line ends with CRLF")
            if (values := json_object(reader, raw)) is not None:
                yield values


def _csv_rows(reader: FileRows, asked: Sequence[str] | None) -> Iterator[Values]:
    with reader.open() as stream:
        rows = CsvRows(reader, stream, delimiter_of(reader, stream))
        first = next(rows, None)
        if first is None:
            return
        columns = _without_header(reader, first, asked)
        rows.width = len(first)
        if columns is not None:
            reader.mended(
                "no_header", f"the file has no header; its columns are {', '.join(columns)[:_SHOWN]}"
            )
            if rows.crlf:
                reader.mended("crlf", "the row ends with CRLF")
            yield dict(zip(columns, first, strict=True))
        else:
            columns = first
            if _checked(reader, dict.fromkeys(columns)) is None:
                return
        for row in rows:
            if rows.crlf:
                reader.mended("crlf", "the row ends with CRLF")
            yield dict(zip(columns, row, strict=True))


def _arrow_rows(reader: FileRows) -> Iterator[Values]:
    try:
        from luban.data.row_arrow import arrow_rows, parquet_rows
    except ModuleNotFoundError:
        raise MissingExtra("pyarrow", extra="data", purpose=f"read .{reader.file.format} files") from None
    return parquet_rows(reader) if reader.file.format == "parquet" else arrow_rows(reader)


def _without_header(reader: FileRows, first: list[str], asked: Sequence[str] | None) -> list[str] | None:
    """Return the columns of a file without a header; None where its first row is one."""
    missing = [name for name in asked or () if name not in first]
    if asked is None or not missing:
        if twice := sorted({name for name in first if first.count(name) > 1}):
            raise DataError(
                "the header names a column twice",
                received=twice[:10],
                where=f"{reader.file.path}:{reader.line}",
                fix="give each column a name of its own; or if the file has no header, name its columns in the recipe",
            )
        return None
    if all(_is_number(name) for name in asked) and max(int(name) for name in asked) < len(first):
        return [str(number) for number in range(len(first))]
    if len(missing) == len(asked) == len(first):
        if len(set(asked)) < len(asked):
            raise DataError(
                "a column is named twice", received=list(asked), fix="give each a name of its own"
            )
        return list(asked)
    raise no_column(reader, missing[0], first)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 7


def _checked(reader: FileRows, values: Values) -> Values | None:
    """Return a row with LF line ends; None where it holds what no text can, or too much."""
    if all(type(value) is str for value in values.values()):  # most rows, and most of them plain
        whole = "".join((*values, *values.values()))
        if len(whole) <= reader.limit and whole.isascii() and "\0" not in whole and "\r" not in whole:
            return values
    size = 0
    waiting: list[Any] = [values]
    mend = False
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            size += len(value)
            mend = mend or "\r" in value
            if "\0" in value:
                reader.bad("nul", "a NUL character", value[:_SHOWN])
                return None
            if not value.isascii() and (at := first_surrogate(value)) is not None:
                shown = value[max(0, at - 40) : at + _SHOWN].encode("utf-8", "surrogatepass")
                reader.bad("invalid_utf8", f"character {at + 1} of a value is not UTF-8", shown)
                return None
        elif isinstance(value, bytes):
            size += len(value)
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
    if size > reader.limit:
        reader.bad("too_long", f"the row is longer than {reader.limit:,} bytes", repr(list(values))[:_SHOWN])
        return None
    return {name: _mended(reader, value) for name, value in values.items()} if mend else values


def _mended(reader: FileRows, value: Any) -> Any:
    if isinstance(value, str):
        return reader.with_line_feeds(value)
    if isinstance(value, list):
        return [_mended(reader, inner) for inner in value]
    if isinstance(value, dict):
        return {name: _mended(reader, inner) for name, inner in value.items()}
    return value
