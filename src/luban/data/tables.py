"""Rows of tables: JSON lines, CSV and TSV, Parquet, and Arrow, as saved datasets have it."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from luban.data.csv_rows import CsvRows, delimiter_of
from luban.data.rows import ColumnRows, FileRows, Row
from luban.data.sources import CorruptStream, open_bytes
from luban.errors import DataError, MissingExtra, nearest

_ROWS_AT_ONCE = 64
_ROWS_WITHOUT_COLUMN = 1000
_SHOWN_COLUMNS = 1000
_ARROW_FILE = b"ARROW1"
"""How an Arrow file begins; a stream begins otherwise."""


def table_rows(reader: ColumnRows) -> Iterator[Row]:
    """Yield the rows of a table, each a document."""
    match reader.file.format:
        case "jsonl":
            return _json_lines(reader)
        case "csv" | "tsv":
            return _csv(reader)
        case "parquet":
            return _parquet(reader)
        case _:
            return _arrow(reader)


def _no_column(reader: ColumnRows, columns: Iterable[str]) -> DataError:
    names = sorted(set(itertools.islice(columns, _SHOWN_COLUMNS)))
    close = nearest(reader.column, names)
    fix = f"set data.text={close or (names[0] if len(names) == 1 else 'COLUMN')}; there are: {', '.join(names)[:2000]}"
    return DataError("the file has no such column", received=reader.column, where=reader.file.path, fix=fix)


def _json_lines(reader: ColumnRows) -> Iterator[Row]:
    columns: set[str] = set()
    without = 0
    with reader.open() as stream:
        for raw in reader.lines(stream):
            if not raw.strip():
                reader.mended("blank_line", "a line without text between rows")
                continue
            if raw.endswith(b"\r\n"):
                reader.mended("crlf", "the line ends with CRLF")
            value = json_object(reader, raw)
            if value is None:
                continue
            if reader.column not in value:
                columns.update(list(value)[:100])
                without += 1
                if without >= _ROWS_WITHOUT_COLUMN and without == reader.line:
                    raise _no_column(reader, columns)
                reader.bad(
                    "missing_column",
                    f"no column {reader.column!r}; there are: {', '.join(list(value)[:20])}",
                    raw,
                )
                continue
            if (row := reader.row(value[reader.column])) is not None:
                yield row
    if without and without == reader.line:
        raise _no_column(reader, columns)


def json_object(reader: FileRows, raw: bytes) -> dict[str, Any] | None:
    """Read a line of JSON; None where it is a bad row."""
    if b"\0" in raw:
        reader.bad("nul", "a NUL byte", raw)
        return None
    try:
        # Named, or two odd bytes at the beginning would be taken for the mark of another encoding.
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        reader.bad("invalid_utf8", f"byte {error.start + 1} of the line is not UTF-8", raw)
    except (ValueError, RecursionError) as error:
        reader.bad("broken_json", str(error), raw)
    else:
        if isinstance(value, dict):
            return value
        reader.bad("not_an_object", f"the row is a {type(value).__name__}", raw)
    return None


def _csv(reader: ColumnRows) -> Iterator[Row]:
    with reader.open() as stream:
        rows = CsvRows(reader, stream, delimiter_of(reader, stream))
        header = next(rows, None)
        if header is None:
            return
        if reader.column not in header:
            raise _no_column(reader, header)
        rows.width, index = len(header), header.index(reader.column)
        for row in rows:
            if any("\udc80" <= c <= "\udcff" for c in row[index]):
                reader.bad(
                    "invalid_utf8", "the text is not UTF-8", row[index].encode("utf-8", "surrogateescape")
                )
            elif (found := reader.row(row[index])) is not None:
                yield found


def _parquet(reader: ColumnRows) -> Iterator[Row]:
    with on_disk(reader) as path:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise MissingExtra("pyarrow", extra="data", purpose="read .parquet files") from None
        try:
            with pq.ParquetFile(path) as table:
                if reader.column not in table.schema_arrow.names:
                    raise _no_column(reader, table.schema_arrow.names)
                batches = table.iter_batches(
                    batch_size=_ROWS_AT_ONCE, columns=[reader.column], use_threads=False
                )
                for batch in batches:
                    batch.validate()
                    yield from _column_rows(reader, batch.column(0))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise CorruptStream(f"not a whole Parquet file ({str(error)[:200]})") from None
    reader.seen(reader.file.path.stat().st_size)


@contextlib.contextmanager
def on_disk(reader: FileRows) -> Iterator[Path]:
    """Give a path of the decompressed file: Parquet is read from its end."""
    if reader.file.compression is None:
        yield reader.file.path
        return
    with tempfile.TemporaryDirectory(prefix="luban-") as folder:
        path = Path(folder) / "table.parquet"
        with open_bytes(reader.file) as stream, path.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        yield path


def _arrow(reader: ColumnRows) -> Iterator[Row]:
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtra("pyarrow", extra="data", purpose="read a saved dataset") from None
    try:
        with arrow_batches(reader.file.path) as (schema, batches):
            if reader.column not in schema.names:
                raise _no_column(reader, schema.names)
            for batch in batches:
                batch.validate()
                column = batch.column(reader.column)
                for start in range(0, len(column), _ROWS_AT_ONCE):
                    yield from _column_rows(reader, column.slice(start, _ROWS_AT_ONCE))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorruptStream(f"not a whole Arrow file ({str(error)[:200]})") from None
    reader.seen(reader.file.path.stat().st_size)


@contextlib.contextmanager
def arrow_batches(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Give schema and batches of an Arrow file, or of an Arrow stream as `datasets` saves it."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        file.seek(0)
        with pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file) as table:
            if is_file:
                yield table.schema, map(table.get_batch, range(table.num_record_batches))
            else:
                yield table.schema, iter(table)


def _as_bytes(column: Any) -> Any:
    """Return a column of text as one of bytes, checked: offsets that lead out of it would end the process."""
    import pyarrow as pa

    if pa.types.is_string(column.type):
        column = column.cast(pa.binary())
    elif pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    column.validate(full=True)
    return column


def _column_rows(reader: ColumnRows, column: Any) -> Iterator[Row]:
    """Yield the rows of an Arrow column; text is decoded here, row by row, so that one bad row is one bad
    row."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        values = _as_bytes(column.dictionary)
        column = pa.DictionaryArray.from_arrays(column.indices, values, safe=True).dictionary_decode()
    column = _as_bytes(column)
    for value in column.to_pylist():
        reader.line += 1
        if (row := reader.row(value)) is not None:
            yield row
