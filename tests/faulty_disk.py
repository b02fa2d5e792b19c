"""A disk that fails at a chosen operation, walks over all of them, and a look at every operation of luban."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from luban.durable import FileSystem
from luban.errors import StorageError

OPERATIONS = (
    "open_write",
    "open_append",
    "write",
    "sync",
    "truncate",
    "replace",
    "sync_folder",
    "make_folder",
    "remove",
)
Hook = Callable[[str, str, tuple[Any, ...]], None]


def failure(kind: str) -> OSError:
    """The error of a name such as EIO; a short write is what a full disk does."""
    code = getattr(errno, "ENOSPC" if kind == "short write" else kind)
    return OSError(code, os.strerror(code))


@contextlib.contextmanager
def watching(hook: Hook) -> Iterator[None]:
    """Call `hook(when, operation, arguments)` with when = before, after, around every operation of every disk."""
    plain = {name: getattr(FileSystem, name) for name in OPERATIONS}

    def watched(name: str) -> Callable[..., Any]:
        def operation(self: FileSystem, *arguments: Any) -> Any:
            hook("before", name, arguments)
            answer = plain[name](self, *arguments)
            hook("after", name, (*arguments, answer) if answer is not None else arguments)
            return answer

        return operation

    for name in OPERATIONS:
        setattr(FileSystem, name, watched(name))
    try:
        yield
    finally:
        for name, method in plain.items():
            setattr(FileSystem, name, method)


class FaultyDisk(FileSystem):
    """A disk whose n-th operation fails, once or ever after; without n it only takes notes."""

    def __init__(
        self, at: int | None = None, kind: str = "EIO", *, forever: bool = False, die: bool = False
    ) -> None:
        self.at, self.kind, self.forever, self.die = at, kind, forever, die
        self.done: list[tuple[str, str]] = []

    def _reach(self, operation: str, what: object) -> None:
        self.done.append((operation, Path(str(what)).name))
        number = len(self.done)
        if self.at is None or number < self.at or (number > self.at and not self.forever):
            return
        if self.die:
            os._exit(9)
        raise failure(self.kind)

    def open_write(self, path: Path) -> BinaryIO:
        self._reach("open_write", path)
        return super().open_write(path)

    def open_append(self, path: Path) -> BinaryIO:
        self._reach("open_append", path)
        return super().open_append(path)

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        try:
            self._reach("write", file.name)
        except OSError:
            if self.kind == "short write":
                super().write(file, memoryview(data)[: len(data) // 2])
            raise
        super().write(file, data)

    def sync(self, file: BinaryIO) -> None:
        self._reach("sync", file.name)
        super().sync(file)

    def truncate(self, path: Path, size: int) -> None:
        self._reach("truncate", path)
        super().truncate(path, size)

    def replace(self, source: Path, target: Path) -> None:
        self._reach("replace", target)
        super().replace(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._reach("sync_folder", folder)
        super().sync_folder(folder)

    def make_folder(self, folder: Path) -> None:
        self._reach("make_folder", folder)
        super().make_folder(folder)

    def remove(self, path: Path) -> None:
        self._reach("remove", path)
        super().remove(path)


def with_every_fault(work: Callable[[FaultyDisk], None], kind: str, forever: bool) -> Iterator[bool]:
    """Do `work` with a fault at its 1st, 2nd, 3rd ... operation, until it ends before its fault."""
    for at in count(1):
        disk = FaultyDisk(at, kind, forever=forever)
        try:
            work(disk)
        except StorageError:
            yield False
        else:
            yield True
            if len(disk.done) < at:
                return


def with_every_death(work: Callable[[FaultyDisk], None]) -> Iterator[None]:
    """Do `work` in a process that dies at its 1st, 2nd, 3rd ... operation, until it lives to its end."""
    for at in count(1):
        child = os.fork()
        if child == 0:
            work(FaultyDisk(at, die=True))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        yield None
        if status == 0:
            return
        assert status == 9
