"""Whole rows of Parquet files and of the Arrow files of saved datasets, as plain Python values.

A file may lie about itself, and an offset that leads out of a buffer would end the process: a column is first seen as
one of bytes, then validated whole, then taken apart; texts are decoded here, so that one bad row is one bad row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from luban.data.rows import FileRows
from luban.data.sources import CorruptStream
from luban.data.tables import arrow_batches, on_disk
from luban.errors import DataError

_BATCH_BYTES = 4 << 20
_MOST_ROWS = 1024
_READ_BYTES = 1 << 20

Read = Callable[[Any], Any]


def parquet_rows(reader: FileRows) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, some MiB of them in memory; `reader.line` is a row's number."""
    # A buffer, and nothing read ahead: else each column chunk is held whole, whatever its size.
    options = {"buffer_size": _READ_BYTES, "pre_buffer": False, "page_checksum_verification": True}
    with (
        on_disk(reader) as path,
        _corrupt("not a whole Parquet file"),
        pq.ParquetFile(path, **options) as table,
    ):
        groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
        rows = _rows_at_once(sum(group.total_byte_size for group in groups), table.metadata.num_rows)
        for batch in table.iter_batches(batch_size=rows, use_threads=False):
            yield from _batch_rows(reader, batch, rows)
    reader.seen(reader.file.path.stat().st_size)


def arrow_rows(reader: FileRows) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow file, or of an Arrow stream as `datasets` saves it."""
    with on_disk(reader) as path, _corrupt("not a whole Arrow file"), arrow_batches(path) as (_, batches):
        for batch in batches:
            size = batch.get_total_buffer_size()  # `nbytes` would follow offsets that nobody has checked yet
            yield from _batch_rows(reader, batch, _rows_at_once(size, batch.num_rows))
    reader.seen(reader.file.path.stat().st_size)


@contextlib.contextmanager
def _corrupt(what: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorruptStream(f"{what} ({str(error)[:200]})") from None


def _rows_at_once(size: int, rows: int) -> int:
    """Return how many rows make about a batch, if they are all alike."""
    return max(1, min(_MOST_ROWS, _BATCH_BYTES * rows // max(1, size)))


def _batch_rows(reader: FileRows, batch: Any, at_once: int) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    if len(set(names)) < len(names):
        raise DataError("the file has two columns of one name", received=names[:50], where=reader.file.path)
    batch.validate()
    columns = [_column(reader, name, column) for name, column in zip(names, batch.columns, strict=True)]
    for start in range(0, batch.num_rows, at_once):
        parts = [(column.slice(start, at_once), read) for column, read in columns]
        for number in range(len(parts[0][0]) if parts else 0):
            reader.line += 1
            try:
                values = [_value(part[number], read) for part, read in parts]
            except UnicodeDecodeError as error:
                reader.bad(
                    "invalid_utf8", f"byte {error.start + 1} of a value is not UTF-8", error.object[:200]
                )
            except (ValueError, ArithmeticError) as error:
                reader.bad("bad_value", str(error)[:200])
            else:
                yield dict(zip(names, values, strict=True))


def _value(scalar: Any, read: Read) -> Any:
    value = scalar.as_py()
    return None if value is None else read(value)


def _column(reader: FileRows, name: str, column: Any) -> tuple[Any, Read]:
    """Return a column made safe to take values from, and what each goes through then."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    plain = _plain(column.type)
    if plain is None:
        raise DataError(
            f"column {name!r} holds what no row can",
            received=str(column.type),
            where=reader.file.path,
            fix="write it as text, numbers, or lists of these, or leave the column out",
        )
    column = column.view(plain.seen_as)
    column.validate(full=True)
    # Not safe: what is finer than a microsecond is cut off.
    return column.cast(plain.cast_to, safe=False), plain.read


class _Plain(NamedTuple):
    """How values of a type become plain: seen as one type, cast to another, then read one by one."""

    seen_as: Any
    cast_to: Any
    read: Read


def _plain(kind: Any) -> _Plain | None:
    """Return how values of an Arrow type become plain; None where they cannot."""
    return _plain_text(kind) or _plain_time(kind) or _plain_nested(kind) or _plain_number(kind)


def _plain_text(kind: Any) -> _Plain | None:
    if pa.types.is_string(kind):
        return _Plain(pa.binary(), pa.binary(), _text)
    if pa.types.is_large_string(kind):
        return _Plain(pa.large_binary(), pa.large_binary(), _text)
    if pa.types.is_string_view(kind):
        return _Plain(pa.binary_view(), pa.binary(), _text)
    return None


def _plain_time(kind: Any) -> _Plain | None:
    if pa.types.is_date(kind):
        return _Plain(kind, kind, _iso)
    if pa.types.is_time(kind):
        return _Plain(kind, pa.time64("us"), _iso)
    if not pa.types.is_timestamp(kind) and not pa.types.is_duration(kind):
        return None
    unit = "us" if kind.unit == "ns" else kind.unit  # Python's own times go to the microsecond
    if pa.types.is_duration(kind):
        return _Plain(kind, pa.duration(unit), lambda value: value.total_seconds())
    return _Plain(kind, pa.timestamp(unit, "UTC" if kind.tz else None), _iso)


def _plain_number(kind: Any) -> _Plain | None:
    types = pa.types
    if types.is_decimal(kind):
        return _Plain(kind, kind, int if kind.scale <= 0 else float)
    as_it_is = (
        types.is_null,
        types.is_primitive,
        types.is_binary,
        types.is_large_binary,
        types.is_fixed_size_binary,
    )
    return _Plain(kind, kind, _same) if any(is_one(kind) for is_one in as_it_is) else None


def _plain_nested(kind: Any) -> _Plain | None:
    if pa.types.is_struct(kind):
        return _plain_object(kind)
    if pa.types.is_list(kind):
        return _plain_list(kind, pa.list_)
    if pa.types.is_large_list(kind):
        return _plain_list(kind, pa.large_list)
    if pa.types.is_fixed_size_list(kind):
        return _plain_list(kind, lambda item: pa.list_(item, kind.list_size))
    return _plain_dictionary(kind) if pa.types.is_dictionary(kind) else None


def _plain_object(kind: Any) -> _Plain | None:
    fields = [kind.field(number) for number in range(kind.num_fields)]
    inner = {field.name: plain for field in fields if (plain := _plain(field.type)) is not None}
    if len(inner) < len(fields):
        return None
    seen_as = pa.struct([(name, plain.seen_as) for name, plain in inner.items()])
    cast_to = pa.struct([(name, plain.cast_to) for name, plain in inner.items()])

    def read(value: dict[str, Any]) -> dict[str, Any]:
        return {
            name: None if value[name] is None else plain.read(value[name]) for name, plain in inner.items()
        }

    return _Plain(seen_as, cast_to, read)


def _plain_list(kind: Any, list_of: Callable[[Any], Any]) -> _Plain | None:
    item = _plain(kind.value_type)
    if item is None:
        return None

    def read(values: list[Any]) -> list[Any]:
        return [None if value is None else item.read(value) for value in values]

    return _Plain(list_of(item.seen_as), list_of(item.cast_to), read)


def _plain_dictionary(kind: Any) -> _Plain | None:
    value = _plain(kind.value_type)
    if value is None:
        return None
    return _Plain(pa.dictionary(kind.index_type, value.seen_as, kind.ordered), value.cast_to, value.read)


def _same(value: Any) -> Any:
    return value


def _text(value: bytes) -> str:
    return value.decode("utf-8")


def _iso(value: Any) -> str:
    text: str = value.isoformat()
    return text
