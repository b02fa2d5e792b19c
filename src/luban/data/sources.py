"""Which files a source means, and their bytes: files, folders, globs, prepared sets, compressed or not."""

from __future__ import annotations

import glob
import io
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, Literal

from luban.durable import member, read_json
from luban.errors import DataError, InputError, MissingExtra, nearest

Format = Literal["text", "jsonl", "csv", "tsv", "parquet", "arrow"]
Compression = Literal["gz", "zst"]

BUILTIN = "builtin:"
_FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".raw": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst"}
_ABOUT = ("readme", "license", "licence", "notice")
_TAGGED = (".conll", ".bio", ".iob", ".iob2", ".bmes", ".bioes")
_PEEK_BYTES = 8192


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source.

    Arguments:
        path: where it is on this machine.
        name: how reports and fingerprints call it: relative, so that moving a folder changes nothing.
        format: how its rows are written.
        compression: what the bytes are wrapped in.
    """

    path: Path
    name: str
    format: Format
    compression: Compression | None = None


def find_files(source: str | Sequence[str]) -> list[SourceFile]:
    """Return the files that `data.source` means, in a fixed order.

    A source is a file, a folder (walked in sorted order; hidden files, READMEs and licences are passed
    over), a glob, a saved Hugging Face `datasets` folder, `builtin:NAME` for text that comes with the
    package, or a list of these. In a folder only files of known formats count; a file named outright may
    have any suffix if it holds text.

    Raises:
        InputError: when a source does not exist or holds no file that can be read.
    """
    sources = [source] if isinstance(source, str) else list(source)
    if not sources:
        raise InputError("data.source is empty", fix="name a file, a folder or a glob")
    found: dict[Path, SourceFile] = {}
    for item in sources:
        for file in _one_source(item, within_list=len(sources) > 1):
            found.setdefault(file.path.resolve(), file)
    return list(found.values())


def builtin_folder(name: str) -> Path:
    """Return the folder of the text `NAME` that comes with the package."""
    texts = Path(str(resources.files("luban") / "texts"))
    folder = texts / name
    known = sorted(p.name for p in texts.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
    if name not in known:
        close = nearest(name, known)
        fix = (f"did you mean {BUILTIN}{close}? " if close else "") + f"there are: {', '.join(known)}"
        raise InputError("no text of that name comes with luban", received=f"{BUILTIN}{name}", fix=fix)
    return folder


def _one_source(source: str, *, within_list: bool) -> list[SourceFile]:
    if source.startswith(BUILTIN):
        files = _in_folder(builtin_folder(source.removeprefix(BUILTIN)), source, prefix=within_list)
        return [file for file in files if file.path.suffix != ".md"]  # where the text came from stands in .md
    path = Path(source).expanduser()
    if path.is_file():
        return [_file(path, path.name)]
    if path.is_dir():
        return _in_folder(path, source, prefix=within_list)
    if glob.has_magic(source):
        root = _root_of_glob(path)
        matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        if files := [_file(p, p.relative_to(root).as_posix()) for p in matches if p.is_file()]:
            return files
        raise InputError("no file matches the glob", received=source, fix=f"look at what is in {root}")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, siblings)
    fix = f"did you mean {path.parent / close}?" if close else f"the working folder is {Path.cwd()}"
    raise InputError("no such file or folder", received=source, where="data.source", fix=fix)


def _root_of_glob(path: Path) -> Path:
    parts = list(path.parts)
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _in_folder(folder: Path, source: str, *, prefix: bool) -> list[SourceFile]:
    paths = _saved_dataset(folder)
    if paths is None:
        paths = [p for p in _walk(folder) if _format_of(p)[0] is not None]
        without_about = [p for p in paths if not p.name.lower().startswith(_ABOUT)]
        paths = without_about or paths
    if not paths:
        raise InputError(
            "the folder holds no file that can be read",
            received=source,
            fix=f"formats: {', '.join(_FORMATS)}, each also with .gz or .zst; or a saved datasets folder",
        )
    start = f"{folder.resolve().name}/" if prefix else ""
    return [_file(path, start + path.relative_to(folder).as_posix()) for path in paths]


def _walk(folder: Path) -> Iterable[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            yield Path(here) / name


def _saved_dataset(folder: Path) -> list[Path] | None:
    """Return the Arrow files of a folder that `datasets` saved, or None where it is no such folder."""
    if (folder / "dataset_dict.json").is_file():
        splits = _described(folder / "dataset_dict.json").get("splits", [])
        if not isinstance(splits, list) or "train" not in splits:
            named = isinstance(splits, list) and splits
            raise InputError(
                "a saved dataset has no split named train",
                received=splits,
                where=folder,
                fix=f"name one of its splits, for example {folder / str(splits[0]) if named else folder}",
            )
        return _saved_dataset(folder / "train")
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return None
    state = _described(folder / "state.json")
    if state.get("_indices_data_files"):
        raise InputError(
            "a saved dataset has an index beside its rows",
            where=folder,
            fix="save it after .flatten_indices()",
        )
    return [member(folder, name) for name in _files_of(state, folder / "state.json")]


def _files_of(state: dict[str, Any], where: Path) -> list[str]:
    """Return the names of the files that a saved dataset's state lists."""
    entries = state.get("_data_files")
    listed = entries if isinstance(entries, list) else [None]
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed]
    if not all(isinstance(name, str) for name in names):
        raise InputError("a saved dataset does not name its files", received=entries, where=where)
    return [str(name) for name in names]


