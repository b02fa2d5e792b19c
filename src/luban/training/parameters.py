"""Which parameters learn, and how: what a recipe's patterns of names freeze, and the groups they make.

A pattern is matched against a parameter's whole name, as `model.named_parameters()` gives it; `*` is any characters,
dots too, so `*.layers.0.*` is the first block. A parameter with two names (tied) is matched by either.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from luban.errors import InputError, RecipeError
from luban.recipe import ParameterGroup

Named = list[tuple[str, nn.Parameter]]
_SHOWN = 3


@dataclass(frozen=True)
class Group:
    """Parameters, each under its first name, that have the same learning rate and the same weight decay.

    Attributes:
        rate: a multiple of the recipe's learning rate.
        weight_decay: of the matrices among them.
    """

    named: Named
    rate: float
    weight_decay: float


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Let the parameters that a pattern matches have no gradient.

    A norm with running statistics all of whose parameters are frozen is not to learn from data at all, yet in
    training mode it would: its mean and variance follow every batch. Such norms are returned; kept in evaluation
    mode they normalise by the statistics they have, which stay as they are. (Keras does the same.)

    Returns:
        The norms to keep in evaluation mode.

    Raises:
        RecipeError: for a pattern that matches no parameter; it names those most like it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> freeze(model, ["0.*", "1.*"])
        [BatchNorm1d(2, ...)]
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['2.weight', '2.bias']
    """
    named = list(model.named_parameters(remove_duplicate=False))
    for number, pattern in enumerate(patterns):
        for parameter in matched(pattern, named, f"train.freeze[{number}]"):
            parameter.requires_grad_(False)
    return [module for module in model.modules() if _is_frozen_norm(module)] if patterns else []


def _is_frozen_norm(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    has_statistics = getattr(module, "running_mean", None) is not None
    return has_statistics and bool(own) and not any(parameter.requires_grad for parameter in own)


def grouped(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    groups: Sequence[ParameterGroup],
    weight_decay: float,
) -> list[Group]:
    """Divide the parameters that learn among a recipe's groups; the last group has those that none matches.

    Arguments:
        named_parameters: frozen ones, which are left out, and second names of tied ones among them.
        groups: the first that matches a parameter has it.
        weight_decay: of parameters whose group names none.

    Returns:
        The groups that have parameters.

    Raises:
        RecipeError: for a group that would have none, for then it would say something and do nothing.
        InputError: when no parameter is to be trained.

    Example:
        >>> named = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 1)).named_parameters()
        >>> found = grouped(named, [ParameterGroup(match="0.*", rate=0.1, weight_decay=0.0)], 0.1)
        >>> [(group.rate, group.weight_decay, [name for name, _ in group.named]) for group in found]
        [(0.1, 0.0, ['0.weight']), (1.0, 0.1, ['1.weight', '1.bias'])]
    """
    named = list(named_parameters)
    left: dict[nn.Parameter, str] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            left.setdefault(parameter, name)
    if not left:
        raise InputError("no parameter is to be trained: all are frozen, or there are none")
    found: list[Group] = []
    for number, group in enumerate(groups):
        where = f"train.groups[{number}].match"
        taken = _take(left, matched(group.match, named, where))
        if not taken:
            raise RecipeError(
                "this group has no parameters: those it matches are frozen, or belong to an earlier group",
                received=group.match,
                where=where,
                fix="leave the group out, or put it before the others",
            )
        decay = weight_decay if group.weight_decay is None else group.weight_decay
        found.append(Group(taken, group.rate, decay))
    rest = [(name, parameter) for parameter, name in left.items()]
    return [*found, Group(rest, 1.0, weight_decay)] if rest else found


def _take(left: dict[nn.Parameter, str], wanted: Mapping[nn.Parameter, str]) -> Named:
    taken = [(name, parameter) for parameter, name in left.items() if parameter in wanted]
    for _, parameter in taken:
        del left[parameter]
    return taken


def matched(pattern: str, named: Named, where: str) -> dict[nn.Parameter, str]:
    """Return the parameters a pattern matches, each with the name that it matched.

    Arguments:
        named: parameters with their names; a tied one may stand twice.
        where: the recipe's key, for the error.

    Raises:
        RecipeError: when there are none.

    Example:
        >>> named = [("model.embed_tokens.weight", nn.Parameter()), ("lm_head.weight", nn.Parameter())]
        >>> try:
        ...     matched("embed*", named, "train.freeze[0]")
        ... except RecipeError as error:
        ...     print(error)
        the pattern matches no parameter of the model
          where:    train.freeze[0]
          received: 'embed*'
          fix:      a pattern is of the whole name: '*embed*' matches model.embed_tokens.weight
    """
    found: dict[nn.Parameter, str] = {}
    for name, parameter in named:
        if fnmatchcase(name, pattern):
            found.setdefault(parameter, name)
    if found:
        return found
    names, looser = [name for name, _ in named], f"*{pattern.strip('*')}*"
    if pattern.strip("*") and (parts := [name for name in names if fnmatchcase(name, looser)]):
        fix = f"a pattern is of the whole name: {looser!r} matches {_listed(parts)}"
    else:
        fix = f"names most like it: {_listed(difflib.get_close_matches(pattern, names, _SHOWN, cutoff=0.0))}"
    raise RecipeError("the pattern matches no parameter of the model", received=pattern, where=where, fix=fix)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
