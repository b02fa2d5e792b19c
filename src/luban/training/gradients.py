"""The gradient of one step: summed over micro-batches and ranks, the same for every way to split the step's rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luban.errors import OutOfMemory
from luban.kernels import Library
from luban.learner import Batch, Learner
from luban.training.memory import is_out_of_memory, reason
from luban.training.parallel import Plan
from luban.training.precision import Forward

_TINY = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


@dataclass(frozen=True)
class Computed:
    """What came with a gradient: loss per term, tokens and FLOPs over all ranks; this rank's part in detail."""

    loss: float
    tokens: int
    flops: int
    batches: Sequence[Batch]
    losses: Sequence[float]
    """The loss of each micro-batch of this rank, summed over its terms."""


class Gradients:
    """Computes gradients of one learner under one plan.

    Arguments:
        learner: what is learned.
        plan: how a step's rows are divided among processes.
        seed: of every random draw, mixed with step, micro-batch and rank.
        forward: what the forward pass runs in, for instance autocast.
        l1: weight of the penalty; what is minimised is the mean loss per term plus `l1` times the sum of the
            absolute values of all matrices that have a gradient. Vectors are left out, as of weight decay.
        clip: longest gradient; None clips nothing.
        kernels: what adds up the norm where it can.
    """

    def __init__(
        self,
        learner: Learner,
        plan: Plan,
        *,
        seed: int,
        forward: Forward,
        l1: float = 0.0,
        clip: float | None = None,
        kernels: Library | None = None,
    ) -> None:
        self._kernels = kernels
        self._learner, self._plan, self._seed, self._forward = learner, plan, seed, forward
        self._l1, self._clip = l1, clip
        # Kept, as the optimizer keeps them: walking all modules of a deep model costs more than adding up its norm.
        self._parameters = list(learner.model.parameters())

    def batches(self, step: int, size: int | None, rank: int | None = None) -> Sequence[Batch]:
        """Return the micro-batches of a rank, this one when left out, of at most `size` rows."""
        share = (step, self._plan.rank if rank is None else rank, self._plan.ranks)
        return self._learner.batches(*share) if size is None else self._learner.batches(*share, size)

    def try_out(self, step: int, size: int | None) -> None:
        """Run forward and backward of a step on this rank alone; drop the gradients and what norms saw."""
        statistics = [(buffer, buffer.clone()) for buffer in self._learner.model.buffers()]
        try:
            for batch in self.batches(step, size):
                with self._forward():
                    loss = self._learner.loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._learner.model.zero_grad(set_to_none=True)
            for buffer, before in statistics:
                buffer.copy_(before)

    def add(self, step: int, batches: Sequence[Batch]) -> Computed:
        """Add the gradient of the mean loss over all micro-batches of all ranks to this rank's parameters.

        Raises:
            OutOfMemory: on all ranks, when one of them had too little.
        """
        count, tokens, flops = self._plan.sum(
            [
                float(sum(batch.count for batch in batches)),
                float(sum(batch.tokens for batch in batches)),
                float(sum(self._learner.flops(batch) for batch in batches)),
            ]
        )
        found: list[Tensor] = []
        short = None
        try:
            for index, batch in enumerate(batches):
                _seed(mixed(self._seed, step, index, self._plan.rank))
                with self._forward():
                    loss = self._learner.loss(batch)
                (loss / max(count, 1.0)).backward()  # type: ignore[no-untyped-call]
                found.append(loss.detach())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # The error's traceback holds the activations; only its words leave this block.
            short = reason(error)
        # Read after the last micro-batch: at each read a GPU stands still until the next work is asked of it.
        losses: list[float] = []
        total = 0.0
        for loss in found:
            losses.append(float(loss))
            total += losses[-1]
        total, ranks_short = self._plan.sum([total, float(short is not None)])
        if ranks_short:
            raise OutOfMemory(short or "out of memory on another rank")
        return Computed(total / max(count, 1.0), int(tokens), int(flops), batches, losses)

    def combine(self) -> float:
        """Add up the gradients over all ranks, add that of the penalty, and return the 2-norm of the whole.

        The penalty belongs to the step, not to its rows: its subgradient `l1` sign(w), zero at zero, is added once,
        however many micro-batches and ranks there are.
        """
        self._plan.reduce_gradients(self._learner.model)
        if self._l1:
            _add_l1(self._parameters, self._l1)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:
            return 0.0
        if self._kernels is not None and all(map(_is_plain, gradients)):
            return self._kernels.norm(gradients)
        # What nn.utils.get_total_norm does, without sorting the gradients by device and type first.
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))

    def scale(self, norm: float) -> float:
        """Return what to multiply a gradient of that norm by, so that it is no longer than it may be.

        It is for the optimizer, which reads the gradient anyway.
        """
        return 1.0 if self._clip is None or norm <= self._clip else self._clip / (norm + _TINY)

    def suspects(self, step: int, size: int | None, done: Computed) -> list[tuple[Batch, float | None]]:
        """Return the micro-batches of the ranks whose loss is not finite, of all ranks where all are.

        Every rank can say what another computed on, for batches are a pure function; the losses it knows are
        its own.
        """
        plan, own_bad = self._plan, not all(map(math.isfinite, done.losses))
        bad = plan.sum([float(rank == plan.rank and own_bad) for rank in range(plan.ranks)])
        named: list[tuple[Batch, float | None]] = []
        for rank in [rank for rank in range(plan.ranks) if bad[rank]] or range(plan.ranks):
            if rank == plan.rank:
                named += zip(done.batches, done.losses, strict=True)
            else:
                named += [(batch, None) for batch in self.batches(step, size, rank)]
        return named


def _is_plain(gradient: Tensor) -> bool:
    return gradient.dtype == torch.float32 and gradient.device.type == "cpu" and gradient.is_contiguous()


@torch.no_grad()
def _add_l1(parameters: Iterable[nn.Parameter], strength: float) -> None:
    for parameter in parameters:
        if parameter.grad is not None and parameter.ndim >= 2:
            parameter.grad.add_(parameter.sign(), alpha=strength)


def mixed(*parts: int) -> int:
    """Mix numbers into one seed (splitmix64 steps), so that neighbouring steps draw unrelated numbers."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


def _seed(seed: int) -> None:
    """Seed what draws at random in a step; `torch.manual_seed` does the same, but formats a stack trace each time."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
