"""Pictures as bytes, or as arrays where a file holds many: folders of each class, tables that name them, idx files."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luban.data.bad_rows import BadKind
from luban.data.row_sources import TABLES, Found, Named, Part, is_inside
from luban.data.row_tables import no_column, table_values
from luban.data.rows import FileRows
from luban.data.sources import SourceFile
from luban.errors import DataError, InputError

PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path")

_IDX_IMAGES = re.compile(r"(.*)images([-.])idx3-ubyte(\.gz)?")
_IDX_LABELS = re.compile(r".*labels[-.]idx1-ubyte(\.gz)?")
_UNDERSTOOD = (
    f"one folder of each class with pictures ({', '.join(PICTURES)}); a table ({', '.join(TABLES)}) with a column of "
    "paths or of bytes; or NAME-images-idx3-ubyte with NAME-labels-idx1-ubyte beside it"
)


def picture_parts(one: Named) -> list[Part]:
    """Return what a source of pictures consists of. A table in a folder says what the pictures beside it are.

    Raises:
        InputError: it holds nothing that is understood, or several things of which one must be named.
    """
    parts = one.left_out()
    if one.folder:
        parts += _folder_parts(one)
    for file in () if one.folder else one.files():
        parts.append(_file_part(one, file))
    parts += [Part("picture table", (file,)) for file in one.ready if file.format != "text"]
    if not parts:
        raise InputError(
            "there is no picture, nor a table of pictures", received=one.given, fix=f"give {_UNDERSTOOD}"
        )
    return parts


def _file_part(one: Named, file: Found) -> Part:
    if file.suffix in PICTURES:
        return Part("picture", (file.opaque(),))
    if file.suffix in TABLES:
        return Part("picture table", (file.source_file(),))
    if _IDX_IMAGES.fullmatch(file.path.name):
        return _idx_part(file)
    fix = f"give {_UNDERSTOOD}"
    if _IDX_LABELS.fullmatch(file.path.name):
        fix = "name the file of pictures; the labels beside it are found by their name"
    raise InputError("the file is no picture, nor a table of pictures", received=one.given, fix=fix)


def _folder_parts(one: Named) -> list[Part]:
    whole = one.files()
    on_top = [file for file in whole if file.label is None]
    if images := [file for file in on_top if _IDX_IMAGES.fullmatch(file.path.name)]:
        return [_idx_part(_training_images(one, images))]
    tables = [file for file in on_top if file.suffix in TABLES]
    if len(tables) > 1 and not all(file.suffix in (".parquet", ".arrow") for file in tables):
        names = [file.within.as_posix() for file in tables]
        raise InputError(
            "the folder holds several tables", received=names, where=one.given, fix="name one of them"
        )
    if tables:
        return [Part("picture table", (file.source_file(),)) for file in tables]
    pictures = [file for file in whole if file.suffix in PICTURES]
    refuse_deeper(one, pictures)
    others = [file for file in whole if file.label is not None and file.suffix not in PICTURES]
    parts = [
        Part("passed over", (file.opaque(),), detail=f"{file.suffix or 'no suffix'} is none of a picture's")
        for file in (others if pictures else ())
    ]
    return parts + [Part("picture", (file.opaque(),), file.label) for file in pictures]


def refuse_deeper(one: Named, files: Sequence[Found]) -> None:
    """Refuse files in folders within folders of classes.

    Raises:
        InputError: there is one, and it cannot be told which folder is its class.
    """
    for file in files:
        if len(file.within.parts) > 2:
            example = Path(one.given) / file.within.parts[0]
            raise InputError(
                "there are folders within the folders of classes",
                received=file.within.as_posix(),
                where=one.given,
                fix=f"name the folder whose folders are the classes, for example {example}",
            )


def _training_images(one: Named, images: Sequence[Found]) -> Found:
    """Return the one file of pictures that a folder means: where there are several, that of training."""
    stems = {_stem(file): file for file in reversed(images)}  # of a file and its .gz, the file
    train = [file for stem, file in stems.items() if stem.startswith("train")]
    if len(stems) > 1 and len(train) != 1:
        raise InputError(
            "the folder holds several files of pictures",
            received=sorted(stems),
            where=one.given,
            fix="name one of them",
        )
    return train[0] if train else next(iter(stems.values()))


def _stem(file: Found) -> str:
    return file.path.name.removesuffix(".gz")


def _idx_part(images: Found) -> Part:
    found = _IDX_IMAGES.fullmatch(images.path.name)
    assert found is not None, "only files of such names come here"
    stem = f"{found[1]}labels{found[2]}idx1-ubyte"
    for name in (stem, f"{stem}.gz"):
        path = images.path.with_name(name)
        if path.is_file() and is_inside(path.parent.resolve(), path):
            labels = Found(path, str(Path(images.name).with_name(name)), images.within.with_name(name))
            return Part("idx", (images.opaque(), labels.opaque()))
    return Part("idx", (images.opaque(),))


def picture_row(reader: FileRows, label: str | None) -> Iterator[dict[str, Any]]:
    """Yield a file's bytes with its path, and its label where there is one."""
    reader.line = 1
    image = _read(reader, reader.file.path)
    if image is not None:
        row = {"image": image, "path": reader.file.name}
        yield row if label is None else {**row, "label": label}


