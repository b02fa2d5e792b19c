"""Hostile files, each used in a forked process that is watched while it reads.

A case keeps the promise when luban either refuses it with an error of its own that names the file, or reads it rightly;
and when, meanwhile, nothing the file names is imported or run, nothing outside the case's folder is written, at most
`MEMORY` more bytes of address space are taken, and at most `SECONDS` pass.
"""

import faulthandler
import json
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hostile_data
import hostile_models
import hostile_runs
import hostile_tokenizers
import torch
from hostile_case import CANARY, READ, REFUSED, Case, copy, put

from luban.errors import LubanError

CASES: list[Case] = [
    *hostile_models.CASES,
    *hostile_tokenizers.CASES,
    *hostile_data.CASES,
    *hostile_runs.CASES,
]
MEMORY = 256 << 20
"""Bytes of address space that a case may add to what the process has; a bomb asks for gigabytes."""
SECONDS = 20
"""Seconds of a case; all but a few take hundredths."""

_AT_ONCE = 25
_RUNS_CODE = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
    "socket.connect", "socket.getaddrinfo", "urllib.Request", "webbrowser.open", "ctypes.dlopen",
)  # fmt: skip
_CHANGES_FILES = (
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink",
    "os.truncate", "shutil.rmtree", "shutil.move",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """An audit hook that notes what a file must not bring about."""

    def __init__(self) -> None:
        self.folder = ""
        self.seen: list[str] = []
        self.on = False

    def begin(self, folder: Path) -> None:
        """Watch from here on; writing within `folder` is allowed."""
        self.folder, self.seen, self.on = str(folder), [], True

    def end(self) -> list[str]:
        """Stop watching; return what was seen."""
        self.on = False
        return self.seen

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or (event, *arguments) == ("ctypes.dlopen", None):  # the process itself is no library
            return
        if (
            event in _RUNS_CODE
            or (event == "import" and str(arguments[0]).startswith(CANARY))
            or (event == "exec" and self._is_code_of(arguments[0]))
        ):
            self.seen.append(f"{event} {str(arguments[:1])[:80]}")
        elif event in _CHANGES_FILES:
            paths = [path for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
            self.seen += [f"{event} {path!r}" for path in paths if not self._is_inside(path)]
        elif event == "open" and (arguments[2] or 0) & _WRITING and not isinstance(arguments[0], int):
            self.seen += [] if self._is_inside(arguments[0]) else [f"write {arguments[0]!r}"]

    def _is_inside(self, path: Any) -> bool:
        name = os.fsdecode(path)
        return name == os.devnull or os.path.realpath(name).startswith(self.folder)

    def _is_code_of(self, code: Any) -> bool:
        name = getattr(code, "co_filename", "")
        return Path(name).is_absolute() and self._is_inside(name)


def sweep(folder: Path, *, count: int, seed: int) -> Counter[str]:
    """Try `count` of the cases (all of them at most) in an order drawn from `seed`; return outcome -> how often."""
    warm_up(folder)
    cases = random.Random(seed).sample(CASES, min(count, len(CASES)))
    return Counter(
        told(case, outcome) for case, outcome in zip(cases, outcomes_of(cases, folder), strict=True)
    )


def told(case: Case, outcome: str) -> str:
    """Name the case where a promise was broken."""
    return f"{outcome} [{case.name}]" if outcome.startswith("BROKEN") else outcome


def warm_up(folder: Path) -> None:
    """Use whole files once in this process, so that what the children still import is what a file brought about."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="whole-", dir=folder) as scratch:
        whole = Path(scratch)
        platform.platform()
        copy("finished", whole)
        copy("stopped", whole)
        hostile_models.load(whole / "finished")
        hostile_tokenizers.use(whole / "finished" / "model")
        hostile_data.open_prepared(whole / "finished")
        hostile_runs.report(whole)
        hostile_runs.resume(whole)
        for name, content in hostile_data.WHOLE.items():
            hostile_data.prepared(put(whole / name, content).name)(whole)


def outcomes_of(cases: Sequence[Case], folder: Path) -> list[str]:
    """Make and use cases one after another, each in a new folder below `folder`; return what came of each.

    A forked process works at them; when one ends it, the next case starts in a new process.
    """
    outcomes: list[str] = []
    while len(outcomes) < len(cases):
        rest = cases[len(outcomes) : len(outcomes) + _AT_ONCE]
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                _work(rest, folder, writing)
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            found = [str(json.loads(line)) for line in pipe]
        outcomes += found
        status = os.waitpid(child, 0)[1]
        if len(found) < len(rest):
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            how = "took too long" if number == signal.SIGALRM else f"ended the process, signal {number}"
            outcomes.append(f"BROKEN: {how}")
    return outcomes


def _work(cases: Sequence[Case], folder: Path, writing: int) -> None:
    """Do the cases under all limits; runs in the child."""
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    watch = Watch()
    sys.addaudithook(watch)
    for case in cases:
        os.write(writing, json.dumps(_outcome_of(case, folder, watch)).encode("utf-8") + b"\n")


def _outcome_of(case: Case, folder: Path, watch: Watch) -> str:
    with tempfile.TemporaryDirectory(prefix="case-", dir=folder) as scratch:
        target, outside = Path(scratch).resolve() / "target", Path(scratch).resolve() / "outside"
        for place in (target, outside):
            place.mkdir()
            (place / f"{CANARY}.py").write_text("open(__file__ + '.ran', 'w').close()\n")
        shutil.copy(outside / f"{CANARY}.py", outside / "secret")
        case.make(target)
        before = _content(outside)
        found = _watched(case, target, watch)
        if _content(outside) != before:
            return "BROKEN: something outside the folder was written"
        return "BROKEN: code of the file ran" if list(Path(scratch).rglob("*.ran")) else found


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _watched(case: Case, target: Path, watch: Watch) -> str:
    modules, seen_before = set(sys.modules), tempfile.tempdir
    os.chdir(target)
    tempfile.tempdir = str(target)
    sys.path.insert(0, str(target))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
    signal.alarm(SECONDS)
    watch.begin(target)
    found = _used(case, target)
    seen = watch.end()
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    sys.path.remove(str(target))
    tempfile.tempdir = seen_before
    os.chdir(target.parent)
    if seen:
        return f"BROKEN: {seen[0]}"
    tops = {name.partition(".")[0] for name in modules} | sys.stdlib_module_names
    new = sorted(name for name in set(sys.modules) - modules if name.partition(".")[0] not in tops)
    return f"BROKEN: imported {new[0]}" if new else found


def _used(case: Case, target: Path) -> str:
    try:
        case.use(target)
    except LubanError as error:
        if case.outcome == READ:
            return f"BROKEN: refused: {error.message[:200]}"
        if str(target) not in str(error) and not (case.names and case.names in str(error)):
            return f"BROKEN: the message does not name the file: {str(error)[:300]!r}"
        return REFUSED if error.exit_code in (1, 2) else f"BROKEN: exit code {error.exit_code}"
    except BaseException as error:
        return f"BROKEN: {type(error).__name__}: {str(error)[:200]}"
    return READ if case.outcome != REFUSED else "BROKEN: not refused"
