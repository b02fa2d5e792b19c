"""Sentences with a tag for each token: CoNLL's columns, or lists in a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from luban.data.row_sources import Named, Part
from luban.data.row_tables import no_column, table_values
from luban.data.rows import FileRows
from luban.errors import InputError

TOKENS = ("tokens", "words")
TAGS = ("tags", "labels", "ner_tags")

LINES = (".txt", ".text", ".tsv", ".conll", ".bio", ".iob", ".iob2", ".bmes", ".bioes")
LISTS = (".jsonl", ".ndjson", ".parquet", ".arrow")

_UNDERSTOOD = (
    f"give a file ({', '.join(LINES)}, or any name) with a token and its tag on each line and a blank line after each "
    f"sentence; or a table ({', '.join(LISTS)}) with lists of tokens and of tags"
)
_DOCUMENT = "-DOCSTART-"
_SPACES = re.compile(" +")


class _Cells(NamedTuple):
    line: int
    cells: list[str]
    tabs: bool
    crlf: bool


def tagged_parts(one: Named) -> list[Part]:
    """Return the files of sentences that a source names.

    Raises:
        InputError: it names none, or a .csv file.
    """
    if one.folder:
        files = [file.source_file() for file in one.files((*LINES, *LISTS))]
    else:
        files = [*one.ready, *(file.source_file() for file in one.files())]
    parts = one.left_out()
    for file in files:
        if file.format == "csv":
            raise InputError("sentences do not stand in .csv files", received=str(file.path), fix=_UNDERSTOOD)
        parts.append(Part("tagged lines" if file.format in ("text", "tsv") else "tagged table", (file,)))
    if not parts:
        raise InputError("the folder holds no file of sentences", received=one.given, fix=_UNDERSTOOD)
    return parts


def tagged_lines(
    reader: FileRows, columns: Sequence[str] | None, *, tags: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield the sentences of a file with a token on each line and a blank line after each sentence.

    Columns stand between tabs, or in a line without any, between spaces. `-DOCSTART-` lines are passed over, and so are
    comments: lines before a sentence that start with `#` and are cut otherwise than its last line. One bad line makes
    the sentence bad.

    Arguments:
        columns: numbers of the columns of token and tag, from 0, negative from the last; None for first and last.
        tags: whether each token must have one; else a sentence may be a column of tokens.

    Returns:
        `{"tokens": [str], "tags": [str]}` each, without tags where there is one column;
        `reader.line` is the line of the first token.

    Raises:
        InputError: `columns` are no two numbers.
    """
    token_at, tag_at = _numbers(reader, columns)
    usual = 0
    with reader.open() as stream:
        for sentence in _sentences(reader, reader.lines(stream)):
            after, reader.line = reader.line, sentence[0].line
            if any(cells.crlf for cells in sentence):
                reader.mended("crlf", "lines of the sentence end with CRLF")
            kept = [cells for cells in _without_comments(reader, sentence) if cells.cells[0] != _DOCUMENT]
            if kept and (row := _row(reader, kept, token_at, tag_at, tags)) is not None:
                width, usual = len(kept[0].cells), usual or len(kept[0].cells)
                if columns is None and width != usual:
                    told = f"the sentence has {width} columns, the file began with {usual}"
                    reader.mended("width", f"{told}: its first was taken for tokens, its last for tags")
                yield row
            reader.line = after


def _numbers(reader: FileRows, columns: Sequence[str] | None) -> tuple[int, int]:
    if columns is None:
        return 0, -1
    try:
        token_at, tag_at = (int(column) for column in columns)
    except ValueError:
        fix = 'name them by number, from 0: for example ["0", "3"]'
        where = reader.file.path
        raise InputError(
            "lines of tokens have two columns without names", received=columns, where=where, fix=fix
        ) from None
    return token_at, tag_at


def _sentences(reader: FileRows, lines: Iterator[bytes]) -> Iterator[list[_Cells]]:
    """Yield the lines of each sentence, cut into cells; one with a line that cannot be read is counted and left out."""
    sentence: list[_Cells] = []
    size, is_bad = 0, False
    last = reader.line
    for raw in lines:
        is_bad = is_bad or reader.line != last + 1  # a line too long, counted already, was in between
        last = reader.line
        if not raw.strip():
            if sentence and not is_bad:
                yield sentence
            sentence, size, is_bad = [], 0, False
            continue
        size += len(raw)
        if is_bad:
            continue
        if size > reader.limit:
            reader.bad("too_long", f"the sentence is longer than {reader.limit:,} bytes", raw[:200])
            sentence, is_bad = [], True
        elif (text := reader.decoded(raw.rstrip(b"\r\n"))) is None:
            sentence, is_bad = [], True
        else:
            cells = text.split("\t") if "\t" in text else _SPACES.split(text.strip(" "))
            sentence.append(_Cells(reader.line, cells, "\t" in text, raw.endswith(b"\r\n")))
    if sentence and not is_bad and reader.line == last:
        yield sentence


