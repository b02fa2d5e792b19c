"""From what the parts of a run cost to what the whole will: steps, tokens, time, memory, disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from luban.learner import whole_steps
from luban.planning.rehearsal import Rehearsal
from luban.recipe import Interval, TrainRecipe
from luban.training.compiling import SHARE_SAVED, seconds_to_compile
from luban.training.loop import EVALUATIONS
from luban.training.schedules import Budget

LOG_BYTES_PER_STEP = 330
"""Bytes that metrics.jsonl and timings.jsonl grow by in a step."""
_EVALUATION_SHARE = 0.05


@dataclass(frozen=True)
class Forecast:
    """What is expected of a run; and, with the same names, what came of it.

    Attributes:
        steps, tokens, flops: work.
        training_seconds: the training clock: steps, evaluations and checkpoints.
        seconds: from step 1 to the result: the training clock, the evaluation at the end, the model folder.
        peak_bytes: the most memory the process holds. disk_bytes: the run folder at its end.
        figures: held-out figures by name, where the task knows a law for them.
    """

    steps: int
    tokens: int
    flops: int
    training_seconds: float
    seconds: float
    peak_bytes: int
    disk_bytes: int
    figures: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the form of plan.json and result.json."""
        return asdict(self)


def evaluations_of(settings: TrainRecipe, rehearsal: Rehearsal) -> int:
    """Return how many evaluations a budget gets that names no interval: ten.

    A budget of minutes gets no more than cost a twentieth of it, but two at least: the curve has a middle and an
    end. A budget of steps or tokens does not depend on the clock, so that two runs log the same.
    """
    if settings.minutes is None:
        return EVALUATIONS
    affordable = _EVALUATION_SHARE * 60.0 * settings.minutes / max(rehearsal.evaluation_seconds, 1e-9)
    return max(2, min(EVALUATIONS, int(affordable)))


def forecast(
    settings: TrainRecipe,
    rehearsal: Rehearsal,
    *,
    evaluations: int,
    compiled: bool,
    data_bytes: int,
    model_bytes: int,
    epoch: Callable[[int], float] | None = None,
    short_steps: int = 0,
) -> Forecast:
    """Add up what a run will cost.

    Arguments:
        settings: its budget and intervals.
        rehearsal: what the parts cost, eager.
        evaluations: how many a run without `evaluate_every` makes.
        compiled: whether torch.compile is on.
        data_bytes: prepared data within the run folder. model_bytes: the model folder.
        epoch: the learner's; a budget of epochs needs it.
        short_steps: so many first steps are half as large as the one that was rehearsed.
    """
    step = rehearsal.step_seconds * (1.0 - SHARE_SAVED if compiled else 1.0)
    costs = _replace_step(rehearsal, step)
    start = seconds_to_compile(short_steps) if compiled else 0.0
    counted = Budget(settings, epoch).steps_in(costs.step_tokens, short_steps)
    if counted is not None:
        steps = counted
        training = start + _with_interruptions(settings, costs, steps, evaluations, short_steps)
    else:
        assert settings.minutes is not None, "a budget that cannot be counted is one of minutes"
        training = 60.0 * settings.minutes
        steps = _steps_within(settings, costs, training - start, evaluations, short_steps)
    kept = settings.keep + (1 if settings.keeps_best else 0)
    if not settings.keeps_best:  # which saves at every better evaluation too
        kept = min(kept, _checkpoints(settings, steps, training))
    return Forecast(
        steps=steps,
        tokens=int(whole_steps(steps, short_steps) * costs.step_tokens),
        flops=round(whole_steps(steps, short_steps, costs.short_share) * costs.step_flops),
        training_seconds=round(training, 2),
        seconds=round(training + costs.final_seconds + costs.checkpoint_seconds, 2),
        peak_bytes=rehearsal.peak_bytes,
        disk_bytes=kept * costs.checkpoint_bytes + data_bytes + model_bytes + LOG_BYTES_PER_STEP * steps,
    )


def _replace_step(rehearsal: Rehearsal, seconds: float) -> Rehearsal:
    return Rehearsal(**{**asdict(rehearsal), "step_seconds": seconds})


def _with_interruptions(
    settings: TrainRecipe, costs: Rehearsal, steps: int, evaluations: int, short_steps: int
) -> float:
    """Return the training clock after `steps`, evaluations and checkpoints included."""
    working = whole_steps(steps, short_steps, costs.short_share) * costs.step_seconds
    evaluating = _times(settings.evaluate_every, steps, working, evaluations) * costs.evaluation_seconds
    return working + evaluating + _checkpoints(settings, steps, working) * costs.checkpoint_seconds


def _steps_within(
    settings: TrainRecipe, costs: Rehearsal, seconds: float, evaluations: int, short_steps: int
) -> int:
    """Return how many steps end within `seconds` of the training clock."""
    steps = 1
    low, high = 1, max(1, math.ceil(seconds / max(costs.step_seconds * min(1.0, costs.short_share), 1e-9)))
    while low <= high:
        middle = (low + high) // 2
        if _with_interruptions(settings, costs, middle, evaluations, short_steps) <= seconds:
            steps, low = middle, middle + 1
        else:
            high = middle - 1
    # The step that crosses the line is the last.
    return steps + 1


def _checkpoints(settings: TrainRecipe, steps: int, seconds: float) -> int:
    """Return how many checkpoints are written, the one at the end included."""
    return max(1, _times(settings.checkpoint_every, steps, seconds, 0) + 1)


def _times(every: Interval | None, steps: int, seconds: float, otherwise: int) -> int:
    if every is None:
        return min(otherwise, steps)
    if every.steps is not None:
        return steps // every.steps
    return int(seconds / (every.seconds or math.inf))
