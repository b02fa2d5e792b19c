"""Every durable write of luban goes through this file.

A file appears whole or not at all: bytes go to a temporary neighbour, are flushed and fsynced, the neighbour
is renamed over the target, and the folder is fsynced. A folder appears whole or not at all the same way, with
a manifest of SHA-256 digests written last. Tests replace `FileSystem` to inject faults and to count
operations.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from luban.errors import CheckpointError, StorageError

MANIFEST = "manifest.json"
_READ_BYTES = 1 << 20
_LEFTOVER = re.compile(r"\.(?P<target>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)", re.DOTALL)


class FileSystem:
    """The operations durable writes are made of; a test subclasses it to make any one of them fail."""

    def open_write(self, path: Path) -> BinaryIO:
        """Create `path` for writing; it must not exist yet."""
        return path.open("xb")

    def open_append(self, path: Path) -> BinaryIO:
        """Open `path` to append bytes at its end, without a buffer: one write is one system call."""
        return path.open("ab", buffering=0)

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        """Write all of `data`; a short write is continued."""
        view = memoryview(data).cast("B")
        while view:
            written = file.write(view)
            view = view[written:]

    def sync(self, file: BinaryIO) -> None:
        """Flush `file` through to the device."""
        file.flush()
        os.fsync(file.fileno())

    def truncate(self, path: Path, size: int) -> None:
        """Cut `path` to `size` bytes."""
        with path.open("r+b") as file:
            file.truncate(size)
            self.sync(file)

    def replace(self, source: Path, target: Path) -> None:
        """Rename `source` to `target`; atomic on one file system."""
        source.replace(target)

    def sync_folder(self, folder: Path) -> None:
        """Make renames within `folder` durable."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_folder(self, folder: Path) -> None:
        """Create `folder`; its parent exists."""
        folder.mkdir()

    def remove(self, path: Path) -> None:
        """Delete a file or a folder with all it holds; absent is fine."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


DISK = FileSystem()


@contextlib.contextmanager
def storage_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError of the block into a `StorageError` that names the path and the free space."""
    try:
        yield
    except OSError as error:
        fix = "check the disk and its permissions, then go on with: luban train --resume DIR"
        message = f"cannot write {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += f" ({free_bytes(path):,} bytes free" + (f", {needed:,} needed)" if needed else ")")
            fix = "free some space, then go on with: luban train --resume DIR"
        raise StorageError(message, fix=fix) from error


def free_bytes(path: Path) -> int:
    """Return the bytes that are free where `path` is, or will be."""
    existing = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
    return shutil.disk_usage(existing).free


def write_bytes(path: Path, data: bytes, fs: FileSystem = DISK) -> None:
    """Write `data` to `path` so that a crash leaves either the old content or all of the new."""
    write_file(path, lambda file: fs.write(file, data), fs, needed=len(data))


