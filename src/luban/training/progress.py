"""Where a run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from luban.recipe import TrainRecipe


@dataclass
class Progress:
    """Where a run stands; exactly what a checkpoint's state.json keeps.

    A field that a later version adds has a default: a checkpoint from before lacks it.
    """

    step: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    worse: int = 0
    """How many evaluations in a row brought no better primary figure."""
    evaluations: int = 0
    evaluated_step: int = 0
    stopped_early: bool = False
    plateau: float = 1.0
    """What the schedule's rate is multiplied by, once evaluations stopped getting better (`Schedule.after`)."""
    micro_batch: int | None = None
    """Most rows of a micro-batch, once memory did not suffice for the learner's own choice."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    logs: dict[str, int] = field(default_factory=dict)

    def judge(self, value: float, recipe: TrainRecipe, *, minimise: bool) -> None:
        """Count an evaluation of this step: whether it is the best, and whether the run has come to its end.

        Arguments:
            value: the primary figure; one that is not finite is no better than any other and reaches no target.
            recipe: its `patience` and `target` end a run before its budget is spent.
            minimise: whether a smaller value is better.

        Example:
            >>> progress, recipe = Progress(step=7), TrainRecipe(steps=100, target=0.9)
            >>> progress.judge(0.8, recipe, minimise=False)
            >>> progress.best_step, progress.stopped_early
            (7, False)
            >>> progress.judge(0.9, recipe, minimise=False)
            >>> progress.stopped_early
            True
        """
        self.evaluations += 1
        self.evaluated_step = self.step
        finite = math.isfinite(value)
        if finite and (self.best is None or _better(value, self.best, minimise)):
            self.best, self.best_step, self.worse = value, self.step, 0
        else:
            self.worse += 1
        out_of_patience = recipe.patience is not None and self.worse >= recipe.patience
        reached = finite and recipe.target is not None and not _better(recipe.target, value, minimise)
        self.stopped_early = out_of_patience or reached


def _better(one: float, other: float, minimise: bool) -> bool:
    return one < other if minimise else one > other
