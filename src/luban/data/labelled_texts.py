"""Texts with labels: a folder of each class with text files, or lines that start with their labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from luban.data.row_pictures import refuse_deeper
from luban.data.row_sources import TABLES, Named, Part
from luban.data.row_tables import objects_on_lines, table_parts
from luban.data.rows import FileRows
from luban.errors import DataError, InputError

TEXTS = (".txt", ".text")
_LABEL = "__label__"
_LABELS = re.compile(rf"\s*((?:{_LABEL}\S+(?:\s+|$))*)")
_READ_BYTES = 1 << 20
_UNDERSTOOD = (
    f"give a table ({', '.join(TABLES)}), a folder with one folder of each class that holds .txt files, or a .txt file "
    f"of lines that start with {_LABEL}NAME"
)


def text_parts(one: Named, answering: bool = False) -> list[Part]:
    """Return what a source of texts consists of.

    Arguments:
        answering: whether a text needs no label: then each file of a folder without folders is one.

    Raises:
        InputError: it holds nothing that is understood, or tables beside folders of classes.
    """
    if not one.folder:
        return _file_parts(one)
    texts = one.files(TEXTS)
    of_classes = [file for file in texts if file.label is not None]
    on_top = [file for file in texts if file.label is None]
    tables = one.files(TABLES)
    if tables and of_classes:
        raise InputError(
            "the folder holds tables, and folders with texts",
            received=[tables[0].within.as_posix(), of_classes[0].within.as_posix()],
            where=one.given,
            fix="name the table, or the folder of the texts",
        )
    if tables:
        return table_parts(one)
    if not texts:
        raise InputError("the folder holds neither tables nor texts", received=one.given, fix=_UNDERSTOOD)
    refuse_deeper(one, of_classes)
    parts = one.left_out()
    if not of_classes and answering:
        return [*parts, *(Part("text", (file.source_file(),)) for file in on_top)]
    if not of_classes:
        return [*parts, *(Part("labelled lines", (file.source_file(),)) for file in on_top)]
    detail = "a text beside the folders of classes belongs to none"
    parts += [Part("passed over", (file.opaque(),), detail=detail) for file in on_top]
    for file in one.files():
        if file.label is not None and file.suffix not in TEXTS:
            detail = f"{file.suffix or 'no suffix'} is none of a text's"
            parts.append(Part("passed over", (file.opaque(),), detail=detail))
    return parts + [Part("text", (file.source_file(),), file.label) for file in of_classes]


def _file_parts(one: Named) -> list[Part]:
    parts = one.left_out()
    parts += [Part("table", (file,)) for file in one.ready if file.format != "text"]
    for found in one.files():
        file = objects_on_lines(found.source_file())
        parts.append(Part("labelled lines" if file.format == "text" else "table", (file,)))
    if not parts:
        raise InputError("there are neither tables nor texts", received=one.given, fix=_UNDERSTOOD)
    return parts


def class_text(reader: FileRows, label: str | None) -> Iterator[dict[str, Any]]:
    """Yield a file as one text, with its label."""
    with reader.open() as stream:
        parts, size = [], 0
        while size <= reader.limit and (part := stream.read(min(_READ_BYTES, reader.limit + 1 - size))):
            parts.append(part)
            size += len(part)
    reader.line = 1
    raw = b"".join(parts)
    if len(raw) > reader.limit:
        reader.bad("too_long", f"the file is longer than {reader.limit:,} bytes", raw[:2000])
    elif (text := reader.decoded(raw)) is not None:
        if text.strip():
            yield {"text": text, "label": label}
        else:
            reader.bad("empty_row", "the file holds no text")


def labelled_lines(reader: FileRows) -> Iterator[dict[str, Any]]:
    """Yield the lines of a text as fastText reads them: labels, then the text.

    A line of several labels has a list of them.

    Raises:
        DataError: the first line has no label.
    """
    is_first = True
    with reader.open() as stream:
        for raw in reader.lines(stream):
            line = reader.decoded(raw)
            if line is None:
                continue
            if not line.strip():
                reader.mended("blank_line", "a line without text between rows")
                continue
            start = _LABELS.match(line)
            labels = [word.removeprefix(_LABEL) for word in start[1].split()] if start else []
            text = line[start.end() :].strip() if start else line
            if not labels and is_first:
                where = f"{reader.file.path}:{reader.line}"
                raise DataError(
                    "the text does not say its label", received=line[:200], where=where, fix=_UNDERSTOOD
                )
            is_first = False
            if not labels:
                reader.bad("missing_value", f"the line does not start with {_LABEL}", line[:200])
            elif not text:
                reader.bad("empty_row", "after the label comes no text", line[:200])
            else:
                yield {"text": text, "label": labels[0] if len(labels) == 1 else labels}
