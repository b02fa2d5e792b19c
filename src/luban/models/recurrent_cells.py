"""Recurrent cells over a whole text: torch's fused kernels, and the same recurrences written out for export.

A state is a tuple of (batch, width): `(hidden,)` of an Elman network and a GRU, `(hidden, cell)` of an LSTM. Gates
are stacked in torch's order: input, forget, candidate, output of an LSTM; reset, update, candidate of a GRU.

Elman, "Finding Structure in Time", Cognitive Science 14, 1990; Hochreiter and Schmidhuber, "Long Short-Term Memory",
Neural Computation 9, 1997; Cho et al., https://arxiv.org/abs/1406.1078 (with the reset gate behind the recurrent
matrix, as cuDNN has it)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELLS: dict[str, type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]] = {
    "rnn": nn.RNN,
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}

State = tuple[Tensor, ...]


class RecurrentLayer(nn.Module):
    """One layer of one direction.

    Initial weights, gate by gate: matrices on the input Xavier uniform; recurrent matrices orthogonal (Saxe et al.,
    https://arxiv.org/abs/1312.6120); biases zero, but 1 for the LSTM's forget gate (Jozefowicz et al., ICML 2015).

    Arguments:
        cell: rnn, lstm or gru.
        inputs: dimensions of what is read. width: dimensions of the state.

    Example:
        >>> states, (hidden,) = RecurrentLayer("gru", 3, 4)(torch.zeros(2, 5, 3))
        >>> states.shape, hidden.shape
        (torch.Size([2, 5, 4]), torch.Size([2, 4]))
    """

    def __init__(self, cell: str, inputs: int, width: int) -> None:
        super().__init__()
        self.kernel = CELLS[cell](inputs, width, batch_first=True)
        taking, recurrent, bias, second_bias = self.kernel.parameters()
        with torch.no_grad():
            for gate in torch.split(taking, width):
                nn.init.xavier_uniform_(gate)
            for gate in torch.split(recurrent, width):
                nn.init.orthogonal_(gate)
            bias.zero_()
            second_bias.zero_()
            if cell == "lstm":
                bias[width : 2 * width] = 1.0

    def forward(self, x: Tensor, start: State | None = None) -> tuple[Tensor, State]:
        """Read a text from its first place to its last.

        Arguments:
            x: (batch, length, inputs).
            start: the state before the text, each (batch, width); None is zero.

        Returns:
            the hidden state after each place, (batch, length, width), and the state after the last.
        """
        if torch.compiler.is_exporting() and isinstance(self.kernel, nn.RNN):
            # ONNX has operators for LSTM and GRU; of this cell torch.export would unroll the kernel and so fix the
            # length, and a scan keeps it free.
            return self._scanned(x, start)
        if start is None:
            states, last = self.kernel(x)
        elif len(start) == 2:
            states, last = self.kernel(x, (start[0][None], start[1][None]))
        else:
            states, last = self.kernel(x, start[0][None])
        return states, tuple(part[0] for part in (last if isinstance(last, tuple) else (last,)))

    def _scanned(self, x: Tensor, start: State | None) -> tuple[Tensor, State]:
        from torch._higher_order_ops.scan import scan  # torch's prototype; export to ONNX knows it as Scan

        step = _STEPS[type(self.kernel)]
        taking, recurrent, bias, second_bias = self.kernel.parameters()
        if start is None:
            zero = x.new_zeros(x.shape[0], self.kernel.hidden_size)
            start = (zero, zero.clone()) if isinstance(self.kernel, nn.LSTM) else (zero,)
        # What the input says to the gates needs no state: one product for all places.
        said = F.linear(x, taking, bias).transpose(0, 1)  # (length, batch, gates * width)

        def advance(state: State, inputs: Tensor) -> tuple[State, Tensor]:
            state = step(inputs, F.linear(state[0], recurrent, second_bias), state)
            return state, state[0].clone()  # a scan may not return one tensor twice

        last, states = scan(advance, start, said)
        return states.transpose(0, 1), tuple(last)


def _rnn_step(inputs: Tensor, recurrent: Tensor, state: State) -> State:
    """h' = tanh(W x + U h)."""
    del state
    return (torch.tanh(inputs + recurrent),)


def _lstm_step(inputs: Tensor, recurrent: Tensor, state: State) -> State:
    """c' = f c + i g; h' = o tanh(c')."""
    taken, kept, candidate, shown = (inputs + recurrent).chunk(4, dim=-1)
    cell = torch.sigmoid(kept) * state[1] + torch.sigmoid(taken) * torch.tanh(candidate)
    return torch.sigmoid(shown) * torch.tanh(cell), cell


def _gru_step(inputs: Tensor, recurrent: Tensor, state: State) -> State:
    """h' = (1 - z) n + z h, with n = tanh(W x + r (U h))."""
    reset, kept, candidate = inputs.chunk(3, dim=-1)
    reset_h, kept_h, candidate_h = recurrent.chunk(3, dim=-1)
    new = torch.tanh(candidate + torch.sigmoid(reset + reset_h) * candidate_h)
    share = torch.sigmoid(kept + kept_h)
    return ((1.0 - share) * new + share * state[0],)


_STEPS: dict[type[Any], Callable[[Tensor, Tensor, State], State]] = {
    nn.RNN: _rnn_step,
    nn.LSTM: _lstm_step,
    nn.GRU: _gru_step,
}
