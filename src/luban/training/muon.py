"""Muon: momentum whose update is made orthogonal, for the matrices of hidden layers.

Notable here:
- Matrices of one shape are stacked and go through one batched iteration; the momentum lives stacked.
- Nothing is transposed: a tall matrix is multiplied from the right, a wide one from the left.
- A matrix with one side more than 1.5 times the other iterates on its small Gram matrix, in float32.
- On a CPU with products of bfloat16 a kernel (luban.kernels) does a matrix's whole step, in one core's cache and
  without the half of what is symmetric.
- Products may be in bfloat16, four times as fast where the processor has it; momentum and weights stay float32.
- The spectral norm is bounded through the square of the Gram matrix, which the first iteration needs anyway.
  That bound is tighter than the Frobenius norm: 1.4 to 2.9 times for momenta met in training, 6 times for 128
  equal singular values. So four iterations do what took five.

Sources: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); J. Liu et al.,
"Muon is scalable for LLM training" (2025) for the size of the update; N. Amsel et al., "The Polar Express:
optimal matrix sign methods and their application to the Muon algorithm" (2025) for coefficients that differ
from iteration to iteration.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luban.kernels import MOST_ITERATIONS, Library, Moving
from luban.training.update_rules import UpdateRule

Coefficients = Sequence[tuple[float, float, float]]

JORDAN: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
"""Jordan's quintic, five times: singular values end between 0.68 and 1.2, not at one."""

POLAR_EXPRESS: Coefficients = (
    (8.287212018145624, -23.595886519098840, 17.300387312530934),
    (4.107059111542200, -2.947849916737910, 0.544843108292660),
    (3.948690853482294, -2.908902115962946, 0.551819139437013),
    (3.318419657370600, -2.488488024314874, 0.510048940123720),
    (2.300652019954818, -1.668903984574749, 0.418807311952567),
)
"""The paper's coefficients: the best five quintics for singular values from 0.001 to 1."""

DEFAULT: Coefficients = (
    (7.989363214222508, -22.747832123744796, 16.678598023544325),
    (3.643418147795087, -2.7268652746987327, 0.5371078953570538),
    (2.6712664799600754, -1.9853154429743882, 0.4535225171407155),
    (1.9588931234180302, -1.340357422394005, 0.38414421998328446),
)
"""The paper's algorithm for four quintics and singular values from 0.01 to 1; see benchmarks/LOG.md."""

_GRAM_PAYS = 1.5
_TINY = 1e-30
_LEAST_BOUND = 1e-6
_SLACK = 1.02
_RMS, _USUAL = 0.2, 0.02
"""Root mean square of AdamW's updates at rate one, and of a weight as networks begin with it."""


def orthogonalise(matrices: Tensor, coefficients: Coefficients, *, frobenius: bool = False) -> Tensor:
    """Return each matrix with its singular values moved towards one: U S V' becomes nearly U V'.

    One iteration is X <- a X + b (X X') X + c (X X')^2 X. Where the short side is under two thirds of the
    long one the product of all iterations is built on the Gram matrix A = X X' (they commute): P <- (a + b A
    + c A^2) P, and P meets X once. That costs 2 r + 4 k - 3 products of the short side's cube instead of k (2
    r + 1), for k iterations and sides in the ratio r. In bfloat16 that product loses the small singular values, so
    the matrix itself is iterated, and every iteration leaves two percent of room for what rounding adds.

    Arguments:
        matrices: (batch, rows, columns), in the dtype of the products; not altered. A zero matrix stays zero.
        coefficients: (a, b, c) of every iteration.
        frobenius: divide by the Frobenius norm first, as the papers do, instead of the tighter bound
            (sum of the eighth powers of the singular values) ** (1/8).

    Example:
        >>> x = torch.diag(torch.tensor([1.0, 0.5, 0.1])).unsqueeze(0)
        >>> orthogonalise(x, POLAR_EXPRESS)[0].diagonal().sub(1).abs().max().item() < 0.13
        True
    """
    _, rows, columns = matrices.shape
    wide, narrow = rows <= columns, matrices.dtype == torch.bfloat16
    slack = _SLACK if narrow else 1.0
    gram = torch.bmm(matrices, matrices.mT) if wide else torch.bmm(matrices.mT, matrices)
    trace = _wide(gram.diagonal(dim1=1, dim2=2)).sum(1).clamp_min_(_TINY).view(-1, 1, 1)
    gram = gram.div_(trace)
    square = torch.bmm(gram, gram)
    bound = torch.ones_like(trace)
    if not frobenius:
        bound = _wide(square).flatten(1).norm(dim=1).sqrt_().clamp_min_(_LEAST_BOUND).view(-1, 1, 1)
    bound = bound * slack**2  # of the Gram matrix, whose singular values are squares
    gram, square, scale = gram.div_(bound), square.div_(bound * bound), (trace * bound).rsqrt()
    if narrow or max(rows, columns) <= _GRAM_PAYS * min(rows, columns):
        scaled = matrices * scale.to(matrices.dtype)
        return _iterate(scaled, gram, square, _cushioned(coefficients, slack), wide=wide)
    first = _polynomial(gram, square, coefficients[0])
    factor = _through_gram(gram, first, coefficients) if len(coefficients) > 1 else first
    factor = factor.mul_(scale)
    return torch.bmm(factor, matrices) if wide else torch.bmm(matrices, factor)


