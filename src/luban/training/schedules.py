"""How long to train, and how the learning rate moves on the way. Both depend on what is spent alone."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

from luban.learner import whole_steps
from luban.recipe import TrainRecipe

_WARMUP_START = 0.1


class Budget:
    """The budget of a run: steps, tokens, epochs or minutes, whichever the recipe names.

    Arguments:
        recipe: names it.
        epoch: the learner's: how many times the data was seen after so many steps. Only a budget of epochs asks.

    Example:
        >>> budget = Budget(TrainRecipe(minutes=2))
        >>> budget.progress(step=7, tokens=0, seconds=30.0), budget.done(step=8, tokens=0, seconds=120.5)
        (0.25, True)
        >>> Budget(TrainRecipe(epochs=2), lambda step: step / 10).progress(step=5, tokens=0, seconds=0.0)
        0.25
    """

    def __init__(self, recipe: TrainRecipe, epoch: Callable[[int], float] | None = None) -> None:
        assert recipe.epochs is None or epoch is not None, "a budget of epochs needs the learner's `epoch`"
        self.steps, self.tokens, self.epochs, self._epoch = recipe.steps, recipe.tokens, recipe.epochs, epoch
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

    def steps_in(self, step_tokens: int, short_steps: int = 0) -> int | None:
        """Return how many steps the budget is; None for one of minutes, which nobody knows beforehand.

        Arguments:
            step_tokens: tokens of a step.
            short_steps: so many first steps have half as many.

        Example:
            >>> Budget(TrainRecipe(tokens=1000)).steps_in(300)
            4
            >>> Budget(TrainRecipe(tokens=1000)).steps_in(300, short_steps=2)
            5
            >>> Budget(TrainRecipe(epochs=2.5), lambda step: step / 10).steps_in(300)
            25
        """
        if self.seconds is not None:
            return None

        def done(step: int) -> bool:
            return self.done(step, int(whole_steps(step, short_steps) * step_tokens), 0.0)

        most = 1
        while not done(most):
            most *= 2
        return bisect.bisect_left(range(most), True, lo=1, key=done)

    def _spent(self, step: int, tokens: int, seconds: float) -> float:
        if self.steps is not None:
            return step / self.steps
        if self.tokens is not None:
            return tokens / self.tokens
        if self.epochs is not None and self._epoch is not None:
            return self._epoch(step) / self.epochs
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
      2024);
    - `plateau`: by `plateau_factor` each time `plateau_patience` evaluations in a row brought nothing better, and
      no lower than `final_rate`. How far it came down is known to `after` alone, not to `rate`.

    Where warm-up and decay overlap, the lower of the two holds. A decay of zero length is no decay.

    Example:
        >>> schedule = Schedule(TrainRecipe(steps=100, schedule="wsd", warmup=0.1, decay=0.5, final_rate=0.0))
        >>> [round(schedule.rate(progress), 3) for progress in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
        [0.1, 0.55, 1.0, 1.0, 0.5, 0.0]
    """

    def __init__(self, recipe: TrainRecipe) -> None:
        self.shape, self.warmup, self.final_rate = recipe.schedule, recipe.warmup, recipe.final_rate
        self.decay = recipe.decay if recipe.schedule == "wsd" else 1.0 - recipe.warmup
        self.patience, self.factor = recipe.plateau_patience, recipe.plateau_factor

    def rate(self, progress: float) -> float:
        """Return the multiplier, from 0 to 1, at `progress` from 0 to 1 of the budget."""
        return min(self._rise(progress), self._fall(progress))

    def after(self, plateau: float, worse: int) -> float:
        """Return what `rate` is multiplied by after an evaluation: 1 unless the shape is `plateau`.

        Arguments:
            plateau: the multiplier before it.
            worse: how many evaluations in a row, this one the last, brought nothing better.

        Example:
            >>> schedule = Schedule(TrainRecipe(steps=9, schedule="plateau", plateau_patience=2, final_rate=0.2))
            >>> [schedule.after(1.0, worse) for worse in range(5)], schedule.after(0.25, 2)
            ([1.0, 1.0, 0.5, 1.0, 0.5], 0.2)
        """
        if self.shape != "plateau" or worse == 0 or worse % self.patience:
            return plateau
        return max(self.final_rate, plateau * self.factor)

    def _rise(self, progress: float) -> float:
        if progress >= self.warmup:
            return 1.0
        return _WARMUP_START + (1.0 - _WARMUP_START) * progress / self.warmup

    def _fall(self, progress: float) -> float:
        left = 1.0 - progress
        if self.shape in ("constant", "plateau") or left >= self.decay:
            return 1.0
        share = left / self.decay
        if self.shape == "cosine":
            share = 0.5 - 0.5 * math.cos(math.pi * share)
        return self.final_rate + (1.0 - self.final_rate) * share
