"""The two small networks against the same layers in torch.nn, and against what their docstrings count."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from luban.errors import InputError
from luban.models.airbench import Airbench, AirbenchConfig
from luban.models.dropout import dropout
from luban.models.head import Head
from luban.models.lenet import LeNet, LeNetConfig, SmallConvNet, SmallConvNetConfig
from luban.models.resnet import ResNet, ResNetConfig


@pytest.mark.parametrize(("height", "width", "flat"), [(28, 28, 400), (32, 12, 16 * 6), (13, 30, 16 * 5)])
def test_lenet_is_its_layers(height: int, width: int, flat: int) -> None:
    torch.manual_seed(0)
    model = LeNet(LeNetConfig(classes=7, channels=2, height=height, width=width)).double()
    plain = nn.Sequential(
        *(nn.Conv2d(2, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(flat, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 7)),
    ).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), model.state_dict().values(), strict=True)))
    images = torch.randn(3, 2, height, width, dtype=torch.float64)
    torch.testing.assert_close(model(images), plain(images))


@pytest.mark.parametrize("training", [True, False])
def test_the_small_network_is_its_layers(training: bool) -> None:
    torch.manual_seed(0)
    model = SmallConvNet(SmallConvNetConfig(classes=7, channels=2, widths=(4, 5, 6, 7))).double()
    layers: list[nn.Module] = []
    for inputs, outputs, pooled in ((2, 4, True), (4, 5, True), (5, 6, False), (6, 7, False)):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
        layers += [nn.MaxPool2d(2)] if pooled else []
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(7, 7)]
    plain = nn.Sequential(*layers).double()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean)
    convolutions = [m for m in plain if isinstance(m, nn.Conv2d)]
    norms = [m for m in plain if isinstance(m, nn.BatchNorm2d)]
    for ours, theirs in zip(model.norms, norms, strict=True):
        ours.load_state_dict(theirs.state_dict())
    for ours, theirs in zip(model.convolutions, convolutions, strict=True):
        theirs.load_state_dict(ours.state_dict())
    plain[-1].load_state_dict(model.classifier.state_dict())
    images = torch.randn(3, 2, 13, 18, dtype=torch.float64)
    torch.testing.assert_close(model.train(training)(images), plain.train(training)(images))


def test_the_small_network_is_as_small_as_it_says() -> None:
    model = SmallConvNet(SmallConvNetConfig(classes=10, channels=3))
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    with torch.device("meta"):
        model = SmallConvNet(SmallConvNetConfig(classes=10))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 1, 28, 28))
    assert round(counter.get_total_flops() / 1e5) == 149


@pytest.mark.parametrize(
    "build", [lambda: LeNet(LeNetConfig(10)), lambda: SmallConvNet(SmallConvNetConfig(10))]
)
def test_signals_keep_their_size_at_the_start(build: Callable[[], nn.Module]) -> None:
    """He's rule: what the last hidden layer gives is of the input's order, whatever the depth."""
    torch.manual_seed(0)
    model = build()
    logits = model(torch.randn(64, 1, 28, 28))
    assert 0.3 < logits.std() < 4.0


def test_configurations_come_back_from_json_and_are_checked() -> None:
    assert LeNetConfig(10, widths=[6, 16], hidden=[120, 84]) == LeNetConfig(10)  # type: ignore[arg-type]
    assert SmallConvNetConfig(10, widths=[32, 64, 64, 64]) == SmallConvNetConfig(10)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="too small for LeNet"):
        LeNetConfig(10, height=11)
    with pytest.raises(InputError, match="four numbers"):
        SmallConvNetConfig(10, widths=(1, 2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="classes must be at least 1"):
        LeNetConfig(0)


def test_dropout_zeroes_what_the_last_layer_reads_and_only_while_training() -> None:
    networks = (
        LeNet(LeNetConfig(classes=3, dropout=0.5)),
        SmallConvNet(SmallConvNetConfig(classes=3, widths=(4, 4, 4, 4), dropout=0.5)),
        ResNet(ResNetConfig(classes=3, channels=1, stem_width=4, widths=(4,), depths=(1,), dropout=0.5)),
        Airbench(AirbenchConfig(classes=3, channels=1, widths=(4, 4, 4), dropout=0.5)),
    )
    for network in networks:
        torch.manual_seed(0)
        images = torch.randn(8, 1, 28, 28)
        network(images)  # norms have seen something
        network.eval()
        assert torch.equal(network(images), network(images))
        head = next(module for module in network.modules() if isinstance(module, Head))
        read: list[torch.Tensor] = []
        head.register_forward_pre_hook(lambda module, inputs, read=read: read.append(inputs[0]))
        network.train()
        torch.manual_seed(1)
        logits = network(images)
        torch.manual_seed(1)
        bias = 0.0 if head.bias is None else head.bias
        scale = 1 / 9 if isinstance(network, Airbench) else 1.0
        expected = (dropout(read[0], 0.5, True) @ head.weight.T + bias) * scale
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