def _described(path: Path) -> dict[str, Any]:
    """Read one of the small files beside a saved dataset's rows."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError("a JSON object was expected", received=type(value).__name__, where=path)
    return value


def _format_of(path: Path) -> tuple[Format | None, Compression | None]:
    """Read format and compression off a name; None where the format is not known.

    Example:
        >>> _format_of(Path("a/b.JSONL.gz")), _format_of(Path("notes.org"))
        (('jsonl', 'gz'), (None, None))
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    return (_FORMATS.get(suffixes[-1]) if suffixes else None), compression


def _file(path: Path, name: str) -> SourceFile:
    format_, compression = _format_of(path)
    if path.suffix == ".arrow":
        return SourceFile(path, name, "arrow")
    if format_ is not None:
        return SourceFile(path, name, format_, compression)
    file = SourceFile(path, name, "text", compression)
    tagged = path.name.lower().removesuffix(f".{compression}").endswith(_TAGGED)
    try:
        with open_bytes(file) as stream:
            start = stream.read(_PEEK_BYTES)
    except CorruptStream:
        return file
    # A NUL in one of its sentences makes a bad row, and not another kind of file; UTF-16 has one in every second byte.
    if b"\0" in start and not (tagged and start.count(0) < len(start) / 4):
        raise InputError(
            "the file is neither text nor of a known format",
            received=str(path),
            fix=f"formats: {', '.join(_FORMATS)}, each also with .gz or .zst",
        )
    return file


class CorruptStream(Exception):  # noqa: N818
    """Compressed bytes that end too early or do not decompress."""


def open_bytes(file: SourceFile, seen: Callable[[int], None] = lambda _: None) -> io.BufferedReader:
    """Open the decompressed bytes of `file`; `seen` is told how many bytes were read from the disk.

    Reading raises `CorruptStream` where the compressed bytes are cut or altered. Memory stays bounded
    whatever the file's size and however well it was compressed.
    """
    try:
        raw = file.path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror}", where=file.path) from None
    decompress: _Gzip | _Zstandard | None = None
    if file.compression == "gz":
        decompress = _Gzip()
    elif file.compression == "zst":
        decompress = _Zstandard()
    return io.BufferedReader(_Bytes(raw, decompress, seen), 1 << 17)


class _Bytes(io.RawIOBase):
    """The bytes of a file through a decompressor, never more at once than was asked for."""

    def __init__(
        self, raw: BinaryIO, decompress: _Gzip | _Zstandard | None, seen: Callable[[int], None]
    ) -> None:
        self._raw, self._decompress, self._seen = raw, decompress, seen

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        data = self._decompress.read(self._read, size) if self._decompress else self._read(size)
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            data = self._raw.read(size) or b""
        except OSError as error:
            raise DataError(f"cannot read the file: {error.strerror}", where=self._raw.name) from None
        self._seen(len(data))
        return data

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Gzip:
    """Gzip members one after another; the end of the file within one is an error, zeros after the last are
    not."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._pending = b""
        self._started = False

    def read(self, source: Callable[[int], bytes], size: int) -> bytes:
        while True:
            if self._member.eof:
                self._pending = self._member.unused_data.lstrip(b"\0")
                self._member, self._started = zlib.decompressobj(wbits=31), False
            if not self._pending:
                block = source(1 << 16)
                if not block and not self._started:
                    return b""
                self._pending = block if self._started else block.lstrip(b"\0")
                if not self._pending and block:
                    continue
            self._started = True
            try:
                data = self._member.decompress(self._pending, size)
            except zlib.error as error:
                raise CorruptStream(f"the gzip bytes are altered ({error})") from None
            if not data and not self._pending:
                raise CorruptStream("the compressed bytes end too early")
            self._pending = self._member.unconsumed_tail
            if data:
                return data


class _Zstandard:
    """Zstandard frames one after another, fed in pieces so small that no piece can unfold into much
    memory."""

    _FEED_BYTES = 256

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingExtra("zstandard", extra="data", purpose="read .zst files") from None
        self._new, self._error = zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
        self._frame = self._new()
        self._started = False
        self._input, self._position = b"", 0
        self._output = memoryview(b"")

    def read(self, source: Callable[[int], bytes], size: int) -> bytes:
        while not self._output:
            if self._frame.eof:
                self._position -= len(self._frame.unused_data)
                self._frame, self._started = self._new(), False
            if self._position == len(self._input):
                self._input, self._position = source(1 << 16), 0
            if not self._input:
                if self._started:
                    raise CorruptStream("the compressed bytes end too early")
                return b""
            piece = self._input[self._position : self._position + self._FEED_BYTES]
            self._position += len(piece)
            self._started = True
            try:
                self._output = memoryview(self._frame.decompress(piece))
            except self._error as error:
                raise CorruptStream(f"the zstandard bytes are altered ({error})") from None
        data, self._output = bytes(self._output[:size]), self._output[size:]
        return data
