"""ViT against transformers' in both directions."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luban.errors import InputError
from luban.models.image_layouts import (
    new_image_module,
    read_image_config,
    read_image_weights,
    write_image_config,
    write_image_weights,
)
from luban.models.vit import ViT, ViTConfig

transformers = pytest.importorskip("transformers")

FIELDS = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "num_channels": 2,
}
CONFIG = ViTConfig(3, size=12, patch=4, layers=2, width=16, heads=4, channels=2, mlp_width=24)


def stir(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_their_folder_gives_their_logits_here(tmp_path: Path, qkv_bias: bool) -> None:
    torch.manual_seed(0)
    theirs = stir(
        transformers.ViTForImageClassification(
            transformers.ViTConfig(**FIELDS, qkv_bias=qkv_bias, num_labels=3, layer_norm_eps=1e-3)
        )
    )
    theirs.save_pretrained(tmp_path)
    config = read_image_config(json.loads((tmp_path / "config.json").read_text()))
    assert isinstance(config, ViTConfig) and config.qkv_bias == qkv_bias and config.classes == 3
    ours = new_image_module(config).eval()
    ours.load_state_dict(read_image_weights(config, load_file(tmp_path / "model.safetensors")))
    images = torch.randn(2, 2, 12, 12)
    torch.testing.assert_close(ours(images), theirs(images).logits, atol=1e-5, rtol=1e-5)


def test_our_folder_gives_our_logits_there(tmp_path: Path) -> None:
    torch.manual_seed(1)
    ours = stir(ViT(CONFIG))
    (tmp_path / "config.json").write_text(json.dumps(write_image_config(CONFIG, ["a", "b", "c"])))
    tensors = write_image_weights(CONFIG, ours.state_dict())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, loading = transformers.ViTForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    images = torch.randn(2, 2, 12, 12)
    torch.testing.assert_close(ours(images), theirs.eval()(images).logits, atol=1e-5, rtol=1e-5)
    back = read_image_weights(CONFIG, tensors)
    assert back.keys() == ours.state_dict().keys()


def test_a_base_model_is_read_without_its_pooler(tmp_path: Path) -> None:
    base = transformers.ViTModel(transformers.ViTConfig(**FIELDS))
    base.save_pretrained(tmp_path)
    state = read_image_weights(CONFIG, load_file(tmp_path / "model.safetensors"))
    missing = ViT(CONFIG).state_dict().keys() - state.keys()
    assert missing == {"classifier.weight", "classifier.bias"}
    assert state.keys() <= ViT(CONFIG).state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": [12, 16]}, "image_size must be a positive integer"),
        ({"image_size": 13}, "not a multiple of patch"),
        ({"num_attention_heads": 3}, "not a multiple of heads"),
        ({"hidden_act": "relu"}, "hidden_act is not supported"),
        ({"qkv_bias": "yes"}, "qkv_bias is not supported"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a positive number"),
        ({"num_hidden_layers": 1 << 40}, "positive integer"),
        ({"model_type": "bit"}, "did you mean vit"),
    ],
)
def test_what_luban_does_not_have_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_image_config({"model_type": "vit", **FIELDS, **change}, "there/config.json")
    assert caught.value.where == "there/config.json"


def test_the_initial_weights_are_as_stated() -> None:
    torch.manual_seed(0)
    model = ViT(ViTConfig(10, size=16, patch=4, layers=1, width=64, heads=2, init_std=0.05))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.ndim == 1:
            assert (parameter == 1).all()
        else:
            assert parameter.abs().max() <= 0.1
            if parameter.numel() > 500:
                assert abs(parameter.std() / 0.05 - 0.88) < 0.06  # of a normal cut at two deviations


def test_dropout_works_while_training_only() -> None:
    torch.manual_seed(0)
    model = stir(ViT(ViTConfig(3, size=8, patch=4, layers=1, width=16, heads=2, dropout=0.5)))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))
