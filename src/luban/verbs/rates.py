"""`luban rates`: which learning rates a model can be trained with, found in a hundred steps.

The range test of L. N. Smith, "Cyclical learning rates for training neural networks" (2017): train while the rate
rises from step to step by a constant factor, and watch the loss. Where it falls fastest the rate is good; where it
grows without bound the rate is too high by far.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from luban import tasks
from luban.console import Show
from luban.durable import storage_errors
from luban.errors import InputError, NonFiniteError
from luban.learner import Learner
from luban.recipe import TrainRecipe
from luban.recipe_reader import read_recipe
from luban.run import Run
from luban.signals import StopRequest
from luban.training.gradients import Gradients
from luban.training.kernels import choose_kernels
from luban.training.nonfinite import number
from luban.training.optimizers import build_optimizer
from luban.training.parallel import Alone
from luban.training.parameters import freeze
from luban.training.precision import dtype_named, forward_in
from luban.verbs.beginning import Begun, begin, with_what_is_given

STEPS, LOWEST, HIGHEST = 100, 1e-6, 1.0
DIVERGED = 4.0
"""The loss diverges where its running mean is so many times the lowest it was, and above what it was at the start."""
_AT_START = 10
"""Batches whose losses at the starting weights tell how far the loss differs from batch to batch."""
_MEMORY = 0.9
"""What the running mean keeps of itself from step to step."""
_REACH = 5
"""The slope at a rate is that of the line through the losses of so many rates on either side."""


@dataclass(frozen=True)
class Rates:
    """What a range test found.

    Attributes:
        rows: `rate` and `loss` of each step: the loss per term of the step after that rate was applied, on other rows.
            The last loss is null when it is not finite.
        steepest: the rate at which the loss falls fastest; None when it never falls.
        divergence: the rate at which the test ended because the loss grew; None when it did not.
        suggestion: the lower of `steepest` and a tenth of `divergence`; None when there is neither.
        why: which of the two it is.
    """

    rows: Sequence[Mapping[str, float | None]]
    steepest: float | None
    divergence: float | None
    suggestion: float | None
    why: str


def rates(
    recipe: str | Path | Mapping[str, Any],
    *overrides: str,
    out: str | Path | None = None,
    steps: int = STEPS,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    show: Show | None = None,
) -> dict[str, Any]:
    """Find the learning rates that a recipe's model can be trained with; nothing is kept.

    The data is prepared and the model built as `luban train` would, in a folder that is removed again. On prepared
    data it takes little more than the steps themselves.

    Arguments:
        recipe: a shipped recipe's name, a YAML file, or a mapping.
        overrides: `section.key=value`.
        out: where the run would go; the folder that is removed again lies beside it.
        steps, lowest, highest: as `find_rates` takes them.

    Returns:
        The fields of `Rates`, and `now`: the learning rate the recipe has, or luban would choose.

    Raises:
        LubanError: what the run itself would meet at its beginning.
    """
    settings = with_what_is_given(read_recipe(recipe, overrides, tasks.schema_of))
    show, stop = show or Show(quiet=True), StopRequest()
    target = Path(out) if out is not None else Path("runs")
    with _begun(settings, target, stop, show) as begun:
        show.stage("trying rates", 0.0)
        found = find_rates(
            begun.task,
            begun.recipe.train,
            steps=steps,
            lowest=lowest,
            highest=highest,
            dtype=dtype_named(begun.plan["dtype"]),
            stop=stop.check,
        )
        show.clear()
        return {**asdict(found), "now": begun.recipe.train.learning_rate}


@contextlib.contextmanager
def _begun(recipe: Any, target: Path, stop: StopRequest, show: Show) -> Iterator[Begun]:
    """Begin a run in a folder beside `target` that is removed at the end of the block."""
    disk = next(path for path in (target.absolute(), *target.absolute().parents) if path.is_dir())
    with storage_errors(disk):
        scratch = tempfile.TemporaryDirectory(prefix=".luban-rates-", dir=disk)
    with storage_errors(disk), stop.listening(), scratch as folder:
        yield begin(Run(Path(folder)), recipe, Alone(), resuming=False, stop=stop, show=show)


def find_rates(
    learner: Learner,
    settings: TrainRecipe,
    *,
    steps: int = STEPS,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    dtype: torch.dtype = torch.float32,
    stop: Callable[[], None] = lambda: None,
) -> Rates:
    """Train with a rate that rises from `lowest` to `highest`, until the loss diverges; then put the weights back.

    The gradients and the optimizer are the run's own: its clipping, penalty, groups and frozen parameters. So a
    suggestion holds for these settings; with clipping, for instance, a loss diverges later or not at all.

    Arguments:
        learner: what is learned; it is left as it was.
        settings: the run's; its learning rate and its schedule do not matter.
        steps: how many rates are tried, at equal ratios.
        lowest, highest: the first and the last of them.
        dtype: what the forward pass and the optimizer's matrix products are computed in.
        stop: called before each step; raises to end the test.

    Raises:
        InputError: for fewer than ten steps, or rates that are not 0 < lowest < highest.
        NonFiniteError: when the loss is not finite before the first step.
    """
    if steps < 2 * _REACH or not 0.0 < lowest < highest:
        raise InputError(
            "a range test takes at least ten steps, and a lowest rate above 0 and below the highest",
            received={"steps": steps, "lowest": lowest, "highest": highest},
        )
    model = learner.model
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    learns = [parameter.requires_grad for parameter in model.parameters()]
    training = [module.training for module in model.modules()]
    tried = [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]
    try:
        losses, diverged = _sweep(learner, settings, tried, dtype, stop)
    finally:
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
        for parameter, learned in zip(model.parameters(), learns, strict=True):
            parameter.requires_grad_(learned)
        for module, mode in zip(model.modules(), training, strict=True):
            module.training = mode
    return _suggest(tried[: len(losses) - 1], losses, diverged=diverged)


def _sweep(
    learner: Learner,
    settings: TrainRecipe,
    tried: Sequence[float],
    dtype: torch.dtype,
    stop: Callable[[], None],
) -> tuple[list[float], bool]:
    """Take the steps; return the loss at the start and after each rate, and whether the last of them diverges."""
    model, losses = learner.model, list[float]()
    model.train()
    for frozen in freeze(model, settings.freeze):
        frozen.eval()
    kernels = choose_kernels(settings, model)[0]
    optimizer = build_optimizer(model, settings.model_copy(update={"learning_rate": 1.0}), dtype, kernels)
    gradients = Gradients(
        learner,
        Alone(),
        seed=settings.seed,
        forward=forward_in(dtype, next(model.parameters()).device, kernels),
        l1=settings.l1,
        clip=settings.clip,
        kernels=kernels,
    )
    mean = _RunningMean(_highest_at_start(gradients, learner.short_steps, stop))
    optimizer.zero_grad()
    for step in range(len(tried) + 1):
        stop()
        at = learner.short_steps + step
        losses.append(gradients.add(at, gradients.batches(at, None)).loss)
        norm = gradients.combine()
        if mean.diverged_with(losses[-1]) or not math.isfinite(norm):
            if step == 0:
                raise NonFiniteError(
                    "the first loss or its gradient is not finite, before any rate was applied",
                    received={"loss": losses[0], "gradient_norm": norm},
                    fix="look at the data, or at the weights the model starts from",
                )
            return losses, True
        if step < len(tried):
            optimizer.set_rate(tried[step])
            optimizer.step(gradients.scale(norm))
            optimizer.zero_grad()
    return losses, False


def _highest_at_start(gradients: Gradients, first: int, stop: Callable[[], None]) -> float:
    """Return the highest of some losses from step `first` on, none being taken: a hard batch is no divergence."""
    highest = -math.inf
    for step in range(first, first + _AT_START):
        stop()
        loss = gradients.add(step, gradients.batches(step, None)).loss
        highest = max(highest, loss) if math.isfinite(loss) else highest
    return highest


class _RunningMean:
    """The exponential mean of the losses so far, corrected for its beginning at zero, and the lowest it was.

    Arguments:
        usual: a mean up to this is no divergence.
    """

    def __init__(self, usual: float) -> None:
        self._sum, self._weight, self._lowest, self._usual = 0.0, 0.0, math.inf, usual

    def diverged_with(self, loss: float) -> bool:
        """Take the next loss in; return whether the mean now says that training diverges."""
        self._sum = _MEMORY * self._sum + (1.0 - _MEMORY) * loss
        self._weight = _MEMORY * self._weight + (1.0 - _MEMORY)
        mean = self._sum / self._weight
        if not mean <= max(
            self._usual, self._lowest + (DIVERGED - 1.0) * abs(self._lowest)
        ):  # or it is no number
            return True
        self._lowest = min(self._lowest, mean)
        return False


def _suggest(tried: Sequence[float], losses: Sequence[float], *, diverged: bool) -> Rates:
    """Draw the conclusions.

    Arguments:
        tried: (steps,), the rates that were applied.
        losses: (steps + 1,), the first before any of them was.
        diverged: whether the last of them made the loss diverge.
    """
    divergence, steepest = tried[-1] if diverged else None, _steepest(tried, losses)
    if divergence is not None and (steepest is None or divergence / 10 <= steepest):
        suggestion, why = divergence / 10, f"a tenth of the rate at which the loss diverges, {divergence:.2g}"
    elif steepest is not None:
        suggestion, why = steepest, "the loss falls fastest there"
    else:
        suggestion = None
        why = "the loss neither falls nor diverges at these rates: try higher ones, or more steps"
    rows = [{"rate": rate, "loss": number(loss)} for rate, loss in zip(tried, losses[1:], strict=True)]
    return Rates(rows, steepest, divergence, suggestion, why)


def _steepest(tried: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate around which the loss falls fastest per ratio of rates, on the way to its lowest."""
    windows = {
        at: losses[at - _REACH : at + _REACH + 1]
        for at in range(_REACH, len(losses) - _REACH)
        if math.isfinite(losses[at + _REACH])
    }
    if not windows:
        return None
    lowest = min(windows, key=lambda at: sum(windows[at]))
    slopes = {at: _slope(window) for at, window in windows.items() if at <= lowest}
    best = min(slopes, key=lambda at: slopes[at])
    return tried[best - 1] if slopes[best] < 0.0 else None


def _slope(losses: Sequence[float]) -> float:
    """Return the slope of the line of least squares through losses at equal distances, an odd number of them.

    Example:
        >>> _slope([1.0, 3.0, 5.0])
        2.0
    """
    middle = len(losses) // 2
    away = [at - middle for at in range(len(losses))]
    return sum(k * loss for k, loss in zip(away, losses, strict=True)) / sum(k * k for k in away)


__all__: Sequence[str] = ["Rates", "find_rates", "rates"]
