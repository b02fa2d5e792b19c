"""transformers' layouts of picture classifiers: a config.json's fields and a checkpoint's names, to luban's and
back. Pure functions.

Read are the families vit and resnet (basic blocks). What a model would need and luban does not have is refused
by name: better no model than a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from luban.errors import InputError, nearest
from luban.models.resnet import ResNet, ResNetConfig
from luban.models.vit import ViT, ViTConfig

ImageConfig = ViTConfig | ResNetConfig
IMAGE_LAYOUTS = ("vit", "resnet")

_MANY = 1 << 24
# A name in a ViT checkpoint and in luban; what stands before and after is the same in both.
_VIT_NAMES = (
    ("vit.embeddings.patch_embeddings.projection.", "vit.embeddings.projection."),
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    ("vit.encoder.layer.", "vit.layers."),
)
_UNUSED = re.compile(r"vit\.pooler\..*")


def new_image_module(config: ImageConfig) -> ViT | ResNet:
    """Build the network of a configuration, freshly initialised."""
    return ViT(config) if isinstance(config, ViTConfig) else ResNet(config)


def read_image_config(fields: Mapping[str, Any], where: object = "config.json") -> ImageConfig:
    """Turn the fields of a config.json into luban's configuration; dropout is left off.

    Raises:
        InputError: naming the key, for a family or a feature that luban does not have.

    Example:
        >>> read_image_config({"model_type": "vit", "image_size": 32, "patch_size": 4, "num_labels": 3}).tokens
        65
    """
    reader = _Fields(fields, where)
    layout = fields.get("model_type")
    if layout not in IMAGE_LAYOUTS:
        close = nearest(str(layout), IMAGE_LAYOUTS)
        fix = (f"did you mean {close}? " if close else "") + f"luban reads {', '.join(IMAGE_LAYOUTS)}"
        raise InputError("model_type is not one that luban reads", received=layout, where=where, fix=fix)
    try:
        return _read_vit(reader) if layout == "vit" else _read_resnet(reader)
    except InputError as error:
        error.where = error.where or where  # sizes that do not fit each other
        raise


def write_image_config(config: ImageConfig, labels: Sequence[str]) -> dict[str, Any]:
    """Turn luban's configuration into the fields of a config.json, which transformers reads.

    Arguments:
        labels: the names of the classes, in order.

    Raises:
        InputError: for a ResNet with the small stem, which transformers does not have.
    """
    assert len(labels) == config.classes, "a label for each class"
    common = {
        "num_channels": config.channels,
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "torch_dtype": "float32",
    }
    if isinstance(config, ViTConfig):
        return {
            **common,
            "architectures": ["ViTForImageClassification"],
            "model_type": "vit",
            "image_size": config.size,
            "patch_size": config.patch,
            "hidden_size": config.width,
            "intermediate_size": config.mlp_width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "hidden_act": "gelu",
            "qkv_bias": config.qkv_bias,
            "layer_norm_eps": config.norm_eps,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": config.init_std,
        }
    if config.stem != "large":
        fix = "train with the large stem, or keep the folder as luban writes it"
        raise InputError("transformers has no ResNet with a small stem", received=config.stem, fix=fix)
    return {
        **common,
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "embedding_size": config.stem_width,
        "hidden_sizes": list(config.widths),
        "depths": list(config.depths),
        "layer_type": "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def read_image_weights(config: ImageConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a checkpoint's tensors into luban's, by name; a ViT's pooler, which classifies nothing, is left out.

    The names of a base model, which has no classifier, get their leading `vit.` or `resnet.`.
    """
    owner = "vit." if isinstance(config, ViTConfig) else "resnet."
    state = {}
    for name, tensor in tensors.items():
        full = name if name.startswith((owner, "classifier.")) else owner + name
        if _UNUSED.fullmatch(full):
            continue
        state[_renamed(full, 0) if owner == "vit." else full] = tensor
    return state


def write_image_weights(config: ImageConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn luban's tensors into those of the family's checkpoint, by name; contiguous."""
    vit = isinstance(config, ViTConfig)
    return {(_renamed(name, 1) if vit else name): tensor.contiguous() for name, tensor in state.items()}


def _renamed(name: str, side: int) -> str:
    """Return a ViT's name as the other side has it; `side` 0 is the checkpoint's, 1 luban's."""
    for names in _VIT_NAMES:
        name = name.replace(names[side], names[1 - side])
    return name


class _Fields:
    """The fields of a config.json, each read with its type checked."""

    def __init__(self, fields: Mapping[str, Any], where: object) -> None:
        self.fields, self.where = fields, where

    def integer(self, key: str, default: int) -> int:
        """A positive integer."""
        value = self.fields.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MANY:
            raise InputError(f"{key} must be a positive integer", received=value, where=self.where)
        return value

    def integers(self, key: str, default: list[int]) -> tuple[int, ...]:
        """A list of positive integers."""
        value = self.fields.get(key, default)
        if not isinstance(value, list) or not 0 < len(value) < 100:
            raise InputError(f"{key} must be a list of integers", received=value, where=self.where)
        return tuple(_Fields({key: item}, self.where).integer(key, 0) for item in value)

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.fields.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e300:
            raise InputError(f"{key} must be a positive number", received=value, where=self.where)
        return float(value)

    def only(self, key: str, allowed: tuple[Any, ...], default: Any) -> Any:
        """One of the values that luban has; absent is the family's default."""
        value = self.fields.get(key, default)
        if value not in allowed:
            fix = f"luban has {', '.join(map(str, allowed))}"
            raise InputError(f"{key} is not supported", received=value, where=self.where, fix=fix)
        return value

    def classes(self) -> int:
        """How many classes there are: as many as `id2label` names, else `num_labels`, else two."""
        labels = self.fields.get("id2label")
        if isinstance(labels, Mapping) and labels:
            return len(labels)
        return self.integer("num_labels", 2)


def _read_vit(fields: _Fields) -> ViTConfig:
    fields.only("hidden_act", ("gelu",), "gelu")
    width = fields.integer("hidden_size", 768)
    size = fields.fields.get("image_size", 224)
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        fields = _Fields({**fields.fields, "image_size": size[0]}, fields.where)
    return ViTConfig(
        classes=fields.classes(),
        size=fields.integer("image_size", 224),
        patch=fields.integer("patch_size", 16),
        layers=fields.integer("num_hidden_layers", 12),
        width=width,
        heads=fields.integer("num_attention_heads", 12),
        channels=fields.integer("num_channels", 3),
        mlp_width=fields.integer("intermediate_size", 3072),
        qkv_bias=fields.only("qkv_bias", (True, False), True),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        init_std=fields.number("initializer_range", 0.02),
    )


def _read_resnet(fields: _Fields) -> ResNetConfig:
    fields.only("layer_type", ("basic",), "bottleneck")
    fields.only("hidden_act", ("relu",), "relu")
    fields.only("downsample_in_first_stage", (False,), False)
    return ResNetConfig(
        classes=fields.classes(),
        channels=fields.integer("num_channels", 3),
        stem="large",
        stem_width=fields.integer("embedding_size", 64),
        widths=fields.integers("hidden_sizes", [256, 512, 1024, 2048]),
        depths=fields.integers("depths", [3, 4, 6, 3]),
    )
