"""One interface for all optimizers: torch's own, and Muon.

Weight decay falls on matrices (two dimensions or more) only: a norm's gain or a bias that is pulled to zero
changes what the layer computes, not how large its weights are. With AdamW and Muon it is decoupled from the
gradient, with SGD, RMSprop and Adam it is added to the gradient, as torch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from luban.errors import CheckpointError, RecipeError
from luban.kernels import Library
from luban.models.head import Head
from luban.recipe import TrainRecipe, settled
from luban.training.muon import Muon
from luban.training.parameters import Group, Named, grouped
from luban.training.update_rules import SGD, Adam, AdamW, RMSprop, UpdateRule

_HIDDEN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.RNNBase)
_NOT_HIDDEN = (Head, nn.Embedding)


class Optimizer:
    """One or two rules that together update all parameters of a model.

    Arguments:
        kind: the optimizer's name in the recipe; a state is loaded only by the kind that gave it.
        parts: the rules; no parameter is in two of them.
        named: every parameter with its name, which is its name in `state` too.
    """

    def __init__(self, kind: str, parts: Iterable[UpdateRule], named: Named) -> None:
        self.kind, self.rate = kind, 1.0
        self._parts = list(parts)
        self._names = {parameter: name for name, parameter in named}
        self._base = [[group["lr"] for group in part.param_groups] for part in self._parts]

    def step(self, scale: float = 1.0) -> None:
        """Update the parameters from `scale` times their gradients; one without a gradient is left alone.

        The gradients may be altered.
        """
        for part in self._parts:
            part.step(scale)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or set them to zero."""
        for parameter in self._names:
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.zero_()

    def set_rate(self, multiplier: float) -> None:
        """Set every learning rate to `multiplier` times what the recipe says."""
        self.rate = multiplier
        for part, rates in zip(self._parts, self._base, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * multiplier

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what the next step depends on besides parameters and gradients.

        Returns:
            Tensors by "PARAMETER.STATE", in the order of `named`, for a safetensors file; they share memory
            with the optimizer, so write them before the next step. And scalars that are JSON.
        """
        held = dict(self._held())
        tensors = {
            f"{name}.{key}": held[name][key]
            for name in self._names.values()
            for key in sorted(held[name])
            if held[name][key] is not None
        }
        return tensors, {"kind": self.kind, "rate": self.rate}

    def state_bytes(self) -> int:
        """Return the bytes of the tensors that `state` gives once every parameter was stepped."""
        return sum(
            4 if key == "step" else parameter.numel() * parameter.element_size()
            for part in self._parts
            for parameter in part.parameters
            for key in part.states
        )

    def load_state(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Take a state that `state` gave; steps go on from there bit for bit.

        A state that does not fit changes nothing.

        Raises:
            CheckpointError: the state is another optimizer's, or a tensor is missing, unknown, or of another
                shape or type; the message names the first.
        """
        if scalars.get("kind") != self.kind:
            raise CheckpointError(
                f"the checkpoint's optimizer is not {self.kind}",
                received=scalars.get("kind"),
                fix=f"set train.optimizer to {scalars.get('kind')}, or train anew",
            )
        rate = scalars.get("rate")
        if not isinstance(rate, int | float) or isinstance(rate, bool):
            raise CheckpointError("the optimizer's learning-rate multiplier is not a number", received=rate)
        left = dict(tensors)
        found = [
            (part, parameter, _take(left, self._names[parameter], parameter, part))
            for part in self._parts
            for parameter in part.parameters
        ]
        if left:
            raise CheckpointError("the optimizer's state is of another model", received=min(left))
        for part, parameter, values in found:
            part.place(parameter, values)
        self.set_rate(float(rate))

    def _held(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        for part in self._parts:
            for parameter in part.parameters:
                yield self._names[parameter], part.state.get(parameter, {})


def build_optimizer(
    model: nn.Module,
    recipe: TrainRecipe,
    dtype: torch.dtype = torch.float32,
    kernels: Library | None = None,
) -> Optimizer:
    """Build the optimizer a recipe names, for the parameters of a model.

    - `sgd`: `momentum`, and Nesterov's form of it where there is any.
    - `rmsprop`: the mean of squares decays by `betas[1]`; no momentum, as Tieleman and Hinton (2012) have it.
    - `adam` (Kingma and Ba, 2015), `adamw` (Loshchilov and Hutter, 2019): `betas`.
    - `muon`: `momentum` and `nesterov` for the matrices of hidden layers: those of `nn.Linear`, convolutions (a
      filter is a row) and recurrent layers. AdamW, with the same learning rate, for all else: vectors, embeddings,
      the output matrix (`luban.models.head.Head`), and what a network holds as a bare parameter.

    `dtype` is that of Muon's matrix products, and `kernels` is what does them where it can; state and weights are
    float32. Frozen parameters are left out; of one parameter with two names the first name counts. The recipe's groups
    have their own multiple of the learning rate and their own weight decay, with every optimizer.

    Raises:
        RecipeError: when a group of the recipe has no parameters, or a norm is to be held of a matrix of zeros.
        InputError: when no parameter is to be trained.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> recipe = TrainRecipe(steps=1, optimizer="adamw", learning_rate=1e-3)
        >>> optimizer = build_optimizer(layer, recipe)
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state()[0])[:3]
        ['bias.exp_avg', 'bias.exp_avg_sq', 'bias.step']
    """
    named_parameters = model.named_parameters(remove_duplicate=False)
    groups = grouped(named_parameters, recipe.groups, recipe.weight_decay)
    named = [pair for group in groups for pair in group.named]
    if recipe.optimizer != "muon":
        return Optimizer(recipe.optimizer, [_rule(recipe.optimizer, groups, recipe)], named)
    parts: list[UpdateRule] = []
    hidden = hidden_matrices(model)
    if those := _those(groups, lambda parameter: parameter in hidden):
        parts.append(_muon(those, recipe, dtype, kernels))
    if rest := _those(groups, lambda parameter: parameter not in hidden):
        parts.append(_rule("adamw", rest, recipe))
    return Optimizer("muon", parts, named)


def hidden_matrices(model: nn.Module) -> Set[nn.Parameter]:
    """Return the matrices that lead from one hidden layer to the next; one tied to an embedding is none.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), Head(4, 9))
        >>> [tuple(matrix.shape) for matrix in hidden_matrices(model)]
        [(4, 4)]
    """
    found: list[nn.Parameter] = []
    others: set[nn.Parameter] = set()
    for module in model.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.ndim >= 2]
        if isinstance(module, _NOT_HIDDEN):
            others.update(own)
        elif isinstance(module, _HIDDEN):
            found += own
    return {parameter for parameter in found if parameter not in others}


def _those(groups: Sequence[Group], wanted: Callable[[nn.Parameter], bool]) -> list[Group]:
    """Return the groups with only the parameters wanted; those left with none are dropped."""
    kept = [([pair for pair in group.named if wanted(pair[1])], group) for group in groups]
    return [Group(named, group.rate, group.weight_decay) for named, group in kept if named]


def _muon(groups: Sequence[Group], recipe: TrainRecipe, dtype: torch.dtype, kernels: Library | None) -> Muon:
    rate = settled(recipe.learning_rate, "train.learning_rate")
    named = [pair for group in groups for pair in group.named] if recipe.hold_norms else []
    if zeros := [name for name, parameter in named if not parameter.any()]:
        raise RecipeError(
            "train.hold_norms: a matrix of zeros would stay as it is",
            received=zeros[0],
            fix="set train.hold_norms to false",
        )
    return Muon(
        [
            {"params": [p for _, p in g.named], "lr": rate * g.rate, "weight_decay": g.weight_decay}
            for g in groups
        ],
        rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        hold_norms=recipe.hold_norms,
        dtype=dtype,
        kernels=kernels,
    )


def _rule(kind: str, groups: Sequence[Group], recipe: TrainRecipe) -> UpdateRule:
    """Return the rule of that kind."""
    rate = settled(recipe.learning_rate, "train.learning_rate")
    options = [part for group in groups for part in _matrices_and_vectors(group, rate)]
    match kind:
        case "sgd":
            return SGD(options, rate, momentum=recipe.momentum, nesterov=recipe.nesterov)
        case "rmsprop":
            return RMSprop(options, rate, alpha=recipe.betas[1])
        case "adam":
            return Adam(options, rate, betas=recipe.betas)
        case _:
            return AdamW(options, rate, betas=recipe.betas)


def _matrices_and_vectors(group: Group, rate: float) -> list[dict[str, Any]]:
    """Return a group as the rules take it: its matrices with weight decay, its vectors without."""
    matrices = [parameter for _, parameter in group.named if parameter.ndim >= 2]
    vectors = [parameter for _, parameter in group.named if parameter.ndim < 2]
    pairs = ((matrices, group.weight_decay), (vectors, 0.0))
    return [
        {"params": parameters, "lr": rate * group.rate, "weight_decay": decay}
        for parameters, decay in pairs
        if parameters
    ]


def _take(left: dict[str, Tensor], name: str, parameter: nn.Parameter, part: UpdateRule) -> dict[str, Tensor]:
    """Remove one parameter's state from `left` and return it, checked; empty where it was never stepped."""
    keys = part.states
    values = {key: left.pop(f"{name}.{key}") for key in keys if f"{name}.{key}" in left}
    if values.keys() != set(keys) and (values or isinstance(part, Muon)):
        missing = next(key for key in keys if key not in values)
        raise CheckpointError("the optimizer's state is incomplete", where=f"{name}.{missing}")
    for key, value in values.items():
        shape, dtype = ((), torch.float32) if key == "step" else (parameter.shape, parameter.dtype)
        if value.shape != torch.Size(shape) or value.dtype != dtype:
            raise CheckpointError(
                f"the optimizer's state does not fit the model: {tuple(shape)} {dtype} is needed",
                where=f"{name}.{key}",
                received=f"{tuple(value.shape)} {value.dtype}",
            )
    return values
