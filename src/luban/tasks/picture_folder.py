"""Folders of ViT and ResNet: what a run that starts from one takes over, and how its own folder is one again.

Read are Hugging Face folders of model_type vit, and of model_type resnet with basic blocks, with safetensors, whoever
wrote them; preprocessor_config.json says how pictures are brought to numbers. What is written loads as
AutoModelForImageClassification, with equal logits for equal pixels.

Pictures are brought to their size by luban's own reader (bilinear, cut to the middle where the shape differs), whatever
filter and crop the folder names: other tools may feed the model pixels that differ slightly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luban.durable import member, read_json
from luban.errors import InputError, RecipeError
from luban.model_folder import read_tensors
from luban.models.image_layouts import (
    IMAGE_LAYOUTS,
    ImageConfig,
    read_image_config,
    read_image_weights,
    write_image_config,
    write_image_weights,
)
from luban.models.vit import ViTConfig
from luban.tasks.base import Choice, Machine
from luban.tasks.classification import Classifier
from luban.tasks.starting import Start, hub_config, unless_named, with_rate

RATE = Choice(5e-5, "usual for AdamW on a network that begins trained on other pictures")
PREPROCESSOR = "preprocessor_config.json"
_OUTPUTS = ("classifier.weight", "classifier.bias", "classifier.1.weight", "classifier.1.bias")
_DECIDED = ("widths", "layers", "width", "heads", "patch", "config")
"""Keys of `model` that a folder leaves no say in."""
_NETWORK = "network."
"""What the names of a network behind its scaling begin with."""


class StartsFromPictures(Classifier):
    """A classifier of pictures whose runs may start from a folder of ViT or ResNet, and which writes such folders.

    The fitted state has `size`, `mean` and `spread`; the network is a `Normalised`.
    """

    def hub_shape(self) -> ImageConfig | None:
        """Return the network's shape where Hugging Face's layout has it."""
        raise NotImplementedError

    @classmethod
    def adopted(cls, recipe: Any, folder: Path) -> Any:
        """Return the recipe with what the model to start from decides: of a ViT or ResNet its shape and pictures."""
        if (fields := hub_config(folder, IMAGE_LAYOUTS, cls.name)) is None:
            return recipe
        return _adopted(recipe, folder, fields)

    @classmethod
    def start(cls, folder: Path) -> Start:
        """Read the model that a run starts from: a model of this task, or a folder of ViT or ResNet."""
        fields = hub_config(folder, IMAGE_LAYOUTS, cls.name)
        return super().start(folder) if fields is None else _start(folder, fields)

    @classmethod
    def choose(cls, recipe: Any, prepared: Any, machine: Machine, start: Any = None) -> Mapping[str, Choice]:
        """Choose batch and learning rate where the recipe leaves them open."""
        found = dict(super().choose(recipe, prepared, machine, start))
        return found if recipe.model.config is None else with_rate(recipe, found, RATE)

    def config(self) -> dict[str, Any]:
        """Return config.json of the model folder; of a ViT or ResNet what other tools build it from."""
        shape = self.hub_shape()
        return super().config() if shape is None else write_image_config(shape, self.labels)

    def weights_out(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the network's weights by the names of the model folder."""
        shape = self.hub_shape()
        return weights if shape is None else _weights_out(shape, weights)

    def weights_in(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a model folder's weights by the names of the network."""
        shape, state = self.hub_shape(), self.fitted.state
        if shape is None:
            return weights
        scaling = {name: torch.tensor(state[name])[:, None, None] for name in ("mean", "spread")}
        return _weights_in(shape, weights, scaling)

    def files(self) -> dict[str, Any]:
        """Return how other tools bring pictures to numbers, of networks that they know."""
        state = self.fitted.state
        if self.hub_shape() is None:
            return {}
        written = _preprocessor(state["size"], state["mean"], state["spread"])
        return {PREPROCESSOR: written}


def _adopted(recipe: Any, folder: Path, fields: Mapping[str, Any]) -> Any:
    """Return the recipe of a run that starts from such a folder: the network's shape, and pictures as it takes them.

    Raises:
        RecipeError: the recipe says otherwise. InputError: the folder has what luban has not.
    """
    config = read_image_config(fields, folder / "config.json")
    named, network = recipe.model.model_fields_set, str(fields["model_type"])
    wrong = [f"model.{name}" for name in _DECIDED if name in named]
    if "network" in named and recipe.model.network != network:
        wrong.append(f"model.network {recipe.model.network}")
    asked = _pictures_of(folder, config)
    wrong += [
        f"data.{name}"
        for name, value in asked.items()
        if name in recipe.data.model_fields_set
        and not _same(getattr(recipe.data, name), value)
        # A residual network reads pictures of any size; a transformer has a position for each patch.
        and not (name == "size" and network == "resnet")
    ]
    if wrong:
        raise RecipeError(
            "the model to start from decides these",
            received=wrong,
            where=folder / "config.json",
            fix="leave them out, or leave model.start out",
        )
    kept = {key: value for key, value in fields.items() if key not in ("id2label", "label2id", "num_labels")}
    model = recipe.model.model_copy(update={"network": network, "config": kept})
    return recipe.model_copy(
        update={
            "model": model,
            "data": unless_named(recipe.data, **asked),
            "train": unless_named(recipe.train, optimizer="adamw"),
        }
    )


def _same(own: object, value: object) -> bool:
    return own == value or (isinstance(own, list) and own == [value, value])


def _pictures_of(folder: Path, config: ImageConfig) -> dict[str, Any]:
    """Return what preprocessor_config.json says of pictures, by the keys of a recipe's `data` section.

    Raises:
        InputError: it says what luban's reader cannot do.
    """
    place = member(folder, PREPROCESSOR)
    written = read_json(place) if place.is_file() else {}
    if not isinstance(written, dict):
        raise InputError("a JSON object was expected", received=type(written).__name__, where=place)
    scale = written.get("rescale_factor", 1 / 255)
    if written.get("do_rescale", True) is not True or not math.isclose(float(scale), 1 / 255, rel_tol=1e-3):
        fix = "luban scales pixels from 0 to 255 down to 0 to 1"
        raise InputError("pictures are scaled otherwise", received=scale, where=place, fix=fix)
    plain = written.get("do_normalize", True) is False
    found: dict[str, Any] = {"channels": config.channels}
    for key, name, neutral in (("image_mean", "mean", 0.0), ("image_std", "spread", 1.0)):
        value = [neutral] * config.channels if plain else written.get(key, [0.5] * config.channels)
        if not _numbers(value, config.channels):
            raise InputError(f"{key} must be a number for each channel", received=value, where=place)
        found[name] = [float(number) for number in value]
    if isinstance(config, ViTConfig):
        found["size"] = config.size
    elif (size := _side(written.get("crop_size", written.get("size")))) is not None:
        found["size"] = size
    return found


def _numbers(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(n, int | float) for n in value)


def _side(size: object) -> int | list[int] | None:
    if isinstance(size, Mapping):
        both = [size.get("height"), size.get("width")]
        size = size.get("shortest_edge") if None in both else both
    if isinstance(size, list) and all(isinstance(side, int) and side > 0 for side in size) and len(size) == 2:
        return size
    return size if isinstance(size, int) and size > 0 else None


def config_with(fields: Mapping[str, Any], labels: Sequence[str], dropout: float) -> ImageConfig:
    """Return the shape that a recipe's `model` section took over, with a class for each label."""
    named = {str(number): label for number, label in enumerate(labels)}
    return dataclasses.replace(read_image_config({**fields, "id2label": named}), dropout=dropout)


def _start(folder: Path, fields: Mapping[str, Any]) -> Start:
    """Read the weights of a folder, by the names of luban's network behind its scaling."""
    config = read_image_config(fields, folder / "config.json")
    labels = fields.get("id2label")
    known = None
    if isinstance(labels, Mapping) and all(str(key).isdecimal() for key in labels):
        known = [labels[key] for key in sorted(labels, key=int)]
    tensors = read_image_weights(config, read_tensors(folder))
    outputs = frozenset(f"{_NETWORK}{name}" for name in _OUTPUTS)
    return Start({f"{_NETWORK}{name}": t for name, t in tensors.items()}, {"labels": known}, {}, outputs)


def _weights_out(config: ImageConfig, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights of a network behind its scaling by the family's names; the scaling stands elsewhere."""
    inner = {n.removeprefix(_NETWORK): t for n, t in weights.items() if n.startswith(_NETWORK)}
    return write_image_weights(config, inner)


def _weights_in(
    config: ImageConfig, weights: Mapping[str, Tensor], scaling: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Return a folder's weights by the names of a network behind its scaling."""
    return {**scaling, **{f"{_NETWORK}{n}": t for n, t in read_image_weights(config, weights).items()}}


def _preprocessor(size: Sequence[int], mean: Sequence[float], spread: Sequence[float]) -> dict[str, Any]:
    """Return preprocessor_config.json: how other tools bring pictures to numbers."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size[0], "width": size[1]},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(spread),
    }
