"""Whether a file says what the network says: the same batches through both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from luban.errors import InputError
from luban.exporting.onnx_module import OnnxModule


@dataclass(frozen=True)
class Parity:
    """How far a file is from its network.

    Arguments:
        max_abs: the largest difference of two numbers; infinite where only one is finite or a number.
        max_rel: the largest difference within an output of a batch, as a share of that output's largest number.
        agree: share of rows whose largest number stands at the same place, over outputs of two and more axes with
            more than one number to a row; of whole numbers, share that is equal. None where there is neither.
    """

    max_abs: float
    max_rel: float
    agree: float | None


def parity(module: nn.Module, onnx_module: OnnxModule, batches: Iterable[Mapping[str, Tensor]]) -> Parity:
    """Compare a network in evaluation mode with the file written from it.

    Arguments:
        batches: arguments of `forward` by name; give sizes other than those of the example too.

    Raises:
        InputError: no batch, or outputs that differ in number, shape or dtype.
    """
    max_abs = max_rel = 0.0
    same = rows = compared = 0
    for batch in batches:
        found = onnx_module(**{name: tensor.detach().cpu().numpy() for name, tensor in batch.items()})
        expected = _outputs(module, batch)
        if len(expected) != len(found):
            raise InputError(
                "network and file return different numbers of outputs", received=(len(expected), len(found))
            )
        for (name, ours), theirs in zip(found.items(), expected, strict=True):
            if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                received = f"{ours.dtype} {ours.shape}, network: {theirs.dtype} {theirs.shape}"
                raise InputError(f"output {name} of the file is of another kind", received=received)
            compared += 1
            difference, largest = _difference(ours, theirs)
            max_abs = max(max_abs, difference)
            if difference:
                max_rel = max(max_rel, difference / largest if largest else np.inf)
            equal = _equal_choices(ours, theirs)
            same, rows = same + int(equal.sum()), rows + equal.size
    if not compared:
        raise InputError("there is nothing to compare the file on", received=0, fix="give at least one batch")
    return Parity(max_abs, max_rel, same / rows if rows else None)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` in evaluation mode for the block; afterwards each part is in the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _outputs(module: nn.Module, batch: Mapping[str, Tensor]) -> list[NDArray[Any]]:
    with evaluating(module), torch.no_grad():
        answer = module(**batch)
    tensors = (answer,) if isinstance(answer, Tensor) else tuple(answer)
    return [tensor.cpu().numpy() for tensor in tensors]


def _difference(ours: NDArray[Any], theirs: NDArray[Any]) -> tuple[float, float]:
    """Return the largest difference, and the largest finite number of `theirs`, both in float64."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    alike = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))  # equal infinities are alike too
    with np.errstate(invalid="ignore"):
        differences = np.where(alike, 0.0, np.abs(ours - theirs))
    largest = np.max(np.abs(theirs), initial=0.0, where=np.isfinite(theirs))
    return float(np.max(np.nan_to_num(differences, nan=np.inf, posinf=np.inf), initial=0.0)), float(largest)


def _equal_choices(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.bool_]:
    if ours.dtype.kind != "f":
        return np.asarray(ours == theirs)
    if ours.ndim < 2 or ours.shape[-1] < 2:
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(ours.argmax(-1) == theirs.argmax(-1))
