"""What a step of training costs besides forward, backward and optimizer: the share of each part of the loop.

    python benchmarks/overhead.py [--sittings 2] [--out benchmarks/results/overhead.json]

Runs the loop of `luban train` itself, with its logs on disk and its progress line, at two shapes: that of the recipe
shakespeare-char, where steps are short, and one of 10.7 M parameters. Every call that a step makes is timed by itself
(what it calls in turn is taken off), and what no call accounts for is the loop's own. The shapes run in turn, a sitting
each, so that a busy neighbour slows both. Evaluations and checkpoints are no part of a step and are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from luban import __version__, tasks
from luban.console import Show
from luban.data.prepare import Prepared
from luban.machine import MachineReport, keep_memory, set_threads
from luban.recipe_reader import read_recipe
from luban.run import Run
from luban.signals import StopRequest
from luban.training.checkpoints import Checkpoints
from luban.training.compiling import Compiling
from luban.training.faults import Faults
from luban.training.gradients import Gradients
from luban.training.kernels import choose_kernels
from luban.training.loop import Loop, Progress
from luban.training.optimizers import Optimizer
from luban.training.parallel import Alone
from luban.training.precision import dtype_named
from luban.verbs.decisions import measure_machine
from luban.verbs.prepare import prepare
from luban.verbs.records import RunRecord

SHAPES = {
    "0.8M, 8 x 256": ("train.steps=205",),
    "10.7M, 16 x 256": (
        "model.layers=6", "model.width=384", "model.heads=6", "model.mlp_width=1024", "data.length=256",
        "train.batch=16", "train.learning_rate=1e-3", "train.steps=17",
    ),
}  # fmt: skip
WORK = ("forward", "backward", "optimizer")
WARM_UP = 5


class Stopwatch:
    """Exclusive seconds of each part of each step: time within a part that another part takes is that one's."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._parts: dict[str, float] = defaultdict(float)
        self._open = ["the loop itself"]
        self._since = time.perf_counter()

    def _charge(self) -> None:
        now = time.perf_counter()
        self._parts[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def within(*arguments: Any, **named: Any) -> Any:
            self._charge()
            self._open.append(name)
            try:
                return call(*arguments, **named)
            finally:
                self._charge()
                self._open.pop()

        return within

    def next_step(self) -> None:
        self._charge()
        self.steps.append(dict(self._parts))
        self._parts.clear()


class Beginnings(Faults):
    """Takes the place of the faults that a test plans: the loop calls it where a step begins."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self._watch = watch

    def reach(self, point: str, step: int, rank: int) -> None:
        del step, rank
        if point == "step":
            self._watch.next_step()


PLACES = (
    (torch.Tensor, "backward", "backward"),
    (Optimizer, "step", "optimizer"),
    (Optimizer, "zero_grad", "optimizer"),
    (Gradients, "combine", "norm of the gradient"),
    (RunRecord, "metrics", "metrics.jsonl"),
    (RunRecord, "timings", "timings.jsonl"),
    (Show, "step", "progress line"),
)


@contextlib.contextmanager
def watched(watch: Stopwatch, learner: Any) -> Iterator[None]:
    """Time what the loop calls, while the block lasts."""
    places = [
        *PLACES,
        (type(learner), "loss", "forward"),
        (type(learner), "batches", "batches"),
        (type(learner), "flops", "counting FLOPs"),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, part in places:
        setattr(owner, name, watch.timed(part, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, own in kept:
            setattr(owner, name, own)


def sitting(folder: Path, data: Path, shape: tuple[str, ...]) -> tuple[dict, MachineReport, int]:
    """Train the shape's steps; return the median seconds of each part, the machine, and the parameters."""
    recipe: Any = read_recipe(
        "shakespeare-char",
        (f"data.source={data}", *shape, "data.short_steps=0", "train.evaluate_every=1000000",
         "train.checkpoint_every=10h"),
        tasks.schema_of,
    )  # fmt: skip
    learner: Any = tasks.find(recipe.task).learner(recipe, Prepared(data))
    machine = measure_machine(learner, recipe.train.dtype)
    run, watch, screen = Run(folder), Stopwatch(), Show(io.StringIO())
    folder.mkdir()

    def show(progress: Progress, loss: float, share: float) -> None:
        screen.step(
            step=progress.step, tokens=progress.tokens, seconds=progress.seconds, flops=progress.flops, loss=loss,
            fraction=share, peak_flops=machine.peak_flops,
        )  # fmt: skip

    loop = Loop(
        learner,
        recipe.train,
        plan=Alone(),
        evaluate=lambda _: {"none": 0.0},
        minimise=True,
        checkpoints=Checkpoints(run.checkpoints, keep=1, warn=print, fs=run.fs),
        record=RunRecord(run, (), machine.peak_flops),
        dtype=dtype_named(machine.dtype),
        kernels=choose_kernels(recipe.train, learner.model)[0],
        stop=StopRequest(),
        compiling=Compiling(learner.model, wanted=False, tell=print),
        faults=Beginnings(watch),
        watch=show,
    )
    gradients = loop._gradients
    gradients._forward = timed_context(watch, gradients._forward)
    with watched(watch, learner):
        loop.run()
    steps = watch.steps[1 + WARM_UP :]
    names = {name for step in steps for name in step}
    parts = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in names}
    return (
        {
            "steps": len(steps),
            "parts": parts,
            "step": statistics.median(sum(step.values()) for step in steps),
        },
        machine,
        sum(p.numel() for p in learner.model.parameters()),
    )