def named_pictures(reader: FileRows, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table with `image`, the bytes that it holds or names, and `path`, where it names them.

    Paths count from the table's folder, and lead nowhere else. A cell may also be an object with `bytes` and `path`, as
    Hugging Face's `datasets` writes pictures.

    Arguments:
        columns: the column of the pictures, alone; None finds one of the usual names.

    Raises:
        DataError: the first row has no such column.
    """
    home = reader.file.path.parent.resolve()
    for values, name in _with_column(reader, columns):
        value = values.pop(name)
        path = value if isinstance(value, str) else None
        if isinstance(value, dict):
            path = value.get("path") if isinstance(value.get("path"), str) else None
            value = value.get("bytes")
        if isinstance(value, bytes):
            yield {"path": path or "", **values, "image": value}
        elif path is None:
            detail = f"column {name!r} holds {type(value).__name__}, neither a path nor bytes"
            reader.bad("missing_value" if value is None else "bad_picture", detail)
        elif not path.strip():
            reader.bad("missing_value", f"column {name!r} names no picture")
        elif problem := _refusal(home, path):
            reader.bad(*problem, raw=path)
        elif (image := _read(reader, home / path)) is not None:
            yield {"path": path, **values, "image": image}


def pictures_named_by(reader: FileRows) -> Iterator[SourceFile]:
    """Yield the files that a table names and that can be read, for the fingerprint: any cell of a usual column, or
    that ends as a picture's name does."""
    folder, home = reader.file.path.parent, reader.file.path.parent.resolve()
    beside = Path(reader.file.name).parent
    for values in table_values(reader):
        for column, value in values.items():
            path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
            if not isinstance(path, str) or not (column in IMAGE_COLUMNS or path.lower().endswith(PICTURES)):
                continue
            if _refusal(home, path) is None:
                yield SourceFile(folder / path, (beside / path).as_posix(), "text")


def _with_column(reader: FileRows, columns: Sequence[str] | None) -> Iterator[tuple[dict[str, Any], str]]:
    known = IMAGE_COLUMNS if columns is None else tuple(columns)
    name: str | None = None
    for values in table_values(reader, columns):
        if name is None:
            name = next((name for name in known if name in values), None)
            if name is None:
                raise _no_pictures(reader, known, list(values), asked=columns is not None)
        if name in values:
            yield values, name
        else:
            reader.bad("missing_column", f"no column {name!r}; there are: {', '.join(list(values)[:20])}")


def _no_pictures(reader: FileRows, known: Sequence[str], there: list[str], *, asked: bool) -> DataError:
    if asked:
        return no_column(reader, known[0], there)
    return DataError(
        "no column of the table is known to name pictures",
        received=there[:50],
        where=reader.file.path,
        fix=f"name it: data.image=COLUMN, or call it one of {', '.join(known)}; to read folders of classes and not "
        "this table, move the table away",
    )


def _refusal(home: Path, name: str) -> tuple[BadKind, str] | None:
    """Say what is wrong with a path that a table in `home`, a resolved path, names; None where it can be read."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        return "outside", "the path leads out of the table's folder"
    try:
        mode = (home / path).stat().st_mode
    except (OSError, ValueError) as error:
        return "no_file", f"there is no such file ({getattr(error, 'strerror', None) or error})"
    if not is_inside(home, home / path):
        return "outside", "a link leads out of the table's folder"
    return None if stat.S_ISREG(mode) else ("no_file", "it is no file of bytes")


def _read(reader: FileRows, path: Path) -> bytes | None:
    """Return the bytes of a picture; None where it is a bad row."""
    try:
        with path.open("rb") as file:
            data = file.read(reader.limit + 1)
    except OSError as error:
        reader.bad("no_file", f"the file cannot be read: {error.strerror}", raw=str(path))
        return None
    reader.seen(len(data))
    if not data:
        reader.bad("bad_picture", "the file is empty", raw=path.name)
        return None
    if len(data) > reader.limit:
        reader.bad("too_long", f"the picture is longer than {reader.limit:,} bytes", raw=path.name)
        return None
    return data
