"""Runs one candidate in a process of its own and says how long it took and how much memory it held.

The peak is the kernel's for the largest process of the child's family (`ru_maxrss`). Where several processes
share the work, what all of them hold together is looked at ten times a second (Linux only). A process also
inherits the peak of the one that started it: nothing here imports torch.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

UNIT = 1 if sys.platform == "darwin" else 1024
SHOWN = 8
NEIGHBOURS, TRIES = 0.05, 3
T = TypeVar("T")


def heed_termination() -> None:
    """Let SIGTERM end this process by an exception, so that the child it waits for is ended too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def undisturbed(measure: Callable[[], tuple[T, float]]) -> T:
    """Measure, again where others took more than a twentieth of the machine, and return what was disturbed least.

    Arguments:
        measure: returns what it measured and the share that neighbours took.
    """
    tries = []
    for _ in range(TRIES):
        tries.append(measure())
        if tries[-1][1] <= NEIGHBOURS:
            break
    return min(tries, key=lambda one: one[1])[0]


def commit_of(clone: Path) -> str | None:
    """Return the commit that a clone stands at; None where git cannot say."""
    found = subprocess.run(["git", "-C", str(clone), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


class ChildError(Exception):
    """A candidate ended without a result; the message is the end of what it wrote."""


@dataclass(frozen=True)
class Child:
    """What a child's process came to.

    Attributes:
        peak_bytes: of the largest process of its family.
        neighbours: share of the machine's processors that others took meanwhile; 0 where /proc does not tell.
        together_bytes: the most that its family held together, 0 where nobody looked.
    """

    seconds: float
    peak_bytes: int
    neighbours: float = 0.0
    together_bytes: int = 0


def busy_seconds() -> float:
    """Return the processor time that all programs of this machine have had since it started.

    Those at a low priority too: where sessions are scheduled as groups, `nice` counts only within one.
    """
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq = map(int, words[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def taken_by_others(busy: float, usage: resource.struct_rusage, seconds: float) -> float:
    """Return the share of the machine that others had in so many seconds, since it had been busy for `busy`."""
    others = max(0.0, busy_seconds() - busy - usage.ru_utime - usage.ru_stime)
    return min(1.0, others / seconds / (os.cpu_count() or 1))


def held_by_session(session: int) -> int:
    """Return the memory of all processes of a session, what they share counted once (proportional set size)."""
    held = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                held += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):  # ended meanwhile
            continue
    return held


def run_child(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    limit: float = 900.0,
    together: bool = False,
) -> Child:
    """Run a command to its end, in a session of its own.

    Arguments:
        command: what to run. log: takes what it writes.
        environment: set beside this process's own.
        limit: seconds after which it is ended. together: whether to look at the memory of its whole family.

    Raises:
        ChildError: when it exits with anything but 0 or takes too long.
    """
    began, busy, most = time.monotonic(), busy_seconds(), 0
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(command), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                done, status, usage = os.wait4(process.pid, os.WNOHANG)
                if done:
                    break
                if time.monotonic() - began > limit:
                    raise ChildError(f"took longer than {limit:.0f} s")
                if together:
                    most = max(most, held_by_session(process.pid))
                time.sleep(0.1 if together else 0.05)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log.read_text("utf-8", errors="replace").strip().splitlines()
        raise ChildError(f"exit code {process.returncode}: " + "\n".join(lines[-SHOWN:]))
    seconds = time.monotonic() - began
    return Child(seconds, usage.ru_maxrss * UNIT, taken_by_others(busy, usage, seconds), most)
