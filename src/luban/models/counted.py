"""How much work a network does: floating-point operations of its matrix products and convolutions, by running it
on tensors that have a shape and no numbers.

A product of (m, k) and (k, n) counts 2 m n k; masked attention counts every pair; what is no product counts nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


def count_flops(module: nn.Module, *inputs: Any, **named: Any) -> int:
    """Return the floating-point operations of one forward pass, without computing it.

    The module is left as it is, and no weight is copied: its double on the "meta" device has shapes alone.

    Arguments:
        module: its `torch.nn` recurrent layers read tensors with a batch; nothing in it may depend on values.
        inputs, named: what `forward` is called with; of tensors only shape and dtype are looked at.

    Example:
        >>> count_flops(nn.Linear(3, 5), torch.zeros(7, 3))
        210
    """
    double = _on_meta(module)
    inputs, named = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to("meta"), (inputs, named))
    with torch.no_grad(), flop_counter() as counter:
        double(*inputs, **named)
    return int(counter.get_total_flops())


def flop_counter() -> FlopCounterMode:
    """Return torch's counter, knowing also what it leaves out on a CPU: the fused LSTM, and attention's forward pass.

    For counting while something real is computed:

    Example:
        >>> layer = nn.LSTM(3, 5)
        >>> with torch.no_grad(), flop_counter() as counter:
        ...     _ = layer(torch.zeros(2, 1, 3))
        >>> counter.get_total_flops()  # 2 places, 4 gates: 2 * 4 * (3 * 5 + 5 * 5) * 2
        640
    """
    formulas = {
        aten.mkldnn_rnn_layer: _lstm_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _on_meta(module: nn.Module) -> nn.Module:
    """Return a copy of the module with shapes for numbers."""
    doubles: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        doubles[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        doubles[id(buffer)] = torch.empty_like(buffer, device="meta")
    # deepcopy takes what it finds here for already copied.
    double = copy.deepcopy(module, doubles).eval()
    for part in double.modules():
        if isinstance(part, nn.RNNBase):
            part.forward = partial(_recurrent_products, part)
    return double


def _recurrent_products(layer: nn.RNNBase, x: Tensor, _start: Any = None) -> tuple[Tensor, Any]:
    """Stand in for a recurrent layer: its products for all places at once, and results of its shapes.

    On "meta" torch walks through the places one by one, 3 ms each: 6 s for 512 tokens of a small network.
    """
    for weight in layer.parameters():
        if weight.ndim == 2:
            F.linear(x.new_empty(x.shape[0] * x.shape[1], weight.shape[1]), weight)
    directions, shown = 1 + layer.bidirectional, layer.proj_size or layer.hidden_size
    batch = x.shape[0 if layer.batch_first else 1]
    states = x.new_empty(*x.shape[:2], directions * shown)
    last = x.new_empty(directions * layer.num_layers, batch, shown)
    if isinstance(layer, nn.LSTM):
        return states, (last, x.new_empty(directions * layer.num_layers, batch, layer.hidden_size))
    return states, last


def _lstm_flops(x: Sequence[int], weight: Sequence[int], recurrent: Sequence[int], *_: Any, **__: Any) -> int:
    """Products of one layer and direction: x is (length, batch, inputs), weight (4 width, inputs)."""
    length, batch, inputs = x
    return 2 * length * batch * weight[0] * (inputs + recurrent[1])


def _attention_flops(
    queries: Sequence[int], keys: Sequence[int], values: Sequence[int], *_: Any, **__: Any
) -> int:
    """Scores, and mixing the values; each (batch, heads, length, head_dim)."""
    batch, heads, length, head_dim = queries
    return 2 * batch * heads * length * keys[2] * (head_dim + values[3])
