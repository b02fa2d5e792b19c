"""NaN, infinity and spikes put into a run at a chosen place, and what must be true of what the run leaves.

Nothing of a step that is not finite may reach the weights, a checkpoint, or the choice of the best model; and the
record must name the rows it was computed on.
"""

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from toy import Learner, Rows, settings

from luban.durable import sha256
from luban.errors import NonFiniteError, Stopped
from luban.recipe import TrainRecipe
from luban.run import Run
from luban.signals import StopRequest
from luban.training.checkpoints import Checkpoints
from luban.training.compiling import Compiling
from luban.training.faults import Faults
from luban.training.loop import Loop, Progress
from luban.training.parallel import Alone
from luban.verbs.records import RunRecord

STEPS = 12
PLACES = ("loss", "gradient", "weight", "optimizer state", "evaluation", "spike")
VALUES = (math.nan, math.inf, -math.inf)


class Spoiled(Learner):
    """Its loss on some micro-batches, named by (step, number), is multiplied."""

    def __init__(self, recipe: TrainRecipe, factors: Mapping[tuple[int, int], float]) -> None:
        super().__init__(recipe)
        self.factors, self._at = factors, {}

    def batches(self, step: int, rank: int, ranks: int, size: int | None = None) -> Sequence[Rows]:
        made = super().batches(step, rank, ranks, size)
        self._at = {id(batch): (step, number) for number, batch in enumerate(made)}
        return made

    def loss(self, batch: Rows) -> Tensor:
        return super().loss(batch) * self.factors.get(self._at[id(batch)], 1.0)


@dataclass(frozen=True)
class Case:
    """One number that is none, or too large."""

    place: str
    value: float
    step: int
    policy: str
    optimizer: str
    batch: int = 0
    seed: int = 0


class Sitting:
    """A run up to its end, its error, or a step at which it is asked to stop."""

    def __init__(self, folder: Path, case: Case, *, stop_at: int | None = None) -> None:
        self.case, self.run, self.told = case, Run(folder), list[str]()
        plain = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0} if case.place == "spike" else {}
        self.recipe = settings(
            "sgd" if case.place == "spike" else case.optimizer,
            steps=STEPS,
            on_nonfinite=case.policy,
            clip=1.0,
            evaluate_every=2,
            checkpoint_every=3,
            **plain,
        )
        factor = {"loss": case.value, "spike": 100.0}.get(case.place, 1.0)
        self.learner = Spoiled(self.recipe, {(case.step, case.batch): factor})
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.stop, self._stop_at = StopRequest(), stop_at
        self.loop = self._loop()

    def _loop(self) -> Loop:
        case, run, plan = self.case, self.run, dict[tuple[str, int, int], Callable[[], object]]()
        for step in range(STEPS):
            plan["step", step, 0] = lambda step=step: self._at(step)  # type: ignore[misc]
        if case.place == "gradient":
            plan["gradients", case.step, 0] = self._spoil_gradient
        if case.place == "optimizer state":
            plan["before-save", case.step, 0] = self._spoil_state
        return Loop(
            self.learner,
            self.recipe,
            plan=Alone(),
            evaluate=self._evaluate,
            minimise=True,
            checkpoints=Checkpoints(run.checkpoints, keep=STEPS, warn=self.told.append),
            record=RunRecord(run, [], 1.0),
            stop=self.stop,
            compiling=Compiling(self.learner.model, wanted=False, tell=self.told.append),
            faults=Faults(plan),
            tell=self.told.append,
        )

    def _at(self, step: int) -> None:
        self.weights[step] = {n: t.clone() for n, t in self.learner.model.state_dict().items()}
        if self.case.place == "weight" and step == self.case.step:
            self.learner.model.hidden.weight.data[1, 2] = self.case.value
        if step == self._stop_at:
            self.stop.ask("the test")

    def _spoil_gradient(self) -> None:
        gradient = self.learner.model.hidden.weight.grad
        assert gradient is not None
        gradient[3, 1] = self.case.value

    def _spoil_state(self) -> None:
        tensors, _ = self.loop.optimizer.state()
        max(tensors.values(), key=Tensor.numel).flatten()[0] = self.case.value

    def _evaluate(self, step: int) -> Mapping[str, float]:
        spoiled = self.case.place == "evaluation" and step == self.case.step
        return {"loss": self.case.value if spoiled else self.learner.held_out()}

    def do(self) -> Progress:
        """Begin the run or go on with it."""
        with self.run.lock():
            if not self.run.exists:
                self.run.begin(self.recipe.model_dump(mode="json"))
            checkpoint = self.loop.checkpoints.newest()
            self.run.cut_logs(checkpoint.state["progress"]["logs"] if checkpoint else {})
            return self.loop.run(checkpoint)

    def lines(self) -> list[dict[str, Any]]:
        """Return metrics.jsonl, which must be JSON as everybody else reads it: without NaN."""

        def refuse(word: str) -> float:
            raise ValueError(f"{word} is no JSON")

        return [
            json.loads(line, parse_constant=refuse) for line in self.run.metrics.path.read_text().splitlines()
        ]


