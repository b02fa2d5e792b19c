"""Damaged checkpoints, power cuts, wrong clocks: the newest whole checkpoint is used, and the loss is said.

Three kinds of trial. `damage`: a checkpoint is cut at every 4 KiB and before its last byte, a bit is flipped in every
4 KiB, members are removed, mixed from two steps, replaced by links, zeros, nothing. `power cut`: after any durable
operation of a run, see `power.py`. `clock`: times of writing and the wall clock lie.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import shutil
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import kills
import power
import toy

from faulty_disk import watching
from luban import run as run_module
from luban.durable import MANIFEST, verify_folder
from luban.errors import CheckpointError, Stopped
from luban.run import Run
from luban.signals import StopRequest
from luban.training.checkpoints import MODEL, OPTIMIZER, STATE, Checkpoints
from luban.training.faults import NO_FAULTS, Faults

BLOCK = 4096
SHARES = {"damage": 0.8, "power cut": 0.17, "clock": 0.03}
MEMBERS = (MODEL, OPTIMIZER, STATE, MANIFEST)
OLDEST, OLDER, NEWEST = 4, 8, 12
WIDTH = 64
DAY = 86_400
Damage = Callable[[Path, Path], object]
Work = Callable[[Path, Faults], object]


def cut(size: int, name: str, newest: Path, older: Path) -> None:
    os.truncate(newest / name, size)


def flip(bit: int, name: str, newest: Path, older: Path) -> None:
    with (newest / name).open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def remove(name: str, newest: Path, older: Path) -> None:
    (newest / name).unlink()


def mix(names: tuple[str, ...], newest: Path, older: Path) -> None:
    for name in names:
        shutil.copy(older / name, newest / name)


def zeros(name: str, newest: Path, older: Path) -> None:
    (newest / name).write_bytes(bytes((newest / name).stat().st_size))


def link(name: str, newest: Path, older: Path) -> None:
    (newest / name).rename(newest / "elsewhere")
    (newest / name).symlink_to("elsewhere")


def folder(name: str, newest: Path, older: Path) -> None:
    (newest / name).unlink()
    (newest / name).mkdir()


def empty(newest: Path, older: Path) -> None:
    shutil.rmtree(newest)
    newest.mkdir()


def vouch_for_nothing(newest: Path, older: Path) -> None:
    text = (newest / MANIFEST).read_text("utf-8")
    (newest / MANIFEST).write_text(f'{text[: text.index(chr(34) + "files")]}"files": {{}}}}', "utf-8")


def every_damage(newest: Path, draw: random.Random) -> list[Damage]:
    """All that is done to a checkpoint; which bit of a block is flipped is drawn."""
    damages: list[Damage] = [empty, vouch_for_nothing, partial(mix, MEMBERS)]
    for name in MEMBERS:
        size = (newest / name).stat().st_size
        starts = range(0, size, BLOCK)
        damages += [partial(cut, at, name) for at in {*starts, size - 1}]
        damages += [partial(flip, draw.randrange(8 * at, 8 * min(at + BLOCK, size)), name) for at in starts]
        damages += [partial(do, name) for do in (remove, zeros, link, folder)]
        damages += [partial(mix, (name,)), partial(mix, tuple({*MEMBERS} - {name}))]
    return damages


def _stopped_run(folder: Path) -> tuple[Path, Path]:
    """A run that nobody disturbed, and one that was stopped with three checkpoints."""
    recipe = toy.settings(keep=3, patience=None)
    toy.go_on(folder / "whole", recipe, width=WIDTH)
    stop = StopRequest()
    ask = Faults({("step", NEWEST - 1, 0): lambda: stop.ask("a test")})
    with contextlib.suppress(Stopped):
        toy.go_on(folder / "stopped", recipe, width=WIDTH, stop=stop, faults=ask)
    assert toy.kept(folder / "stopped") == {OLDEST, OLDER, NEWEST}
    return folder / "whole", folder / "stopped"


def _sweep_damage(folder: Path, quota: int, seed: int) -> Iterator[str]:
    """Each damage to the newest; now and then to the two newest, to all, and then on to the end."""
    draw = random.Random(f"{seed} damage")
    whole, stopped = _stopped_run(folder)
    damages: list[Damage] = []
    for number in range(quota):
        if not damages:
            damages = every_damage(stopped / "checkpoints" / f"step-{NEWEST:08d}", draw)
            draw.shuffle(damages)
        damage, run = damages.pop(), folder / f"run-{number}"
        shutil.copytree(stopped, run)
        hit = [NEWEST, OLDER, OLDEST][: draw.choices((1, 2, 3), (16, 3, 1))[0]]
        for step in hit:
            victim = run / "checkpoints" / f"step-{step:08d}"
            other = {NEWEST: OLDER, OLDER: OLDEST, OLDEST: NEWEST}[step]
            (damage if step == NEWEST else empty)(victim, stopped / "checkpoints" / f"step-{other:08d}")
        outcome = _outcome_of_damage(run, whole, hit, to_the_end=number % 20 == 0)
        yield (
            f"BROKEN: damage seed {seed} number {number}, {damage}: {outcome[8:]}"
            if "BROKEN: " in outcome
            else outcome
        )
        shutil.rmtree(run)


def _outcome_of_damage(run: Path, whole: Path, hit: list[int], *, to_the_end: bool) -> str:
    warnings = list[str]()
    checkpoints = Checkpoints(run / "checkpoints", keep=3, warn=warnings.append)
    before = sorted(p.name for p in checkpoints.folder.iterdir())
    harmless = _is_whole(run / "checkpoints" / f"step-{NEWEST:08d}")
    try:
        found = checkpoints.newest()
    except CheckpointError as error:
        unchanged = before == sorted(p.name for p in checkpoints.folder.iterdir())
        if len(hit) == 3 and unchanged and str(checkpoints.folder) in error.message:
            return "damage: none whole, refused"
        return f"BROKEN: {error}"
    expected = NEWEST if harmless else [OLDER, OLDEST, 0][len(hit) - 1]
    if found is None or found.step != expected:
        return f"BROKEN: step {found.step if found else 0} was taken, not {expected}"
    if not harmless:
        for step in hit:
            named = any(f"step {step} " in warning for warning in warnings)
            aside = (checkpoints.folder / f"damaged-step-{step:08d}").is_dir()
            if not named or not aside or step in checkpoints.steps():
                return f"BROKEN: step {step}: said {named}, set aside {aside}"
    if to_the_end:
        toy.go_on(run, toy.settings(keep=3, patience=None), width=WIDTH)
        if broken := toy.difference(run, whole):
            return f"BROKEN: {broken}"
        return "damage: passed over, to the end with the same bytes"
    return "damage: harmless, still whole" if harmless else "damage: passed over and set aside"


def _is_whole(folder: Path) -> bool:
    """Whether the checkpoint is what it was: a manifest without its last line break still vouches for all."""
    try:
        manifest = verify_folder(folder)
    except CheckpointError:
        return False
    return {MODEL, OPTIMIZER, STATE} <= manifest["files"].keys() and manifest["step"] == NEWEST


def sweep_power(folder: Path, quota: int, seed: int) -> Iterator[str]:
    """Cut the power after operations of the short run, and a fifth of the times of the verb."""
    recipe, file = toy.settings(), toy.recipe_file(folder)
    kinds: list[tuple[str, int, Work]] = [
        ("short", quota - quota // 5, lambda run, faults: toy.go_on(run, recipe, faults=faults)),
        ("verb", quota // 5, lambda run, faults: toy.train(file, run, faults=faults)),
    ]
    for name, share, work in kinds:
        here, draw = folder / name, random.Random(f"{seed} power {name}")
        here.mkdir()
        last = kills.operations(partial(work, here / "whole", NO_FAULTS))
        for sitting in range(-(-share // last)):
            every = sorted(draw.sample(range(1, last + 1), min(share - sitting * last, last)))
            for number, image, safe in _cuts(here / f"cut-{sitting}", work, every, draw):
                run = here / f"again-{sitting}-{number}" / "run"
                power.restore(image, run.parent)
                broken = _broken_by_a_cut(run, work, safe, here / "whole")
                where = f"{name} seed {seed} sitting {sitting} operation {number}"
                yield f"BROKEN: power cut {where}: {broken}" if broken else "power cut: same bytes"
                shutil.rmtree(run.parent)


def _cuts(root: Path, work: Work, at: list[int], draw: random.Random) -> list[tuple[int, power.Image, int]]:
    """One run; after each of these operations, what a cut would leave, and the last step that was safe."""
    root.mkdir()
    device, reached, images = power.Device(root), kills.Reached(), list[tuple[int, power.Image, int]]()

    def hook(when: str, operation: str, arguments: tuple[Any, ...]) -> None:
        device(when, operation, arguments)
        if when == "after" and device.operations in at:
            saved = [step for point, step in reached.points if point == "after-save"]
            images.append(
                (device.operations, device.cut(draw if draw.random() < 0.75 else None), max(saved, default=0))
            )

    with watching(hook):
        work(root / "run", reached)
    return images


def _broken_by_a_cut(run: Path, work: Work, safe: int, whole: Path) -> str | None:
    try:
        if safe:
            with Run(run).lock():
                newest = Checkpoints(run / "checkpoints", keep=2, warn=lambda message: None).newest()
            if newest is None or newest.step < safe:
                return f"the checkpoint of step {safe} was not safe"
        work(run, NO_FAULTS)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return toy.difference(run, whole)


class WrongClock:
    """A wall clock that jumps a day or an hour back or forth each time it is looked at."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._true = time.time

    def time(self) -> float:
        return self._true() + self._draw.choice((-DAY, DAY, -3600, 3600, -40 * 365 * DAY))

    def now(self, zone: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.time(), zone)


