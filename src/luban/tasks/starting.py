"""What a run takes from the model that it starts from, and what begins anew, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luban.data.tokenizer import Tokenizer
from luban.durable import member, read_json
from luban.errors import CheckpointError, InputError, nearest
from luban.tasks.base import Choice

if TYPE_CHECKING:
    from luban.tasks.row_model import RowModel
    from luban.tasks.rows import RowTask

_SHOWN = 4
_BESIDE = 2
"""Rows of an embedding before its first word: padding, and the unknown."""
_READ = ("words", "letters")
_MEANINGS = (("labels", 0), ("tags", 0), *((name, _BESIDE) for name in _READ))
"""Lists of a task's state whose length is the size of an axis, less what stands beside."""


@dataclass(frozen=True)
class Start:
    """A model that a run starts from.

    Attributes:
        weights: by the names of the run's own network.
        state, tokenizers: what the model's task knew: labels, words.
        outputs: names of the weights whose rows are the labels, where the names tell; without any, a tensor of which an
            axis is as long as there are labels is taken for one.
    """

    weights: Mapping[str, Tensor]
    state: Mapping[str, Any] = field(default_factory=dict)
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: RowModel) -> Start:
        """Return a finished model of a task on rows as one to start from."""
        fitted = model.kind.fitted
        return cls(model.module.state_dict(), fitted.state, fitted.tokenizers)


@dataclass(frozen=True)
class Taken:
    """What came over.

    Attributes:
        names: of the tensors that were taken. new: of those that begin anew, with the reason.
        unused: of tensors of the other model that this one does not have.
        rows: of embeddings that were taken row by row, what is told of it.
    """

    names: Sequence[str]
    new: Mapping[str, str]
    unused: Sequence[str]
    rows: Sequence[str] = ()

    def told(self) -> str:
        """Return what was taken and what not as a sentence.

        Example:
            >>> Taken(["a"], {"b": "the labels are others", "c": "the labels are others"}, ["d"]).told()
            'took 1 of 3 tensors; new: b, c (the labels are others); not used of it: d'
        """
        whole = len(self.names) + len(self.rows)
        parts = [f"took {whole:,} of {whole + len(self.new):,} tensors"]
        for why in dict.fromkeys(self.new.values()):
            parts.append(f"new: {_listed([n for n, given in self.new.items() if given == why])} ({why})")
        parts[1:1] = self.rows
        if self.unused:
            parts.append(f"not used of it: {_listed(self.unused)}")
        return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def take_over(module: nn.Module, task: RowTask, start: Start) -> Taken:
    """Copy the weights that mean the same in both models.

    Raises:
        CheckpointError: there are none.
    """
    sizes, names = _others(task, start)
    if "words" in _differing(task, start) and (pairs := _pairs(module)):
        sizes[pairs] = "the words are others"  # whose numbers are hashed
    taken = _by_rows(module, task, start, taken_over(module, start.weights, sizes, names))
    if not taken.names and not taken.rows:
        raise CheckpointError(
            "the model to start from has no weights of the names and shapes of this one",
            received=taken.told(),
            fix="give it the same model.* settings",
        )
    return taken


def _pairs(module: nn.Module) -> int:
    """Return how many rows the hashed embedding of neighbouring words has, 0 where there is none."""
    return int(getattr(getattr(module, "config", None), "pairs", 0))


def _differing(task: RowTask, start: Start) -> list[str]:
    """Return which of the lists of what is read are there in both, and differ."""
    own, other = task.fitted.state, start.state
    return [name for name in _READ if own.get(name) and other.get(name) and own[name] != other[name]]


def _by_rows(module: nn.Module, task: RowTask, start: Start, taken: Taken) -> Taken:
    """Copy, of an embedding of other words, the rows of those that both have."""
    rows, new = list[str](), dict(taken.new)
    pairs = _pairs(module)
    for name in _differing(task, start):
        own, other = task.fitted.state[name], start.state[name]
        at = {word: number for number, word in enumerate(other, _BESIDE)}
        common = [(number, at[word]) for number, word in enumerate(own, _BESIDE) if word in at]
        for owner, layer in module.named_modules():
            key, given = f"{owner}.weight", start.weights.get(f"{owner}.weight")
            # Where two lists are as long, an embedding's length does not tell whose it is.
            if (
                isinstance(layer, nn.Embedding)
                and common
                and layer.num_embeddings != pairs
                and key in new
                and given is not None
                and given.shape == (len(other) + _BESIDE, layer.embedding_dim)
                and [len(task.fitted.state.get(each, ())) for each in _READ].count(len(own)) == 1
                and layer.num_embeddings == len(own) + _BESIDE
            ):
                here, there = zip(*((n, n) for n in range(_BESIDE)), *common, strict=True)
                with torch.no_grad():
                    layer.weight[list(here)] = given[list(there)].to(layer.weight)
                del new[key]
                rows.append(f"{key}: {len(common):,} of {len(own):,} {name}")
    return Taken(taken.names, new, taken.unused, rows)