def play(case: Case, folder: Path) -> str:
    """Run one case; say in a few words what came of it."""
    sitting = Sitting(folder / "run", case)
    error: NonFiniteError | None = None
    progress = sitting.loop.progress
    try:
        progress = sitting.do()
    except NonFiniteError as raised:
        error = raised
    if wrong := _saved(sitting):
        return f"BROKEN: {wrong}"
    if case.place == "evaluation":
        return _measured(sitting, progress, error)
    if case.place == "spike":
        return _clipped(sitting, error)
    if case.policy == "skip" and case.place in ("loss", "gradient"):
        return _skipped(sitting, progress, error, folder)
    return _stopped(sitting, error)


def _saved(sitting: Sitting) -> str | None:
    """Every checkpoint there is must be whole and finite."""
    checkpoints = sitting.loop.checkpoints
    for step in checkpoints.steps():
        checkpoint = checkpoints.load(step)
        for name, tensor in [*checkpoint.model.items(), *checkpoint.optimizer.items()]:
            if not tensor.isfinite().all():
                return f"the checkpoint of step {step} holds {name} that is not finite"
    return None


def _stopped(sitting: Sitting, error: NonFiniteError | None) -> str:
    case = sitting.case
    if error is None:
        return "BROKEN: the run went on"
    if case.place == "optimizer state":
        later = [step for step in sitting.loop.checkpoints.steps() if step >= case.step]
        return f"BROKEN: saved {later}" if later else "stopped, nothing of it saved"
    before = sitting.weights[case.step]
    for name, tensor in sitting.learner.model.state_dict().items():
        spoiled = case.place == "weight" and name == "hidden.weight"
        if not spoiled and not torch.equal(tensor, before[name]):
            return f"BROKEN: {name} changed"
    if wrong := _evidence(sitting):
        return f"BROKEN: {wrong}"
    return "stopped, nothing of it applied or saved, rows named"


def _evidence(sitting: Sitting) -> str | None:
    """The record names the step, the rows of the micro-batch and, for a weight or a gradient, its name."""
    case = sitting.case
    found = [line for line in sitting.lines() if line["kind"] == "non-finite"]
    if [line["step"] for line in found] != [case.step + 1]:
        return f"noted are {found}"
    named = [batch["rows"] for batch in found[0]["batches"]]
    batches = sitting.learner.batches(case.step, 0, 1)
    expected = [batch.index.tolist() for batch in batches]
    if case.place == "loss":
        expected = [expected[case.batch]]
    if named != expected:
        return f"named are rows {named}, not {expected}"
    if case.place == "gradient" and found[0]["gradients"] != ["hidden.weight"]:
        return f"named are gradients {found[0]['gradients']}"
    if case.place == "weight" and found[0]["weights"] != ["hidden.weight"]:
        return f"named are weights {found[0]['weights']}"
    if not any(f"step {case.step + 1} is not finite" in line for line in sitting.told):
        return f"told was {sitting.told}"
    return None


