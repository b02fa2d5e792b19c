"""A run of twenty steps in a tenth of a second, whole runs of the verb in half of one, and what both must leave.

The short run has all that can go wrong between steps: micro-batches of unequal size, dropout, a schedule, logs,
samples, evaluations, checkpoints in the middle of an epoch, the best one kept besides.
"""

import functools
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from luban import machine
from luban.console import Show
from luban.durable import sha256, write_json
from luban.models.head import Head
from luban.recipe import Interval, TrainRecipe
from luban.run import Run
from luban.signals import StopRequest
from luban.training.checkpoints import Checkpoints
from luban.training.compiling import Compiling
from luban.training.faults import NO_FAULTS, Faults
from luban.training.loop import Loop
from luban.training.parallel import Alone, Plan
from luban.verbs import train as verb
from luban.verbs.records import RunRecord, SilentRecord

# Forked processes must find no threads of torch in the middle of something: one thread, here and in the verb.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

STEPS, ROWS, LENGTH, VOCABULARY = 20, 50, 8, 48
OPTIMIZERS = ("muon", "adamw")
COMPARED = (
    "metrics.jsonl",
    "samples.jsonl",
    "evaluation.json",
    "evaluation-documents.safetensors",
    "recipe.json",
)
WORDS = ["the", "king", "of", "a", "small", "house", "had", "no", "wood", "春", "眠", "不", "觉", "晓"]


def settings(optimizer: str = "muon", **changes: Any) -> TrainRecipe:
    """Evaluations and checkpoints fall on unlike steps, and none on the end of an epoch."""
    return TrainRecipe(
        **{
            "steps": STEPS,
            "batch": 5,
            "micro_batch": 3,
            "optimizer": optimizer,
            "schedule": "wsd" if optimizer == "muon" else "cosine",
            "learning_rate": 0.02,
            "patience": STEPS,
            "evaluate_every": Interval(steps=3),
            "checkpoint_every": Interval(steps=4),
            **changes,
        }
    )


@dataclass(frozen=True)
class Rows:
    """Some rows of the data."""

    index: Tensor
    ids: Tensor
    count: int
    tokens: int
    rows: int

    def describe(self) -> Mapping[str, Any]:
        return {"rows": self.index.tolist()}


class Learner:
    """Guess the next of a row of numbers; rows come in another order in every epoch."""

    def __init__(self, recipe: TrainRecipe, width: int = 16) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.model = nn.Sequential()
        self.model.embed = nn.Embedding(VOCABULARY, width)
        self.model.hidden = nn.Linear(width, width)
        self.model.drop = nn.Dropout(0.2)
        self.model.norm = nn.LayerNorm(width)
        self.model.lm_head = Head(width, VOCABULARY)
        made = torch.Generator().manual_seed(7)
        self.ids = torch.randint(VOCABULARY, (ROWS + 10, LENGTH), generator=made)

    short_steps = 0

    def batches(self, step: int, rank: int, ranks: int, size: int | None = None) -> Sequence[Rows]:
        batch, size = self.recipe.batch, size or self.recipe.micro_batch or self.recipe.batch
        first, last = step * batch + batch * rank // ranks, step * batch + batch * (rank + 1) // ranks
        rows = [self.row(at) for at in range(first, last)]
        made = []
        for at in range(0, len(rows), size):
            index = torch.tensor(rows[at : at + size])
            made.append(
                Rows(index, self.ids[index], len(index) * (LENGTH - 1), len(index) * LENGTH, len(index))
            )
        return made

    def row(self, position: int) -> int:
        epoch, place = divmod(position, ROWS)
        order = list(range(ROWS))
        random.Random(f"{self.recipe.seed} {epoch}").shuffle(order)
        return order[place]

    def epoch(self, step: int) -> float:
        return step * self.recipe.batch / ROWS

    def loss(self, batch: Rows) -> Tensor:
        return self.summed(batch.ids)

    def summed(self, ids: Tensor) -> Tensor:
        model = self.model
        hidden = model.drop(model.hidden(model.embed(ids[:, :-1])).tanh())  # (rows, length - 1, width)
        logits = model.lm_head(model.norm(hidden))
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")

    def held_out(self) -> float:
        ids = self.ids[ROWS:]
        return float(self.summed(ids)) / ids[:, 1:].numel()

    def flops(self, batch: Rows) -> int:
        return 6 * batch.tokens * sum(p.numel() for p in self.model.parameters())


