"""How much work a network does: floating-point operations of its matrix products and convolutions, counted while it
runs.

A product of (m, k) and (k, n) counts 2 m n k; masked attention counts every pair; what is no product counts nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def count_flops(module: nn.Module, *inputs: Any, **named: Any) -> int:
    """Return the floating-point operations of one forward pass, by running it once, in evaluation mode.

    The module is left as it is, and no weight is copied. Where the work is the same for every row, count that of one
    and multiply.

    Arguments:
        inputs, named: what `forward` is called with.

    Example:
        >>> count_flops(nn.Linear(3, 5), torch.zeros(7, 3))
        210
    """
    # deepcopy takes what it finds here for already copied. What was compiled is not copied with a module.
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    double = copy.deepcopy(module, shared).eval()
    with torch.no_grad(), FlopCounter() as counter:
        double(*inputs, **named)
    flops: int = counter.flops
    return flops


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is computed within it, by torch's formulas and some that torch leaves out on a CPU: the fused LSTM,
    and attention's forward pass.

    `torch.utils.flop_counter.FlopCounterMode` does so too, but imports the compiler: two seconds, and 100 MB.

    Attributes:
        flops: floating-point operations so far.

    Example:
        >>> layer = nn.LSTM(3, 5)
        >>> with torch.no_grad(), FlopCounter() as counter:
        ...     _ = layer(torch.zeros(2, 1, 3))
        >>> counter.flops  # 2 places, 4 gates: 2 * 4 * (3 * 5 + 5 * 5) * 2
        640
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0
        self._formulas = {**flop_registry, **_FORMULAS}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing need be hidden from the compiler, which would be imported to do so."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute, and count."""
        del types
        named = kwargs or {}
        out = func(*args, **named)
        if formula := self._formulas.get(func.overloadpacket):
            self.flops += formula(*args, **named, out_val=out)
        return out


def _lstm_flops(x: Tensor, weight: Tensor, recurrent: Tensor, *_: Any, **__: Any) -> int:
    """Products of one layer and direction: x is (length, batch, inputs), weight (4 width, inputs)."""
    length, batch, inputs = x.shape
    return 2 * length * batch * len(weight) * (inputs + recurrent.shape[1])


def _attention_flops(queries: Tensor, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> int:
    """Scores, and mixing the values; each (batch, heads, length, head_dim)."""
    batch, heads, length, head_dim = queries.shape
    return 2 * batch * heads * length * keys.shape[2] * (head_dim + values.shape[3])


_FORMULAS: dict[Any, Any] = {
    aten.mkldnn_rnn_layer: _lstm_flops,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
