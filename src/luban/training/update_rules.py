"""What changes parameters from their gradients: groups with a learning rate each, and a state of each parameter.

SGD, RMSprop, Adam and AdamW are torch's, called as the functions they are. torch's optimizer classes do the same and
import its compiler when the first one is built, which takes 0.7 s of a start and ten times that from a cold disk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

_EPS = 1e-8
Held = dict[str, list[Tensor]]
"""State of the parameters of a step by name, in their order."""


class UpdateRule(ABC):
    """Parameters in groups, and how they are updated.

    Arguments:
        parameters: those of one group, or groups as `{"params", "lr", "weight_decay"}`; what a group does not say
            is taken from `defaults`.

    Attributes:
        param_groups: the groups; `lr` may be set between steps.
        state: tensors of each parameter by name; empty for one that was never stepped, unless the rule says otherwise.
    """

    states: tuple[str, ...]
    """Names of a parameter's state."""

    def __init__(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], defaults: dict[str, Any]
    ) -> None:
        given = list(parameters)
        groups = [entry for entry in given if isinstance(entry, dict)]
        if len(groups) != len(given):
            groups = [{"params": given}]
        self.param_groups = [{**defaults, **group, "params": list(group["params"])} for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, in the order of the groups."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @abstractmethod
    def step(self, scale: float = 1.0) -> None:
        """Update every parameter that has a gradient, as if that were `scale` times as large; it may be altered."""

    @abstractmethod
    def place(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        """Take over a parameter's state: all of `states`, or nothing for one that was never stepped."""


class _Elementwise(UpdateRule):
    """A rule of torch's that looks at each number by itself; its state begins with zeros.

    One kernel does a whole group's update where torch has such a kernel.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], defaults: dict[str, Any]
    ) -> None:
        super().__init__(parameters, {"weight_decay": 0.0, **defaults})
        self._fused = all(parameter.device.type in ("cpu", "cuda") for parameter in self.parameters)

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """Update every parameter that has a gradient, as if that were `scale` times as large; it may be altered."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moved:
                held = [self.state.get(parameter) or self._begin(parameter) for parameter in moved]
                columns = {name: [state[name] for state in held] for name in self.states}
                self._update(moved, [parameter.grad for parameter in moved], columns, group, scale)

    @abstractmethod
    def _update(
        self, moved: list[Tensor], gradients: list[Tensor], held: Held, group: dict[str, Any], scale: float
    ) -> None: ...

    def _begin(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        self.state[parameter] = {
            name: torch.zeros((), device=self._counter(parameter))
            if name == "step"
            else torch.zeros_like(parameter)
            for name in self.states
        }
        return self.state[parameter]

    def place(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        """Take over a parameter's state."""
        self.state.pop(parameter, None)
        if values:
            self.state[parameter] = {
                name: value.to(self._counter(parameter) if name == "step" else parameter.device, copy=True)
                for name, value in values.items()
            }

    def _counter(self, parameter: nn.Parameter) -> torch.device:
        """Return where a parameter's steps are counted: a fused kernel wants the number beside it."""
        return parameter.device if self._fused else torch.device("cpu")


def _multiply(gradients: list[Tensor], scale: float) -> None:
    if scale != 1.0:
        torch._foreach_mul_(gradients, scale)


class SGD(_Elementwise):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`; weight decay is added to the gradient."""

    states: tuple[str, ...] = ("momentum_buffer",)

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        learning_rate: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        self._momentum, self._nesterov = momentum, nesterov and momentum > 0.0
        if momentum == 0.0:
            self.states = ()

    def _update(
        self, moved: list[Tensor], gradients: list[Tensor], held: Held, group: dict[str, Any], scale: float
    ) -> None:
        _multiply(gradients, scale)
        sgd(
            moved,
            gradients,
            list(held.get("momentum_buffer", [None] * len(moved))),
            fused=self._fused,
            weight_decay=group["weight_decay"],
            momentum=self._momentum,
            lr=group["lr"],
            dampening=0.0,
            nesterov=self._nesterov,
            maximize=False,
        )


class RMSprop(_Elementwise):
    """Gradients divided by the root of their mean square, as `torch.optim.RMSprop`; `alpha` is that mean's decay."""

    states = ("step", "square_avg")

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        learning_rate: float,
        *,
        alpha: float = 0.99,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        self._alpha, self._fused = alpha, False  # torch has no fused kernel of it

    def _update(
        self, moved: list[Tensor], gradients: list[Tensor], held: Held, group: dict[str, Any], scale: float
    ) -> None:
        _multiply(gradients, scale)
        rmsprop(
            moved,
            gradients,
            held["square_avg"],
            [],
            [],
            held["step"],
            lr=group["lr"],
            alpha=self._alpha,
            eps=_EPS,
            weight_decay=group["weight_decay"],
            momentum=0.0,
            centered=False,
        )


class Adam(_Elementwise):
    """Adam, as `torch.optim.Adam`: weight decay is added to the gradient."""

    states = ("step", "exp_avg", "exp_avg_sq")
    decoupled = False

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        learning_rate: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        self._betas = betas

    def _update(
        self, moved: list[Tensor], gradients: list[Tensor], held: Held, group: dict[str, Any], scale: float
    ) -> None:
        settings = {
            "amsgrad": False,
            "beta1": self._betas[0],
            "beta2": self._betas[1],
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "eps": _EPS,
            "maximize": False,
        }
        largest: list[Tensor] = []  # of AMSGrad, which there is not
        tensors = moved, gradients, held["exp_avg"], held["exp_avg_sq"], largest, held["step"]
        if not self._fused:
            _multiply(gradients, scale)
            adam(*tensors, decoupled_weight_decay=self.decoupled, **settings)
            return
        # What `adam` does with its fused kernel, without sorting the tensors by device and type first.
        torch._foreach_add_(held["step"], 1)
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        # The kernel divides what it reads anyway.
        divisor = (
            None
            if scale == 1.0
            else torch.tensor(1.0 / scale, dtype=torch.float32, device=gradients[0].device)
        )
        kernel(*tensors, **settings, grad_scale=divisor)


class AdamW(Adam):
    """Adam with weight decay apart from the gradient, as `torch.optim.AdamW`."""

    decoupled = True
