"""Kill -9, wherever and whenever: a run that goes on ends with the bytes of one that nobody disturbed.

A journey is one run that is killed several times, each time begun again by the same command, and then left
alone to its end. It is killed at points that the loop names, before or after a durable operation, or after a
random time. Most lives are forks of a process that has torch in memory; some are processes of their own.

What a kill leaves does not depend on fsync, for the system keeps the pages; forks leave it out, to be fast.
`corruption.py` cuts the power instead.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as numbers
from pathlib import Path
from typing import Any
from unittest import mock

import toy

from faulty_disk import watching
from luban.recipe import TrainRecipe
from luban.run import Run
from luban.training.faults import NO_FAULTS, Faults

Work = Callable[[Faults], object]
SHARES = {"named points": 0.65, "operations": 0.1, "operations of the verb": 0.12, "random times": 0.13}
KILLS = 12
"""How often a journey is killed at most."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Reached(Faults):
    """Notes the points a run comes to, and dies at one of them."""

    def __init__(self, deadly: tuple[str, int] | None = None) -> None:
        super().__init__()
        self.points: list[tuple[str, int]] = []
        self._deadly = deadly

    def reach(self, point: str, step: int, rank: int) -> None:
        self.points.append((point, step))
        if (point, step) == self._deadly:
            die()


@dataclass(frozen=True)
class AtPoint:
    """Die where the loop says that it is at a point of a step."""

    point: str
    step: int

    def live(self, work: Work) -> int:
        return toy.in_child(lambda: work(Reached((self.point, self.step))))


@dataclass(frozen=True)
class AtOperation:
    """Die before or after the n-th durable operation of a life."""

    number: int
    when: str

    def live(self, work: Work) -> int:
        seen = Counter[str]()

        def hook(when: str, operation: str, arguments: tuple[Any, ...]) -> None:
            seen[when] += 1
            if when == self.when and seen[when] == self.number:
                die()

        def doomed() -> None:
            with watching(hook):
                work(NO_FAULTS)

        return toy.in_child(doomed)


@dataclass(frozen=True)
class AtTime:
    """Be killed from outside, so many seconds after the start."""

    seconds: float

    def live(self, work: Work) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(NO_FAULTS)
                code = 0
            finally:
                os._exit(code)
        time.sleep(self.seconds)
        os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


Kill = AtPoint | AtOperation | AtTime


def journey(folder: Path, work: Work, kills: Sequence[Kill], whole: Path) -> tuple[int, str | None]:
    """Live, die, live again, and to the end; return how often it was killed and what is broken."""
    killed = 0
    for kill in kills:
        code = kill.live(work)
        if code == 0:
            break
        if code != -signal.SIGKILL:
            return killed, f"it ended with {code} at {kill}"
        killed += 1
    code = toy.in_child(lambda: work(NO_FAULTS))
    return killed, f"it did not go on: {code}" if code else toy.difference(folder, whole)


def sweep(folder: Path, *, count: int, seed: int) -> Counter[str]:
    """Kill runs `count` times in all, of each kind a share; outcomes by kind."""
    outcomes = Counter[str]()
    quotas = {kind: int(count * share) for kind, share in SHARES.items()}
    quotas["named points"] += count - sum(quotas.values())
    with mock.patch.object(os, "fsync", lambda descriptor: None):
        for kind, quota in quotas.items():
            draw = random.Random(f"{seed} {kind}")
            here = folder / kind.replace(" ", "-")
            here.mkdir(parents=True)
            for number, (name, work, kills, whole) in enumerate(_JOURNEYS[kind](here, draw)):
                done = sum(
                    outcomes[key] for key in outcomes if key.startswith(f"{kind}:") or f" {kind} " in key
                )
                if done >= quota:
                    break
                killed, broken = journey(here / name, work, kills[: quota - done], whole)
                key = f"BROKEN: {kind} seed {seed} journey {number}: {broken} after {kills[:killed]}"
                outcomes[key if broken else f"{kind}: same bytes"] += max(killed, int(bool(broken)))
    return outcomes


Journey = tuple[str, Work, Sequence[Kill], Path]


def _undisturbed(folder: Path, optimizer: str) -> tuple[TrainRecipe, Reached, Path]:
    recipe, reached = toy.settings(optimizer), Reached()
    assert toy.in_child(lambda: toy.go_on(folder / f"warm-{optimizer}", recipe)) == 0
    toy.go_on(folder / f"whole-{optimizer}", recipe, faults=reached)
    return recipe, reached, folder / f"whole-{optimizer}"


def _short(recipe: TrainRecipe, folder: Path) -> Work:
    return lambda faults: toy.go_on(folder, recipe, faults=faults)


def _of_the_verb(recipe: Path, folder: Path) -> Work:
    return lambda faults: toy.train(recipe, folder)


