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
from typing import Any, BinaryIO

from luban.durable import (
    DISK,
    MANIFEST,
    FileSystem,
    json_bytes,
    make_folders,
    member,
    read_json,
    remove_leftovers,
    storage_errors,
    write_json,
)
from luban.errors import CheckpointError, InputError, LubanError, Stopped

_BLOCK = 1 << 16
_TRIES, _BETWEEN = 5, 0.02
_DTYPES = ("float32", "bfloat16")
_PLANNED: dict[str, tuple[type, ...]] = {
    "dtype": (str,),
    "compile": (bool,),
    "threads": (int,),
    "evaluations": (int, type(None)),
    "fingerprint": (str,),
    "model": (dict,),
    "data": (str, type(None)),
}


class Log:
    """A file of JSON lines that only grows; one line is one write, so a reader never sees two lines mixed."""

    def __init__(self, path: Path, fs: FileSystem = DISK) -> None:
        self.path, self._fs = path, fs
        self._ends_whole = False
        self._named = False  # whether the file's name is durable too: a power cut may take that alone
        self._keeps = False
        self._file: BinaryIO | None = None

    def keep_open(self) -> None:
        """Leave the file open between lines, until `close`: for who writes one at every step, for whom opening it is
        most of what a line costs."""
        self._keeps = True

    def close(self) -> None:
        """Close the file; later lines open it each for itself."""
        self._keeps = False
        self._let_go()

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record, whole or not at all.

        Raises:
            StorageError: when the disk refuses; the lines before are intact.
            ValueError: for NaN and infinity, which are not JSON.
        """
        line = json_bytes(record)
        with storage_errors(self.path, needed=len(line)):
            if not self._ends_whole:
                self._drop_torn_line()
            self._ends_whole = False
            try:
                if self._file is None:
                    self._file = self._fs.open_append(self.path)
                self._fs.write(self._file, line)
            except OSError:
                self._let_go()
                with contextlib.suppress(OSError):
                    self._drop_torn_line()
                raise
            self._ends_whole = True
        if not self._keeps:
            self._let_go()

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
        with storage_errors(self.path):
            with self._fs.open_append(self.path) as file:
                self._fs.sync(file)
            if not self._named:
                self._fs.sync_folder(self.path.parent)
                self._named = True
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
        self.documents = folder / "evaluation-documents.safetensors"
        self.rows = folder / "evaluation-rows.safetensors"
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
            manifest.is_file() and read_json(manifest).get("kind") in ("prepared data", "prepared rows")
        )

    def read_recipe(self) -> dict[str, Any]:
        """Return the resolved recipe the run was begun with.

        Raises:
            InputError: when there is no run here.
        """
        if not self.exists:
            fix = "check the path; a run is a folder that `luban train RECIPE --out DIR` made"
            raise InputError("there is no run to go on with", received=str(self.folder), fix=fix)
        recipe = read_json(self.recipe)
        if not isinstance(recipe, dict):
            raise CheckpointError(f"{self.recipe} must hold a JSON object", received=type(recipe).__name__)
        return recipe

    def read_plan(self) -> dict[str, Any]:
        """Return what was decided before step 1.

        Raises:
            CheckpointError: plan.json is damaged, or of another version of luban.
        """
        plan = read_json(self.plan)
        wrong = [
            name
            for name, kinds in _PLANNED.items()
            if not isinstance(plan, dict) or not isinstance(plan.get(name), kinds)
        ]
        if wrong or plan["dtype"] not in _DTYPES:
            raise CheckpointError(
                f"{self.plan} does not say what a run goes on with: {', '.join(wrong or ['dtype'])}",
                fix="restore the file, or use the version of luban that began the run",
            )
        return dict(plan)

    def event(self, event: str, message: str = "", **more: Any) -> None:
        """Note what happened, with the wall-clock time."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.events.append({"time": now, "event": event, "message": message, **more})

    def ended(self, error: BaseException) -> None:
        """Note that a sitting ended without finishing: why, and for an error of luban's how to mend it."""
        if not isinstance(error, LubanError):
            self.event("failed", f"{type(error).__name__}: {error}", error=type(error).__name__)
            return
        more: dict[str, Any] = {"error": type(error).__name__, "exit_code": error.exit_code}
        if error.fix is not None:
            more["fix"] = error.fix
        self.event("stopped" if isinstance(error, Stopped) else "failed", error.message, **more)

    def cut_logs(self, sizes: Mapping[str, int]) -> None:
        """Cut the logs back to the sizes a checkpoint noted; without a note, to nothing.

        Raises:
            CheckpointError: there is no note, yet the log of times says that a checkpoint was written. Starting
                over would hide the loss.
        """
        if not sizes and self._noted_a_checkpoint():
            raise CheckpointError(
                f"the run wrote checkpoints, and none is in {self.checkpoints}",
                fix="put them back, or start a new run in another folder",
            )
        for name in self.LOGS:
            getattr(self, name).cut(int(sizes.get(name, 0)))

    def _noted_a_checkpoint(self) -> bool:
        if not self.timings.path.is_file():
            return False
        with self.timings.path.open("rb") as file:
            return any(line.startswith(b'{"kind": "checkpoint"') for line in file)

    def sync_logs(self) -> dict[str, int]:
        """Make the logs durable and return their sizes in bytes."""
        return {name: getattr(self, name).sync() for name in self.LOGS}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run alone; the kernel frees the lock when this process ends, however it ends.

        Raises:
            InputError: naming the process that holds it, or what leads out of the folder.
        """
        self._refuse_links()
        with storage_errors(self.folder):
            try:
                make_folders(self.folder, self.fs)
            except (FileExistsError, NotADirectoryError):
                fix = "choose another folder"
                raise InputError(
                    "a file is in the place of the run", received=str(self.folder), fix=fix
                ) from None
            descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with storage_errors(self.folder / ".lock"):
                if not _lock_alone(descriptor):
                    fix = "wait for it to end, or stop it: it saves a checkpoint when asked with SIGTERM"
                    raise InputError(f"the run {self.folder} is in use by {_named(descriptor)}", fix=fix)
                holder = f"{this_process()}\n".encode()
                # In this order who looks never finds it empty.
                os.pwrite(descriptor, holder, 0)
                os.ftruncate(descriptor, len(holder))
            _HELD.add(descriptor)
            for folder in (self.folder, self.checkpoints):
                if folder.is_dir():
                    remove_leftovers(folder, self.fs)
            yield
        finally:
            _HELD.discard(descriptor)
            os.close(descriptor)

    def _refuse_links(self) -> None:
        """Refuse a folder that has a link out of it: what a run writes, it writes within its folder."""
        with storage_errors(self.folder):
            links = (
                [path for path in self.folder.iterdir() if path.is_symlink()] if self.folder.is_dir() else []
            )
        for path in links:
            try:
                member(self.folder, path.name)
            except CheckpointError as error:
                fix = "put what it leads to in its place"
                raise InputError("a link leads out of the run", received=str(path), fix=fix) from error

    def locked_by_other(self) -> bool:
        """Whether some process holds the run now; looking does not disturb it."""
        return self.holder() is not None

    def holder(self) -> str | None:
        """Return who holds the run now, such as `process 12 on HOST`; None when nobody does, or none can be told.

        Looking does not disturb the holder, and needs no more than the right to read.
        """
        try:
            descriptor = os.open(self.folder / ".lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _named(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return None


_HELD: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _let_go() -> None:
    """In a forked child: drop the share in the parent's locks, so that they end with the parent.

    The number stays open, on nothing: what unwinds in the child closes it as its own.
    """
    for descriptor in _HELD:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def this_process() -> str:
    """Return what a lock that this process holds says."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _named(descriptor: int) -> str:
    """Return what the holder of a lock wrote into it."""
    first = os.pread(descriptor, 4096, 0).partition(b"\n")[0]
    return first.decode("utf-8", "replace").strip() or "another process"


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