def _others(task: RowTask, start: Start) -> tuple[dict[int, str], dict[str, str]]:
    """Return what is of another meaning, with the reason: sizes of axes, which are the same by chance, and names."""
    own = task.fitted
    sizes: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, extra in _MEANINGS:
        values = own.state.get(name)
        if not values or values == start.state.get(name):  # a network on pieces has no words and no letters
            continue
        if start.outputs and name in ("labels", "tags"):
            names = dict.fromkeys(start.outputs, f"the {name} are others")
        else:
            sizes[len(values) + extra] = f"the {name} are others"
    for name, tokenizer in own.tokenizers.items():
        before = start.tokenizers.get(name)
        if before is None or before.text != tokenizer.text:
            pairs = getattr(task.settings.model, "pairs", None) or 0
            sizes |= dict.fromkeys(
                (tokenizer.vocab_size, tokenizer.vocab_size + pairs), "the tokenizers differ"
            )
    return sizes, names


def taken_over(
    module: nn.Module,
    given: Mapping[str, Tensor],
    sizes: Mapping[int, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> Taken:
    """Copy every tensor of the same name and shape.

    Arguments:
        given: the other model's weights.
        sizes: of axes that mean something else there, with the reason; tensors with such an axis are left as they are.
        names: of tensors that mean something else there, with the reason.
    """
    own = module.state_dict()
    taken: list[str] = []
    new: dict[str, str] = {}
    for name, tensor in own.items():
        if name not in given:
            new[name] = "not in it"
        elif name in (names or {}):
            new[name] = (names or {})[name]
        elif other := next((why for size, why in (sizes or {}).items() if size in tensor.shape), None):
            new[name] = other
        elif given[name].shape != tensor.shape:
            new[name] = f"{_shape(given[name])} there, {_shape(tensor)} here"
        else:
            taken.append(name)
    module.load_state_dict({**own, **{name: given[name] for name in taken}})
    return Taken(taken, new, [name for name in given if name not in own])


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def with_its_tokenizer(recipe: Any, folder: Path) -> Any:
    """Let a run read text with the tokenizer of the model it starts from, unless its recipe names one."""
    data, tokenizer = recipe.data, folder / "tokenizer.json"
    reads_tokens = getattr(data, "tokenizer", None) is not None
    if not reads_tokens or "tokenizer" in data.model_fields_set or not tokenizer.is_file():
        return recipe
    return recipe.model_copy(update={"data": data.model_copy(update={"tokenizer": str(tokenizer)})})


def hub_config(folder: Path, families: Collection[str], task: str) -> dict[str, Any] | None:
    """Return config.json of a folder of one of these families; None for a folder that luban wrote in its own layout.

    Raises:
        InputError: the folder is of another family.
    """
    fields = read_json(member(folder, "config.json"))
    if not isinstance(fields, dict):
        raise CheckpointError(f"{folder / 'config.json'} must hold a JSON object", received=fields)
    family = fields.get("model_type")
    if family in families:
        return fields
    if member(folder, "luban.json").is_file():
        return None
    close = nearest(str(family), families)
    fix = (
        f"{f'did you mean {close}? ' if close else ''}give a run or a model folder of luban's own task {task}"
    )
    raise InputError(
        f"{task} cannot start from this folder",
        received=f"model_type {family}",
        where=folder / "config.json",
        fix=f"{fix}, or a folder of {', '.join(families)} with config.json and model.safetensors"
        if families
        else fix,
    )


def unless_named(section: Any, **values: Any) -> Any:
    """Return a recipe's section with these values, but for those that the recipe names itself."""
    return section.model_copy(
        update={name: value for name, value in values.items() if name not in section.model_fields_set}
    )


def with_rate(recipe: Any, chosen: dict[str, Choice], rate: Choice) -> dict[str, Choice]:
    """Return what was chosen, with a rate that suits a trained network, where Adam or AdamW goes on with it."""
    fits = recipe.train.optimizer in ("adam", "adamw") and "train.learning_rate" in chosen
    return {**chosen, "train.learning_rate": rate} if fits else chosen
