"""The run folder: its names, its lock, its logs. What each file holds is described in docs/design.md."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luban.durable import (
    DISK,
    MANIFEST,
    FileSystem,
    json_bytes,
    read_json,
    remove_leftovers,
    storage_errors,
    write_json,
)
from luban.errors import InputError

_BLOCK = 1 << 16
_TRIES, _BETWEEN = 5, 0.02


class Log:
    """A file of JSON lines that only grows; one line is one write, so a reader never sees two lines mixed."""

    def __init__(self, path: Path, fs: FileSystem = DISK) -> None:
        self.path, self._fs = path, fs
        self._ends_whole = False

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record, whole or not at all.

        Raises:
            StorageError: when the disk refuses; the lines before are intact.
            ValueError: for NaN and infinity, which are not JSON.
        """
        line = json_bytes(record)
        with storage_errors(self.path):
            if not self._ends_whole:
                self._drop_torn_line()
            self._ends_whole = False
            try:
                with self._fs.open_append(self.path) as file:
                    self._fs.write(file, line)
            except OSError:
                with contextlib.suppress(OSError):
                    self._drop_torn_line()
                raise
            self._ends_whole = True

    def _drop_torn_line(self) -> None:
        """Cut off a last line whose end a crash or a full disk took away."""
        size = end = self.size()
        if not size:
            return
        with self.path.open("rb") as file:
            while end:
                start = max(0, end - _BLOCK)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                end = start + newline + 1
                if newline >= 0:
                    break
        if end < size:
            self._fs.truncate(self.path, end)

    def size(self) -> int:
        """Bytes written so far; a checkpoint notes it, and a resume cuts the log back to it."""
        return self.path.stat().st_size if self.path.exists() else 0

    def sync(self) -> int:
        """Make what was written durable and return its size in bytes."""
        if not self.path.exists():
            return 0
        with storage_errors(self.path), self._fs.open_append(self.path) as file:
            self._fs.sync(file)
        return self.size()

    def cut(self, size: int) -> None:
        """Forget everything after `size` bytes: lines that belong to steps a resumed run does again."""
        if self.size() > size:
            with storage_errors(self.path):
                self._fs.truncate(self.path, size)


class Run:
    """A folder that holds everything about one training.

    Arguments:
        folder: the run's folder; it need not exist yet.
        fs: the file system that durable writes go through.
    """

    LOGS = ("metrics", "timings", "samples")

    def __init__(self, folder: Path, fs: FileSystem = DISK) -> None:
        self.folder, self.fs = folder, fs
        self.recipe = folder / "recipe.json"
        self.machine = folder / "machine.json"
        self.plan = folder / "plan.json"
        self.data = folder / "data"
        self.checkpoints = folder / "checkpoints"
        self.evaluation = folder / "evaluation.json"
        self.result = folder / "result.json"
        self.model = folder / "model"
        self.metrics = Log(folder / "metrics.jsonl", fs)
        self.timings = Log(folder / "timings.jsonl", fs)
        self.samples = Log(folder / "samples.jsonl", fs)
        self.events = Log(folder / "events.jsonl", fs)

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe.is_file()

    def begin(self, recipe: Mapping[str, Any]) -> None:
        """Make this folder a run. Call it under `lock`.

        A run that never came to its first step (its data could not be prepared, say) is begun anew.

        Raises:
            InputError: when the folder already holds a run or other files.
        """
        if self._never_stepped():
            for left in (self.data, self.machine, self.folder / "report.html", self.recipe):
                self.fs.remove(left)
        if self.exists:
            raise InputError(
                "that folder already holds a run",
                received=str(self.folder),
                fix=f"go on with it: luban train --resume {self.folder}; or choose another --out",
            )
        foreign = [
            p.name for p in self.folder.iterdir() if not p.name.startswith(".") and p != self.events.path
        ]
        if foreign:
            raise InputError(
                "the folder for the run is not empty",
                received=f"{self.folder}: {', '.join(sorted(foreign)[:5])}",
                fix="choose a new or an empty folder for --out",
            )
        write_json(self.recipe, recipe, self.fs)

    def _never_stepped(self) -> bool:
        """Whether luban began a run here that did not come to its first step, and nothing of anybody else lies here."""
        left = {self.recipe, self.data, self.machine, self.events.path, self.folder / "report.html"}
        if not (self.exists and self.events.path.is_file()):
            return False
        if {p for p in self.folder.iterdir() if not p.name.startswith(".")} - left:
            return False
        manifest = self.data / MANIFEST
        return not self.data.exists() or (
            manifest.is_file() and read_json(manifest).get("kind") == "prepared data"
        )

    def read_recipe(self) -> dict[str, Any]:
        """Return the resolved recipe the run was begun with.

        Raises:
            InputError: when there is no run here.
        """
        if not self.exists:
            fix = "check the path; a run is a folder that `luban train RECIPE --out DIR` made"
            raise InputError("there is no run to go on with", received=str(self.folder), fix=fix)
        recipe: dict[str, Any] = read_json(self.recipe)
        return recipe

    def event(self, event: str, message: str = "", **more: Any) -> None:
        """Note what happened, with the wall-clock time."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.events.append({"time": now, "event": event, "message": message, **more})

    def cut_logs(self, sizes: Mapping[str, int]) -> None:
        """Cut the logs back to the sizes a checkpoint noted; without a note, to nothing."""
        for name in self.LOGS:
            getattr(self, name).cut(int(sizes.get(name, 0)))

    def sync_logs(self) -> dict[str, int]:
        """Make the logs durable and return their sizes in bytes."""
        return {name: getattr(self, name).sync() for name in self.LOGS}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run alone; the kernel frees the lock when this process ends, however it ends.

        Raises:
            InputError: naming the process that holds it.
        """
        with storage_errors(self.folder):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                fix = "choose another folder"
                raise InputError(
                    "a file is in the place of the run", received=str(self.folder), fix=fix
                ) from None
            descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with storage_errors(self.folder / ".lock"):
                if not _lock_alone(descriptor):
                    holder = os.pread(descriptor, 4096, 0).decode("utf-8", "replace").strip()
                    fix = "wait for it to end, or stop it: it saves a checkpoint when asked with SIGTERM"
                    raise InputError(
                        f"the run {self.folder} is in use by {holder or 'another process'}", fix=fix
                    )
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            for folder in (self.folder, self.checkpoints):
                if folder.is_dir():
                    remove_leftovers(folder, self.fs)
            yield
        finally:
            os.close(descriptor)

    def locked_by_other(self) -> bool:
        """Whether some process holds the run now; looking does not disturb it."""
        try:
            descriptor = os.open(self.folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def _lock_alone(descriptor: int) -> bool:
    """Take the lock; a process that only looks holds it for an instant, so a refusal is asked again."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_BETWEEN)
        else:
            return True
    return False


def run_of(folder: Path) -> Run | None:
    """Return the run that `folder` is, or None when it is none."""
    run = Run(folder)
    return run if run.exists else None
