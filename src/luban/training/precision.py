"""What is computed in the dtype of a run: the forward pass by autocast, and the optimizer's products."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from luban.errors import InputError

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


def forward_in(dtype: torch.dtype, device: torch.device) -> Forward:
    """Return the context in which a forward pass runs at that dtype; weights and their gradients stay float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype)