def _at_named_points(folder: Path, draw: random.Random) -> Iterator[Journey]:
    """Every point of every step, in journeys that each take every so-manieth; then points that are drawn."""
    whole = {optimizer: _undisturbed(folder, optimizer) for optimizer in toy.OPTIMIZERS}
    stride = {o: -(-len(reached.points) // KILLS) for o, (_, reached, _) in whole.items()}
    first = [(optimizer, at) for optimizer in whole for at in range(stride[optimizer])]
    draw.shuffle(first)
    for number, (optimizer, at) in enumerate(first):
        recipe, reached, left = whole[optimizer]
        name = f"journey-{number}"
        kills = [AtPoint(*point) for point in reached.points[at :: stride[optimizer]]]
        yield name, _short(recipe, folder / name), kills, left
    for number in numbers():
        optimizer = draw.choice(toy.OPTIMIZERS)
        recipe, reached, left = whole[optimizer]
        often = 1 if number % 2 else KILLS
        at = sorted(draw.sample(range(len(reached.points)), often))
        name = f"drawn-{number}"
        yield name, _short(recipe, folder / name), [AtPoint(*reached.points[n]) for n in at], left


def operations(work: Callable[[], object]) -> int:
    """Count the durable operations of a piece of work."""
    seen = Counter[str]()

    def hook(when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        seen[when] += 1

    with watching(hook):
        work()
    return seen["before"]


def _kills_at_operations(number: int, every: list[AtOperation], draw: random.Random) -> list[AtOperation]:
    """By turns: one kill at an operation of a fresh run, each in its turn; a chain of kills, each soon."""
    if number % 2 == 0:
        return [every[number // 2 % len(every)]]
    return [AtOperation(draw.randint(1, 90), draw.choice(("before", "after"))) for _ in range(KILLS)]


def _at_operations(folder: Path, draw: random.Random) -> Iterator[Journey]:
    recipe = toy.settings()
    last = operations(lambda: toy.go_on(folder / "whole", recipe))
    every = [AtOperation(n, when) for n in range(1, last + 1) for when in ("before", "after")]
    draw.shuffle(every)
    for number in numbers():
        name = f"journey-{number}"
        kills = _kills_at_operations(number, every, draw)
        yield name, _short(recipe, folder / name), kills, folder / "whole"


def _at_operations_of_the_verb(folder: Path, draw: random.Random) -> Iterator[Journey]:
    recipe = toy.recipe_file(folder)
    last = operations(lambda: toy.train(recipe, folder / "whole"))
    every = [AtOperation(n, when) for n in range(1, last + 1) for when in ("before", "after")]
    draw.shuffle(every)
    for number in numbers():
        name = f"journey-{number}"
        kills = _kills_at_operations(number, every, draw)
        yield name, _of_the_verb(recipe, folder / name), kills, folder / "whole"


def _at_random_times(folder: Path, draw: random.Random) -> Iterator[Journey]:
    """Of the short run and of the verb by turns; a time that is longer than what is left kills nobody."""
    recipe, _, left = _undisturbed(folder, "muon")
    file = toy.recipe_file(folder)
    toy.train(file, folder / "whole")
    begun = time.monotonic()
    toy.train(file, folder / "timed")
    seconds = time.monotonic() - begun
    for number in numbers():
        name = f"journey-{number}"
        kills = [AtTime(draw.uniform(0, 0.7 * seconds)) for _ in range(KILLS)]
        if number % 2:
            yield name, _of_the_verb(file, folder / name), kills, folder / "whole"
        else:
            yield name, _short(recipe, folder / name), kills, left


_JOURNEYS: dict[str, Callable[[Path, random.Random], Iterator[Journey]]] = {
    "named points": _at_named_points,
    "operations": _at_operations,
    "operations of the verb": _at_operations_of_the_verb,
    "random times": _at_random_times,
}


def processes(folder: Path, *, count: int, seed: int) -> Counter[str]:
    """Kill `luban train` as a process of its own `count` times, at random times, and start it again."""
    draw, outcomes = random.Random(seed), Counter[str]()
    recipe, steps = toy.recipe_file(folder), "train.steps=80"
    toy.train(recipe, folder / "whole", steps)
    begun = time.monotonic()
    toy.train(recipe, folder / "timed", steps)
    seconds = time.monotonic() - begun
    run, killed = Run(folder / "run"), 0
    command = [sys.executable, "-m", "luban", "train"]
    start = [*command, str(recipe), steps, "--out", str(run.folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while killed < count:
        again = [*command, "--resume", str(run.folder)] if run.exists else start
        with subprocess.Popen(again, env=environment, stderr=subprocess.PIPE) as process:
            while process.poll() is None and not run.locked_by_other():
                time.sleep(0.01)
            # Within what is left of the run there must be time for the kills to come.
            time.sleep(draw.uniform(0, seconds / (1 + count // 4)))
            process.kill()
            _, complaint = process.communicate()
        if process.returncode != -signal.SIGKILL:
            outcomes[f"BROKEN: processes seed {seed}: {process.returncode} {complaint.decode()[-300:]}"] += 1
            return outcomes
        killed += 1
    toy.train(recipe, run.folder, steps)
    broken = toy.difference(run.folder, folder / "whole")
    key = f"BROKEN: processes seed {seed}: {broken}" if broken else "processes: same bytes"
    outcomes[key] += killed
    return outcomes
