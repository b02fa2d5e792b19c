"""The one loop.

It knows no task: what is learned comes as a `Learner` (a module, the batches of a step, a loss), what is
measured as a callable, what is written as a `Record`. Everything a step does is a pure function of the weights,
the optimizer's state and the step's number: the batch is, and every random draw is seeded by (seed, step,
micro-batch, rank). So a run that was killed and goes on from a checkpoint ends with the same bytes as one that
was not, when its budget is steps or tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from luban.errors import CheckpointError, NonFiniteError, OutOfMemory, Stopped
from luban.kernels import Library
from luban.learner import Batch, Learner
from luban.machine import keep_memory
from luban.recipe import Interval, TrainRecipe, settled
from luban.signals import StopRequest
from luban.training.checkpoints import Checkpoint, Checkpoints
from luban.training.compiling import Compiling
from luban.training.faults import NO_FAULTS, Faults
from luban.training.gradients import Computed, Gradients
from luban.training.memory import bytes_left, memory_errors
from luban.training.nonfinite import NAMED, PATIENCE, SHOWN, evidence, not_finite, number, what_is_not
from luban.training.optimizers import Optimizer, build_optimizer
from luban.training.parallel import Plan
from luban.training.parameters import freeze
from luban.training.precision import forward_in
from luban.training.progress import Progress
from luban.training.record import Record
from luban.training.schedules import Budget, Schedule

EVALUATIONS = 10
"""How many evaluations a run makes that names no interval."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step was, over all ranks: loss per term, gradient norm, learning-rate multiplier, work."""

    loss: float
    norm: float
    rate: float
    tokens: int
    flops: int
    waited: float = 0.0
    """Seconds in which batches were made, and nothing else."""

    @property
    def finite(self) -> bool:
        """Whether the optimizer may see it."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Loop:
    """Train a learner until its budget is spent.

    Arguments:
        learner: what is learned.
        recipe: how.
        plan: which processes take part.
        evaluate: measures the model as it is and returns figures by name; the first one is the one that counts, for
            early stopping, the best checkpoint, the target and the plateau.
        minimise: whether a smaller value of that figure is better.
        checkpoints: where to save.
        record: where to log.
        dtype: what the forward pass and the optimizer's matrix products are computed in.
        kernels: what passes use in place of torch's operations, where the model takes them; of one process also what
            Muon and the gradient's norm use.
        stop: asked at every step boundary.
        compiling: compiles the model before the first step, or leaves it.
        faults: points at which a test makes the process die.
        clock: seconds, monotonic.
        evaluations: how many to spread over the budget where the recipe names no interval.
        watch: told the progress after every step, for the terminal.
        tell: told in one line what the run went on in spite of.
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
        dtype: torch.dtype = torch.float32,
        kernels: Library | None = None,
        stop: StopRequest,
        compiling: Compiling,
        faults: Faults = NO_FAULTS,
        clock: Callable[[], float] = time.monotonic,
        evaluations: int = EVALUATIONS,
        watch: Callable[[Progress, float, float], None] = lambda *_: None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.learner, self.recipe, self.plan = learner, recipe, plan
        self._evaluate, self._minimise = evaluate, minimise
        self.checkpoints, self._record = checkpoints, record
        self._forward = forward_in(dtype, next(learner.model.parameters()).device, kernels)
        self._stop, self.compiling, self._faults = stop, compiling, faults
        self._clock, self._watch, self._tell = clock, watch, tell
        self._evaluations = evaluations
        # Ranks exchange gradients and never weights: what moves these must be the same bits on each, and torch's is so
        # more often than what each machine's compiler made.
        alone = kernels if plan.ranks == 1 else None
        self._gradients = Gradients(
            learner,
            plan,
            seed=recipe.seed,
            forward=self._forward,
            l1=recipe.l1,
            clip=recipe.clip,
            kernels=alone,
        )
        self.schedule = Schedule(recipe)
        self.budget = Budget(recipe, learner.epoch)
        self._frozen_norms = freeze(learner.model, recipe.freeze)
        self.optimizer: Optimizer = build_optimizer(learner.model, recipe, dtype, alone)
        self.progress = Progress()
        self._saved_step, self._saved_at, self._evaluated_at, self._waited = -1, 0.0, 0.0, 0.0
        self._resume = f"luban train --resume {checkpoints.folder.parent}"

    def run(self, checkpoint: Checkpoint | None = None) -> Progress:
        """Train from the beginning, or from a checkpoint, to the end of the budget.

        Raises:
            Stopped: after a checkpoint was written, when somebody asked for a stop.
            NonFiniteError: when a loss, a gradient or a weight is NaN or infinite; nothing of it was applied or
                saved.
            OutOfMemory: when a micro-batch, an evaluation or the optimizer needs more memory than there is.
        """
        keep_memory()
        if checkpoint is None:
            self.plan.start(self.learner.model)
        else:
            self._restore(checkpoint)
        begun = self._clock() - self.progress.seconds
        self._saved_at = self._evaluated_at = self.progress.seconds
        self._train_mode()
        with self._stop.at_once():  # there is nothing to save that is not saved
            self.compiling.prepare(
                self._try_out,
                self._agree_on_compiling,
            )
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
        """Measure the model as it is, note the figures, and draw from them what the recipe says."""
        progress, started = self.progress, self._clock()
        self._faults.reach("evaluate", progress.step, self.plan.rank)
        self.learner.model.eval()
        fix = f"close other programs, then go on: {self._resume}"
        spare = memory_errors(f"measuring the model of step {progress.step}", fix)
        with spare, self.compiling.paused(), torch.no_grad(), self._forward():
            figures = self._evaluate(progress.step)
        self._train_mode()
        self._evaluated_at = progress.seconds
        value = next(iter(figures.values()))
        if not math.isfinite(value):
            self._tell(
                f"the evaluation of step {progress.step} is not finite: {next(iter(figures))} is {value}"
            )
        where = {"kind": "evaluation", "step": progress.step, "tokens": progress.tokens}
        self._record.metrics({**where, **{name: number(figure) for name, figure in figures.items()}})
        self._time("evaluation", started)
        if self.plan.ranks > 1:  # what ranks measured may differ in the last bits, and they must do the same
            (value,) = self.plan.sum([value if self.plan.rank == 0 else 0.0])
        progress.judge(value, self.recipe, minimise=self._minimise)
        progress.plateau = self.schedule.after(progress.plateau, progress.worse)
        if self.recipe.keeps_best and progress.best_step == progress.step:
            self.save()
        return figures

    def save(self, *, again: bool = False) -> None:
        """Write a checkpoint of where the run stands, unless this step has one, or `again` in its place.

        Raises:
            NonFiniteError: when the weights or the optimizer's state are not finite; nothing was written.
        """
        progress, started = self.progress, self._clock()
        if progress.step == self._saved_step and not again:
            return
        self._faults.reach("before-save", progress.step, self.plan.rank)
        tensors, scalars = self.optimizer.state()
        self._check_finite(tensors)
        if self.plan.rank == 0:
            progress.logs = dict(self._record.sync())
            state = {"progress": asdict(progress), "optimizer": scalars, "compile": self.compiling.state()}
            best = progress.best_step if self.recipe.keeps_best else None
            model = self.learner.model.state_dict()
            self.checkpoints.save(Checkpoint(progress.step, model, tensors, state), best=best)
            self._time("checkpoint", started)
        self.plan.wait()
        self._saved_step, self._saved_at = progress.step, progress.seconds
        self._faults.reach("after-save", progress.step, self.plan.rank)

    def _try_out(self) -> None:
        """Run forward and backward of a step of each size that is still to come."""
        step, whole = self.progress.step, self.learner.short_steps
        for at in (step, whole) if step < whole else (step,):
            self._gradients.try_out(at, self.progress.micro_batch)

    def _train_mode(self) -> None:
        self.learner.model.train()
        for norm in self._frozen_norms:
            norm.eval()

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            self.learner.model.load_state_dict(dict(checkpoint.model))
            self.optimizer.load_state(dict(checkpoint.optimizer), dict(checkpoint.state["optimizer"]))
            self.compiling.load_state(checkpoint.state["compile"])
            self.progress = Progress(**checkpoint.state["progress"])
        except (CheckpointError, KeyError, TypeError, ValueError, RuntimeError) as error:
            where = self.checkpoints.path(checkpoint.step)
            message = f"the checkpoint of step {checkpoint.step} is not of this run: {error}"
            raise CheckpointError(message, where=where) from error
        self._saved_step = checkpoint.step

    def _check_finite(self, optimizer: Mapping[str, Tensor]) -> None:
        """Refuse to save what no run could go on from."""
        held = {**self.learner.model.state_dict(), **optimizer}
        bad = not_finite(held.items()) if self.plan.rank == 0 else []
        if self.plan.sum([float(len(bad))])[0] == 0:
            return
        step, before = self.progress.step, self.checkpoints.steps()
        kept = f"that of step {before[-1]} stands" if before else "there is none before"
        raise NonFiniteError(
            f"weights or optimizer state are not finite after step {step}; no checkpoint was written, {kept}",
            received=bad[:NAMED],
            where=f"step {step}",
            fix="start again with a lower train.learning_rate",
        )

    def _step(self) -> Step:
        """One optimizer step, or none where its loss or gradient is not finite and the recipe says to skip."""
        progress = self.progress
        computed = self._compute()
        self._faults.reach("gradients", progress.step, self.plan.rank)
        norm = self._gradients.combine()
        rate = self.schedule.rate(self._share()) * progress.plateau
        done = Step(computed.loss, norm, rate, computed.tokens, computed.flops, self._waited)
        if done.finite:
            self._faults.reach("before-optimizer", progress.step, self.plan.rank)
            self.optimizer.set_rate(rate)
            fix = f"close other programs, then go on: {self._resume}; or train a smaller model"
            with memory_errors(f"the optimizer applied step {progress.step + 1}", fix):
                self.optimizer.step(self._gradients.scale(norm))
            progress.skipped_in_a_row = 0
        else:
            self._refuse(done, computed)
        self.optimizer.zero_grad()
        progress.step += 1
        progress.tokens += done.tokens
        progress.flops += done.flops
        return done

    def _compute(self) -> Computed:
        """Compute the gradient of the step to come, in smaller micro-batches where the recipe says so."""
        while True:
            asked = self._clock()
            batches = self._gradients.batches(self.progress.step, self.progress.micro_batch)
            self._waited = self._clock() - asked
            try:
                return self._gradients.add(self.progress.step, batches)
            except OutOfMemory as error:
                short = error.message
            self._halve(short, batches)

    def _halve(self, short: str, batches: Sequence[Batch]) -> None:
        """Go over to micro-batches of half as many rows, kept in a checkpoint, or end the run with advice.

        The checkpoint is written before the step is done again: a run that is killed from here on goes on in
        the same micro-batches, and so to the same bytes.
        """
        progress = self.progress
        self.learner.model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        largest = max(batches, key=lambda batch: batch.rows, default=None)
        own = [float(largest.rows), float(largest.tokens // largest.rows)] if largest else [0.0, 0.0]
        rows, length = (int(n) for n in self.plan.sum(own if self.plan.rank == 0 else [0.0, 0.0]))
        tried = f"micro-batches of {rows} x {length} tokens ({bytes_left():,} bytes free)"
        half = rows // 2
        if half and self.recipe.on_out_of_memory == "halve":
            progress.micro_batch = half
            self._record.metrics({"kind": "out-of-memory", "step": progress.step + 1, "micro_batch": half})
            self._tell(
                f"out of memory at step {progress.step + 1} in {tried}; goes on with {half}: the same gradient up "
                "to rounding and what dropout draws"
            )
            self.save(again=True)
            return
        smaller = f"train.micro_batch={half}" if half else "a smaller data.length or model"
        raise OutOfMemory(
            f"out of memory at step {progress.step + 1} in {tried}; the step was not applied",
            received=short,
            where=f"step {progress.step + 1}, rank {self.plan.rank}",
            fix=f"start again with {smaller}{', or train.on_out_of_memory=halve' if half else ''}; or close other "
            f"programs and go on: {self._resume}",
        )

    def _refuse(self, done: Step, computed: Computed) -> None:
        """Note a step that is not finite before the optimizer sees it, and end the run unless it may be skipped."""
        progress = self.progress
        named = self._gradients.suspects(progress.step, progress.micro_batch, computed)
        found = evidence(progress.step + 1, done.loss, done.norm, self.learner.model, named)
        self._record.metrics(found)
        what = f"the {what_is_not(found)} of step {progress.step + 1} is not finite; the step was not applied"
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        where = json.dumps(found["batches"], ensure_ascii=False)
        where = where if len(where) <= SHOWN else where[:SHOWN] + "..."
        self._tell(f"{what}: {where}")
        fix = "lower train.learning_rate, set train.clip, or look at the rows named in metrics.jsonl"
        if self.recipe.on_nonfinite == "stop":
            fix += "; train.on_nonfinite=skip leaves such steps out"
        elif progress.skipped_in_a_row >= PATIENCE:
            what += f", nor were the {PATIENCE - 1} before it"
        elif not found["weights"]:
            return
        received = {"loss": done.loss, "gradient_norm": done.norm}
        raise NonFiniteError(what, received=received, where=where, fix=fix)

    def _agree_on_compiling(self, failed: bool) -> bool:
        """Say whether compiling failed on any rank; a signal to one of them stops all."""
        failures, stops = self.plan.sum([float(failed), float(self._stop.requested)])
        if stops:
            why = self._stop.reason or "another rank"
            raise Stopped(f"stopped by {why} while compiling, at step {self.progress.step}; nothing was lost")
        return failures > 0

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
            return int(self._share() * self._evaluations) > self.progress.evaluations
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
                "loss": number(done.loss),
                "learning_rate": done.rate * settled(self.recipe.learning_rate, "train.learning_rate"),
                "gradient_norm": number(done.norm),
                **({} if done.finite else {"skipped": True}),
            }
        )
        when = {"step": progress.step, "seconds": progress.seconds, "took": took, "waited": done.waited}
        self._record.timings({"kind": "train", **when, "tokens": done.tokens, "flops": done.flops})
        self._watch(progress, done.loss, self._share())

    def _time(self, kind: str, started: float) -> None:
        took = self._clock() - started
        self._record.timings(
            {"kind": kind, "step": self.progress.step, "seconds": self.progress.seconds, "took": took}
        )


__all__: Sequence[str] = ["EVALUATIONS", "Loop", "Progress", "Step"]