def _sweep_clock(folder: Path, quota: int, seed: int) -> Iterator[str]:
    """Stop at a step, set every time of writing at random, go on under a clock that jumps."""
    draw = random.Random(f"{seed} clock")
    recipe = toy.settings()
    toy.go_on(folder / "whole", recipe)
    for number in range(quota):
        run, stop, clock = folder / f"run-{number}", StopRequest(), WrongClock(draw)
        ask = Faults({("step", draw.randint(5, 18), 0): partial(stop.ask, "a test")})
        fake = types.SimpleNamespace(datetime=clock, UTC=datetime.UTC, timedelta=datetime.timedelta)
        with mock.patch.object(time, "time", clock.time), mock.patch.object(run_module, "datetime", fake):
            try:
                toy.go_on(run, recipe, stop=stop, faults=ask)
            except Stopped:
                for path in [*run.rglob("*"), run]:
                    moment = clock.time()
                    os.utime(path, (moment, moment))
            steps = sorted(toy.kept(run))
            newest = Checkpoints(run / "checkpoints", keep=2, warn=lambda message: None).newest()
            assert newest is not None
            begun = time.monotonic()
            toy.go_on(run, recipe)
            took = time.monotonic() - begun
        broken = toy.difference(run, folder / "whole") or _wrong_durations(run, took)
        if newest.step != steps[-1]:
            broken = f"step {newest.step} was taken of {steps}"
        yield (
            f"BROKEN: clock seed {seed} number {number}: {broken}"
            if broken
            else "clock: same bytes, true durations"
        )


def _wrong_durations(run: Path, took: float) -> str | None:
    """Seconds in the log of times never fall, and none is longer than the two sittings."""
    seconds = [record["seconds"] for record in toy.lines(run / "timings.jsonl") if record["kind"] == "train"]
    if seconds != sorted(seconds) or seconds[0] < 0 or seconds[-1] > 60 + took:
        return f"seconds {seconds}"
    return None


def sweep(folder: Path, *, count: int, seed: int) -> Counter[str]:
    """Try `count` damages, power cuts and wrong clocks; outcomes by kind."""
    outcomes = Counter[str]()
    quotas = {kind: int(count * share) for kind, share in SHARES.items()}
    quotas["damage"] += count - sum(quotas.values())
    for kind, trials in (("damage", _sweep_damage), ("power cut", sweep_power), ("clock", _sweep_clock)):
        here = folder / kind.replace(" ", "-")
        here.mkdir(parents=True)
        # What an fsync makes safe is modelled; the true one would only take time.
        with mock.patch.object(os, "fsync", lambda descriptor: None):
            outcomes.update(trials(here, quotas[kind], seed))
    return outcomes