def go_on(
    folder: Path,
    recipe: TrainRecipe,
    *,
    width: int = 16,
    faults: Faults = NO_FAULTS,
    plan: Plan | None = None,
    stop: StopRequest | None = None,
    clock: Callable[[], float] | None = None,
) -> list[str]:
    """Begin the run in `folder` or go on with it, to its end; return the warnings."""
    plan, run, warnings = plan or Alone(), Run(folder), list[str]()
    with run.lock():
        if not run.exists:
            run.begin(recipe.model_dump(mode="json"))
        learner = Learner(recipe, width)

        def evaluate(step: int) -> Mapping[str, float]:
            loss = learner.held_out()
            run.samples.append({"step": step, "text": f"{loss:.9f}"})
            return {"loss": loss}

        loop = Loop(
            learner,
            recipe,
            plan=plan,
            evaluate=evaluate,
            minimise=True,
            checkpoints=Checkpoints(run.checkpoints, keep=recipe.keep, warn=warnings.append, fs=run.fs),
            record=RunRecord(run, [], 1.0) if plan.rank == 0 else SilentRecord(),
            stop=stop or StopRequest(),
            compiling=Compiling(learner.model, wanted=False, tell=warnings.append),
            faults=faults,
            **({"clock": clock} if clock else {}),
        )
        checkpoint = loop.checkpoints.newest()
        run.cut_logs(checkpoint.state["progress"]["logs"] if checkpoint else {})
        run.event("resumed" if checkpoint else "started")
        progress = loop.run(checkpoint)
        write_json(run.result, {"steps": progress.step, "best": progress.best, "at": progress.best_step})
    return warnings


def left(folder: Path) -> dict[str, str]:
    """What a finished run must leave, digests by name, and what a crash left torn: nothing.

    Left out is what tells the time: timings, events, machine, plan, report, and the seconds in state.json.
    """
    found = [folder / name for name in COMPARED if (folder / name).exists()]
    last = max((folder / "checkpoints").glob("step-*"))
    found += [last / "model.safetensors", last / "optimizer.safetensors"]
    for inner in (folder / "data", folder / "model"):
        found += [p for p in inner.rglob("*") if p.is_file() and p.name not in ("README.md", "manifest.json")]
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(found)}
    torn = [p.relative_to(folder).as_posix() for p in folder.rglob(".*") if p.name.endswith((".tmp", ".old"))]
    return {**digests, "torn": " ".join(sorted(torn))}


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a log."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def kept(folder: Path) -> set[int]:
    """The steps that have a checkpoint."""
    return {int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*")}


def difference(folder: Path, whole: Path) -> str | None:
    """What of a run differs from one that nobody disturbed, or None.

    The log of times counts every step once. The last checkpoint and the best are there, and as many as should be;
    a run that was stopped, or killed before it removed an old one, may keep others.
    """
    try:
        mine, theirs = left(folder), left(whole)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    unlike = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    steps = [line["step"] for line in lines(folder / "timings.jsonl") if line["kind"] == "train"]
    if steps != list(range(1, len(steps) + 1)):
        unlike.append("timings.jsonl")
    last = max(kept(whole))
    state = json.loads((whole / "checkpoints" / f"step-{last:08d}" / "state.json").read_text("utf-8"))
    needed = {last, state["progress"]["best_step"]} & kept(whole)
    if not kept(folder) >= needed or len(kept(folder)) < len(kept(whole)):
        unlike.append(f"checkpoints {kept(folder)}, not {kept(whole)}")
    return ", ".join(unlike) or None


def recipe_file(folder: Path, **train: Any) -> Path:
    """Write forty rows of text and the recipe of a model of some thousand parameters on them; return its path."""
    draw = random.Random(3)
    rows = [{"text": f"{n} " + " ".join(draw.choices(WORDS, k=20)) + "."} for n in range(40)]
    text = folder / "rows.jsonl"
    text.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    recipe = {
        "data": {"source": str(text), "tokenizer": "char", "length": 16, "validation_fraction": 0.2},
        "model": {"layers": 1, "width": 16, "heads": 2, "mlp_width": 32, "dropout": 0.1},
        "train": {
            "steps": 10,
            "batch": 4,
            "micro_batch": 3,
            "checkpoint_every": 3,
            "evaluate_every": 4,
            "patience": 10,
            "compile": "off",
            "learning_rate": 0.003,
            **train,
        },
        "evaluate": {"sample_tokens": 2, "bootstrap": 10, "prompts": ["the"]},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), "utf-8")
    return path


@functools.cache
def _rate(measure: Callable[..., float], *arguments: Any) -> float:
    return measure(*arguments)


def train(
    recipe: Path,
    folder: Path,
    *overrides: str,
    faults: Faults = NO_FAULTS,
    stop: StopRequest | None = None,
) -> None:
    """Do `luban train`, or its `--resume` where the run has begun, as a terminal would.

    The machine is measured once: that takes as long as these runs, and nothing that is compared depends on it.
    """
    tools = verb.Tools(Show(quiet=True), stop or StopRequest(), faults=faults)
    matmul, bandwidth = machine.measure_matmul, machine.measure_bandwidth
    with (
        mock.patch.object(machine, "measure_matmul", partial(_rate, matmul)),
        mock.patch.object(machine, "measure_bandwidth", partial(_rate, bandwidth)),
    ):
        if Run(folder).exists:
            verb.train(resume=folder, tools=tools)
        else:
            verb.train(recipe, *overrides, out=folder, tools=tools)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process, which spares the seconds torch takes to import; return its exit code.

    Killed by a signal, the code is minus its number; with an error it is 1.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
