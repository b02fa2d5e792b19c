"""The one loop.

It knows no task: what is learned comes as a `Learner` (a module, the batches of a step, a loss), what is
measured as a callable, what is written as a `Record`. Everything a step does is a pure function of the weights,
the optimizer's state and the step's number: the batch is, and every random draw is seeded by (seed, step,
micro-batch, rank). So a run that was killed and goes on from a checkpoint ends with the same bytes as one that
was not, when its budget is steps or tokens.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luban.errors import NonFiniteError, Stopped
from luban.recipe import Interval, TrainRecipe
from luban.signals import StopRequest
from luban.training.checkpoints import Checkpoint, Checkpoints
from luban.training.compiling import Compiling
from luban.training.faults import NO_FAULTS, Faults
from luban.training.optimizers import Optimizer, build_optimizer
from luban.training.parallel import Plan
from luban.training.schedules import Budget, Schedule

EVALUATIONS = 10


class Batch(Protocol):
    """A micro-batch: what the loss is computed on."""

    count: int
    """How many terms the loss sums over, for instance target tokens."""
    tokens: int
    """How many tokens (or rows) pass through the model."""

    def describe(self) -> Mapping[str, Any]:
        """Say where the batch came from, for the evidence when its loss is not finite."""


class Learner(Protocol):
    """What is learned."""

    model: nn.Module

    def batches(self, step: int, rank: int, ranks: int) -> Sequence[Batch]:
        """Return this rank's micro-batches of step `step` (counted from 0); a pure function of its arguments."""

    def epoch(self, step: int) -> float:
        """Return how many times the data was seen after `step` steps."""

    def loss(self, batch: Any) -> Tensor:
        """Return the sum of the loss over the batch's terms: a scalar with a gradient."""

    def flops(self, batch: Any) -> int:
        """Return the floating-point operations of forward and backward on the batch."""


class Record(Protocol):
    """Where the loop writes what happened; only rank 0 has one that writes."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Note what does not depend on the clock."""

    def timings(self, record: Mapping[str, Any]) -> None:
        """Note what does."""

    def sync(self) -> Mapping[str, int]:
        """Make the notes durable and return their sizes."""


