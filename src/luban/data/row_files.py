"""Rows of every layout: tables, texts with labels, pictures, tagged sentences, pairs of texts.

    layout      a source is                                          a row is
    table       .csv .tsv .jsonl .parquet .arrow                     a value for each column
    texts       a table; a folder of each class with .txt files;     the columns; text and label
                lines that start with __label__NAME (fastText)
    pictures    a folder of each class; a table of paths or bytes;   image, label, path; the columns and image, path;
                idx files                                            image (height, width) and label
    tagged      CoNLL's columns; a table with lists                  tokens, tags
    pairs       a table; two files of lines                          source, target

Files may be compressed (.gz, .zst). Nothing is followed out of the folder that a source names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

from luban.data.bad_rows import BadRows
from luban.data.idx import idx_rows
from luban.data.labelled_texts import class_text, labelled_lines, text_parts
from luban.data.parallel_text import aligned_lines, pair_parts
from luban.data.row_pictures import named_pictures, picture_parts, picture_row, pictures_named_by
from luban.data.row_sources import Kind, Part, named
from luban.data.row_tables import table_parts, table_values
from luban.data.rows import FileRows
from luban.data.sources import CorruptStream, SourceFile
from luban.data.tagged import tagged_lines, tagged_parts, tagged_values

Layout = Literal["table", "pictures", "texts", "tagged", "pairs"]

_LISTED_ROW_BYTES = 100_000_000
_NOT_READ = ("left out", "passed over")
_LOOKED_AT = 1000

_READERS: dict[Kind, Callable[[FileRows, Part, Sequence[str] | None], Iterator[dict[str, Any]]]] = {
    "table": lambda reader, _, columns: table_values(reader, columns),
    "text": lambda reader, part, _: class_text(reader, part.label),
    "labelled lines": lambda reader, *_: labelled_lines(reader),
    "picture": lambda reader, part, _: picture_row(reader, part.label),
    "picture table": lambda reader, _, columns: named_pictures(reader, columns),
    "idx": lambda reader, part, _: idx_rows(reader, part.files[1] if len(part.files) > 1 else None),
    "tagged lines": lambda reader, _, columns: tagged_lines(reader, columns),
    "tagged table": lambda reader, _, columns: tagged_values(reader, columns),
    "pair of texts": lambda reader, part, _: aligned_lines(reader, part.files[1]),
}


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in a source, checked only for what no text can hold.

    Arguments:
        values: by column; str, int, float, bool, None, bytes (of a picture), a uint8 array (height, width), or lists
            and objects of these.
        file: the file's name, as `SourceFile.name`.
        line: the line it starts on, or the row's number, from 1.
    """

    values: dict[str, Any]
    file: str
    line: int


def read_raw_rows(
    source: str | Sequence[str],
    layout: Layout,
    *,
    columns: Sequence[str] | None = None,
    max_row_bytes: int,
    bad: BadRows,
    seen: Callable[[int], None] = lambda _: None,
    answering: bool = False,
) -> Iterator[RawRow]:
    """Read a source row by row, in a fixed order, holding no more than a row and a buffer in memory.

    Arguments:
        columns: what the columns are that reading must know. table and texts: the names of all columns, of a file
            without header. pictures: the column of paths or bytes. tagged: tokens and tags, by name, or by number in
            lines. pairs: source and target among a
            table's columns, by name, or by number in a file without header. Numbers count from 0.
        max_row_bytes: a longer row is bad.
        bad: where rows that cannot be used are counted.
        seen: told how many bytes were read from the disk, for progress.
        answering: whether the rows are to be answered: then texts may lack labels, and sentences tags.

    Raises:
        InputError: a source is absent or holds nothing that the layout understands.
        DataError: a file cannot be read, has no such columns, or has a bad row where the policy is `error`.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "a.csv"
        ...     _ = path.write_text("text,label\\nfine,good\\n")
        ...     list(read_raw_rows(str(path), "table", max_row_bytes=1000, bad=BadRows("error")))
        [RawRow(values={'text': 'fine', 'label': 'good'}, file='a.csv', line=2)]
    """
    for part in _parts(source, layout, answering):
        reader = FileRows(part.files[0], max_row_bytes, bad, seen)
        if part.kind == "left out":
            reader.bad(part.problem or "no_file", part.detail, line=1)
            continue
        if part.kind == "passed over":
            reader.mended("passed_over", part.detail)
            continue
        try:
            if answering and part.kind == "tagged lines":
                found = tagged_lines(reader, columns, tags=False)
            else:
                found = _READERS[part.kind](reader, part, columns)
            for values in found:
                reader.met_any = True
                yield RawRow(values, reader.file.name, reader.line)
        except CorruptStream as error:
            reader.bad("corrupt_file", str(error), line=reader.line + 1)
        if not reader.met_any:
            reader.bad("empty_file", "the file has no rows", line=1)


class Columns(list[str]):
    """The columns that the first rows have, in the order in which they came: a row of JSON may lack some.

    Attributes:
        ends: how many of these rows end in each column.
    """

    def __init__(self, first: Sequence[RawRow]) -> None:
        super().__init__(dict.fromkeys(name for raw in first for name in raw.values))
        self.ends = Counter(next(reversed(raw.values)) for raw in first if raw.values)


def with_columns(rows: Iterator[RawRow]) -> tuple[Columns, Iterator[RawRow]]:
    """Return the columns that the first thousand rows have, and all rows."""
    first = list(islice(rows, _LOOKED_AT))
    return Columns(first), chain(first, rows)


def source_files_of(source: str | Sequence[str], layout: Layout) -> list[SourceFile]:
    """Return every file whose bytes the rows of a source depend on, in a fixed order, each once.

    Also pictures that a table names, and labels that lie beside pictures. `format` says nothing of a picture or an idx
    file.

    Raises:
        InputError: a source is absent or holds nothing that the layout understands.
    """
    files: dict[str, SourceFile] = {}
    for part in _parts(source, layout):
        for file in () if part.kind in _NOT_READ else part.files:
            files.setdefault(str(file.path), file)
        if part.kind == "picture table":
            for file in _listed_pictures(part):
                files.setdefault(str(file.path), file)
    return list(files.values())


def _listed_pictures(part: Part) -> Iterator[SourceFile]:
    reader = FileRows(part.files[0], _LISTED_ROW_BYTES, BadRows("skip"), lambda _: None)
    try:
        yield from pictures_named_by(reader)
    except CorruptStream:
        return  # reading will count it


def _parts(source: str | Sequence[str], layout: Layout, answering: bool = False) -> list[Part]:
    things = named(source)
    if layout == "pairs":
        return pair_parts(things)
    if layout == "texts":
        return [part for one in things for part in text_parts(one, answering)]
    parts_of = {"table": table_parts, "pictures": picture_parts, "tagged": tagged_parts}[layout]
    return [part for one in things for part in parts_of(one)]
