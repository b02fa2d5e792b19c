"""How long to train, and how the learning rate moves on the way. Both depend on what is spent alone."""

from __future__ import annotations

import math

from luban.recipe import TrainRecipe

_WARMUP_START = 0.1


class Budget:
    """The budget of a run: steps, tokens or minutes, whichever the recipe names.

    Example:
        >>> budget = Budget(TrainRecipe(minutes=2))
        >>> budget.progress(step=7, tokens=0, seconds=30.0), budget.done(step=8, tokens=0, seconds=120.5)
        (0.25, True)
    """

    def __init__(self, recipe: TrainRecipe) -> None:
        self.steps, self.tokens = recipe.steps, recipe.tokens
        self.seconds = None if recipe.minutes is None else 60.0 * recipe.minutes

    def progress(self, step: int, tokens: int, seconds: float) -> float:
        """Return the share of the budget that is spent, from 0 to 1.

        Arguments:
            step, tokens, seconds: what was done so far: steps taken, tokens seen, training clock.
        """
        return min(1.0, self._spent(step, tokens, seconds))

    def done(self, step: int, tokens: int, seconds: float) -> bool:
        """Return whether nothing is left to spend."""
        return self._spent(step, tokens, seconds) >= 1.0

    def _spent(self, step: int, tokens: int, seconds: float) -> float:
        if self.steps is not None:
            return step / self.steps
        if self.tokens is not None:
            return tokens / self.tokens
        assert self.seconds is not None, "a recipe has exactly one budget"
        return max(0.0, seconds) / self.seconds


class Schedule:
    """The learning rate's multiplier over a run.

    The rate rises in a straight line from a tenth to all of it over the first `warmup` of the budget (not
    from zero: the first step would be lost), and comes down to `final_rate` along one of four shapes:

    - `constant`: not at all;
    - `linear`, `cosine`: from the end of the warm-up to the end of the budget (cosine: I. Loshchilov and F.
      Hutter, "SGDR", 2017);
    - `wsd`: stable, then in a straight line over the last `decay` of the budget (S. Hu et al., "MiniCPM",
      2024; A. Haegele et al., "Scaling laws and compute-optimal training beyond fixed training durations",
      2024).

    Where warm-up and decay overlap, the lower of the two holds. A decay of zero length is no decay.

    Example:
        >>> schedule = Schedule(TrainRecipe(steps=100, schedule="wsd", warmup=0.1, decay=0.5, final_rate=0.0))
        >>> [round(schedule.rate(progress), 3) for progress in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
        [0.1, 0.55, 1.0, 1.0, 0.5, 0.0]
    """

    def __init__(self, recipe: TrainRecipe) -> None:
        self.shape, self.warmup, self.final_rate = recipe.schedule, recipe.warmup, recipe.final_rate
        self.decay = recipe.decay if recipe.schedule == "wsd" else 1.0 - recipe.warmup

    def rate(self, progress: float) -> float:
        """Return the multiplier, from 0 to 1, at `progress` from 0 to 1 of the budget."""
        return min(self._rise(progress), self._fall(progress))

    def _rise(self, progress: float) -> float:
        if progress >= self.warmup:
            return 1.0
        return _WARMUP_START + (1.0 - _WARMUP_START) * progress / self.warmup

    def _fall(self, progress: float) -> float:
        left = 1.0 - progress
        if self.shape == "constant" or left >= self.decay:
            return 1.0
        share = left / self.decay
        if self.shape == "cosine":
            share = 0.5 - 0.5 * math.cos(math.pi * share)
        return self.final_rate + (1.0 - self.final_rate) * share
