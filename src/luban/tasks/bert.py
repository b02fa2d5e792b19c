"""Folders of BERT: what a run that starts from one takes over, and how its own folder is one again.

Read are Hugging Face folders of model_type bert with safetensors, whoever wrote them, with a tokenizer.json or a
vocab.txt. What is written loads as BertForSequenceClassification or BertForTokenClassification, with equal logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from luban.data.row_sets import BadValue
from luban.data.tokenizer import Tokenizer
from luban.errors import InputError, RecipeError
from luban.model_folder import read_tensors
from luban.models.encoder import EncoderConfig, read_config, write_config
from luban.tasks.base import Choice, Machine
from luban.tasks.rows import Array, RowTask
from luban.tasks.starting import Start, hub_config, unless_named, with_its_tokenizer, with_rate

FAMILIES = ("bert",)
RATE = Choice(5e-5, "usual for BERT that begins trained: Devlin et al. 2019 took 2e-5 to 5e-5")
_OUTPUTS = frozenset({"classifier.weight", "classifier.bias"})
_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))


class StartsFromBert(RowTask):
    """A task whose runs may start from a folder of BERT, with `network: bert`.

    Attributes:
        bert_labels: the list in the task's state that names the outputs.
        bert_decides: keys of the recipe's `model` section that the folder answers.
        bert_lacks: what such a network has not, by keys of that section.
    """

    bert_labels: ClassVar[str] = "labels"
    bert_decides: ClassVar[tuple[str, ...]]
    bert_lacks: ClassVar[Mapping[str, Any]]

    @classmethod
    def adopted(cls, recipe: Any, folder: Path) -> Any:
        """Return the recipe with what the model to start from decides: its tokenizer, of a BERT its shape too."""
        if (fields := hub_config(folder, FAMILIES, cls.name)) is None:
            return with_its_tokenizer(recipe, folder)
        found = _adopted(recipe, folder, fields, cls.bert_decides)
        return found.model_copy(update={"model": found.model.model_copy(update=cls.bert_lacks)})

    @classmethod
    def start(cls, folder: Path) -> Start:
        """Read the model that a run starts from: a model of this task, or a BERT."""
        fields = hub_config(folder, FAMILIES, cls.name)
        return super().start(folder) if fields is None else _start(folder, fields, cls.bert_labels)

    @classmethod
    def choose(cls, recipe: Any, prepared: Any, machine: Machine, start: Any = None) -> Mapping[str, Choice]:
        """Choose batch and learning rate where the recipe leaves them open."""
        found = dict(super().choose(recipe, prepared, machine, start))
        return with_rate(recipe, found, RATE) if recipe.model.network == "bert" else found


def _adopted(recipe: Any, folder: Path, fields: Mapping[str, Any], decides: Sequence[str]) -> Any:
    """Return the recipe of a run that starts from a BERT: its shape, its tokenizer, no longer texts than it reads.

    Arguments:
        decides: keys of `model` that the folder answers.

    Raises:
        RecipeError: the recipe says otherwise. InputError: the folder has what luban's encoder has not.
    """
    named = recipe.model.model_fields_set
    if wrong := [name for name in decides if name in named]:
        raise RecipeError(
            "the model to start from decides these",
            received=[f"model.{name}" for name in wrong],
            where=folder / "config.json",
            fix="leave them out, or leave model.start out",
        )
    if "network" in named and recipe.model.network != "bert":
        raise RecipeError(
            "the model to start from is a BERT",
            received=f"model.network {recipe.model.network}",
            where=folder / "config.json",
            fix="leave model.network out",
        )
    config = read_config(fields, per_token=False, outputs=2)
    longest = config.max_length
    if "length" in recipe.data.model_fields_set and recipe.data.length > longest:
        raise RecipeError(
            f"the model to start from reads at most {longest} tokens",
            received=recipe.data.length,
            where="data.length",
            fix=f"write {longest} or less",
        )
    shape = {key: value for key, value in write_config(config, ["0", "1"]).items() if "label" not in key}
    model = unless_named(recipe.model, dropout=config.dropout)
    data = recipe.data.model_copy(
        update={"tokenizer": str(folder), "length": min(recipe.data.length, longest)}
    )
    update = {"network": "bert", "config": {**shape, "architectures": None}}
    return recipe.model_copy(
        update={
            "model": model.model_copy(update=update),
            "data": data,
            "train": unless_named(recipe.train, optimizer="adamw"),
        }
    )


def encoder_config(settings: Any, tokenizer: Tokenizer, outputs: int, *, per_token: bool) -> EncoderConfig:
    """Return the shape that a recipe's `model` section took over, with outputs of its own.

    Raises:
        InputError: the tokenizer knows more tokens than the embedding has rows.
    """
    config = read_config(settings.config, per_token=per_token, outputs=outputs)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the embedding has {config.vocab_size:,} rows, the tokenizer more tokens",
            received=f"{tokenizer.vocab_size:,}",
            where="data.tokenizer",
            fix="use the tokenizer that the model was trained with",
        )
    return dataclasses.replace(config, dropout=settings.dropout)


def pieces_of(tokenizer: Tokenizer, tokens: Sequence[str], room: int, *, whole: bool) -> dict[str, Array]:
    """Return the pieces of a sentence with [CLS] and [SEP] around them, and which is the first of each token.

    Arguments:
        room: most pieces. whole: refuse a sentence that has more, instead of cutting it behind a token.

    Raises:
        BadValue: the sentence has more.
    """
    first, last = tokenizer.frame or (tokenizer.begin_id, tokenizer.end_id)
    unknown = [tokenizer.end_id if tokenizer.unknown_id is None else tokenizer.unknown_id]
    ids, firsts = [first], []
    for pieces in tokenizer.encode_batch(list(tokens)):
        pieces = (
            pieces or unknown
        )  # what the tokenizer drops, as a control character, is a token all the same
        if len(ids) + len(pieces) + 1 > room:
            if whole:
                raise BadValue(
                    "too_long", f"the sentence has more than {room} pieces, as many as the model reads"
                )
            break
        firsts.append(len(ids))
        ids += pieces
    return {"pieces": np.array([*ids, last], np.int32), "firsts": np.array(firsts, np.int32)}


def _start(folder: Path, fields: Mapping[str, Any], name: str) -> Start:
    """Read the weights of a folder of BERT, by the names of luban's encoder.

    Arguments:
        name: of the list of labels in the task's state.
    """
    labels = fields.get("id2label") or {}
    known = [labels[key] for key in sorted(labels, key=int)] if _numbered(labels) else None
    tensors = {_named(key): tensor for key, tensor in read_tensors(folder).items()}
    # A base model has no labels: its config.json names two by default.
    state = {name: known} if "classifier.weight" in tensors else {}
    return Start(tensors, state, {"": Tokenizer.load(folder)}, _OUTPUTS)


def _numbered(labels: object) -> bool:
    return isinstance(labels, Mapping) and all(str(key).isdecimal() for key in labels)


def _named(name: str) -> str:
    """Return a checkpoint's name as luban's encoder has it: a base model's names lack their beginning."""
    for old, new in _OLD_NAMES:
        if name.endswith(f"LayerNorm{old}"):
            name = name.removesuffix(old) + new
    inside = name.startswith(("bert.", "classifier.", "cls."))
    return name if inside else f"bert.{name}"
