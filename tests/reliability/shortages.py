"""Memory that does not suffice, at a chosen micro-batch of a chosen step, and what the run makes of it.

A learner refuses batches of more rows than it has memory for, in the words of the allocators there are.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from toy import Learner, Rows, settings

from luban.durable import sha256
from luban.errors import OutOfMemory, Stopped
from luban.recipe import TrainRecipe
from luban.run import Run
from luban.signals import StopRequest
from luban.training.checkpoints import Checkpoints
from luban.training.compiling import Compiling
from luban.training.faults import Faults
from luban.training.loop import Loop, Progress
from luban.training.parallel import Alone
from luban.verbs.records import RunRecord

STEPS, BATCH = 8, 8
ERRORS: tuple[Callable[[], Exception], ...] = (
    MemoryError,
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
    ),
    lambda: RuntimeError("std::bad_alloc"),
)
PLACES = ("forward", "backward", "optimizer", "evaluation")


@dataclass(frozen=True)
class Case:
    """From step `step` on there is memory for `rows` rows; or not enough at that step for something else."""

    place: str
    step: int
    rows: int
    policy: str
    optimizer: str
    error: int = 0


class Died(BaseException):
    """What stands for the end of the process."""


def _die() -> None:
    raise Died


class Limited(Learner):
    """It has memory for so many rows at once, and no dropout: what that draws depends on the micro-batch."""

    def __init__(self, recipe: TrainRecipe, case: Case | None) -> None:
        super().__init__(recipe)
        self.model.drop = nn.Identity()
        self.case, self._step = case, 0

    def batches(self, step: int, rank: int, ranks: int, size: int | None = None) -> list[Rows]:
        self._step = step
        return list(super().batches(step, rank, ranks, size))

    def loss(self, batch: Rows) -> Tensor:
        loss, case = super().loss(batch), self.case
        if case is not None and self._step >= case.step and batch.rows > case.rows:
            if case.place == "forward":
                raise ERRORS[case.error]()
            if case.place == "backward":
                loss.register_hook(lambda gradient: self._fail())
        return loss

    def _fail(self) -> None:
        assert self.case is not None
        raise ERRORS[self.case.error]()


class Sitting:
    """A run on a machine with so much memory, up to its end, its error, or a step where a stop is asked for."""

    def __init__(
        self,
        folder: Path,
        policy: str,
        optimizer: str,
        case: Case | None,
        *,
        stop_at: int | None = None,
        die: bool = False,
    ) -> None:
        self.run, self.told, self.case, stop = Run(folder), list[str](), case, StopRequest()
        self.recipe = settings(
            optimizer,
            steps=STEPS,
            batch=BATCH,
            micro_batch=None,
            on_out_of_memory=policy,
            evaluate_every=2,
            checkpoint_every=3,
        )
        self.learner = Limited(self.recipe, case if case and case.place in ("forward", "backward") else None)
        self.before: dict[str, Tensor] = {}
        plan: dict[tuple[str, int, int], Callable[[], object]] = {}
        if case is not None:
            plan["step", case.step, 0] = self._remember
        if case is not None and die:
            plan["gradients", case.step, 0] = _die
        if stop_at is not None:
            plan["before-optimizer", stop_at, 0] = lambda: stop.ask("the test")
        self.loop = Loop(
            self.learner,
            self.recipe,
            plan=Alone(),
            evaluate=self._evaluate,
            minimise=True,
            checkpoints=Checkpoints(self.run.checkpoints, keep=STEPS, warn=self.told.append),
            record=RunRecord(self.run, [], 1.0),
            stop=stop,
            compiling=Compiling(self.learner.model, wanted=False, tell=self.told.append),
            faults=Faults(plan),
            tell=self.told.append,
        )
        plain = self.loop.optimizer.step

        def step(scale: float = 1.0) -> None:
            if case is not None and case.place == "optimizer" and self.loop.progress.step == case.step:
                raise ERRORS[case.error]()
            plain(scale)

        self.loop.optimizer.step = step  # type: ignore[method-assign]

    def _remember(self) -> None:
        self.before = {n: t.clone() for n, t in self.learner.model.state_dict().items()}

    def _evaluate(self, step: int) -> Mapping[str, float]:
        if self.case is not None and self.case.place == "evaluation" and step >= self.case.step:
            raise ERRORS[self.case.error]()
        return {"loss": self.learner.held_out()}

    def do(self) -> Progress:
        """Begin the run or go on with it."""
        with self.run.lock():
            if not self.run.exists:
                self.run.begin(self.recipe.model_dump(mode="json"))
            checkpoint = self.loop.checkpoints.newest()
            self.run.cut_logs(checkpoint.state["progress"]["logs"] if checkpoint else {})
            return self.loop.run(checkpoint)


def digest(folder: Path) -> tuple[str, ...]:
    """What a finished run must leave, byte for byte."""
    last = folder / "checkpoints" / f"step-{STEPS:08d}"
    return (
        sha256(folder / "metrics.jsonl"),
        sha256(last / "model.safetensors"),
        sha256(last / "optimizer.safetensors"),
    )


def losses(folder: Path) -> list[float]:
    """The losses of a run's steps."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def play(case: Case, folder: Path) -> str:
    """Run one case beside a run that has all the memory it wants; say in a few words what came of it."""
    plenty = Sitting(folder / "plenty", case.policy, case.optimizer, None)
    plenty.do()
    short = Sitting(folder / "short", case.policy, case.optimizer, case)
    halves = case.policy == "halve" and case.place in ("forward", "backward")
    try:
        progress = short.do()
    except OutOfMemory as error:
        if halves:
            return f"BROKEN: {error}"
        return _stopped(short, error, folder)
    if not halves:
        return "BROKEN: the run went on"
    return _halved(short, progress, case, folder)