@dataclass
class Progress:
    """Where a run stands; exactly what a checkpoint's state.json keeps."""

    step: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    worse: int = 0
    evaluations: int = 0
    evaluated_step: int = 0
    stopped_early: bool = False
    logs: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What one optimizer step was, over all ranks: loss per term, gradient norm, learning-rate multiplier, work."""

    loss: float
    norm: float
    rate: float
    tokens: int
    flops: int


class Loop:
    """Train a learner until its budget is spent.

    Arguments:
        learner: what is learned.
        recipe: how.
        plan: which processes take part.
        evaluate: measures the model as it is and returns figures by name; the first one is the one that counts for
            early stopping.
        minimise: whether a smaller value of that figure is better.
        checkpoints: where to save.
        record: where to log.
        forward: context in which the forward pass runs, for instance autocast.
        stop: asked at every step boundary.
        compiling: compiles the model before the first step, or leaves it.
        faults: points at which a test makes the process die.
        clock: seconds, monotonic.
        watch: told the progress after every step, for the terminal.
    """

    def __init__(
        self,
        learner: Learner,
        recipe: TrainRecipe,
        *,
        plan: Plan,
        evaluate: Callable[[int], Mapping[str, float]],
        minimise: bool,
        checkpoints: Checkpoints,
        record: Record,
        forward: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        stop: StopRequest,
        compiling: Compiling,
        faults: Faults = NO_FAULTS,
        clock: Callable[[], float] = time.monotonic,
        watch: Callable[[Progress, float, float], None] = lambda *_: None,
    ) -> None:
        self.learner, self.recipe, self.plan = learner, recipe, plan
        self._evaluate, self._minimise = evaluate, minimise
        self.checkpoints, self._record, self._forward = checkpoints, record, forward
        self._stop, self.compiling, self._faults, self._clock, self._watch = (
            stop,
            compiling,
            faults,
            clock,
            watch,
        )
        self.schedule = Schedule(recipe)
        self.budget = Budget(recipe)
        self.optimizer: Optimizer = build_optimizer(learner.model.named_parameters(), recipe)
        self.progress = Progress()
        self._saved_step, self._saved_at, self._evaluated_at = -1, 0.0, 0.0

    def run(self, checkpoint: Checkpoint | None = None) -> Progress:
        """Train from the beginning, or from a checkpoint, to the end of the budget.

        Raises:
            Stopped: after a checkpoint was written, when somebody asked for a stop.
            NonFiniteError: when a loss or a gradient is NaN or infinite; the step was not applied.
        """
        if checkpoint is None:
            self.plan.start(self.learner.model)
        else:
            self._restore(checkpoint)
        begun = self._clock() - self.progress.seconds
        self._saved_at = self._evaluated_at = self.progress.seconds
        self.learner.model.train()
        self.compiling.prepare(self._trial, lambda failed: self.plan.sum([float(failed)])[0] > 0)
        while not self._done():
            self._faults.reach("step", self.progress.step, self.plan.rank)
            before = self.progress.seconds
            done = self._step()
            self._agree_on_time(begun)
            self._log(done, self.progress.seconds - before)
            if self._due_for_evaluation():
                self.evaluate()
                self._agree_on_time(begun)
            stopping = self._asked_to_stop()
            if stopping or self._due_for_checkpoint():
                self.save()
            if stopping:
                raise Stopped(
                    f"stopped by {self._stop.reason or 'another rank'} at step {self.progress.step}; saved"
                )
        if self.progress.evaluated_step != self.progress.step:
            self.evaluate()
        self.save()
        return self.progress

    def evaluate(self) -> Mapping[str, float]:
        """Measure the model as it is, note the figures, and count towards early stopping."""
        progress, started = self.progress, self._clock()
        self._faults.reach("evaluate", progress.step, self.plan.rank)
        self.learner.model.eval()
        with self.compiling.paused(), torch.no_grad(), self._forward():
            figures = self._evaluate(progress.step)
        self.learner.model.train()
        progress.evaluations += 1
        progress.evaluated_step, self._evaluated_at = progress.step, progress.seconds
        value = next(iter(figures.values()))
        better = progress.best is None or (value < progress.best if self._minimise else value > progress.best)
        if math.isfinite(value) and better:
            progress.best, progress.best_step, progress.worse = value, progress.step, 0
        else:
            progress.worse += 1
        self._record.metrics(
            {"kind": "evaluation", "step": progress.step, "tokens": progress.tokens, **_finite(figures)}
        )
        self._time("evaluation", started)
        if self.recipe.patience is not None:
            progress.stopped_early = progress.worse >= self.recipe.patience
            if progress.best_step == progress.step:
                self.save()
        return figures

    def save(self) -> None:
        """Write a checkpoint of where the run stands, unless this step has one."""
        progress, started = self.progress, self._clock()
        if progress.step == self._saved_step:
            return
        self._faults.reach("before-save", progress.step, self.plan.rank)
        if self.plan.rank == 0:
            progress.logs = dict(self._record.sync())
            tensors, scalars = self.optimizer.state()
            state = {"progress": asdict(progress), "optimizer": scalars, "compile": self.compiling.state()}
            best = progress.best_step if self.recipe.patience is not None else None
            model = self.learner.model.state_dict()
            self.checkpoints.save(Checkpoint(progress.step, model, tensors, state), best=best)
            self._time("checkpoint", started)
        self.plan.wait()
        self._saved_step, self._saved_at = progress.step, progress.seconds
        self._faults.reach("after-save", progress.step, self.plan.rank)

    def _trial(self) -> None:
        """Run forward and backward of the step to come on this rank alone, and drop the gradients."""
        try:
            for batch in self.learner.batches(self.progress.step, self.plan.rank, self.plan.ranks):
                with self._forward():
                    loss = self.learner.loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self.learner.model.zero_grad(set_to_none=True)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.learner.model.load_state_dict(dict(checkpoint.model))
        self.optimizer.load_state(dict(checkpoint.optimizer), dict(checkpoint.state["optimizer"]))
        self.compiling.load_state(checkpoint.state["compile"])
        self.progress = Progress(**checkpoint.state["progress"])
        self._saved_step = checkpoint.step

    def _step(self) -> Step:
        """One optimizer step."""
        progress, model = self.progress, self.learner.model
        batches = self.learner.batches(progress.step, self.plan.rank, self.plan.ranks)
        loss, tokens, flops = self._gradients(batches)
        self.plan.reduce_gradients(model)
        parameters = [p for p in model.parameters() if p.grad is not None]
        norm = float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._refuse(loss, norm, batches)
        if self.recipe.clip is not None and norm > self.recipe.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip, torch.tensor(norm))
        rate = self.schedule.rate(self.budget.progress(progress.step, progress.tokens, progress.seconds))
        self._faults.reach("before-optimizer", progress.step, self.plan.rank)
        self.optimizer.set_rate(rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        progress.tokens += tokens
        progress.flops += flops
        return Step(loss, norm, rate, tokens, flops)

    def _gradients(self, batches: Sequence[Batch]) -> tuple[float, int, int]:
        """Add up the gradient of the mean loss over all micro-batches of all ranks; the same for every split.

        Returns the loss per term, and the tokens and FLOPs of the step, over all ranks.
        """
        count, tokens, flops = self.plan.sum(
            [
                float(sum(batch.count for batch in batches)),
                float(sum(batch.tokens for batch in batches)),
                float(sum(self.learner.flops(batch) for batch in batches)),
            ]
        )
        total = 0.0
        for index, batch in enumerate(batches):
            torch.manual_seed(_seed(self.recipe.seed, self.progress.step, index, self.plan.rank))
            with self._forward():
                loss = self.learner.loss(batch)
            (loss / max(count, 1.0)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        (total,) = self.plan.sum([total])
        return total / max(count, 1.0), int(tokens), int(flops)

    def _refuse(self, loss: float, norm: float, batches: Sequence[Batch]) -> None:
        """Stop before the optimizer sees a number that is none; name the batch, keep the evidence."""
        progress = self.progress
        bad = [
            name
            for name, p in self.learner.model.named_parameters()
            if p.grad is not None and not p.grad.isfinite().all()
        ]
        evidence = {
            "kind": "non-finite",
            "step": progress.step + 1,
            "loss": str(loss),
            "gradient_norm": str(norm),
            "parameters": bad[:20],
            "batches": [dict(batch.describe()) for batch in batches],
        }
        self._record.metrics(evidence)
        raise NonFiniteError(
            f"the {'loss' if not math.isfinite(loss) else 'gradient'} of step {progress.step + 1} is not finite; "
            "the step was not applied",
            received={"loss": loss, "gradient_norm": norm},
            where=evidence["batches"],
            fix="lower train.learning_rate, set train.clip, or look at the rows named in metrics.jsonl",
        )

    def _agree_on_time(self, begun: float) -> None:
        """Set the training clock: that of rank 0, so that all ranks end a budget of minutes on the same step."""
        own = self._clock() - begun if self.plan.rank == 0 else 0.0
        self.progress.seconds = self.plan.sum([own])[0] if self.plan.ranks > 1 else own

    def _asked_to_stop(self) -> bool:
        return self.plan.sum([float(self._stop.requested)])[0] > 0

    def _done(self) -> bool:
        progress = self.progress
        return progress.stopped_early or self.budget.done(progress.step, progress.tokens, progress.seconds)

    def _share(self) -> float:
        progress = self.progress
        return self.budget.progress(progress.step, progress.tokens, progress.seconds)

    def _due_for_evaluation(self) -> bool:
        every = self.recipe.evaluate_every
        if every is None:
            return int(self._share() * EVALUATIONS) > self.progress.evaluations
        return self._due(every, self._evaluated_at)

    def _due_for_checkpoint(self) -> bool:
        return self._due(self.recipe.checkpoint_every, self._saved_at)

    def _due(self, every: Interval, last: float) -> bool:
        if every.steps is not None:
            return self.progress.step % every.steps == 0
        return self.progress.seconds - last >= (every.seconds or math.inf)

    def _log(self, done: Step, took: float) -> None:
        progress = self.progress
        self._record.metrics(
            {
                "kind": "train",
                "step": progress.step,
                "tokens": progress.tokens,
                "epoch": round(self.learner.epoch(progress.step), 4),
                "loss": done.loss,
                "learning_rate": done.rate * self.recipe.learning_rate,
                "gradient_norm": done.norm,
            }
        )
        when = {"step": progress.step, "seconds": progress.seconds, "took": took}
        self._record.timings({"kind": "train", **when, "tokens": done.tokens, "flops": done.flops})
        self._watch(progress, done.loss, self._share())

    def _time(self, kind: str, started: float) -> None:
        took = self._clock() - started
        self._record.timings(
            {"kind": kind, "step": self.progress.step, "seconds": self.progress.seconds, "took": took}
        )


def _seed(*parts: int) -> int:
    """Mix numbers into one seed (splitmix64 steps), so that neighbouring steps draw unrelated numbers."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
