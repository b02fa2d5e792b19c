"""A disk that fails: what was saved stays whole, the error says what is wrong, and the run goes on to the same bytes.

The n-th durable operation of a life fails, once or from then on, as a full disk, a quota, a device error, a
missing permission, an interrupted call or a write that ends in the middle do. Then the disk works again.
"""

import errno
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import count as numbers
from pathlib import Path
from typing import Any

import kills
import toy

from faulty_disk import failure, watching
from luban.errors import StorageError
from luban.training.checkpoints import Checkpoints
from luban.training.faults import NO_FAULTS, Faults

KINDS = ("EIO", "ENOSPC", "EACCES", "EDQUOT", "EINTR", "EROFS", "short write")
FULL = (errno.ENOSPC, errno.EDQUOT)
CHAIN = 6
"""How many faults a run meets that meets several."""

Work = Callable[[Faults], object]


class Failing:
    """Makes the n-th operation fail, once or from then on, and notes which it was."""

    def __init__(self, number: int, kind: str, *, forever: bool) -> None:
        self.number, self.kind, self.forever = number, kind, forever
        self.operations = 0
        self.failed: list[tuple[str, tuple[Any, ...]]] = []

    def __call__(self, when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        if when == "after":
            return
        self.operations += 1
        if self.operations == self.number or (self.forever and self.operations > self.number):
            self.failed.append((operation, arguments))
            if self.kind == "short write" and operation == "write":
                _, file, data = (None, *arguments)
                file.write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
            raise failure(self.kind)

    def __str__(self) -> str:
        what = f" ({self.failed[0][0]})" if self.failed else ""
        return f"{self.kind} {'from' if self.forever else 'at'} operation {self.number}{what}"


def meet(folder: Path, work: Work, failing: Failing) -> str | None:
    """Let a life meet a fault; return what is broken. A life that ends before the fault is fine."""
    reached = kills.Reached()
    try:
        with watching(failing):
            work(reached)
    except StorageError as error:
        return _wrong_with(error, folder, failing) or _lost(folder, reached)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "the fault was swallowed" if failing.failed else None


def _wrong_with(error: StorageError, folder: Path, failing: Failing) -> str | None:
    """What the message lacks: the path; for a full disk the bytes that are free, and needed where that is known."""
    said = str(error)
    operation, _ = failing.failed[0]
    if error.exit_code == 0:
        return "the exit code is 0"
    if str(folder) not in said:
        return f"no path in: {said}"
    if failure(failing.kind).errno in FULL:
        wanted = r"[\d,]+ bytes free, [\d,]+ needed" if operation == "write" else r"[\d,]+ bytes free"
        if not re.search(wanted, said):
            return f"no bytes in: {said}"
    return None


def _lost(folder: Path, reached: kills.Reached) -> str | None:
    """What of the checkpoints that were written is not there, or not whole."""
    saved = [step for point, step in reached.points if point == "after-save"]
    if not saved:
        return None
    newest = Checkpoints(folder / "checkpoints", keep=2, warn=lambda message: None).newest()
    if newest is None or newest.step < max(saved):
        return f"the checkpoint of step {max(saved)} is gone"
    return None


def sweep(folder: Path, *, count: int, seed: int) -> Counter[str]:
    """Let `count` operations fail, a fifth of them in whole runs of the verb; outcomes by kind of error."""
    outcomes = Counter[str]()
    verb = count // 5
    for name, quota in (("short", count - verb), ("verb", verb)):
        draw, here = random.Random(f"{seed} {name}"), folder / name
        here.mkdir(parents=True)
        _sweep(here, quota, draw, seed, _short if name == "short" else _verb, outcomes)
    return outcomes


def _short(folder: Path) -> Callable[[Path], Work]:
    recipe = toy.settings()
    return lambda run: lambda faults: toy.go_on(run, recipe, faults=faults)


def _verb(folder: Path) -> Callable[[Path], Work]:
    recipe = toy.recipe_file(folder)
    return lambda run: lambda faults: toy.train(recipe, run, faults=faults)


def _sweep(
    folder: Path,
    quota: int,
    draw: random.Random,
    seed: int,
    of: Callable[[Path], Callable[[Path], Work]],
    outcomes: Counter[str],
) -> None:
    """Runs by turns: one that meets one fault, each operation in its turn; one that meets a chain of them."""
    work, whole = of(folder), folder / "whole"
    every = list(range(1, kills.operations(lambda: work(whole)(NO_FAULTS)) + 1))
    draw.shuffle(every)
    kinds = [(kind, forever) for kind in KINDS for forever in (False, True)]
    done = 0
    for number in numbers():
        run, met = folder / f"run-{number}", []
        single = number % 2 == 0
        for _ in range(min(1 if single else CHAIN, quota - done)):
            at = every[number // 2 % len(every)] if single else draw.randint(1, 60)
            kind, forever = draw.choice(kinds)
            failing = Failing(at, kind, forever=forever)
            broken = meet(run, work(run), failing)
            if failing.failed:
                met.append(failing)
            if broken:
                outcomes[f"BROKEN: {folder.name} seed {seed} run {number}: {broken} after {failing}"] += 1
                return
        work(run)(NO_FAULTS)
        if broken := toy.difference(run, whole):
            outcomes[f"BROKEN: {folder.name} seed {seed} run {number}: {broken}"] += 1
            return
        for failing in met:
            outcomes[f"{failing.kind}, {'lasting' if failing.forever else 'once'}: same bytes"] += 1
        done += len(met)
        if done >= quota:
            return
