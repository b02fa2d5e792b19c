"""Reads the files of a source, one row after another, whatever their formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from luban.data.bad_rows import BadRows
from luban.data.plain_text import plain_rows
from luban.data.rows import ColumnRows, Row
from luban.data.sources import CorruptStream, SourceFile
from luban.data.tables import table_rows

DocumentPolicy = Literal["auto", "file", "passage", "line"]

MANY_FILES = 16
SMALL_FILE_BYTES = 256 * 1024


def read_rows(
    files: Sequence[SourceFile],
    *,
    column: str = "text",
    document: DocumentPolicy = "auto",
    max_row_bytes: int = 10_000_000,
    bad: BadRows,
    seen: Callable[[int], None] = lambda _: None,
) -> Iterator[Row]:
    """Read `files` in order, holding at most one row (of a plain text, one passage) in memory.

    A row of a table (.jsonl, .csv, .tsv, .parquet, a saved dataset) is a document. Of plain text, `document`
    says what
    is one: each `line`, the whole `file`, or each `passage`, as `luban.data.passages` cuts them. `auto`
        means passages;
    only where a source has at least 16 plain-text files, those of at most 256 KiB are documents whole.

    Arguments:
        column: the column that holds the text.
        max_row_bytes: a longer row is bad; a longer line of a text that is cut into passages is only noted.
        bad: where rows that cannot be used are counted.
        seen: told how many bytes were read from the disk, for progress.

    Raises:
        DataError: when a file cannot be read or has no such column, or at a bad row where the policy is
        `error`.
    """
    many = document == "auto" and sum(file.format == "text" for file in files) >= MANY_FILES
    policy: Literal["file", "passage", "line"] = "passage" if document == "auto" else document
    for file in files:
        reader = ColumnRows(file, column, max_row_bytes, bad, seen)
        try:
            if file.format == "text":
                yield from plain_rows(reader, policy, SMALL_FILE_BYTES if many else 0)
            else:
                yield from table_rows(reader)
        except CorruptStream as error:
            reader.bad("corrupt_file", str(error), line=reader.line + 1)
        if not reader.met_any:
            reader.bad("empty_file", "the file has no rows", line=1)
