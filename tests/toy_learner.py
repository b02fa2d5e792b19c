"""A small model that is no language model, with everything the loop asks for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luban.durable import sha256
from luban.recipe import TrainRecipe
from luban.signals import StopRequest
from luban.training.checkpoints import Checkpoints
from luban.training.compiling import Compiling
from luban.training.faults import Faults
from luban.training.loop import Loop
from luban.training.parallel import Alone

ROWS, FEATURES = 24, 6


@dataclass
class Rows:
    x: Tensor
    y: Tensor
    count: int
    tokens: int

    @property
    def rows(self) -> int:
        return len(self.x)

    def describe(self) -> Mapping[str, Any]:
        return {"rows": self.tokens}


class Learner:
    """Regression with dropout, so that random draws matter, and with a norm that keeps statistics if asked."""

    def __init__(
        self, recipe: TrainRecipe, *, poison: int | None = None, dropout: float = 0.2, norm: bool = False
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.poison = recipe, poison
        between = nn.BatchNorm1d(8) if norm else nn.Tanh()
        self.model = nn.Sequential(nn.Linear(FEATURES, 8), between, nn.Dropout(dropout), nn.Linear(8, 1))
        made = torch.Generator().manual_seed(7)
        self.x = torch.randn(ROWS, FEATURES, generator=made)
        self.y = self.x.sum(1, keepdim=True).sin()

    short_steps = 0

    def batches(self, step: int, rank: int, ranks: int, size: int | None = None) -> Sequence[Rows]:
        batch = self.recipe.batch
        assert batch is not None
        size = size or self.recipe.micro_batch or batch
        first, last = step * batch + batch * rank // ranks, step * batch + batch * (rank + 1) // ranks
        made = []
        for at in range(first, last, size):
            index = torch.arange(at, min(at + size, last)) % ROWS
            x = self.x[index] * (float("nan") if step == self.poison else 1.0)
            made.append(Rows(x, self.y[index], len(index), len(index)))
        return made

    def epoch(self, step: int) -> float:
        return step * self.recipe.batch / ROWS

    def loss(self, batch: Rows) -> Tensor:
        return (self.model(batch.x) - batch.y).square().sum()

    def flops(self, batch: Rows) -> int:
        return 6 * batch.tokens * (FEATURES * 8 + 8)


class Notes:
    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.times: list[Mapping[str, Any]] = []
        self.told: list[str] = []

    def metrics(self, record: Mapping[str, Any]) -> None:
        self.lines.append(record)

    def timings(self, record: Mapping[str, Any]) -> None:
        self.times.append(record)

    def sync(self) -> Mapping[str, int]:
        return {"metrics": len(self.lines)}


def make(
    folder: Path,
    recipe: TrainRecipe,
    *,
    stop: StopRequest | None = None,
    faults: Faults | None = None,
    clock: Callable[[], float] | None = None,
    poison: int | None = None,
    dropout: float = 0.2,
    norm: bool = False,
    measured: Callable[[int], Mapping[str, float]] | None = None,
) -> tuple[Loop, Notes, Learner]:
    learner, notes, checkpoints = (
        Learner(recipe, poison=poison, dropout=dropout, norm=norm),
        Notes(),
        Checkpoints(folder, keep=2, warn=print),
    )

    def evaluate(step: int) -> Mapping[str, float]:
        return {"loss": float((learner.model(learner.x) - learner.y).square().mean())}

    ticks = iter(range(10**9))
    loop = Loop(
        learner,
        recipe,
        plan=Alone(),
        evaluate=measured or evaluate,
        minimise=True,
        checkpoints=checkpoints,
        record=notes,
        stop=stop or StopRequest(),
        compiling=Compiling(learner.model, wanted=False, tell=print),
        faults=faults or Faults(),
        clock=clock or (lambda: float(next(ticks))),
        tell=notes.told.append,
    )
    return loop, notes, learner


def recipe(**changes: Any) -> TrainRecipe:
    return TrainRecipe(
        **{
            "steps": 20,
            "batch": 5,
            "checkpoint_every": 3,
            "optimizer": "adamw",
            "learning_rate": 0.01,
            **changes,
        }
    )


def final(folder: Path, step: int = 20) -> tuple[str, str]:
    path = folder / f"step-{step:08d}"
    return sha256(path / "model.safetensors"), sha256(path / "optimizer.safetensors")