def _stopped(short: Sitting, error: OutOfMemory, folder: Path) -> str:
    """The weights are those of before, what was saved is whole, and with memory the run ends as if nothing was."""
    case = short.case
    assert case is not None
    said = str(error)
    if "bytes free" not in said or "luban train --resume" not in said:
        return f"BROKEN: said {said}"
    if case.place in ("forward", "backward"):
        advice = (
            f"micro-batches of {BATCH} x 8 tokens",
            f"train.micro_batch={BATCH // 2}",
            f"step {case.step + 1}",
        )
        if not all(words in said for words in advice):
            return f"BROKEN: said {said}"
    if case.place != "evaluation":
        for name, tensor in short.learner.model.state_dict().items():
            if not torch.equal(tensor, short.before[name]):
                return f"BROKEN: {name} changed"
    Sitting(folder / "short", case.policy, case.optimizer, None).do()
    if digest(folder / "short") != digest(folder / "plenty"):
        return "BROKEN: gone on with memory, the run has other bytes"
    return "stopped with advice, the same bytes after going on"


def _halved(short: Sitting, progress: Progress, case: Case, folder: Path) -> str:
    """The rest is computed in smaller micro-batches; a sitting with more memory later goes on in them too."""
    if progress.micro_batch is None or not case.rows / 2 < progress.micro_batch <= case.rows:
        return f"BROKEN: micro-batches of {progress.micro_batch}"
    if not any("out of memory" in line for line in short.told):
        return "BROKEN: nobody was told"
    try:
        torch.testing.assert_close(losses(folder / "short"), losses(folder / "plenty"), rtol=1e-3, atol=1e-3)
    except AssertionError as error:
        return f"BROKEN: other losses: {error}"
    try:
        Sitting(folder / "killed", case.policy, case.optimizer, case, die=True).do()
        return "BROKEN: the step was not done again"
    except Died:
        Sitting(folder / "killed", case.policy, case.optimizer, None).do()
    if digest(folder / "killed") != digest(folder / "short"):
        return "BROKEN: killed in the step it did again, and gone on with memory, other bytes"
    draw = random.Random(repr(case))
    for name, sitting in {"again": case, "with memory": None}.items():
        # Memory may come back only after it was short: before, the machine would be another.
        at = draw.randrange(STEPS) if sitting else draw.randrange(case.step, STEPS)
        try:
            Sitting(folder / name, case.policy, case.optimizer, case, stop_at=at).do()
            return "BROKEN: the run did not stop"
        except Stopped:
            Sitting(folder / name, case.policy, case.optimizer, sitting).do()
        if digest(folder / name) != digest(folder / "short"):
            return f"BROKEN: stopped at step {at} and gone on {name}, other bytes"
    return "halved, the same batch, the same bytes after a stop"


def draw_case(number: int, draw: random.Random) -> Case:
    """Return the n-th case: places and policies in turn, the rest drawn."""
    place = PLACES[number % len(PLACES)]
    step = draw.randrange(1, STEPS // 2) * 2 if place == "evaluation" else draw.randrange(STEPS)
    policy = ("stop", "halve")[number // len(PLACES) % 2]
    optimizer = draw.choice(("adamw", "sgd"))
    return Case(place, step, draw.randrange(1, BATCH), policy, optimizer, draw.randrange(len(ERRORS)))


def sweep(folder: Path, *, count: int, seed: int) -> Counter[str]:
    """Let memory run short in `count` runs: every place and policy in turn, every error, at drawn steps."""
    outcomes = Counter[str]()
    for number in range(count):
        case = draw_case(number, random.Random(f"{seed} {number}"))
        outcome = play(case, folder / str(number))
        if outcome.startswith("BROKEN"):
            outcome += f" ({case}; seed {seed}, number {number})"
        outcomes[outcome] += 1
        shutil.rmtree(folder / str(number))
    return outcomes
