"""What a forward pass is computed in, the dtype by autocast, and by what: kernels or torch's own operations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from luban.errors import InputError
from luban.kernels import Library
from luban.models.fused import using

Forward = Callable[[], contextlib.AbstractContextManager[Any]]


def dtype_named(name: str) -> torch.dtype:
    """Return the dtype that plan.json names.

    Raises:
        InputError: for another than float32 and bfloat16.

    Example:
        >>> dtype_named("bfloat16")
        torch.bfloat16
    """
    found = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(name)
    if found is None:
        raise InputError("no such dtype", received=name, fix="float32 or bfloat16")
    return found


def forward_in(dtype: torch.dtype, device: torch.device, kernels: Library | None = None) -> Forward:
    """Return the context in which a forward pass runs at that dtype; weights and their gradients stay float32.

    Arguments:
        kernels: what a model that takes kernels uses while it trains.
    """

    @contextlib.contextmanager
    def forward() -> Iterator[None]:
        with (
            using(kernels),
            torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext(),
        ):
            yield

    return forward
