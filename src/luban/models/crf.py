"""The linear-chain conditional random field: labels are chosen together, each with its neighbour in view.

A labelling y of a text scores s(y) = start[y_1] + sum emission[t, y_t] + sum transition[y_(t-1), y_t] + end[y_last],
and its probability is exp(s(y)) divided by the sum of exp(s) over all labellings.

Lafferty, McCallum and Pereira, "Conditional Random Fields", ICML 2001; over a network's outputs: Lample et al.,
https://arxiv.org/abs/1603.01360
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luban.errors import InputError

# A step that may not be taken costs this many nats: its probability is an exact zero in float32, and unlike infinity
# it leaves finite gradients where a text's own labels take it.
FORBIDDEN = -10_000.0


class Crf(nn.Module):
    """Scores of first labels, of neighbours and of last labels, and what follows from them for a text.

    Everywhere `emissions` is (batch, length, labels), what a network says of each token by itself; `mask` is (batch,
    length) bool, tokens first and padding behind them, with at least one token in each row; `labels` is (batch,
    length) int64, where what stands at padding is not looked at. Half precision is raised to
    float32. Time grows with length x labels^2.

    Initial weights: zero, so that labels are independent at first.

    Arguments:
        labels: how many there are.
        forbidden: (labels, labels) bool, True where the row's label may not be followed by the column's.
        forbidden_first, forbidden_last: (labels,) bool, labels that may not be first, or last.

    Raises:
        InputError: when what is forbidden has another shape.

    Example:
        >>> crf = Crf(2, forbidden=torch.tensor([[False, True], [False, False]]))
        >>> emissions = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
        >>> crf.decode(emissions, torch.tensor([[True, True]]))  # 0 then 1 would be best, and is forbidden
        (tensor([[0, 0]]), tensor([2.], ...))
    """

    forbidden: Tensor
    forbidden_first: Tensor
    forbidden_last: Tensor

    def __init__(
        self,
        labels: int,
        *,
        forbidden: Tensor | None = None,
        forbidden_first: Tensor | None = None,
        forbidden_last: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(labels, labels))
        self.first = nn.Parameter(torch.zeros(labels))
        self.last = nn.Parameter(torch.zeros(labels))
        given = {
            "forbidden": (forbidden, self.transitions),
            "forbidden_first": (forbidden_first, self.first),
            "forbidden_last": (forbidden_last, self.last),
        }
        for name, (matrix, scores) in given.items():
            if matrix is not None and matrix.shape != scores.shape:
                raise InputError(f"{name} must be {tuple(scores.shape)}", received=tuple(matrix.shape))
            none = torch.zeros_like(scores, dtype=torch.bool)
            # It follows from the labels' names, so it is no part of a checkpoint.
            self.register_buffer(name, none if matrix is None else matrix.bool(), persistent=False)

    def forward(self, emissions: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the negative log-likelihood of each row's labels, in nats: (batch,)."""
        return self.log_partition(emissions, mask) - self.score(emissions, labels, mask)

    def score(self, emissions: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the score of each row's labels: (batch,)."""
        first, transitions, last = self._scores(emissions)
        labels = labels * mask
        emitted = _wide(emissions).gather(2, labels[..., None]).squeeze(2)  # (batch, length)
        steps = transitions[labels[:, :-1], labels[:, 1:]]  # (batch, length - 1)
        ends = labels.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)  # (batch,)
        inside = (emitted * mask).sum(1) + (steps * mask[:, 1:]).sum(1)
        return first[labels[:, 0]] + inside + last[ends]

    def log_partition(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Return the logarithm of the sum of exp(score) over all labellings: (batch,)."""
        _, _, last = self._scores(emissions)
        return torch.logsumexp(self._forward(emissions, mask)[-1] + last, dim=1)

    def marginals(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Return the probability of each label at each token: (batch, length, labels); zero at padding."""
        _, transitions, last = self._scores(emissions)
        wide = _wide(emissions)
        before = torch.stack(self._forward(emissions, mask), dim=1)  # (batch, length, labels)
        after = [last.expand_as(wide[:, 0])]
        for place in range(emissions.shape[1] - 1, 0, -1):
            ahead = (wide[:, place] + after[-1])[:, None]  # (batch, 1, labels)
            step = torch.logsumexp(transitions + ahead, dim=2)
            after.append(torch.where(mask[:, place, None], step, after[-1]))
        joint = before + torch.stack(after[::-1], dim=1)
        return joint.softmax(2) * mask[..., None]

    def decode(self, emissions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's best labels, (batch, length) with 0 at padding, and their scores, (batch,).

        Viterbi, "Error bounds for convolutional codes", IEEE Transactions on Information Theory 13, 1967.
        """
        first, transitions, last = self._scores(emissions)
        wide = _wide(emissions)
        same = torch.arange(emissions.shape[2], device=emissions.device).expand_as(wide[:, 0])
        best = first + wide[:, 0]  # (batch, labels): of the best labelling that ends in each label
        origins = []
        for place in range(1, emissions.shape[1]):
            reached, origin = (best[:, :, None] + transitions).max(1)  # (batch, labels)
            real = mask[:, place, None]
            best = torch.where(real, reached + wide[:, place], best)
            origins.append(torch.where(real, origin, same))
        score, label = (best + last).max(1)
        chosen = [label]
        for origin in reversed(origins):
            chosen.append(origin.gather(1, chosen[-1][:, None]).squeeze(1))
        return torch.stack(chosen[::-1], dim=1) * mask, score

    def _forward(self, emissions: Tensor, mask: Tensor) -> list[Tensor]:
        """Return for each place the log-sum over all labellings up to it that end in each label: (batch, labels)."""
        first, transitions, _ = self._scores(emissions)
        wide = _wide(emissions)
        sums = [first + wide[:, 0]]
        for place in range(1, emissions.shape[1]):
            step = torch.logsumexp(sums[-1][:, :, None] + transitions, dim=1) + wide[:, place]
            sums.append(torch.where(mask[:, place, None], step, sums[-1]))
        return sums

    def _scores(self, emissions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _wide(emissions[:, :0]).dtype
        first = self.first.to(dtype).masked_fill(self.forbidden_first, FORBIDDEN)
        transitions = self.transitions.to(dtype).masked_fill(self.forbidden, FORBIDDEN)
        return first, transitions, self.last.to(dtype).masked_fill(self.forbidden_last, FORBIDDEN)


def _wide(x: Tensor) -> Tensor:
    """At least float32: sums of exponentials over a text need the digits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
