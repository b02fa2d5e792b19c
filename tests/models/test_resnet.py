"""ResNet against transformers' in both directions; the small stem against the layers it stands for."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from luban.errors import InputError
from luban.models.image_layouts import (
    new_image_module,
    read_image_config,
    read_image_weights,
    write_image_config,
    write_image_weights,
)
from luban.models.resnet import Convolution, ResNet, ResNetConfig

transformers = pytest.importorskip("transformers")

FIELDS = {"embedding_size": 6, "hidden_sizes": [6, 8, 12], "depths": [2, 1, 2], "layer_type": "basic"}
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


def stir(module: nn.Module) -> nn.Module:
    """Move norms and their statistics away from zero and one."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return module.eval()


def foreign() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(**FIELDS, **LABELS)
    return stir(transformers.ResNetForImageClassification(config))


def test_their_model_gives_their_logits_here() -> None:
    theirs = foreign()
    config = read_image_config(theirs.config.to_dict())
    assert config == ResNetConfig(3, stem="large", stem_width=6, widths=(6, 8, 12), depths=(2, 1, 2))
    ours = new_image_module(config).eval()
    ours.load_state_dict(read_image_weights(config, theirs.state_dict()))
    images = torch.randn(2, 3, 37, 50)
    torch.testing.assert_close(ours(images), theirs(images).logits)


def test_our_folder_gives_our_logits_there(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = ResNetConfig(3, stem="large", stem_width=6, widths=(6, 8), depths=(1, 2))
    ours = stir(ResNet(config))
    fields = write_image_config(config, ["a", "b", "c"])
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file(
        write_image_weights(config, ours.state_dict()),
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    theirs, loading = transformers.ResNetForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert theirs.config.id2label[2] == "c"
    images = torch.randn(2, 3, 33, 40)
    torch.testing.assert_close(ours(images), theirs.eval()(images).logits)


def test_the_small_stem_is_a_convolution_that_keeps_the_size() -> None:
    theirs = foreign()
    theirs.resnet.embedder.embedder.convolution = nn.Conv2d(3, 6, 3, padding=1, bias=False)
    theirs.resnet.embedder.pooler = nn.Identity()
    config = ResNetConfig(3, stem_width=6, widths=(6, 8, 12), depths=(2, 1, 2))
    ours = ResNet(config).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images).logits)


def test_a_block_begins_as_its_shortcut() -> None:
    torch.manual_seed(0)
    model = ResNet(ResNetConfig(3, stem_width=6, widths=(6, 8), depths=(2, 2)))
    x = torch.rand(4, 6, 8, 8)
    block = model.resnet.encoder["stages"][0].layers[0]
    torch.testing.assert_close(block(x), x)
    variances = [m.weight.var() * m.weight[:, 0].numel() for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(1.2 < variance < 3.0 for variance in variances), variances


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_type": "bottleneck"}, "layer_type is not supported"),
        ({"layer_type": None}, "layer_type is not supported"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage"),
        ({"hidden_sizes": "all"}, "hidden_sizes must be a list"),
        ({"hidden_sizes": [6, True, 8]}, "positive integer"),
        ({"depths": [1]}, "widths and depths differ"),
        ({"model_type": "resnets"}, "model_type is not one"),
    ],
)
def test_what_luban_does_not_have_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_image_config({"model_type": "resnet", **FIELDS, **change}, "there/config.json")
    assert caught.value.where == "there/config.json"


def test_transformers_cannot_say_the_small_stem() -> None:
    with pytest.raises(InputError, match="small stem"):
        write_image_config(ResNetConfig(2), ["a", "b"])


@pytest.mark.parametrize("width", [1, 3, 4, 12])
def test_gradients_of_narrow_shortcuts_are_right_whatever_lies_side_by_side(width: int) -> None:
    """Channels side by side and few of them: what oneDNN computes for a strided filter of one place is wrong then."""
    torch.manual_seed(0)
    shortcut = Convolution(width, 8, kernel=1, stride=2)
    x, mixed = torch.randn(16, width, 16, 16), torch.randn(16, 8, 8, 8)
    exact = copy.deepcopy(shortcut).double()
    (shortcut(x.to(memory_format=torch.channels_last)) * mixed).sum().backward()
    (exact.normalization(F.conv2d(x.double(), exact.convolution.weight, stride=2)) * mixed).sum().backward()
    found, wanted = shortcut.convolution.weight.grad, exact.convolution.weight.grad
    torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-3)