def timed_context(watch: Stopwatch, context: Callable[[], Any]) -> Callable[[], Any]:
    """What the forward pass runs in is part of it: autocast lets go of its bfloat16 weights at its end."""

    class Timed:
        def __init__(self) -> None:
            self._own = context()
            self.enter = watch.timed("forward", self._own.__enter__)
            self.leave = watch.timed("forward", self._own.__exit__)

        def __enter__(self) -> None:
            self.enter()

        def __exit__(self, *error: Any) -> None:
            self.leave(*error)

    return Timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sittings", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    options = parser.parse_args()
    threads = set_threads()
    keep_memory()  # as `luban train` does
    found: dict[str, list[dict]] = {name: [] for name in SHAPES}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        prepare("shakespeare-char", "data.source=builtin:shakespeare-plays", out=data)
        for number in range(options.sittings):
            for name, shape in SHAPES.items():
                folder = Path(scratch) / f"{number}-{name}".replace(" ", "")
                one, machine, sizes[name] = sitting(folder, data, shape)
                found[name].append(one)
    result = {
        "machine": machine.name, "threads": threads, "dtype": machine.dtype, "torch": torch.__version__,
        "luban": __version__, "shapes": {name: summary(found[name], sizes[name]) for name in SHAPES},
    }  # fmt: skip
    for name, own in result["shapes"].items():
        print(f"\n{name}: {own['parameters']:,} parameters, {1e3 * own['step_seconds']:.2f} ms a step")
        for part, took in own["seconds"].items():
            print(f"  {part:22}{1e6 * took:10.0f} us{took / own['step_seconds']:9.2%}")
        print(f"  besides the work      {1e6 * own['overhead_seconds']:10.0f} us{own['overhead']:9.2%}")
    options.out.write_text(json.dumps(result, indent=2) + "\n")


def summary(sittings: list[dict], parameters: int) -> dict[str, Any]:
    """Put the sittings together: of each part the median of their medians."""
    names = sorted({name for one in sittings for name in one["parts"]})
    seconds = {name: statistics.median(one["parts"].get(name, 0.0) for one in sittings) for name in names}
    ordered = dict(sorted(seconds.items(), key=lambda pair: (pair[0] not in WORK, -pair[1])))
    overhead = sum(took for name, took in ordered.items() if name not in WORK)
    total = sum(ordered.values())
    return {
        "parameters": parameters,
        "steps": sum(one["steps"] for one in sittings),
        "step_seconds": total,
        "overhead_seconds": overhead,
        "overhead": round(overhead / total, 5),
        "seconds": {name: round(took, 7) for name, took in ordered.items()},
    }


if __name__ == "__main__":
    main()
