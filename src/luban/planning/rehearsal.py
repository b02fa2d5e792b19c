"""A rehearsal: a few real steps, one evaluation and one checkpoint before a run, to see what they cost.

The run's own loop does it, on the run's own disk, so that what is timed is what will happen; memory that does not
suffice or a disk that refuses shows here and not an hour later. Afterwards the weights are what they were.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luban.durable import DISK, FileSystem
from luban.errors import NonFiniteError, Stopped
from luban.kernels import Library
from luban.machine import peak_rss_bytes
from luban.recipe import BUDGETS, Interval, TrainRecipe
from luban.signals import StopRequest
from luban.tasks.base import Learner
from luban.training.checkpoints import Checkpoints
from luban.training.compiling import Compiling
from luban.training.loop import Loop
from luban.training.parallel import Alone, Plan
from luban.training.precision import forward_in

STEPS, MOST_STEPS, SECONDS = 5, 40, 0.3
"""Steps go on for so many seconds, but for no fewer and no more steps than these: the first ones are slow, and single
short ones wander."""


@dataclass(frozen=True)
class Rehearsal:
    """What the parts of a run cost here.

    Attributes:
        step_seconds, step_tokens, step_flops: one optimizer step; not one of those that are half as large.
        short_share: what share of its operations one of those has: less than half, for attention grows with length.
        evaluation_seconds: one evaluation during training with its samples.
        final_seconds: the evaluation at the end, on all held-out data.
        checkpoint_seconds, checkpoint_bytes: one checkpoint, written and verified.
        peak_bytes: the most memory this process had held when the rehearsal ended.
    """

    step_seconds: float
    step_tokens: int
    step_flops: int
    evaluation_seconds: float
    final_seconds: float
    checkpoint_seconds: float
    checkpoint_bytes: int
    peak_bytes: int
    short_share: float = 0.5


class _Share(Alone):
    """The first of several processes, before the others take part."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks


class _Timings:
    """Keeps what the loop would log."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, Any]] = []

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Forget what the clock has no part in."""

    def timings(self, record: Mapping[str, Any]) -> None:
        """Keep one."""
        self.seen.append(record)

    def sync(self) -> Mapping[str, int]:
        """Return no sizes: nothing is on disk."""
        return {}

    def took(self, kind: str) -> list[float]:
        """Return how long each part of a kind took, in order; nothing where it was never reached."""
        return [float(record["took"]) for record in self.seen if record["kind"] == kind] or [0.0]


def rehearse(
    task: Learner,
    settings: TrainRecipe,
    folder: Path,
    *,
    ranks: int = 1,
    dtype: torch.dtype,
    kernels: Library | None = None,
    stop: StopRequest,
    fs: FileSystem = DISK,
) -> Rehearsal:
    """Run a few steps, an evaluation and a checkpoint, then put the weights back.

    Arguments:
        task: with its model as it will start.
        settings: the run's.
        folder: where the run will keep its checkpoints; what is written there is removed again.
        ranks: how many processes share each batch; this one rehearses its share alone.
        dtype, kernels: what the run computes in, and by.
        stop: a signal ends the rehearsal.

    Raises:
        Stopped: a signal came.
        LubanError: what the run itself would meet: too little memory, a disk that refuses.
    """
    scratch = folder / f".rehearsal.{uuid.uuid4().hex[:8]}.tmp"
    before = {name: tensor.detach().clone() for name, tensor in task.model.state_dict().items()}

    def perform(steps: int, evaluate: Callable[[int], Mapping[str, float]]) -> tuple[_Timings, int]:
        return _perform(task, settings, scratch, _Share(ranks), dtype, kernels, stop, fs, steps, evaluate)

    left_out: list[float] = []

    def evaluate(step: int) -> Mapping[str, float]:
        del step
        started = time.monotonic()
        share = task.rehearse_quick()
        left_out.append((time.monotonic() - started) * (1.0 / share - 1.0))
        task.samples()
        return {"loss": 0.0}

    try:
        timings, checkpoint_bytes = perform(STEPS, evaluate)
        took = timings.took("train")
        steps = min(MOST_STEPS, int(SECONDS / max(statistics.median(took), 1e-9)))
        if steps > STEPS:  # only of steps is more to be learned: what the evaluation costs is known
            took = perform(steps, lambda _: {"loss": 0.0})[0].took("train")
        final_seconds = _final(task, dtype)
    except Stopped as error:
        raise Stopped(f"stopped by {stop.reason} before step 1") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(scratch)
        task.model.load_state_dict(before)
        task.model.zero_grad(set_to_none=True)
    batches = task.batches(task.short_steps, 0, 1)
    short = task.batches(0, 0, 1) if task.short_steps else batches
    step_flops, short_flops = (sum(task.flops(batch) for batch in step) for step in (batches, short))
    return Rehearsal(
        # The first steps allocate what the others reuse, and warm the caches.
        step_seconds=statistics.median(took[len(took) // 2 :]),
        step_tokens=sum(batch.tokens for batch in batches),
        step_flops=step_flops,
        evaluation_seconds=timings.took("evaluation")[-1] + sum(left_out),
        final_seconds=final_seconds,
        checkpoint_seconds=timings.took("checkpoint")[-1],
        checkpoint_bytes=checkpoint_bytes,
        peak_bytes=peak_rss_bytes(),
        short_share=short_flops / max(1, step_flops),
    )


def _perform(
    task: Learner,
    settings: TrainRecipe,
    scratch: Path,
    plan: Plan,
    dtype: torch.dtype,
    kernels: Library | None,
    stop: StopRequest,
    fs: FileSystem,
    steps: int,
    evaluate: Callable[[int], Mapping[str, float]],
) -> tuple[_Timings, int]:
    """Run the loop for so many steps, with one evaluation and one checkpoint at its end."""
    fs.remove(scratch)
    timings = _Timings()
    last = task.short_steps + steps
    never = Interval(steps=last + 1)
    brief = settings.model_copy(
        update={
            **dict.fromkeys(BUDGETS),
            "steps": last,
            "evaluate_every": never,
            "checkpoint_every": never,
            "patience": None,
            "keep_best": False,
            "target": None,
            # Steps too small to leave the neighbourhood: what is learned here is only what a step costs.
            "learning_rate": 1e-9,
        }
    )

    loop = Loop(
        task,
        brief,
        plan=plan,
        evaluate=evaluate,
        minimise=task.minimise,
        checkpoints=Checkpoints(scratch, keep=2, warn=lambda _: None, fs=fs),
        record=timings,
        dtype=dtype,
        kernels=kernels,
        stop=stop,
        compiling=Compiling(task.model, wanted=False, tell=lambda _: None),
    )
    loop.progress.step = task.short_steps
    # A loss that is not finite is met again by the run itself, which then says where and keeps the evidence.
    with contextlib.suppress(NonFiniteError):
        loop.run()
    return timings, sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())


def _final(task: Learner, dtype: torch.dtype) -> float:
    """Return how long the evaluation of all held-out data should take, from its largest batch."""
    task.model.eval()
    device = next(task.model.parameters()).device
    best, forward = float("inf"), forward_in(dtype, device)
    with torch.no_grad(), forward():
        for _ in range(2):
            started = time.monotonic()
            tokens = task.largest_evaluation()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.monotonic() - started)
    task.model.train()
    return best / max(1, tokens) * task.evaluation_tokens()
