"""Which processes train together, and what they must agree on.

A plan says how a step's batch is divided and how gradients come together. `Alone` is one process;
`DataParallel` is one process per rank under `torchrun`, each with the whole model and a share of every batch.
The loop knows only the methods below, so that a plan which shards parameters can stand beside these.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from luban.errors import LubanError, Stopped

PATIENCE = datetime.timedelta(days=7)
"""How long a rank waits for the others: the first prepares data and evaluates alone, which may take hours."""


class Plan(Protocol):
    """What the loop asks of the processes."""

    rank: int
    ranks: int

    def start(self, model: nn.Module) -> None:
        """Make all ranks begin with the weights of rank 0."""

    def sum(self, values: Iterable[float]) -> list[float]:
        """Add up numbers over all ranks, in float64."""

    def reduce_gradients(self, model: nn.Module) -> None:
        """Add up the gradients over all ranks, in place."""

    def wait(self) -> None:
        """Go on only when every rank is here.

        Raises:
            Stopped: another rank left, because a signal stopped it.
            LubanError: another rank left with an error.
        """

    def leave(self, *, stopped: bool) -> None:
        """Tell the ranks that wait, or will wait next, that this one does not come: by a signal, or an error."""

    def close(self) -> None:
        """Leave the group."""


class Alone:
    """One process has the whole batch."""

    rank, ranks = 0, 1

    def start(self, model: nn.Module) -> None:
        """Do nothing: there is nobody to agree with."""

    def sum(self, values: Iterable[float]) -> list[float]:
        """Return the values."""
        return list(values)

    def reduce_gradients(self, model: nn.Module) -> None:
        """Do nothing: the gradients are whole."""

    def wait(self) -> None:
        """Do nothing."""

    def leave(self, *, stopped: bool) -> None:
        """Do nothing: nobody waits."""

    def close(self) -> None:
        """Do nothing."""


class DataParallel:
    """Every rank has the whole model and a share of each batch; gradients are sums: shares may be unequal."""

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if self._device.type == "cuda" else "gloo", timeout=PATIENCE)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._left = False

    def start(self, model: nn.Module) -> None:
        """Send the weights of rank 0 to all."""
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)

    def sum(self, values: Iterable[float]) -> list[float]:
        """Add up over ranks; every rank gets the same answer."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def reduce_gradients(self, model: nn.Module) -> None:
        """One all-reduce over one flat buffer: few messages, whatever the number of parameters."""
        gradients: list[Tensor] = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                # A rank whose share is empty has no gradients, yet must send as many numbers as the others.
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        begin = 0
        for gradient in gradients:
            gradient.copy_(flat[begin : begin + gradient.numel()].view_as(gradient))
            begin += gradient.numel()

    def wait(self) -> None:
        """Meet at a sum, in which a rank that leaves says so."""
        stopped, failed = self.sum([0.0, 0.0])
        self._left = bool(stopped or failed)
        if failed:
            raise LubanError("another rank ended with an error; its own message says which")
        if stopped:
            raise Stopped("stopped by another rank")

    def leave(self, *, stopped: bool) -> None:
        """Take part in the sum that the others wait at; when another left first, they are gone."""
        if not self._left:
            self._left = True
            self.sum([float(stopped), float(not stopped)])

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()


@contextlib.contextmanager
def together(plan: Plan) -> Iterator[None]:
    """Let the other ranks end too when this one does within the block, instead of waiting for it for days.

    For work of one rank that the others wait for: nothing but `wait` may come between them within the block.
    """
    try:
        yield
    except Exception as error:
        plan.leave(stopped=isinstance(error, Stopped))
        raise


def plan_from_environment() -> Plan:
    """Return `DataParallel` under `torchrun` with several processes, else `Alone`."""
    return DataParallel() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone()