def _skipped(sitting: Sitting, progress: Progress, error: NonFiniteError | None, folder: Path) -> str:
    case = sitting.case
    if error is not None or progress.step != STEPS or progress.skipped != 1:
        return f"BROKEN: {error or progress}"
    after = sitting.weights.get(case.step + 1, sitting.learner.model.state_dict())
    if any(not torch.equal(tensor, after[name]) for name, tensor in sitting.weights[case.step].items()):
        return "BROKEN: the step left out changed weights"
    if wrong := _evidence(sitting):
        return f"BROKEN: {wrong}"
    lines = {line["step"]: line for line in sitting.lines() if line["kind"] == "train"}
    left_out = [step for step, line in lines.items() if line.get("skipped")]
    if len(lines) != STEPS or left_out != [case.step + 1]:
        return f"BROKEN: left out are steps {left_out} of {len(lines)}"
    parted = random.Random(repr(case)).randrange(STEPS)
    try:
        Sitting(folder / "parted", case, stop_at=parted).do()
        return "BROKEN: the run did not stop"
    except Stopped:
        again = Sitting(folder / "parted", case)
        again.do()
    for name in ("metrics.jsonl", f"checkpoints/step-{STEPS:08d}/model.safetensors"):
        if sha256(folder / "parted" / name) != sha256(folder / "run" / name):
            return f"BROKEN: stopped at step {parted} and resumed, {name} differs"
    return "left out, the same bytes after a stop"


def _measured(sitting: Sitting, progress: Progress, error: NonFiniteError | None) -> str:
    case = sitting.case
    if error is not None:
        return f"BROKEN: {error}"
    noted = {line["step"]: line["loss"] for line in sitting.lines() if line["kind"] == "evaluation"}
    if noted[case.step] is not None or any(
        value is None for step, value in noted.items() if step != case.step
    ):
        return f"BROKEN: noted are {noted}"
    best = min((value, step) for step, value in noted.items() if value is not None)[1]
    if progress.best_step != best:
        return f"BROKEN: best is step {progress.best_step}, not {best}"
    if not any(f"evaluation of step {case.step} is not finite" in line for line in sitting.told):
        return f"BROKEN: told was {sitting.told}"
    return "noted as null, never best"


def _clipped(sitting: Sitting, error: NonFiniteError | None) -> str:
    case = sitting.case
    if error is not None:
        return f"BROKEN: {error}"
    line = next(x for x in sitting.lines() if x["kind"] == "train" and x["step"] == case.step + 1)
    after = sitting.weights.get(case.step + 1, sitting.learner.model.state_dict())
    before = sitting.weights[case.step]
    moved = math.sqrt(sum(float((after[name] - tensor).square().sum()) for name, tensor in before.items()))
    if line["gradient_norm"] < 1.0 or moved > line["learning_rate"] * 1.0001:
        return f"BROKEN: moved {moved} at rate {line['learning_rate']}, norm {line['gradient_norm']}"
    return "clipped, its length noted"


def draw_case(number: int, draw: random.Random) -> Case:
    """Return the n-th case: places in turn, the rest drawn."""
    place = PLACES[number % len(PLACES)]
    step = draw.randrange(STEPS)
    if place == "evaluation":
        step = draw.randrange(2, STEPS + 1, 2)
    elif place == "optimizer state":
        step = draw.randrange(3, STEPS + 1, 3)
    return Case(
        place,
        VALUES[number // len(PLACES) % len(VALUES)],
        step,
        draw.choice(("stop", "skip")),
        draw.choice(("muon", "adamw")),
        batch=draw.randrange(2),
    )


def sweep(folder: Path, *, count: int, seed: int) -> Counter[str]:
    """Spoil `count` runs: every place in turn, every value, both policies, at drawn steps."""
    outcomes = Counter[str]()
    for number in range(count):
        case = draw_case(number, random.Random(f"{seed} {number}"))
        outcome = play(case, folder / str(number))
        if outcome.startswith("BROKEN"):
            outcome += f" ({case}; seed {seed}, number {number})"
        outcomes[f"{case.place}: {outcome}" if not outcome.startswith("BROKEN") else outcome] += 1
        shutil.rmtree(folder / str(number))
    return outcomes