def write_text(path: Path, text: str, fs: FileSystem = DISK) -> None:
    """Write `text` as UTF-8; atomic as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), fs)


def write_json(path: Path, value: Any, fs: FileSystem = DISK) -> None:
    """Write `value` as indented JSON; atomic as `write_bytes`. NaN is refused: it is not JSON."""
    write_bytes(path, json_bytes(value, indent=2), fs)


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """Write `value` as JSON in UTF-8 that ends its line.

    What UTF-8 cannot hold, such as a file name that is not UTF-8, is escaped, and reads back as it was.

    Raises:
        ValueError: for NaN and infinity.

    Example:
        >>> json_bytes({"text": "春"}).decode(), json_bytes("\\udcff").decode()
        ('{"text": "春"}\\n', '"\\\\udcff"\\n')
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        return (text + "\n").encode("utf-8")
    except UnicodeEncodeError:
        return (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode("ascii")


def write_file(
    path: Path, write: Callable[[BinaryIO], None], fs: FileSystem = DISK, needed: int | None = None
) -> None:
    """Let `write` fill a new file that replaces `path` atomically once it is on the device.

    Arguments:
        needed: bytes of the file, for the message when the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(path, needed):
        try:
            with fs.open_write(temporary) as file:
                write(file)
                fs.sync(file)
            fs.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        fs.sync_folder(path.parent)


def make_folders(folder: Path, fs: FileSystem = DISK) -> None:
    """Create `folder` and its missing parents, each name of them durable; one that stands there is fine.

    Raises:
        FileExistsError, NotADirectoryError: a file is in the way.
    """
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        try:
            fs.make_folder(new)
        except FileExistsError:
            if not new.is_dir():
                raise
        fs.sync_folder(new.parent)


def read_json(path: Path) -> Any:
    """Read a JSON file that luban wrote; a broken one is a `CheckpointError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Return what the files of a folder take together; one that vanishes meanwhile counts nothing."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size  # noqa: PTH118  (a hot loop)
            except OSError:
                continue
    return total


@contextlib.contextmanager
def new_folder(target: Path, fs: FileSystem = DISK, extra: dict[str, Any] | None = None) -> Iterator[Path]:
    """Fill a temporary folder, then make it `target`, whole and verified, or not at all.

    The block gets the temporary folder and writes plain files into it. On leaving, every file is fsynced, a
    manifest with sizes and SHA-256 digests (and `extra`) is written last, the folder is renamed and its
    parent fsynced. An existing `target` is set aside first, deleted only after the new one stands, and put
    back when it does not come.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside = temporary.with_suffix(".old")
    with storage_errors(target):
        make_folders(target.parent, fs)
        fs.make_folder(temporary)
        try:
            yield temporary
            _seal(temporary, fs, extra or {})
            if target.exists():
                fs.replace(target, aside)
            fs.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)
            with contextlib.suppress(OSError):
                if aside.exists() and not target.exists():
                    fs.replace(aside, target)
            raise
        fs.sync_folder(target.parent)
        if aside.exists():
            fs.remove(aside)


def _seal(folder: Path, fs: FileSystem, extra: dict[str, Any]) -> None:
    """Fsync all files of `folder`, write the manifest last, fsync the folders."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb+") as file:
            fs.sync(file)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / MANIFEST, {**extra, "files": files}, fs)
    for inner in [p for p in folder.rglob("*") if p.is_dir()] + [folder]:
        fs.sync_folder(inner)


def verify_folder(folder: Path) -> dict[str, Any]:
    """Check every file of `folder` against its manifest and return the manifest.

    Raises:
        CheckpointError: naming the first file that is absent, cut or altered.
    """
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise CheckpointError(f"{folder / MANIFEST} is not a manifest")
    for name, entry in files.items():
        path = member(folder, name)
        try:
            if not path.is_file() or path.is_symlink():
                raise CheckpointError(f"{path} is missing")
            size, expected = path.stat().st_size, entry.get("bytes")
            if size != expected:
                raise CheckpointError(f"{path} has {size} bytes, its manifest says {expected}")
            if sha256(path) != entry.get("sha256"):
                raise CheckpointError(f"{path} was altered: its SHA-256 differs from the manifest")
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return {**manifest}


def member(folder: Path, name: str) -> Path:
    """Return `folder / name`, refusing a name that leads out of the folder."""
    path = folder / name
    try:
        outside = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"a name in {folder} is none: {error}", received=name) from error
    if outside or Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"a name leads out of {folder}", received=name)
    return path


def remove_leftovers(folder: Path, fs: FileSystem = DISK) -> list[Path]:
    """Delete what interrupted writes left in `folder` (`.NAME.*.tmp`, `.NAME.*.old`) and return the paths.

    A folder set aside whose replacement never arrived is put back instead.
    """
    removed = []
    with storage_errors(folder):
        for path in sorted(folder.iterdir()):
            if not (match := _LEFTOVER.fullmatch(path.name)):
                continue
            target = path.with_name(match["target"])
            if match["kind"] == "old" and not target.exists():
                fs.replace(path, target)
                fs.sync_folder(folder)
                continue
            fs.remove(path)
            removed.append(path)
    return removed
