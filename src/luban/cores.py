"""Which processors this process may use, who else is on them, and how threads wait for one another. Without torch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")
STAT = Path("/proc/stat")
_IN_THE_WAY = 0.4
"""Processors that others must lack of what our threads want, before threads sleep: less is within what 10 ms of the
kernel's clock hide."""
_SPINS = "10000"
_GIVEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@dataclass(frozen=True)
class Usage:
    """What was computed up to a moment, in seconds of a processor.

    Attributes:
        at: when. all: by everybody, on the processors that this process may use. own: by this process.
    """

    at: float
    all: float
    own: float


def usage(stat: Path = STAT) -> Usage:
    """Look at the kernel's account; without one everybody has done as much as this process."""
    own, at, ticks = time.process_time(), time.monotonic(), _ticks(stat)
    return Usage(at, own if ticks is None else ticks / os.sysconf("SC_CLK_TCK"), own)


def _ticks(stat: Path) -> int | None:
    """Return how many ticks the processors were busy that this process may use; None where the kernel does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = [words for words in map(str.split, text_of(stat).splitlines()) if words and words[0] in allowed]
    # user, nice and system, then idle and waiting for a disk, then interrupts of two kinds.
    return sum(int(words[n]) for words in lines for n in (1, 2, 3, 6, 7)) if lines else None


def settle_waiting(before: Usage, environment: MutableMapping[str, str] = os.environ) -> None:
    """Say how threads wait for one another, unless the user has: to be called before torch is imported.

    At the end of every operation threads meet. Those of GNU OpenMP spin there for milliseconds: fast while they have
    the cores to themselves, but beside a program that wants one of them the late thread waits for its turn, and a step
    takes four times as long. Then they sleep at once, which takes half of that; else they spin for a tenth as long
    (benchmarks/waiting.py).

    Arguments:
        before: some tenths of a second ago.
    """
    if sys.platform != "linux" or "torch" in sys.modules or any(name in environment for name in _GIVEN):
        return
    if busy_cores(before, usage()) > _free_beside(environment) + _IN_THE_WAY:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        environment["GOMP_SPINCOUNT"] = _SPINS


def told_threads(count: int, environment: Mapping[str, str] = os.environ) -> str:
    """Return a number of threads in words, and whether they sleep while they wait for one another.

    Example:
        >>> told_threads(1), told_threads(2, {}), told_threads(2, {"OMP_WAIT_POLICY": "passive"})
        ('1 thread', '2 threads', '2 threads that sleep while they wait')
    """
    if count == 1:
        return "1 thread"
    passive = environment.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    return f"{count} threads" + (" that sleep while they wait" if passive else "")


def busy_cores(before: Usage, after: Usage) -> float:
    """Return how many processors others kept busy between two looks.

    Example:
        >>> busy_cores(Usage(at=1.0, all=50.0, own=0.5), Usage(at=1.5, all=50.9, own=0.9))
        1.0
    """
    others = (after.all - before.all) - (after.own - before.own)
    return round(max(0.0, others) / max(after.at - before.at, 1e-3), 3)


def _free_beside(environment: MutableMapping[str, str]) -> int:
    """Return how many processors our threads leave free."""
    asked = environment.get("OMP_NUM_THREADS", "")
    processors = len(os.sched_getaffinity(0))
    return max(0, processors - (int(asked) if asked.isdigit() else usable_cores()))


def usable_cores(cgroup: Path = CGROUP, topology: Path = TOPOLOGY) -> int:
    """Return the physical cores this process may use, by its affinity and its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        cores = len({_siblings(topology, cpu) for cpu in allowed})
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota(cgroup)
    return max(1, cores if quota is None else min(cores, int(quota + 0.5)))


def _siblings(topology: Path, cpu: int) -> str:
    """Return the hardware threads that share a core with `cpu`; just `cpu` where the system does not say."""
    return line_of(topology / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """Return the processors a container may use (cgroup 2, then 1), None where there is no limit."""
    words = line_of(cgroup / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]) / int(words[1])
    quota = number_of(cgroup / "cpu" / "cpu.cfs_quota_us")
    period = number_of(cgroup / "cpu" / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def number_of(path: Path) -> int | None:
    """Return the number that a file of the system holds; None where it holds none or is not there."""
    word = line_of(path)
    return int(word) if word.isdigit() else None


def line_of(path: Path) -> str:
    """Return the line that a file of the system holds; nothing where it is not there."""
    return text_of(path).strip()


def text_of(path: Path) -> str:
    """Return the text of a file of the system; nothing where it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