def _without_comments(reader: FileRows, sentence: list[_Cells]) -> list[_Cells]:
    token = sentence[-1]
    for number, line in enumerate(sentence):
        if not line.cells[0].startswith("#") or (len(line.cells), line.tabs) == (
            len(token.cells),
            token.tabs,
        ):
            return sentence[number:]
        reader.line = line.line
        reader.mended("comment", "a line before a sentence that starts with # was taken for a comment")
    return []


def _row(
    reader: FileRows, sentence: list[_Cells], token_at: int, tag_at: int, tags: bool
) -> dict[str, Any] | None:
    width = len(sentence[0].cells)
    alone = not tags and width == 1
    if alone:
        token_at = tag_at = 0
    needed = 1 if alone else max(2, *(at + 1 if at >= 0 else -at for at in (token_at, tag_at)))
    for line, cells, _, _ in sentence:
        shown = " ".join(cells)[:200]
        if len(cells) < needed or len(cells) != width:
            reader.bad(
                "wrong_columns", f"{len(cells)} columns; there should be {max(width, needed)}", shown, line
            )
            return None
        if not cells[token_at].strip() or not cells[tag_at].strip():
            reader.bad("missing_value", "the line has no token, or no tag", shown, line)
            return None
    reader.line = sentence[0].line
    found = {"tokens": [cells.cells[token_at] for cells in sentence]}
    return found if alone else {**found, "tags": [cells.cells[tag_at] for cells in sentence]}


def tagged_values(reader: FileRows, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Yield the sentences of a table with a column of lists of tokens and one of lists of tags.

    Arguments:
        columns: the two columns; None finds `tokens` or `words`, and `tags`, `labels` or `ner_tags`.

    Returns:
        `{"tokens": [str], "tags": [str]}` each, and what other columns there are; a tag that is a number becomes its
        digits.

    Raises:
        DataError: the first row has no such columns.
    """
    names: tuple[str, str] | None = None
    for values in table_values(reader):
        if names is None:
            names = _names(reader, list(values), columns)
        row = _lists(reader, values, names)
        if row is not None:
            yield row


def _names(reader: FileRows, there: list[str], columns: Sequence[str] | None) -> tuple[str, str]:
    if columns is not None and len(columns) != 2:
        raise InputError(
            "two columns are wanted, of tokens and of tags", received=columns, where=reader.file.path
        )
    pairs = [(name,) for name in columns] if columns is not None else [TOKENS, TAGS]
    found = []
    for known in pairs:
        name = next((name for name in known if name in there), None)
        if name is None:
            raise no_column(reader, known[0], there)
        found.append(name)
    return found[0], found[1]


def _lists(reader: FileRows, values: dict[str, Any], names: tuple[str, str]) -> dict[str, Any] | None:
    for name in names:
        if name not in values:
            reader.bad("missing_column", f"no column {name!r}; there are: {', '.join(list(values)[:20])}")
            return None
        if not isinstance(values[name], list):
            reader.bad("bad_value", f"column {name!r} holds {type(values[name]).__name__}, not a list")
            return None
    tokens, tags = (values[name] for name in names)
    if len(tokens) != len(tags):
        reader.bad("unequal_lengths", f"{len(tokens)} tokens, but {len(tags)} tags")
    elif not tokens:
        reader.bad("empty_row", "the sentence has no tokens")
    elif not all(isinstance(token, str) for token in tokens):
        reader.bad("not_text", f"column {names[0]!r} has a token that is no text")
    elif not all(isinstance(tag, str | int) and not isinstance(tag, bool) for tag in tags):
        reader.bad("not_text", f"column {names[1]!r} has a tag that is neither text nor a whole number")
    elif not all(token.strip() for token in tokens) or not all(str(tag).strip() for tag in tags):
        reader.bad("missing_value", "a token or a tag is empty")
    else:
        others = {name: value for name, value in values.items() if name not in names}
        return {**others, "tokens": tokens, "tags": [str(tag) for tag in tags]}
    return None