def _cushioned(coefficients: Coefficients, slack: float) -> Coefficients:
    """Return coefficients for singular values that may be `slack` times as large, from the second iteration on."""
    return [coefficients[0], *((a / slack, b / slack**3, c / slack**5) for a, b, c in coefficients[1:])]


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def _iterate(
    result: Tensor, gram: Tensor, square: Tensor, coefficients: Coefficients, *, wide: bool
) -> Tensor:
    """Iterate on the matrices themselves; `gram` is theirs, `square` its square, and their storage is used."""
    for number, (a, b, c) in enumerate(coefficients):
        if number == 0:
            bent = square.mul_(c).add_(gram, alpha=b)
        else:
            left, right = (result, result.mT) if wide else (result.mT, result)
            gram = torch.bmm(left, right, out=gram)
            bent = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        left, right = (bent, result) if wide else (result, bent)
        result = torch.baddbmm(result, left, right, beta=a)
    return result


def _polynomial(gram: Tensor, square: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    """Return a I + b A + c A^2 in the storage of `square`, which is A^2."""
    a, b, c = coefficients
    result = square.mul_(c).add_(gram, alpha=b)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result


def _through_gram(gram: Tensor, first: Tensor, coefficients: Coefficients) -> Tensor:
    """Return the product of all iterations' polynomials, each in the Gram matrix of its own iteration."""
    factor, step = first, first
    for triple in coefficients[1:]:
        gram = torch.bmm(torch.bmm(step, gram), step)
        step = _polynomial(gram, torch.bmm(gram, gram), triple)
        factor = torch.bmm(step, factor)
    return factor


@dataclass(frozen=True, eq=False)
class _Stack:
    """Parameters of one shape, the group of each, and their momentum in one tensor (count, rows, columns)."""

    parameters: list[nn.Parameter]
    groups: list[dict[str, Any]]
    momentum: Tensor


class Muon(UpdateRule):
    """Muon over matrices, and filters as matrices: a filter of a convolution is a row.

    The update of a (rows, columns) matrix is scaled by 0.2 sqrt(max(rows, columns)), which gives it the root
    mean square AdamW's updates have, so that one learning rate and one weight decay serve both (Liu et al.).
    Weight decay is decoupled. A parameter without a gradient is left alone, its momentum too.

    With `hold_norms` a step turns each matrix and leaves its Frobenius norm as it was: the update's norm is 10 *
    learning_rate of the matrix's own, which is what the size above means for weights of root mean square 0.02, and
    weight decay has nothing to do. For layers followed by a norm, to whose output the length of their weights
    means nothing but how large a step is beside them: the angle of a step is then what the schedule says, which
    weight decay reaches only after hundreds of steps (Jordan's airbench94_muon does the same).

    Arguments:
        parameters: matrices, or groups of them as torch's optimizers take, with `lr` and `weight_decay` of their own.
            Those of one shape and type share a stack, whatever their group: the direction depends on neither.
        learning_rate: step size, in AdamW's units.
        momentum, nesterov: an exponential mean of gradients, and whether the gradient is mixed in once more.
        weight_decay: share of the weight removed per unit of learning rate.
        coefficients, frobenius: as `orthogonalise` takes them.
        hold_norms: turn each matrix without changing its norm.
        dtype: of the matrix products.
        kernels: what takes steps in bfloat16 where it can, but not with `frobenius` or `hold_norms`.

    Raises:
        ValueError: for a parameter of fewer than two dimensions, and for one of zeros whose norm is to be held.
    """

    states = ("momentum_buffer",)

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        learning_rate: float,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        coefficients: Coefficients = DEFAULT,
        frobenius: bool = False,
        hold_norms: bool = False,
        dtype: torch.dtype = torch.float32,
        kernels: Library | None = None,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": weight_decay})
        self._mix, self._nesterov, self._hold = momentum, nesterov, hold_norms
        self._coefficients, self._frobenius, self._dtype = tuple(coefficients), frobenius, dtype
        plain = (
            dtype == torch.bfloat16 and not (frobenius or hold_norms) and len(coefficients) <= MOST_ITERATIONS
        )
        self._kernels = kernels if plain else None
        self._stacks = [self._stack(alike) for alike in self._by_shape().values()]
        self._fitting = [stack for stack in self._stacks if self._fits(stack)]

    def _by_shape(self) -> dict[Any, list[tuple[nn.Parameter, dict[str, Any]]]]:
        alike: dict[Any, list[tuple[nn.Parameter, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(
                        f"Muon takes matrices; received a parameter of shape {tuple(parameter.shape)}"
                    )
                if self._hold and not parameter.any():
                    raise ValueError("a matrix of zeros has no norm to hold")
                kind = (parameter.flatten(1).shape, parameter.dtype, parameter.device)
                alike.setdefault(kind, []).append((parameter, group))
        return alike

    def _stack(self, alike: list[tuple[nn.Parameter, dict[str, Any]]]) -> _Stack:
        parameters, groups = [parameter for parameter, _ in alike], [group for _, group in alike]
        momentum = torch.zeros_like(parameters[0].flatten(1)).expand(len(parameters), -1, -1).clone()
        for parameter, own in zip(parameters, momentum.unbind(), strict=True):
            self.state[parameter] = {"momentum_buffer": own.view(parameter.shape)}
        return _Stack(parameters, groups, momentum)

    def place(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        """Take over a parameter's momentum, into the stack it lives in."""
        self.state[parameter]["momentum_buffer"].copy_(values["momentum_buffer"])

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """Apply one update from `scale` times the gradients that are there."""
        by_kernels = self._fitting
        matrices = [moving for stack in by_kernels for moving in self._moving(stack)]
        # A matrix is one thread's work.
        if self._kernels and len(matrices) >= torch.get_num_threads():
            self._kernels.muon(
                matrices,
                scale=scale, mix=self._mix, nesterov=self._nesterov, slack=_SLACK, least=_LEAST_BOUND,
                coefficients=_cushioned(self._coefficients, _SLACK),
            )  # fmt: skip
        else:
            by_kernels = []
        for stack in self._stacks:
            if stack not in by_kernels:
                self._step_stack(stack, scale)

    def _fits(self, stack: _Stack) -> bool:
        first = stack.parameters[0]
        return (
            self._kernels is not None
            and first.device.type == "cpu"
            and first.dtype == torch.float32
            and all(parameter.is_contiguous() for parameter in stack.parameters)
            and self._kernels.takes_muon(*stack.momentum.shape[1:])
        )

    def _moving(self, stack: _Stack) -> Iterator[Moving]:
        size = _RMS * math.sqrt(max(stack.momentum.shape[1:]))
        for parameter, group, momentum in zip(stack.parameters, stack.groups, stack.momentum, strict=True):
            if parameter.grad is not None:
                keep = 1.0 - group["lr"] * group["weight_decay"]
                yield Moving(parameter.data, momentum, parameter.grad.contiguous(), keep, group["lr"] * size)

    def _step_stack(self, stack: _Stack, scale: float) -> None:
        present = [i for i, parameter in enumerate(stack.parameters) if parameter.grad is not None]
        if not present:
            return
        parameters = [stack.parameters[i] for i in present]
        update = torch.stack([p.grad.flatten(1) for p in parameters if p.grad is not None])
        if scale != 1.0:
            update.mul_(scale)
        whole = len(present) == len(stack.parameters)
        momentum = stack.momentum if whole else stack.momentum[present]
        momentum.lerp_(update, 1 - self._mix)
        if not whole:
            stack.momentum[present] = momentum
        source = update.lerp_(momentum, self._mix) if self._nesterov else momentum
        if self._dtype == torch.bfloat16:
            source = source.to(self._dtype)
        direction = orthogonalise(source, self._coefficients, frobenius=self._frobenius)
        size = _RMS * math.sqrt(max(direction.shape[1:]))
        for group in self.param_groups:
            alike = [n for n, i in enumerate(present) if stack.groups[i] is group]
            if not alike:
                continue
            rate, moved = group["lr"], [parameters[n].data for n in alike]
            own = [direction[n].view(parameters[n].shape) for n in alike]
            if self._hold:
                _turn(moved, own, rate * _RMS / _USUAL)
                continue
            torch._foreach_mul_(moved, 1 - rate * group["weight_decay"])
            torch._foreach_add_(moved, own, alpha=-rate * size)


def _turn(matrices: Sequence[Tensor], directions: Sequence[Tensor], share: float) -> None:
    """Move each matrix against its direction by a share of its own norm, and give it that norm again."""
    for matrix, direction in zip(matrices, directions, strict=True):
        norm = matrix.norm()
        matrix.sub_(direction * (share * norm / direction.float().norm().clamp_min_(_TINY)))
        matrix.mul_(norm / matrix.norm().clamp_min_(_TINY))
